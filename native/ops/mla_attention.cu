// mla_attention: causal attention over a paged cache of latent vectors (DeepSeek-V2,
// https://arxiv.org/abs/2405.04434, section 2.1, in its absorbed form): o [T, heads·L] =
// softmax(q·cᵀ·scale)·c[..L] over the vectors c [L+R] of keys 0..p of a row at position p; q is
// q_latent and q_rope, side by side. All heads share the vectors.
//
// A block takes one row and up to 16 heads: each vector is read once for all of them, and is key
// and value at once. Keys go by in tiles, with online softmax in base 2, and in splits of 512, both
// at multiples of the position. A row of several splits is divided where its partial results fit
// the workspace: each split is a unit of work, and the last one to arrive at the (row, heads)
// counter merges them in order. Elsewhere one block merges them, in the same order with the same
// arithmetic. So a row's bits depend on its keys alone. The kernel serves decode and prefill alike.
// Bytes: the vectors a row sees, once per 16 heads. Stays in the rank.
#include "ops/mla_attention.cuh"

namespace nanoweave {

namespace {

// ---- Work ---------------------------------------------------------------------------------------

// kThreads rows from one on: whose they are and how they are divided.
struct MlaSchedule {
  int32_t scans[2][kWarpSize];
  int32_t first_item[MlaConfig::kThreads + 1];  // [row] divided rows have an item for each split
  int32_t seq[MlaConfig::kThreads];             // −1: nobody's
  int32_t first_partial[MlaConfig::kThreads];   // −1: not divided
};

// A row and some of its heads, and some of its splits.
struct MlaUnit {
  int64_t row;
  int seq;
  int end_key;  // 0: padding
  int group;    // of heads
  int split;    // the first, or the only one
  int partial;  // of the row's first split, −1: not divided
  int counter;  // of the row

  __device__ int first_head() const { return group * MlaConfig::kHeads; }
  __device__ int num_splits() const {
    return (end_key + MlaConfig::kSplitKeys - 1) / MlaConfig::kSplitKeys;
  }
  __device__ int first_key() const { return split * MlaConfig::kSplitKeys; }
  __device__ int last_key() const {
    return partial < 0 ? end_key : min(end_key, first_key() + MlaConfig::kSplitKeys);
  }
};

// The segment of a list that has the row; rows ascend. −1: none.
__device__ __forceinline__ int find_sequence(const Segment* segments, int count, int row) {
  int first = 0, end = count;
  while (first < end) {
    const int middle = (first + end) / 2;
    if (segments[middle].row_end <= row)
      first = middle + 1;
    else
      end = middle;
  }
  return first < count && segments[first].row_begin <= row ? segments[first].seq : -1;
}

__device__ __forceinline__ int keys_of(const MlaArgs& args, int64_t row) {
  return args.kv_slots[row] >= 0 ? args.positions[row] + 1 : 0;
}

// Plans the rows from rows.begin + first on; returns their items. `partials`: those that rows in
// front need. All threads call it; the schedule is there when it returns.
__device__ int plan_rows(const MlaArgs& args, const RowRange& rows, int first, int* partials,
                         MlaSchedule& schedule) {
  const int thread = static_cast<int>(threadIdx.x);
  const int index = first + thread;
  int splits = 0, seq = -1;
  if (index < rows.count) {
    const int row = rows.begin + index;
    const PartPlan plan = args.rows.counts->plans[args.plan];
    seq = find_sequence(args.decode, plan.num_decode, row);
    if (seq < 0) seq = find_sequence(args.prefill, plan.num_prefill, row);
    const int keys = seq < 0 ? 0 : keys_of(args, row);
    splits = max(1, (keys + MlaConfig::kSplitKeys - 1) / MlaConfig::kSplitKeys);
  }
  const int needs = splits > 1 ? splits : 0;
  int needed = 0, items = 0;
  const int partial =
      *partials + block_prefix<MlaConfig::kThreads>(needs, schedule.scans[0], &needed);
  const bool divided = needs > 0 && partial + needs <= args.max_partials && index < args.split_rows;
  const int own = divided ? splits : min(splits, 1);
  schedule.first_item[thread] = block_prefix<MlaConfig::kThreads>(own, schedule.scans[1], &items);
  schedule.seq[thread] = seq;
  schedule.first_partial[thread] = divided ? partial : -1;
  if (thread == 0) schedule.first_item[MlaConfig::kThreads] = items;
  *partials += needed;
  __syncthreads();  // the schedule is there
  return items;
}

// Unit `index` of the planned rows; `groups` of heads side by side, which read the same vectors.
__device__ MlaUnit find_unit(const MlaArgs& args, const RowRange& rows, int first,
                             const MlaSchedule& schedule, int index, int groups) {
  const int item = index / groups;
  int row = 0, end = MlaConfig::kThreads;  // first_item[row] <= item < first_item[end]
  while (end - row > 1) {
    const int middle = (row + end) / 2;
    (schedule.first_item[middle] <= item ? row : end) = middle;
  }
  MlaUnit unit{};
  unit.row = rows.begin + int64_t{first + row};
  unit.seq = schedule.seq[row];
  unit.end_key = unit.seq < 0 ? 0 : keys_of(args, unit.row);
  unit.group = index % groups;
  unit.split = item - schedule.first_item[row];
  unit.partial = schedule.first_partial[row];
  unit.counter = first + row;
  return unit;
}

// ---- Softmax ------------------------------------------------------------------------------------

// Largest score and sum of weights of some keys; the sums of weighted values that go with them are
// multiplied with the factors when others join.
struct MlaState {
  float largest = -INFINITY;
  float total = 0;

