// WeightStore: the weight and KV buffers of all ranks of a CPU device, filled from a
// WeightManifest. Runtime's control thread only; ranks read the memory during steps.
#pragma once

#include <string>
#include <unordered_map>
#include <vector>

#include "runtime/backend.h"
#include "runtime/region.h"
#include "runtime/stored_buffer.h"

namespace nanoweave {

class WeightStore {
 public:
  explicit WeightStore(int world) : world_(world) {}

  // Loads with up to `num_threads` threads. All or nothing: a failure leaves the store as it was.
  // ERR_OUT_OF_MEMORY before reading when the buffers exceed the memory available.
  void load(const WeightManifest& manifest, const ProgressCallback& progress, int num_threads);

  const StoredBuffer* find(const std::string& name) const;  // null: not loaded

  // Row-major bytes of a buffer, unpacked.
  std::vector<uint8_t> read(const std::string& name, int rank) const;
  // Overwrites the first bytes of a KV buffer.
  void write(const std::string& name, int rank, const std::vector<uint8_t>& bytes);

 private:
  const StoredBuffer& get(const std::string& name, int rank) const;

  const int world_;
  std::vector<Region> regions_;
  std::unordered_map<std::string, StoredBuffer> buffers_;
};

}  // namespace nanoweave
