// CudaWeights: the weight and KV buffers of all ranks, each in the memory of its rank's device,
// row-major in every layout. Filled by threads that read, convert and upload: a thread holds two
// page-locked tiles and fills one while the other is copied. Control thread only.
#pragma once

#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "runtime/backend.h"
#include "runtime/cuda/host_copies.h"
#include "runtime/stored_buffer.h"

namespace nanoweave {

class CudaWeights {
 public:
  CudaWeights(std::vector<int> device_of, HostCopies& copies)
      : device_of_(std::move(device_of)), copies_(copies) {}

  // All or nothing. ERR_OUT_OF_MEMORY before reading when a device cannot hold its ranks' buffers.
  void load(const WeightManifest& manifest, const ProgressCallback& progress);

  const StoredBuffer* find(const std::string& name) const;  // null: not loaded
  std::vector<uint8_t> read(const std::string& name, int rank);
  // Overwrites the first bytes of a KV buffer.
  void write(const std::string& name, int rank, const std::vector<uint8_t>& bytes);

 private:
  const StoredBuffer& get(const std::string& name, int rank) const;

  const std::vector<int> device_of_;  // [world]
  HostCopies& copies_;
  std::vector<DeviceMemory> memory_;
  std::vector<PinnedMemory> host_memory_;  // swapped-out KV blocks
  std::unordered_map<std::string, StoredBuffer> buffers_;
};

}  // namespace nanoweave
