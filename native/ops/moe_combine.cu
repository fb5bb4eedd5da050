// moe_combine: y = σ(shared_gate)·Σ shared over the group + Σ over a token's choices, in their
// order, of weight · output of the expert; layout and order of the sums are the host op's, so a
// row's bits do not depend on how many ranks the experts are spread over.
//
// One collective over all ranks. Entry barrier: all outputs are written. A rank fetches what the
// rows it owns need from the ranks that have it and stores y to its group. Exit barrier: all y are
// stored, nobody reads outputs any more. A warp takes a piece of a row. Bytes per owned row:
// k·slices rows fetched (and tp of `shared`), tp stored.
#include "ops/experts.cuh"

namespace nanoweave {

namespace {

struct CombineConfig {
  static constexpr int kThreads = 512;
  static constexpr int kWarps = kThreads / kWarpSize;
  static constexpr int kVectors = 2;   // of a lane and piece
  static constexpr int kInFlight = 4;  // terms whose loads are issued before the first addition
  static_assert(kThreads >= kMaxRanks && kMaxChoices <= kWarpSize);
};
using Pieces = RowPieces<CombineConfig::kVectors>;

struct CombineArgs {
  CommArgs comm;
  ExpertMap map;
  int64_t expert_out, rows;     // heap offsets of row 0, bytes; of every rank
  int64_t ids, weights, y;      // of row 0
  int64_t shared, shared_gate;  // negative: none
  int64_t expert_rows;          // of expert_out
  Pieces pieces;
  int32_t choices;
};

// What a row is made of, found by its warp; lives in shared memory.
struct Terms {
  const std::byte** sources;  // [count · slices] rows of expert outputs; null: there is none
  float* weights;             // [count]
  int count;
};

inline __host__ __device__ int terms_bytes(int choices, int slices) {
  const int bytes =
      choices * (slices * static_cast<int>(sizeof(void*)) + static_cast<int>(sizeof(float)));
  return (bytes + 7) / 8 * 8;
}

// Lane j looks at choice j; choices of no expert are left out. A row outside of the outputs (the
// arena is not trusted) has no source, and counts as NaN.
__device__ __forceinline__ Terms find_terms(const CombineArgs& args, const CommPlace& world,
                                            int64_t row, int64_t row_of_op, std::byte* memory) {
  const ExpertMap& map = args.map;
  const std::byte* heap = args.comm.view.heaps[world.rank];
  const int lane = lane_index();
  Terms terms{reinterpret_cast<const std::byte**>(memory),
              reinterpret_cast<float*>(memory + sizeof(void*) * args.choices * map.slices), 0};
  const int64_t at = row * args.choices + lane;
  const int id = lane < args.choices ? reinterpret_cast<const int32_t*>(heap + args.ids)[at] : -1;
  const bool exists = id >= 0 && id < map.experts;
  const uint32_t existing = __ballot_sync(kFullWarp, exists);
  terms.count = __popc(existing);
  if (exists) {
    const int term = __popc(existing & ((1u << lane) - 1));
    terms.weights[term] = reinterpret_cast<const float*>(heap + args.weights)[at];
    const int64_t place =
        (int64_t{world.rank / map.tp} * map.max_tokens + row_of_op) * args.choices + lane;
    for (int slice = 0; slice < map.slices; ++slice) {
      const std::byte* peer = args.comm.view.heaps[map.first_rank_of(id) + slice];
      const int64_t found = reinterpret_cast<const int32_t*>(peer + args.rows)[place];
      terms.sources[term * map.slices + slice] =
          found >= 0 && found < args.expert_rows
              ? peer + args.expert_out + found * args.pieces.vectors * 16
              : nullptr;
    }
  }
  __syncwarp();  // all lanes read the terms
  return terms;
}

// total += weight · (sum of the slices), term by term.
template <typename T>
__device__ __forceinline__ void add_terms(const Terms& terms, int slices, int64_t at,
                                          float (&total)[kPerVec16<T>]) {
  constexpr int kWidth = kPerVec16<T>, kInFlight = CombineConfig::kInFlight;
  const int count = terms.count * slices;
  float sum[kWidth] = {};
  int term = 0, slice = 0;
  for (int base = 0; base < count; base += kInFlight) {
    Vec16 held[kInFlight];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      const std::byte* source = base + i < count ? terms.sources[base + i] : nullptr;
      // Bits of a NaN in every type.
      held[i] = source != nullptr ? *reinterpret_cast<const Vec16*>(source + at)
                                  : Vec16{{~0u, ~0u, ~0u, ~0u}};
    }
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      if (base + i >= count) continue;
      float values[kWidth];
      unpack<T>(held[i], values);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) sum[j] = slice == 0 ? values[j] : sum[j] + values[j];
      if (++slice < slices) continue;
      const float weight = terms.weights[term++];
      slice = 0;
#pragma unroll
      for (int j = 0; j < kWidth; ++j) total[j] += weight * sum[j];
    }
  }
}

template <typename T>
class Combiner {
 public:
  __device__ Combiner(const CombineArgs& args, const CommPlace& world, std::byte* memory)
      : args_(args), world_(world), group_(comm_place(args.comm)), memory_(memory) {}