  struct Factors {
    float keep, take;
  };
  __device__ __forceinline__ Factors add(float most, float sum) {
    const float now = fmaxf(largest, most);
    const Factors factors{ptx::exp2(largest - now), ptx::exp2(most - now)};
    total = fmaf(total, factors.keep, sum * factors.take);
    largest = now;
    return factors;
  }
};

// One rounding wherever it is compiled: both ways of merging give the same bits.
__device__ __forceinline__ float merged(float sum, float more, MlaState::Factors factors) {
  return fmaf(sum, factors.keep, more * factors.take);
}

__device__ __forceinline__ float inverse_of(float total) { return total > 0 ? 1.0f / total : 0.0f; }

template <typename Products>
struct MlaShared {
  MlaSchedule schedule;
  float keep[MlaConfig::kHeads], take[MlaConfig::kHeads];  // factors of the heads' sums
  alignas(16) typename Products::Scratch scratch;
  alignas(16) unsigned char vectors[16];  // queries and tiles
};

template <typename Products>
NANOWEAVE_HD int64_t mla_shared_bytes(int dim) {
  constexpr int64_t kFixed = sizeof(MlaShared<Products>) - sizeof(MlaShared<Products>::vectors);
  return kFixed + Products::vector_bytes(dim);
}

// kThreads / kKeys heads at once, a lane for each key.
template <typename Products>
class MlaSoftmax {
 public:
  static constexpr int kKeys = Products::kKeys;
  static constexpr int kTogether = MlaConfig::kThreads / kKeys;
  static constexpr int kPasses = MlaConfig::kHeads / kTogether;
  static_assert(kPasses * kTogether == MlaConfig::kHeads && kWarpSize % kKeys == 0);

