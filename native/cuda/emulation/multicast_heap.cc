// MulticastHeap in the emulation: heaps of ordinary memory, and a range of addresses that the
// machine resolves to all of them and nobody else may touch. NANOWEAVE_EMULATION_MULTICAST=1 makes
// a machine that has it.
#include "cuda/multicast_heap.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>

#include "core/error.h"
#include "cuda/emulation/machine.h"

namespace nanoweave {

namespace {

std::byte* map_pages(int64_t bytes, int protection) {
  void* memory =
      mmap(nullptr, static_cast<size_t>(bytes), protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED)
    fail(ErrorCode::kOutOfMemory, "no %lld bytes for an emulated heap",
         static_cast<long long>(bytes));
  return static_cast<std::byte*>(memory);
}

}  // namespace

struct MulticastHeap::Impl {
  int64_t bytes = 0;
  emulation::Multicast range{};

  ~Impl() {
    if (range.base != nullptr) {
      emulation::Machine::instance().remove_multicast(range.base);
      munmap(range.base, range.bytes);
    }
    for (std::byte* heap : range.heaps) munmap(heap, static_cast<size_t>(bytes));
  }
};

MulticastHeap::MulticastHeap(std::unique_ptr<Impl> impl)
    : impl_(std::move(impl)), heaps_(impl_->range.heaps), multicast_(impl_->range.base) {}

MulticastHeap::~MulticastHeap() = default;

std::unique_ptr<MulticastHeap> MulticastHeap::create(std::span<const int> devices,
                                                     std::span<const int>, int64_t bytes,
                                                     std::string& why) {
  why = refuse_multicast(devices);
  const char* has_multicast = std::getenv("NANOWEAVE_EMULATION_MULTICAST");
  if (why.empty() && (has_multicast == nullptr || std::strcmp(has_multicast, "1") != 0))
    why = "the emulated devices have no multicast";
  if (!why.empty()) return nullptr;
  auto impl = std::make_unique<Impl>();
  impl->bytes = bytes;
  for (size_t i = 0; i < devices.size(); ++i) {
    impl->range.heaps.push_back(map_pages(bytes, PROT_READ | PROT_WRITE));
    std::memset(impl->range.heaps.back(), 0xff, static_cast<size_t>(bytes));  // NaN, −1
  }
  impl->range.bytes = static_cast<size_t>(bytes);
  impl->range.base = map_pages(bytes, PROT_NONE);
  emulation::Machine::instance().add_multicast(impl->range);
  return std::unique_ptr<MulticastHeap>(new MulticastHeap(std::move(impl)));
}

}  // namespace nanoweave
