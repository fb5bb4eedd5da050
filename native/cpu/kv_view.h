// The layout of a paged KV buffer, [blocks, planes, kv_heads, block_size, head_dim]: keys in plane
// 0, values in plane 1; KV slot s = block · block_size + offset. A latent cache has one plane: its
// values are the first elements of its keys.
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
  int64_t planes = 2;

  DType dtype() const { return kv.dtype; }
  // First key and first value of one head in one block; block_size rows of head_dim follow.
  std::byte* keys(int64_t block, int64_t head) const { return at(block, 0, head, 0); }
  std::byte* values(int64_t block, int64_t head) const { return at(block, planes - 1, head, 0); }
  // Key and value of one token.
  std::byte* key(int64_t slot, int64_t head) const {
    return at(slot / block_size, 0, head, slot % block_size);
  }
  std::byte* value(int64_t slot, int64_t head) const {
    return at(slot / block_size, planes - 1, head, slot % block_size);
  }

 private:
  std::byte* at(int64_t block, int64_t plane, int64_t head, int64_t offset) const {
    const int64_t row = ((block * planes + plane) * kv_heads + head) * block_size + offset;
    return kv.data + row * head_dim * dtype_bytes(kv.dtype);
  }
};

}  // namespace nanoweave
