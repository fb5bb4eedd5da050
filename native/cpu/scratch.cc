#include "cpu/scratch.h"

#include <new>

namespace nanoweave {

namespace {
constexpr std::align_val_t kAlignment{64};
}

void Scratch::Free::operator()(std::byte* pointer) const { ::operator delete(pointer, kAlignment); }

std::byte* Scratch::get(int64_t bytes) {
  if (bytes > capacity_) {
    const int64_t grown = bytes > 2 * capacity_ ? bytes : 2 * capacity_;
    data_.reset();  // contents need not survive
    capacity_ = 0;
    data_.reset(static_cast<std::byte*>(::operator new(static_cast<size_t>(grown), kAlignment)));
    capacity_ = grown;
  }
  return data_.get();
}

}  // namespace nanoweave