  // The rows this rank owns of its group's.
  __device__ __forceinline__ void run() const {
    constexpr int kWarps = CombineConfig::kWarps;
    const RowSpan own = owned_rows(group_.rows.count, group_.count, group_.rank - group_.first);
    const int per_row = args_.pieces.per_row();
    const int64_t end = (own.end - own.begin) * per_row;
    for (int64_t at = first_piece<kWarps>(); at < end; at += piece_stride<kWarps>()) {
      combine_piece(own.begin + at / per_row, static_cast<int>(at % per_row));
      __syncwarp();  // the next row's terms overwrite this one's
    }
  }

 private:
  __device__ __forceinline__ void combine_piece(int64_t row_of_op, int piece) const {
    const int64_t row = group_.rows.begin + row_of_op;
    const Terms terms = find_terms(args_, world_, row, row_of_op, memory_);
    const float gate = gate_of(row);
#pragma unroll
    for (int i = 0; i < CombineConfig::kVectors; ++i) {
      const int vector = args_.pieces.vector(piece, i);
      if (vector >= args_.pieces.vectors) continue;
      const int64_t in_row = int64_t{vector} * 16;
      const int64_t at = row * args_.pieces.vectors * 16 + in_row;
      const GroupMemory<T, false> group{args_.comm, group_};
      float total[kPerVec16<T>] = {};
      if (args_.shared >= 0) {
        group.sum(args_.shared + at, total);
#pragma unroll
        for (float& value : total) value *= gate;
      }
      add_terms<T>(terms, args_.map.slices, in_row, total);
      group.store_all(args_.y + at, pack<T>(total));
    }
  }

  __device__ __forceinline__ float gate_of(int64_t row) const {
    if (args_.shared_gate < 0) return 1;
    const std::byte* heap = args_.comm.view.heaps[world_.rank];
    return 1.0f / (1.0f + expf(-reinterpret_cast<const float*>(heap + args_.shared_gate)[row]));
  }

  const CombineArgs& args_;
  const CommPlace& world_;
  const CommPlace group_;
  std::byte* memory_;  // of this warp's terms
};

template <typename T>
__global__ void __launch_bounds__(CombineConfig::kThreads)
    moe_combine_kernel(const __grid_constant__ CombineArgs args) {
  const int bytes = terms_bytes(args.choices, args.map.slices);
  std::byte* memory = &shared_memory<std::byte>(static_cast<size_t>(CombineConfig::kWarps * bytes));
  ptx::wait_for_previous_kernel();
  const CommPlace world = world_place(args.comm);
  if (!group_barrier<CommPhase::kEntry>(args.comm, world)) return;
  Combiner<T>(args, world, memory + warp_index() * bytes).run();
  group_barrier<CommPhase::kExit>(args.comm, world);
}

// ---- Launching ----------------------------------------------------------------------------------

enum Input { kExpertOut, kRows, kIds, kWeights, kShared, kSharedGate };

struct CombineShape {
  ExpertLayout layout;
  int32_t which;
  int32_t choices;
  int64_t expert_rows;
  Pieces pieces;

  int64_t shared_bytes() const {
    return int64_t{CombineConfig::kWarps} * terms_bytes(choices, layout.slices);
  }
  LaunchPlan plan(const CudaLaunch& launch) const {
    const int64_t owned = (most_rows(launch.bucket, which) + layout.tp - 1) / layout.tp;
    const int64_t warps = owned * ((pieces.vectors + CombineConfig::kVectors * kWarpSize - 1) /
                                   (CombineConfig::kVectors * kWarpSize));
    return plan_world(launch, (warps + CombineConfig::kWarps - 1) / CombineConfig::kWarps);
  }
};

CombineArgs combine_args(const CombineShape& shape, const CudaLaunch& launch) {
  const CudaOperands& at = launch.operands[0];
  const auto offset = [&](Input input) {
    return at.in[input] == nullptr ? int64_t{-1} : heap_offset(launch, at.in[input]);
  };
  return {.comm = comm_args(launch, shape.which),
          .map = expert_map(shape.layout),
          .expert_out = offset(kExpertOut),
          .rows = offset(kRows),
          .ids = offset(kIds),
          .weights = offset(kWeights),
          .y = heap_offset(launch, at.out[0]),
          .shared = offset(kShared),
          .shared_gate = offset(kSharedGate),
          .expert_rows = shape.expert_rows,
          .pieces = shape.pieces,
          .choices = shape.choices};
}

}  // namespace

CudaKernel prepare_cuda_moe_combine(const OpInstance& op, const CudaPlan& plan) {
  const BufferDesc& y = op.output(0);
  require_vector_rows(op, y);
  require_reachable_experts(op, plan);
  const CombineShape shape{.layout = expert_layout(op),
                           .which = which_rows(y, op.op.part()),
                           .choices = static_cast<int32_t>(op.input(kIds)->cols()),
                           .expert_rows = op.input(kExpertOut)->max_rows(),
                           .pieces = {static_cast<int32_t>(y.cols() * dtype_bytes(y.dtype) / 16)}};
  return with_float_type(y.dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    return CudaKernel{.launch =
                          [=](const CudaLaunch& launch) {
                            nanoweave::launch(
                                moe_combine_kernel<T>,
                                comm_shape(launch, shape.plan(launch), CombineConfig::kThreads,
                                           static_cast<size_t>(shape.shared_bytes())),
                                launch.stream, combine_args(shape, launch));
                          },
                      .workspace_bytes = nullptr,
                      .functions = {cuda_function(moe_combine_kernel<T>, shape.shared_bytes())},
                      .plan = [=](const CudaLaunch& launch) { return shape.plan(launch); }};
  });
}

}  // namespace nanoweave
