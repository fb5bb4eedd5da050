// Sampling from one row of logits by one block, with the meaning of cpu/sampling.h: NaN counts as
// −∞ and +∞ as the largest float, ties go to the lower id, the draw inverts the cumulative sum in
// token order. No sort: cuts are found by radix selection on the bits of the weights.
//
// Sums of weights are integers (44 fractional bits, weights are at most 1), so that they do not
// depend on the order of addition and every rank of a group draws the same token.
#pragma once

#include <cfloat>

#include "cuda/numeric.cuh"
#include "cuda/slots.h"

namespace nanoweave {

struct SamplingConfig {
  static constexpr int kThreads = 1024;
  static constexpr int kWarps = kThreads / kWarpSize;
  static constexpr int kBins = 2048;
};

using Mass = unsigned long long;
inline constexpr double kMassUnit = 0x1p44;
static_assert(kMaxSampledVocab * kMassUnit <= 0x1p62, "all tokens of weight 1 must fit a Mass");

struct SamplingShared {
  Mass bins[SamplingConfig::kBins];
  Mass sums[SamplingConfig::kWarps];
  float values[SamplingConfig::kWarps];
  int32_t tokens[SamplingConfig::kWarps];
  int32_t found_bin;
  int32_t found_token;
  Mass found_above;
};

struct TokenValue {
  float value;
  int32_t token;
};
// Larger first, ties to the lower id.
__device__ __forceinline__ bool precedes(const TokenValue& a, const TokenValue& b) {
  return a.value > b.value || (a.value == b.value && a.token < b.token);
}

// Philox4x32-10 (Salmon et al., SC 2011), as cpu/philox.h: uniform in [0, 1), 53 bits.
__device__ inline double philox_uniform_of(uint64_t seed, uint32_t position) {
  uint32_t counter[4] = {position, 0, 0, 0};
  uint32_t key[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53u} * counter[0];
    const uint64_t product1 = uint64_t{0xCD9E8D57u} * counter[2];
    const uint32_t next0 = static_cast<uint32_t>(product1 >> 32) ^ counter[1] ^ key[0];
    const uint32_t next2 = static_cast<uint32_t>(product0 >> 32) ^ counter[3] ^ key[1];
    counter[0] = next0;
    counter[1] = static_cast<uint32_t>(product1);
    counter[2] = next2;
    counter[3] = static_cast<uint32_t>(product0);
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  const uint64_t word = uint64_t{counter[0]} << 32 | counter[1];
  return static_cast<double>(word >> 11) * 0x1p-53;
}

// A token stays when its weight is above `weight`, or equal with an id up to `token`.
struct Cut {
  float weight = 0;
  int32_t token = INT32_MAX;

  __device__ __forceinline__ bool keeps(float w, int32_t id) const {
    return w > weight || (w == weight && id <= token);
  }
};

__device__ __forceinline__ Mass mass_of(float weight) {
  return static_cast<Mass>(static_cast<double>(weight) * kMassUnit + 0.5);
}

// All threads of the block call every function; `shared` is free when one returns.
class SamplingBlock {
 public:
  static constexpr int kThreads = SamplingConfig::kThreads;

  __device__ SamplingBlock(SamplingShared& shared, int vocab) : shared_(shared), vocab_(vocab) {}

  // body(token) for the tokens of this thread; neighbours in a warp are neighbours in memory.
  template <typename Body>
  __device__ __forceinline__ void for_tokens(const Body& body) const {
#pragma unroll 4
    for (int token = threadIdx.x; token < vocab_; token += kThreads) body(token);
  }

  // The first of all tokens in order of precedence by value_of(token) that is behind `behind`, if
  // one is given. NaN counts as −∞.
  template <typename ValueOf>
  __device__ TokenValue first(const ValueOf& value_of, const TokenValue* behind = nullptr) {
    TokenValue best{-INFINITY, INT32_MAX};
    for_tokens([&](int token) {
      const float value = value_of(token);
      const TokenValue entry{value == value ? value : -INFINITY, token};
      if (behind != nullptr && !precedes(*behind, entry)) return;
      if (precedes(entry, best)) best = entry;
    });
#pragma unroll
    for (int bit = kWarpSize / 2; bit > 0; bit /= 2) {
      const TokenValue other{__shfl_xor_sync(kFullWarp, best.value, bit),
                             __shfl_xor_sync(kFullWarp, best.token, bit)};
      if (precedes(other, best)) best = other;
    }
    if (lane_index() == 0) {
      shared_.values[warp_index()] = best.value;
      shared_.tokens[warp_index()] = best.token;
    }
    __syncthreads();
    for (int warp = 0; warp < SamplingConfig::kWarps; ++warp) {
      const TokenValue other{shared_.values[warp], shared_.tokens[warp]};
      if (precedes(other, best)) best = other;
    }
    __syncthreads();
    return best;
  }

  // Σ amount_of(token)
  template <typename AmountOf>
  __device__ Mass sum(const AmountOf& amount_of) {
    Mass total = 0;
    for_tokens([&](int token) { total += amount_of(token); });
    return block_total(total);
  }

