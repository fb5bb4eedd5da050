// What the kernels of latent attention share: the sizes of latent vectors they take.
#pragma once

#include "cuda/rows.cuh"

namespace nanoweave {

inline constexpr int64_t kMaxLatentDim = 512;
inline constexpr int64_t kMaxLatentRope = 128;

struct LatentSize {
  int32_t heads, latent, rope;

  NANOWEAVE_HD int32_t dim() const { return latent + rope; }  // of a vector of the cache
};

inline LatentSize latent_size(const OpInstance& op) {
  const LatentSize size{.heads = static_cast<int32_t>(op.integer("heads")),
                        .latent = static_cast<int32_t>(op.integer("latent_dim")),
                        .rope = static_cast<int32_t>(op.integer("rope_dim"))};
  op.require(size.latent <= kMaxLatentDim && size.rope <= kMaxLatentRope,
             "latent_dim above %lld or rope_dim above %lld on CUDA",
             static_cast<long long>(kMaxLatentDim), static_cast<long long>(kMaxLatentRope));
  return size;
}

}  // namespace nanoweave
