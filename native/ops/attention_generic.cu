// Attention for every dtype, head size and block size: one warp per (row, query head), float32
// throughout, keys one after the other with online softmax. It serves float32 models and odd
// shapes; the two tensor-core kernels serve the rest. A row's bits depend on nothing but its keys.
// Bytes: every head of every row reads all keys and values it sees. Stays in the rank.
#include "ops/attention.cuh"

namespace nanoweave {

namespace {

struct GenericConfig {
  static constexpr int kWarps = 4;
  static constexpr int kThreads = kWarps * kWarpSize;
  static constexpr int kBlocksPerSm = 8;
  static constexpr int kKeys = 4;  // scores in flight
};

struct GenericShared {
  alignas(16) float rows[1];  // [kWarps, 2, head_dim]: query, output
};

int64_t generic_shared_bytes(int64_t head_dim) {
  return GenericConfig::kWarps * 2 * head_dim * static_cast<int64_t>(sizeof(float));
}

// One row and head, by one warp.
class GenericRow {
 public:
  __device__ GenericRow(const AttentionArgs& args, float* scratch)
      : args_(args), query_(scratch), out_(scratch + args.head_dim) {}

  __device__ void run(int seq, int row, int head) {
    const int position = row_position(args_, row, true);
    const int64_t at = (int64_t{row} * args_.heads + head) * args_.head_dim;
    for_dims([&](int i) {
      query_[i] = load_element(args_.dtype, args_.q, at + i);
      out_[i] = 0;
    });
    float largest = -INFINITY, total = 0;
    const int first = first_visible(args_, position);
    for (int key = first; key <= position; key += GenericConfig::kKeys) {
      float scores[GenericConfig::kKeys];
      uint32_t rows[GenericConfig::kKeys];
#pragma unroll
      for (int j = 0; j < GenericConfig::kKeys; ++j) {
        const bool exists = key + j <= position;
        rows[j] = exists ? key_at(seq, key + j, head) : 0;
        scores[j] = exists ? score(rows[j]) : -INFINITY;
      }
      add(scores, rows, largest, total);
    }
    const float inverse = inverse_total(args_, head, total, largest * kLog2E);
    for_dims([&](int i) { store_element(args_.dtype, args_.o, at + i, out_[i] * inverse); });
  }

 private:
  template <typename Body>
  __device__ __forceinline__ void for_dims(const Body& body) const {
    for (int i = lane_index(); i < args_.head_dim; i += kWarpSize) body(i);
  }

  // Row of the cache that holds the key.
  __device__ uint32_t key_at(int seq, int key, int head) const {
    const int32_t* table = args_.block_tables + int64_t{seq} * args_.block_table_stride;
    const int kv_head = head / (args_.heads / args_.kv_heads);
    return kv_row(args_, table[key / args_.block_size], kv_head) +
           static_cast<uint32_t>(key % args_.block_size);
  }

  __device__ float at_row(uint32_t row, int i) const {
    return load_element(args_.kv_dtype, args_.kv, int64_t{row} * args_.head_dim + i);
  }

  __device__ float score(uint32_t key) const {
    float dot = 0;
    for_dims([&](int i) { dot += query_[i] * at_row(key, i); });
    dot = warp_sum(dot) * args_.scale;
    return args_.softcap > 0 ? args_.softcap * tanhf(dot / args_.softcap) : dot;
  }

  __device__ void add(const float (&scores)[GenericConfig::kKeys],
                      const uint32_t (&keys)[GenericConfig::kKeys], float& largest, float& total) {
    float most = largest;
#pragma unroll
    for (int j = 0; j < GenericConfig::kKeys; ++j) most = fmaxf(most, scores[j]);
    const float keep = expf(largest - most);
    float weights[GenericConfig::kKeys];
    total *= keep;
#pragma unroll
    for (int j = 0; j < GenericConfig::kKeys; ++j) {
      weights[j] = expf(scores[j] - most);
      total += weights[j];
    }
    for_dims([&](int i) {
      float sum = out_[i] * keep;
#pragma unroll
      for (int j = 0; j < GenericConfig::kKeys; ++j)
        if (weights[j] > 0) sum += weights[j] * at_row(keys[j] + kv_rows_to_values(args_), i);
      out_[i] = sum;
    });
    largest = most;
  }

  const AttentionArgs& args_;
  float* query_;  // this warp's, [head_dim]; a lane reads only what it wrote
  float* out_;
};

// Walks both lists of segments in place of attention.segments.
struct GenericArgs {
  AttentionArgs attention;
  const Segment* decode;
  const Segment* prefill;
};

__global__ void __launch_bounds__(GenericConfig::kThreads)
    attention_generic_kernel(const __grid_constant__ GenericArgs generic) {
  const AttentionArgs& args = generic.attention;
  const int64_t bytes = GenericConfig::kWarps * 2 * args.head_dim * sizeof(float);
  float* scratch = shared_memory<GenericShared>(bytes).rows + warp_index() * 2 * args.head_dim;
  ptx::wait_for_previous_kernel();
  ptx::allow_next_kernel();
  const PartPlan plan = args.counts->plans[args.plan];
  const int segments = plan.num_decode + plan.num_prefill;
  const int warps = static_cast<int>(gridDim.x) * GenericConfig::kWarps;
  // Warps take the (row, head) pairs of all segments in turn.
  int item = static_cast<int>(blockIdx.x) * GenericConfig::kWarps + warp_index();
  for (int s = 0; s < segments; ++s) {
    const Segment& segment =
        s < plan.num_decode ? generic.decode[s] : generic.prefill[s - plan.num_decode];
    const int items = (segment.row_end - segment.row_begin) * args.heads;
    for (; item < items; item += warps)
      GenericRow(args, scratch)
          .run(segment.seq, segment.row_begin + item / args.heads, item % args.heads);
    item -= items;
  }
}

}  // namespace

CudaKernel attention_generic(const AttentionShape& shape) {
  const int64_t shared_bytes = generic_shared_bytes(shape.constant.head_dim);
  return per_rank(
      attention_generic_kernel,
      [=](const CudaLaunch& launch) {
        const int64_t items = most_rows(launch.bucket, shape.which) * shape.constant.heads;
        const int64_t blocks = (items + GenericConfig::kWarps - 1) / GenericConfig::kWarps;
        return row_shape(launch, blocks_for(launch, blocks, GenericConfig::kBlocksPerSm),
                         GenericConfig::kThreads, static_cast<size_t>(shared_bytes));
      },
      [=](const CudaLaunch&, const CudaRank& rank, const CudaOperands& at) {
        const AttentionArgs args = attention_args(shape, rank, at, true);
        const int64_t list = int64_t{args.plan} * rank.step.max_seqs;
        return GenericArgs{.attention = args,
                           .decode = rank.step.decode + list,
                           .prefill = rank.step.prefill + list};
      },
      shared_bytes);
}

}  // namespace nanoweave
