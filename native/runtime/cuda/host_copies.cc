#include "runtime/cuda/host_copies.h"

#include <algorithm>
#include <cstring>

namespace nanoweave {

namespace {

constexpr size_t kTileBytes = size_t{1} << 20;

}  // namespace

void HostCopies::copy(int device, void* to, const void* from, size_t bytes) {
  use_device(device);
  const DeviceStream stream(false);
  copy_async(to, from, static_cast<int64_t>(bytes), stream.get());
  stream.synchronize();
}

void HostCopies::read(int device, const std::byte* from, std::span<std::byte> to) {
  if (tile_.bytes() == 0) tile_ = PinnedMemory(kTileBytes, "reading and writing buffers");
  for (size_t at = 0; at < to.size(); at += kTileBytes) {
    const size_t bytes = std::min(kTileBytes, to.size() - at);
    copy(device, tile_.data(), from + at, bytes);
    std::memcpy(to.data() + at, tile_.data(), bytes);
  }
}

void HostCopies::write(int device, std::byte* to, std::span<const std::byte> from) {
  if (tile_.bytes() == 0) tile_ = PinnedMemory(kTileBytes, "reading and writing buffers");
  for (size_t at = 0; at < from.size(); at += kTileBytes) {
    const size_t bytes = std::min(kTileBytes, from.size() - at);
    std::memcpy(tile_.data(), from.data() + at, bytes);
    copy(device, to + at, tile_.data(), bytes);
  }
}

}  // namespace nanoweave
