// split_rope_cache: qkv [T, (Hq + 2·Hkv)·D] → q [T, Hq·D], keys and values into the KV slots of the
// tokens. Each q and k head is normalised (where a weight is given), then its first rotary_dim
// elements are rotated in pairs (i, i + rotary_dim/2). With `means` a head is scaled by the mean of
// the squares of all heads of the group. Rows with slot −1 write no KV.
//
// One warp per head of a row: the head waits in shared memory as float32 so that both halves of a
// pair are at hand. Stays in the rank. Bytes per token: (Hq + 2·Hkv)·D elements read and written.
#include "cuda/norm_row.cuh"
#include "cuda/rows.cuh"

namespace nanoweave {

namespace {

struct SplitRopeConfig {
  static constexpr int kWarps = 8;
  static constexpr int kThreads = kWarps * kWarpSize;
  static constexpr int kBlocksPerSm = 8;
};

struct SplitRopeArgs {
  RowsRef rows;
  const int32_t* kv_slots;  // [T]
  const std::byte* qkv;     // [T, (heads + 2·kv_heads)·head_dim]
  const float* table;       // [T, rotary]: cosines, then sines
  const float* q_norm;      // [head_dim], with means [heads, head_dim], or null
  const float* k_norm;      // [head_dim], with means [kv_heads, head_dim], or null
  const float* means;       // [T, 2] of the squares of query heads and of key heads, or null
  std::byte* q;             // [T, heads·head_dim]
  std::byte* kv;            // [blocks, 2, kv_heads, block_size, head_dim]
  DType kv_dtype;
  int32_t heads, kv_heads, head_dim, rotary, block_size;
  float eps;
};

struct SplitRopeShared {
  alignas(16) float heads[1];  // [kWarps, head_dim]
};

int64_t split_rope_shared_bytes(int64_t head_dim) {
  return SplitRopeConfig::kWarps * head_dim * static_cast<int64_t>(sizeof(float));
}

// Row of the KV cache that a slot's key (which = 0) or value (1) has, in elements.
__device__ int64_t kv_offset(const SplitRopeArgs& args, int32_t slot, int which, int kv_head) {
  const int64_t block = slot / args.block_size;
  const int64_t row =
      ((block * 2 + which) * args.kv_heads + kv_head) * args.block_size + slot % args.block_size;
  return row * args.head_dim;
}

template <int kWidth>
__device__ float mean_square(const float* head, int head_dim) {
  float sum = 0;
  for (int i = lane_index() * kWidth; i < head_dim; i += kWarpSize * kWidth) {
    float values[kWidth];
    get_floats(head + i, values);
    sum += squares(values);
  }
  return warp_sum(sum) / static_cast<float>(head_dim);
}

// This warp's head times scale and weight, in place. Every lane scales what it loaded.
template <int kWidth>
__device__ void scale_head(float* head, const float* weight, float scale, int head_dim) {
  for (int i = lane_index() * kWidth; i < head_dim; i += kWarpSize * kWidth) {
    float values[kWidth];
    scale_by_weight(head + i, weight + i, scale, values);
    put_floats(head + i, values);
  }
}

__device__ float rotated(const float* head, const float* table, int i, int rotary) {
  const int half = rotary / 2;
  if (i >= rotary) return head[i];
  if (i < half) return head[i] * table[i] - head[i + half] * table[half + i];
  return head[i] * table[i - half] + head[i - half] * table[i];
}

// kSameKv: the cache is of type T.
template <typename T, int kWidth, bool kSameKv>
__global__ void __launch_bounds__(SplitRopeConfig::kThreads)
    split_rope_cache_kernel(const __grid_constant__ SplitRopeArgs args) {
  float* head =
      shared_memory<SplitRopeShared>(SplitRopeConfig::kWarps * args.head_dim * sizeof(float))
          .heads +
      warp_index() * args.head_dim;
  ptx::wait_for_previous_kernel();
  ptx::allow_next_kernel();
  const RowRange rows = rows_of(args.rows);
  const uint32_t per_row = args.heads + 2 * args.kv_heads;
  const uint32_t items = rows.count * per_row;  // below 2^32: checked by the launcher
  const uint32_t stride = gridDim.x * SplitRopeConfig::kWarps;
  for (uint32_t item = blockIdx.x * SplitRopeConfig::kWarps + warp_index(); item < items;
       item += stride) {
    const int64_t row = rows.begin + static_cast<int64_t>(item / per_row);
    const int h = static_cast<int>(item % per_row);
    const bool is_q = h < args.heads;
    const bool is_k = !is_q && h < args.heads + args.kv_heads;
    const int32_t slot = is_q ? 0 : args.kv_slots[row];
    if (slot < 0) continue;

    const T* from = reinterpret_cast<const T*>(args.qkv) + (row * per_row + h) * args.head_dim;
    for (int i = lane_index() * kWidth; i < args.head_dim; i += kWarpSize * kWidth) {
      float values[kWidth];
      load_vector<T, kWidth>(from + i, values);
      put_floats(head + i, values);
    }
    const float* weight = is_q ? args.q_norm : is_k ? args.k_norm : nullptr;
    if (weight != nullptr) {
      const bool together = args.means != nullptr;
      const float mean = together ? args.means[row * 2 + (is_q ? 0 : 1)]
                                  : mean_square<kWidth>(head, args.head_dim);
      const int first = together ? (is_q ? h : h - args.heads) * args.head_dim : 0;
      scale_head<kWidth>(head, weight + first, 1.0f / sqrtf(mean + args.eps), args.head_dim);
    }
    __syncwarp();

    const float* table = args.table + row * args.rotary;
    const int rotary = is_q || is_k ? args.rotary : 0;
    const int kv_head = is_k ? h - args.heads : h - args.heads - args.kv_heads;
    const int64_t to = is_q ? (row * args.heads + h) * args.head_dim
                            : kv_offset(args, slot, is_k ? 0 : 1, kv_head);
    for (int i = lane_index() * kWidth; i < args.head_dim; i += kWarpSize * kWidth) {
      float values[kWidth];
#pragma unroll
      for (int j = 0; j < kWidth; ++j) values[j] = rotated(head, table, i + j, rotary);
      if (is_q) {
        store_vector<T, kWidth>(reinterpret_cast<T*>(args.q) + to + i, values);
      } else if constexpr (kSameKv) {
        store_vector<T, kWidth>(reinterpret_cast<T*>(args.kv) + to + i, values);
      } else {
#pragma unroll
        for (int j = 0; j < kWidth; ++j)
          store_element(args.kv_dtype, args.kv, to + i + j, values[j]);
      }
    }
    __syncwarp();  // the next head overwrites this one
  }
}

}  // namespace

CudaKernel prepare_cuda_split_rope_cache(const OpInstance& op, const CudaPlan&) {
  const BufferDesc& q = op.output(0);
  SplitRopeArgs constant{};
  constant.kv_dtype = op.output(1).dtype;
  constant.heads = static_cast<int32_t>(op.integer("heads"));
  constant.kv_heads = static_cast<int32_t>(op.integer("kv_heads"));
  constant.head_dim = static_cast<int32_t>(op.integer("head_dim"));
  constant.rotary = static_cast<int32_t>(op.integer("rotary_dim"));
  constant.block_size = static_cast<int32_t>(op.program.limits.block_size);
  constant.eps = static_cast<float>(op.number_or("eps", 0));
  op.require(constant.head_dim <= 1024, "head_dim above 1024 on CUDA");
  op.require(op.program.limits.max_tokens * (constant.heads + 2 * constant.kv_heads) < INT32_MAX,
             "too many heads and tokens for one launch");
  const int32_t which = which_rows(q, op.op.part());
  const int64_t shared_bytes = split_rope_shared_bytes(constant.head_dim);
  const int64_t per_row = constant.heads + 2 * constant.kv_heads;

  const auto shape = [=](const CudaLaunch& launch) {
    const int64_t items = most_rows(launch.bucket, which) * per_row;
    const int64_t blocks = (items + SplitRopeConfig::kWarps - 1) / SplitRopeConfig::kWarps;
    return row_shape(launch, blocks_for(launch, blocks, SplitRopeConfig::kBlocksPerSm),
                     SplitRopeConfig::kThreads, shared_bytes);
  };
  const auto arguments = [=](const CudaLaunch&, const CudaRank& rank, const CudaOperands& at) {
    SplitRopeArgs args = constant;
    args.rows = {rank.step.counts, which};
    args.kv_slots = rank.step.kv_slots;
    args.qkv = at.in[0];
    args.table = reinterpret_cast<const float*>(at.in[1]);
    args.q_norm = reinterpret_cast<const float*>(at.in[2]);
    args.k_norm = reinterpret_cast<const float*>(at.in[3]);
    args.means = reinterpret_cast<const float*>(at.in[4]);
    args.q = at.out[0];
    args.kv = at.out[1];
    return args;
  };
  const bool same_kv = q.dtype == constant.kv_dtype;
  const bool by_four = constant.head_dim % 4 == 0;
  return with_float_type(q.dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    auto* kernel = split_rope_cache_kernel<T, 1, false>;
    if (same_kv)
      kernel = by_four ? split_rope_cache_kernel<T, 4, true> : split_rope_cache_kernel<T, 1, true>;
    return per_rank(kernel, shape, arguments, shared_bytes);
  });
}

}  // namespace nanoweave