  // The heaviest weights until a running total reaches `target`: the smallest weight that is
  // needed, and the total of those above it. amount_of(weight, token) is 0 for tokens that do not
  // take part; target > 0.
  template <typename AmountOf>
  __device__ float boundary(const float* weights, const AmountOf& amount_of, Mass target,
                            Mass& above) {
    // Bits 30..20 of a weight (its sign is 0), then 19..9, then 8..0.
    constexpr int kShifts[] = {20, 9, 0};
    constexpr int kBits[] = {11, 11, 9};
    uint32_t prefix = 0;
    above = 0;
#pragma unroll
    for (int level = 0; level < 3; ++level) {
      const int shift = kShifts[level], bits = kBits[level];
      clear_bins();
      for_tokens([&](int token) {
        const uint32_t word = bit_cast_to<uint32_t>(weights[token]);
        if (word >> (shift + bits) != prefix) return;
        const Mass amount = amount_of(weights[token], token);
        if (amount > 0) atomicAdd(&shared_.bins[word >> shift & ((1u << bits) - 1)], amount);
      });
      __syncthreads();
      prefix = prefix << bits | static_cast<uint32_t>(find_bin(1 << bits, target, above));
    }
    return bit_cast_to<float>(prefix);
  }

  // The id of the `rank`-th token (from 1) that fits(token), in token order; INT32_MAX when fewer
  // do.
  template <typename Fits>
  __device__ int32_t nth_token(const Fits& fits, Mass rank) {
    return token_at([&](int token) { return fits(token) ? Mass{1} : Mass{0}; }, rank - 1);
  }

  // The token at which the cumulative sum of amount_of(token), in token order, passes `target`;
  // INT32_MAX when it never does. Three levels: the part of a warp, a 32nd of it, then its tokens.
  template <typename AmountOf>
  __device__ int32_t token_at(const AmountOf& amount_of, Mass target) {
    constexpr int kParts = SamplingConfig::kWarps;
    int begin = 0, end = vocab_;
#pragma unroll
    for (int level = 0; level < 2; ++level) {
      const int length = (end - begin + kParts - 1) / kParts;
      const int first = begin + warp_index() * length, last = min(first + length, end);
      Mass total = 0;
      for (int token = first + lane_index(); token < last; token += kWarpSize)
        total += amount_of(token);
      total = warp_total(total);
      if (lane_index() == 0) shared_.sums[warp_index()] = total;
      __syncthreads();
      int part = 0;
      while (part < kParts && target >= shared_.sums[part]) target -= shared_.sums[part++];
      __syncthreads();
      if (part == kParts) return INT32_MAX;
      begin += part * length;
      end = min(begin + length, end);
    }
    if (warp_index() == 0) scan(amount_of, target, begin, end);
    __syncthreads();
    const int32_t token = shared_.found_token;
    __syncthreads();
    return token;
  }

 private:
  __device__ __forceinline__ static Mass warp_total(Mass value) {
#pragma unroll
    for (int bit = kWarpSize / 2; bit > 0; bit /= 2)
      value += __shfl_xor_sync(kFullWarp, value, bit);
    return value;
  }
  __device__ Mass block_total(Mass value) {
    value = warp_total(value);
    if (lane_index() == 0) shared_.sums[warp_index()] = value;
    __syncthreads();
    Mass total = 0;
    for (int warp = 0; warp < SamplingConfig::kWarps; ++warp) total += shared_.sums[warp];
    __syncthreads();
    return total;
  }

  __device__ void clear_bins() {
    for (int bin = threadIdx.x; bin < SamplingConfig::kBins; bin += kThreads) shared_.bins[bin] = 0;
    __syncthreads();
  }

  // The bin, from the top, in which the running total reaches `target`; `above` grows by what is
  // over it. One warp walks the bins, 32 at a time.
  __device__ int find_bin(int bins, Mass target, Mass& above) {
    if (warp_index() == 0) {
      Mass running = above;
      int found = 0;
      for (int top = bins - 1; top >= 0; top -= kWarpSize) {
        const Mass own = shared_.bins[top - lane_index()];
        Mass through = own;  // of this bin and the lanes above it
#pragma unroll
        for (int delta = 1; delta < kWarpSize; delta *= 2) {
          const Mass other = __shfl_up_sync(kFullWarp, through, delta);
          if (lane_index() >= delta) through += other;
        }
        const uint32_t reached = __ballot_sync(kFullWarp, running + through >= target);
        const int lane = reached != 0 ? __ffs(static_cast<int>(reached)) - 1 : kWarpSize - 1;
        const Mass through_found = __shfl_sync(kFullWarp, through, lane);
        const Mass own_found = __shfl_sync(kFullWarp, own, lane);
        if (reached != 0 || top < kWarpSize) {
          // Past the last bin all amounts together fall short of the target: all are needed.
          found = top - lane;
          running += through_found - own_found;
          break;
        }
        running += through_found;
      }
      if (lane_index() == 0) {
        shared_.found_bin = found;
        shared_.found_above = running;
      }
    }
    __syncthreads();
    const int bin = shared_.found_bin;
    above = shared_.found_above;
    __syncthreads();
    return bin;
  }

  // One warp: the token of [begin, end) at which the cumulative amount passes `target`.
  template <typename AmountOf>
  __device__ void scan(const AmountOf& amount_of, Mass target, int begin, int end) {
    int32_t found = INT32_MAX;
    for (int first = begin; first < end && found == INT32_MAX; first += kWarpSize) {
      const int token = first + lane_index();
      Mass through = token < end ? amount_of(token) : 0;
#pragma unroll
      for (int delta = 1; delta < kWarpSize; delta *= 2) {
        const Mass other = __shfl_up_sync(kFullWarp, through, delta);
        if (lane_index() >= delta) through += other;
      }
      const uint32_t passed = __ballot_sync(kFullWarp, through > target);
      if (passed != 0) found = first + __ffs(static_cast<int>(passed)) - 1;
      target -= __shfl_sync(kFullWarp, through, kWarpSize - 1);
    }
    if (lane_index() == 0) shared_.found_token = found;
  }

  SamplingShared& shared_;
  const int vocab_;
};

}  // namespace nanoweave