  // Scores of a tile become weights, relative to the largest of the split so far.
  __device__ void weigh(const MlaArgs& args, Products& products, int first_key, int end_key,
                        float* keep) {
    const bool seen = first_key + key() < end_key;
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      MlaState& state = split_[pass];
      const float score = seen ? products.score(head(pass), key()) * args.scale : -INFINITY;
      float most = fmaxf(state.largest, score);
#pragma unroll
      for (int bit = kKeys / 2; bit > 0; bit /= 2)
        most = fmaxf(most, __shfl_xor_sync(kFullWarp, most, bit));
      const float weight = ptx::exp2(score - most);
      float sum = weight;
#pragma unroll
      for (int bit = kKeys / 2; bit > 0; bit /= 2) sum += __shfl_xor_sync(kFullWarp, sum, bit);
      const float factor = ptx::exp2(state.largest - most);
      state.total = fmaf(state.total, factor, sum);
      state.largest = most;
      products.put_weight(head(pass), key(), weight);
      if (key() == 0) keep[head(pass)] = factor;
    }
  }

  // The split's result joins those before it, and the next split begins.
  __device__ void merge(float* keep, float* take) {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const auto factors = row_[pass].add(split_[pass].largest, split_[pass].total);
      if (key() == 0) {
        keep[head(pass)] = factors.keep;
        take[head(pass)] = factors.take;
      }
      split_[pass] = {};
    }
  }

  __device__ void put_inverse(float* to) const {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass)
      if (key() == 0) to[head(pass)] = inverse_of(row_[pass].total);
  }

  // Calls body(head, state of the split) in one lane for each head.
  template <typename Body>
  __device__ void for_heads(const Body& body) const {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass)
      if (key() == 0) body(head(pass), split_[pass]);
  }

 private:
  static __device__ int head(int pass) {
    return pass * kTogether + static_cast<int>(threadIdx.x) / kKeys;
  }
  static __device__ int key() { return static_cast<int>(threadIdx.x) % kKeys; }

  MlaState split_[kPasses], row_[kPasses];  // the same in all lanes of a head
};

// ---- A block ------------------------------------------------------------------------------------

template <typename Products>
class MlaBlock {
 public:
  __device__ MlaBlock(const MlaArgs& args, MlaShared<Products>& shared)
      : args_(args), shared_(shared), products_(args, shared.vectors, shared.scratch) {}

  __device__ void run(const MlaUnit& unit) {
    __syncthreads();  // all are done with the unit before
    load_queries(unit);
    MlaSoftmax<Products> softmax;
    float sums[8][4] = {}, row_sums[8][4] = {};
    const int first_key = unit.first_key(), end_key = unit.last_key();
    const int tiles = (end_key - first_key + kKeys - 1) / kKeys;
    products_.begin({blocks_of(unit), end_key}, first_key, tiles);
    for (int tile = 0; tile < tiles; ++tile) {
      add_tile(softmax, tile, first_key + tile * kKeys, end_key, sums);
      const int end = first_key + (tile + 1) * kKeys;
      if (end % MlaConfig::kSplitKeys != 0 && end < end_key) continue;
      if (unit.partial >= 0) {
        store_partial(unit, softmax, sums);
        return merge_when_last(unit);
      }
      merge_split(softmax, sums, row_sums);
    }
    __syncthreads();  // all are done with the factors
    softmax.put_inverse(shared_.keep);
    __syncthreads();  // they are there
    for_sums(unit, [&](int own, int head, int column, int i, int j) {
      store_output(unit, head, column, row_sums[i][j] * shared_.keep[Products::head(own)]);
    });
  }

 private:
  static constexpr int kKeys = Products::kKeys;
  static_assert(MlaConfig::kSplitKeys % kKeys == 0);

  __device__ const int32_t* blocks_of(const MlaUnit& unit) const {
    return args_.block_tables + int64_t{max(unit.seq, 0)} * args_.block_table_stride;
  }

  // Heads that are not there are zero.
  __device__ void load_queries(const MlaUnit& unit) {
    for_own_heads([&](int head) {
      const bool exists = unit.first_head() + head < args_.size.heads;
      const int64_t vector = unit.row * args_.size.heads + unit.first_head() + head;
      for (int i = lane_index(); i < args_.size.dim(); i += kWarpSize)
        products_.put_query(head, i, exists ? query_element(args_, vector, i) : 0.0f);
    });
  }

