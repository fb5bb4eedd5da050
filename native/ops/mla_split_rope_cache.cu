// mla_split_rope_cache: latent [T, L+R] → the token's slot of the latent cache: the first L
// elements normalised, the last R rotated. And the last R columns of each head of q [T,
// heads·(N+R)], rotated → q_rope [T, heads·R]. Rotation takes pairs (i, i + R/2); where they come
// interleaved, (2i, 2i + 1), they are sorted first. Rows with slot −1 write no cache.
//
// One warp per head of a row, and one for its latent vector; what is rotated or normalised waits in
// shared memory as float32. Stays in the rank. Bytes per token: heads·R + L + R elements read and
// written.
#include "ops/mla.cuh"

namespace nanoweave {

namespace {

struct MlaSplitConfig {
  static constexpr int kWarps = 8;
  static constexpr int kThreads = kWarps * kWarpSize;
  static constexpr int kBlocksPerSm = 8;
};

struct MlaSplitArgs {
  RowsRef rows;
  const int32_t* kv_slots;  // [T]
  const std::byte* q;       // [T, heads·q_columns]
  const std::byte* latent;  // [T, L+R]
  const float* table;       // [T, R]: cosines, then sines
  const float* norm;        // [L]
  std::byte* q_rope;        // [T, heads·R]
  std::byte* cache;         // [blocks, block_size, L+R]
  DType dtype, cache_dtype;
  LatentSize size;
  int32_t q_columns;  // N+R
  bool interleaved;
  float eps;
};

struct MlaSplitShared {
  alignas(16) float vectors[1];  // [kWarps, L+R]
};

template <typename Body>
__device__ __forceinline__ void for_lanes(int count, const Body& body) {
  for (int i = lane_index(); i < count; i += kWarpSize) body(i);
}

// Element i of the R rotated ones, those at `x` in the order they come in.
__device__ __forceinline__ float turned(const MlaSplitArgs& args, const float* x,
                                        const float* table, int i) {
  const int half = args.size.rope / 2;
  const int pair = i < half ? i : i - half;
  const float low = x[args.interleaved ? 2 * pair : pair];
  const float high = x[args.interleaved ? 2 * pair + 1 : pair + half];
  const float cosine = table[pair], sine = table[half + pair];
  return i < half ? low * cosine - high * sine : high * cosine + low * sine;
}

__device__ void turn_query(const MlaSplitArgs& args, int64_t row, int head, float* x) {
  const int rope = args.size.rope;
  const int64_t vector = row * args.size.heads + head;
  const int64_t from = (vector + 1) * args.q_columns - rope;
  for_lanes(rope, [&](int i) { x[i] = load_element(args.dtype, args.q, from + i); });
  __syncwarp();
  const float* table = args.table + row * rope;
  for_lanes(rope, [&](int i) {
    store_element(args.dtype, args.q_rope, vector * rope + i, turned(args, x, table, i));
  });
}

__device__ void cache_latent(const MlaSplitArgs& args, int64_t row, int64_t slot, float* x) {
  const int latent = args.size.latent, rope = args.size.rope, dim = args.size.dim();
  float squares = 0;
  for_lanes(dim, [&](int i) {
    x[i] = load_element(args.dtype, args.latent, row * dim + i);
    if (i < latent) squares += x[i] * x[i];
  });
  const float mean = warp_sum(squares) / static_cast<float>(latent);
  const float scale = 1.0f / sqrtf(mean + args.eps);
  __syncwarp();
  for_lanes(latent, [&](int i) {
    store_element(args.cache_dtype, args.cache, slot * dim + i, x[i] * scale * args.norm[i]);
  });
  const float* table = args.table + row * rope;
  for_lanes(rope, [&](int i) {
    store_element(args.cache_dtype, args.cache, slot * dim + latent + i,
                  turned(args, x + latent, table, i));
  });
}

__global__ void __launch_bounds__(MlaSplitConfig::kThreads)
    mla_split_rope_cache_kernel(const __grid_constant__ MlaSplitArgs args) {
  const int dim = args.size.dim();
  float* x = shared_memory<MlaSplitShared>(MlaSplitConfig::kWarps * dim * sizeof(float)).vectors +
             warp_index() * dim;
  ptx::wait_for_previous_kernel();
  ptx::allow_next_kernel();
  const RowRange rows = rows_of(args.rows);
  const int per_row = args.size.heads + 1;
  const int64_t items = int64_t{rows.count} * per_row;
  const int64_t stride = int64_t{gridDim.x} * MlaSplitConfig::kWarps;
  for (int64_t item = int64_t{blockIdx.x} * MlaSplitConfig::kWarps + warp_index(); item < items;
       item += stride) {
    const int64_t row = rows.begin + item / per_row;
    const int head = static_cast<int>(item % per_row);
    if (head < args.size.heads)
      turn_query(args, row, head, x);
    else if (args.kv_slots[row] >= 0)
      cache_latent(args, row, args.kv_slots[row], x);
    __syncwarp();  // the next item overwrites this one
  }
}

}  // namespace

CudaKernel prepare_cuda_mla_split_rope_cache(const OpInstance& op, const CudaPlan&) {
  const BufferDesc& q = *op.input(0);
  MlaSplitArgs constant{};
  constant.dtype = q.dtype;
  constant.cache_dtype = op.output(1).dtype;
  constant.size = latent_size(op);
  constant.q_columns = static_cast<int32_t>(q.cols() / constant.size.heads);
  constant.interleaved = op.boolean_or("interleaved", false);
  constant.eps = static_cast<float>(op.number("eps"));
  const int32_t which = which_rows(q, op.op.part());
  const int64_t shared_bytes =
      MlaSplitConfig::kWarps * constant.size.dim() * static_cast<int64_t>(sizeof(float));

  const auto shape = [=](const CudaLaunch& launch) {
    const int64_t items = most_rows(launch.bucket, which) * (constant.size.heads + 1);
    const int64_t blocks = (items + MlaSplitConfig::kWarps - 1) / MlaSplitConfig::kWarps;
    return row_shape(launch, blocks_for(launch, blocks, MlaSplitConfig::kBlocksPerSm),
                     MlaSplitConfig::kThreads, static_cast<size_t>(shared_bytes));
  };
  const auto arguments = [=](const CudaLaunch&, const CudaRank& rank, const CudaOperands& at) {
    MlaSplitArgs args = constant;
    args.rows = {rank.step.counts, which};
    args.kv_slots = rank.step.kv_slots;
    args.q = at.in[0];
    args.latent = at.in[1];
    args.table = reinterpret_cast<const float*>(at.in[2]);
    args.norm = reinterpret_cast<const float*>(at.in[3]);
    args.q_rope = at.out[0];
    args.cache = at.out[1];
    return args;
  };
  return per_rank(mla_split_rope_cache_kernel, shape, arguments, shared_bytes);
}

}  // namespace nanoweave
