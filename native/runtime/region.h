// Region: anonymous zeroed memory straight from the kernel, committed page by page as it is
// touched, so a large heap or KV cache costs nothing until it is used. Given back at once when
// destroyed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

namespace nanoweave {

class Region {
 public:
  Region() = default;
  // `huge_pages`: ask for them; for memory that will be touched throughout (weights).
  // ERR_OUT_OF_MEMORY when the address space cannot be had; `what` names it in the message.
  Region(int64_t bytes, bool huge_pages, const char* what);
  ~Region();
  Region(Region&& other) noexcept { swap(other); }
  Region& operator=(Region&& other) noexcept {
    swap(other);
    return *this;
  }

  std::byte* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  void swap(Region& other) {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
  }

  std::byte* data_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace nanoweave