  __device__ void add_tile(MlaSoftmax<Products>& softmax, int tile, int first_key, int end_key,
                           float (&sums)[8][4]) {
    products_.advance(tile);
    products_.multiply_keys(tile);
    __syncthreads();  // the scores are there; all are done with the factors of a merge
    softmax.weigh(args_, products_, first_key, end_key, shared_.keep);
    __syncthreads();  // the weights and factors are there
#pragma unroll
    for (int i = 0; i < 8; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j)
        sums[i][j] *= shared_.keep[Products::head(Products::own_head(i, j))];
    products_.add_values(tile, sums);
  }

  __device__ void merge_split(MlaSoftmax<Products>& softmax, float (&sums)[8][4],
                              float (&row_sums)[8][4]) {
    __syncthreads();  // all are done with the factors
    softmax.merge(shared_.keep, shared_.take);
    __syncthreads();  // they are there
#pragma unroll
    for (int i = 0; i < 8; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int head = Products::head(Products::own_head(i, j));
        row_sums[i][j] =
            merged(row_sums[i][j], sums[i][j], {shared_.keep[head], shared_.take[head]});
        sums[i][j] = 0;
      }
  }

  // Calls body(own head, head of the rank, column, i, j) for this thread's sums that exist.
  template <typename Body>
  __device__ __forceinline__ void for_sums(const MlaUnit& unit, const Body& body) const {
#pragma unroll
    for (int i = 0; i < 8; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int own = Products::own_head(i, j), column = Products::column(i, j);
        const int head = unit.first_head() + Products::head(own);
        if (head < args_.size.heads && column < args_.size.latent) body(own, head, column, i, j);
      }
  }

  __device__ void store_output(const MlaUnit& unit, int head, int column, float value) const {
    const int64_t vector = unit.row * args_.size.heads + head;
    store_element(args_.dtype, args_.o, vector * args_.size.latent + column, value);
  }

  // A head's result of a split: largest score, sum of weights, then the sums.
  __device__ float* partial_of(const MlaUnit& unit, int split, int head) const {
    const int64_t index = int64_t{unit.partial + split} * args_.size.heads + head;
    return args_.partials + index * (kPartialHead + args_.size.latent);
  }

  __device__ void store_partial(const MlaUnit& unit, const MlaSoftmax<Products>& softmax,
                                const float (&sums)[8][4]) const {
    softmax.for_heads([&](int in_group, const MlaState& state) {
      const int head = unit.first_head() + in_group;
      if (head >= args_.size.heads) return;
      float* partial = partial_of(unit, unit.split, head);
      partial[0] = state.largest;
      partial[1] = state.total;
    });
    for_sums(unit, [&](int, int head, int column, int i, int j) {
      partial_of(unit, unit.split, head)[kPartialHead + column] = sums[i][j];
    });
  }

  __device__ void merge_when_last(const MlaUnit& unit) {
    __syncthreads();  // the block's partials are written
    bool last = false;
    if (threadIdx.x == 0) {
      const int groups = (args_.size.heads + MlaConfig::kHeads - 1) / MlaConfig::kHeads;
      uint32_t* counter = args_.counters + unit.counter * groups + unit.group;
      // release: publishes our partials; acquire: the others', when ours is the last.
      last = ptx::add_acquire_release(counter, 1) + 1 == static_cast<uint32_t>(unit.num_splits());
      if (last) *counter = 0;
    }
    if (__syncthreads_or(last)) merge_splits(unit);
  }

