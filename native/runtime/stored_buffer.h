// StoredBuffer: a weight or KV buffer as a backend holds it on its ranks.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "program/manifest.h"

namespace nanoweave {

struct StoredBuffer {
  std::string name;
  Space space = Space::kWeight;
  DType dtype = DType::kF32;
  Layout layout = Layout::kPlain;
  std::vector<int64_t> shape;
  int64_t rows = 0, cols = 0;         // as a matrix; a vector is [1, n]
  int64_t bytes = 0;                  // as stored
  std::vector<std::byte*> data = {};  // [world]
  int64_t host_blocks = 0;            // kv: rows of the region steps swap to
  std::vector<std::byte*> host = {};  // [world]; null without host blocks

  int64_t row_bytes() const { return cols * dtype_bytes(dtype); }
  int64_t host_bytes() const { return host_blocks * row_bytes(); }
};

// Everything but `data` and `host`; bytes are those of the rows, row by row.
StoredBuffer describe_stored(const WeightBuffer& buffer);

// ERR_PROGRAM unless `stored` (null: not loaded) is what the program says it is, and a KV buffer
// has the host blocks it swaps to.
const StoredBuffer& require_stored(const BufferDesc& buffer, const StoredBuffer* stored,
                                   int64_t host_blocks);

}  // namespace nanoweave
