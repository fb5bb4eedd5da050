// Scratch: temporary memory of one CPU rank, grown outside steps where sizes are known (reserve in
// prepare) and otherwise on first use; never freed during a run. 64-byte aligned.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace nanoweave {

struct Scratch {
  // At least `bytes` bytes, valid until the next call to get().
  std::byte* get(int64_t bytes);

 private:
  struct Free {
    void operator()(std::byte* pointer) const;
  };
  std::unique_ptr<std::byte, Free> data_;
  int64_t capacity_ = 0;
};

}  // namespace nanoweave