  // In order, as merge_split() does.
  __device__ void merge_splits(const MlaUnit& unit) const {
    MlaState states[Products::kOwnHeads];
    float row_sums[8][4] = {};
    for (int split = 0; split < unit.num_splits(); ++split) {
      MlaState::Factors factors[Products::kOwnHeads] = {};
#pragma unroll
      for (int own = 0; own < Products::kOwnHeads; ++own) {
        const int head = unit.first_head() + Products::head(own);
        if (head >= args_.size.heads) continue;
        const float* partial = partial_of(unit, split, head);
        factors[own] = states[own].add(partial[0], partial[1]);
      }
      for_sums(unit, [&](int own, int head, int column, int i, int j) {
        const float more = partial_of(unit, split, head)[kPartialHead + column];
        row_sums[i][j] = merged(row_sums[i][j], more, factors[own]);
      });
    }
    for_sums(unit, [&](int own, int head, int column, int i, int j) {
      store_output(unit, head, column, row_sums[i][j] * inverse_of(states[own].total));
    });
  }

  const MlaArgs& args_;
  MlaShared<Products>& shared_;
  Products products_;
};

template <typename Products>
__global__ void __launch_bounds__(MlaConfig::kThreads, MlaConfig::kBlocksPerSm)
    mla_attention_kernel(const __grid_constant__ MlaArgs args) {
  auto& shared = shared_memory<MlaShared<Products>>(mla_shared_bytes<Products>(args.size.dim()));
  // Columns that pad the vectors stay zero.
  const int bytes = Products::vector_bytes(args.size.dim());
  for (int at = threadIdx.x * 16; at < bytes; at += MlaConfig::kThreads * 16)
    *reinterpret_cast<Vec16*>(shared.vectors + at) = Vec16{};
  ptx::wait_for_previous_kernel();
  ptx::allow_next_kernel();
  const RowRange rows = rows_of(args.rows);
  const int groups = (args.size.heads + MlaConfig::kHeads - 1) / MlaConfig::kHeads;
  MlaBlock<Products> block(args, shared);
  int index = static_cast<int>(blockIdx.x), partials = 0;
  for (int first = 0; first < rows.count; first += MlaConfig::kThreads) {
    const int units = plan_rows(args, rows, first, &partials, shared.schedule) * groups;
    for (; index < units; index += static_cast<int>(gridDim.x))
      block.run(find_unit(args, rows, first, shared.schedule, index, groups));
    index -= units;
    __syncthreads();  // all are done with the schedule
  }
}

// ---- Launching ----------------------------------------------------------------------------------

struct MlaShape {
  MlaArgs constant;  // without pointers
  int32_t which;     // rows the op works on
  int64_t max_splits;
  int64_t partial_bytes;  // of the workspace, behind the counters
  int32_t groups;
};

inline constexpr int64_t kMaxPartialBytes = int64_t{64} << 20;

MlaArgs mla_args(const MlaShape& shape, const CudaLaunch& launch, const CudaRank& rank,
                 const CudaOperands& at) {
  MlaArgs args = shape.constant;
  const int64_t list = int64_t{shape.which} * rank.step.max_seqs;
  args.rows = {rank.step.counts, shape.which};
  args.plan = shape.which;
  args.decode = rank.step.decode + list;
  args.prefill = rank.step.prefill + list;
  args.positions = rank.step.positions;
  args.kv_slots = rank.step.kv_slots;
  args.block_tables = rank.step.block_tables;
  args.block_table_stride = rank.step.block_table_stride;
  args.q_latent = at.in[0];
  args.q_rope = at.in[1];
  args.cache = at.in[2];
  args.o = at.out[0];
  args.counters = reinterpret_cast<uint32_t*>(launch.workspace);
  args.partials = reinterpret_cast<float*>(launch.workspace + kWorkspaceCounterBytes);
  return args;
}

template <typename Products>
CudaKernel make_mla(const MlaShape& shape) {
  const int64_t shared_bytes = mla_shared_bytes<Products>(shape.constant.size.dim());
  CudaKernel kernel = per_rank(
      mla_attention_kernel<Products>,
      [=](const CudaLaunch& launch) {
        const int64_t units =
            most_rows(launch.bucket, shape.which) * shape.groups * shape.max_splits;
        const auto per_sm = static_cast<int>(std::clamp<int64_t>(
            launch.device.max_shared_bytes / shared_bytes, 1, MlaConfig::kBlocksPerSm));
        return row_shape(launch, blocks_for(launch, units, per_sm), MlaConfig::kThreads,
                         static_cast<size_t>(shared_bytes));
      },
      [=](const CudaLaunch& launch, const CudaRank& rank, const CudaOperands& at) {
        return mla_args(shape, launch, rank, at);
      },
      shared_bytes);
  kernel.workspace_bytes = [bytes = kWorkspaceCounterBytes + shape.partial_bytes](
                               const CudaDevice&, const CudaBucket&) { return bytes; };
  return kernel;
}

