// HostCopies: copies between ordinary host memory and a device, through a page-locked tile. CUDA
// itself would wait for ordinary memory inside the call, without a deadline. Control thread, with
// no step running.
#pragma once

#include <span>

#include "cuda/device.h"

namespace nanoweave {

class HostCopies {
 public:
  void read(int device, const std::byte* from, std::span<std::byte> to);
  void write(int device, std::byte* to, std::span<const std::byte> from);

 private:
  // Copies between the tile and the device, and waits.
  void copy(int device, void* to, const void* from, size_t bytes);

  PinnedMemory tile_;  // taken with the first copy
};

}  // namespace nanoweave
