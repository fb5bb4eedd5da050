#include "cuda/check/guarded.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <new>

namespace nanoweave::check {

namespace {

constexpr int64_t kHeapAlignment = 64;

int64_t page_bytes() {
  static const int64_t bytes = sysconf(_SC_PAGESIZE);
  return bytes;
}

int64_t whole_pages(int64_t bytes) {
  return (bytes + page_bytes() - 1) / page_bytes() * page_bytes();
}

std::byte* map_pages(int64_t bytes) {
  void* memory = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  return static_cast<std::byte*>(memory);
}

}  // namespace

GuardedMemory::GuardedMemory(int64_t bytes, int64_t alignment) : bytes_(bytes) {
  const int64_t pages = whole_pages(bytes);
  mapping_bytes_ = pages + page_bytes();
  mapping_ = map_pages(mapping_bytes_);
  std::memset(mapping_, 0xff, static_cast<size_t>(pages));
  mprotect(mapping_ + pages, static_cast<size_t>(page_bytes()), PROT_NONE);
  data_ = mapping_ + (pages - (bytes + alignment - 1) / alignment * alignment);
}

GuardedMemory::~GuardedMemory() {
  if (mapping_ != nullptr) munmap(mapping_, static_cast<size_t>(mapping_bytes_));
}

bool GuardedMemory::intact() const {
  const std::byte* end = mapping_ + (mapping_bytes_ - page_bytes());
  for (const std::byte* at = mapping_; at < data_; ++at)
    if (*at != std::byte{0xff}) return false;
  for (const std::byte* at = data_ + bytes_; at < end; ++at)
    if (*at != std::byte{0xff}) return false;
  return true;
}

int64_t GuardedHeap::lay_out(const int64_t* sizes, int count, int64_t* offsets) {
  int64_t used = 0;
  for (int i = 0; i < count; ++i) {
    const int64_t pages = whole_pages(sizes[i]);
    const int64_t padded = (sizes[i] + kHeapAlignment - 1) / kHeapAlignment * kHeapAlignment;
    offsets[i] = used + pages - padded;
    used += pages + page_bytes();
  }
  return used;
}

GuardedHeap::GuardedHeap(int64_t bytes, const int64_t* sizes, const int64_t* offsets, int count)
    : data_(map_pages(bytes)), bytes_(bytes) {
  std::memset(data_, 0xff, static_cast<size_t>(bytes));
  for (int i = 0; i < count; ++i) {
    const int64_t end = whole_pages(offsets[i] + sizes[i]);
    mprotect(data_ + end, static_cast<size_t>(page_bytes()), PROT_NONE);
  }
}

GuardedHeap::~GuardedHeap() {
  if (data_ != nullptr) munmap(data_, static_cast<size_t>(bytes_));
}

}  // namespace nanoweave::check