template <typename Products>
bool fits(const CudaDevice& device, int dim) {
  return mla_shared_bytes<Products>(dim) <= device.max_shared_bytes;
}

// Tensor cores where a device has room for their two tiles.
template <typename T>
CudaKernel make_tensor(const MlaShape& shape, const CudaKernel& floats) {
  const CudaKernel tensor = make_mla<TensorProducts<T>>(shape);
  CudaKernel both{.launch =
                      [dim = shape.constant.size.dim(), tensor = tensor.launch,
                       floats = floats.launch](const CudaLaunch& launch) {
                        (fits<TensorProducts<T>>(launch.device, dim) ? tensor : floats)(launch);
                      },
                  .workspace_bytes = tensor.workspace_bytes,
                  .functions = tensor.functions};
  both.functions.insert(both.functions.end(), floats.functions.begin(), floats.functions.end());
  return both;
}

MlaShape describe(const OpInstance& op) {
  const BufferDesc& q = *op.input(0);
  const Limits& limits = op.program.limits;
  MlaShape shape{};
  MlaArgs& args = shape.constant;
  args.dtype = q.dtype;
  args.cache_dtype = op.input(2)->dtype;
  args.size = latent_size(op);
  args.block_size = static_cast<int32_t>(limits.block_size);
  args.scale = static_cast<float>(op.number("scale") * 1.4426950408889634);
  shape.which = which_rows(q, op.op.part());
  shape.groups = (args.size.heads + MlaConfig::kHeads - 1) / MlaConfig::kHeads;
  shape.max_splits = std::max<int64_t>(
      1, (limits.max_blocks_per_seq * limits.block_size + MlaConfig::kSplitKeys - 1) /
             MlaConfig::kSplitKeys);
  op.require(limits.max_tokens * shape.max_splits * shape.groups < INT32_MAX,
             "too many tokens, keys and heads for one launch");
  // Few rows of long sequences need them: a step of many has work enough undivided.
  const int64_t bytes = int64_t{args.size.heads} * (kPartialHead + args.size.latent) *
                        static_cast<int64_t>(sizeof(float));
  const int64_t most = shape.max_splits > 1 ? limits.max_seqs * kDecodeRows * shape.max_splits : 0;
  args.max_partials = static_cast<int32_t>(std::min(most, kMaxPartialBytes / bytes));
  args.split_rows = static_cast<int32_t>(kWorkspaceCounterBytes /
                                         static_cast<int64_t>(sizeof(uint32_t)) / shape.groups);
  shape.partial_bytes = args.max_partials * bytes;
  return shape;
}

}  // namespace

CudaKernel prepare_cuda_mla_attention(const OpInstance& op, const CudaPlan&) {
  const MlaShape shape = describe(op);
  const MlaArgs& args = shape.constant;
  const int dim = args.size.dim();
  const CudaKernel floats = with_vector_type(args.cache_dtype, dim, [&](auto tag, auto width) {
    return make_mla<FloatProducts<typename decltype(tag)::Type, decltype(width)::value>>(shape);
  });
  const bool tensor_cores =
      args.dtype == args.cache_dtype && args.dtype != DType::kF32 && dim % 8 == 0;
  if (!tensor_cores) return floats;
  return args.dtype == DType::kBf16 ? make_tensor<bf16>(shape, floats)
                                    : make_tensor<f16>(shape, floats);
}

}  // namespace nanoweave
