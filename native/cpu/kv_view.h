// The layout of a paged KV buffer, [blocks, 2, kv_heads, block_size, head_dim]: keys at index 0,
// values at 1; KV slot s = block · block_size + offset.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/tensor.h"

namespace nanoweave {

struct KvView {
  Tensor kv;
  int64_t kv_heads;
  int64_t block_size;
  int64_t head_dim;

  DType dtype() const { return kv.dtype; }
  // First key and first value of one head in one block; block_size rows of head_dim follow.
  std::byte* keys(int64_t block, int64_t head) const { return at(block, 0, head, 0); }
  std::byte* values(int64_t block, int64_t head) const { return at(block, 1, head, 0); }
  // Key and value of one token.
  std::byte* key(int64_t slot, int64_t head) const {
    return at(slot / block_size, 0, head, slot % block_size);
  }
  std::byte* value(int64_t slot, int64_t head) const {
    return at(slot / block_size, 1, head, slot % block_size);
  }

 private:
  std::byte* at(int64_t block, int64_t which, int64_t head, int64_t offset) const {
    return kv.data + ((((block * 2 + which) * kv_heads + head) * block_size + offset) * head_dim) *
                         dtype_bytes(kv.dtype);
  }
};

}  // namespace nanoweave
