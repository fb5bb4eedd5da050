// moe_dispatch: tokens to the ranks of their experts; layout and order of rows are the host op's.
// Four kernels, none of which waits for another block of its own rank:
//   send   a collective: once nobody reads the regions any more, a rank stores its rows and ids
//   into
//          its group's region at one rank of every group, each row once; then they are published.
//   count  a block tallies the experts of a chunk of choices; the last one scans: chunks of an
//          expert in order, then experts, which gives the offsets.
//   place  every choice's row: offset of its expert, plus its chunk's share, plus those in front of
//          it in the chunk. No atomics: the order depends on nothing but the ids.
//   copy   received rows to their places.
// Bytes per token and rank that wants it: a row sent, a row read and one written per local choice.
#include "ops/experts.cuh"

namespace nanoweave {

namespace {

struct DispatchConfig {
  static constexpr int kThreads = 512;
  static constexpr int kWarps = kThreads / kWarpSize;
  static constexpr int kVectors = 4;      // of a lane and piece, in flight at once
  static constexpr int kWarpItems = 128;  // choices of a chunk that one warp takes
  static constexpr int kChunkItems = kWarps * kWarpItems;
  static constexpr int kBlocksPerSm = 2;
  static constexpr int kBatch = 8;  // tallies in flight
  static_assert(kThreads >= kMaxRanks && kMaxChoices <= kWarpSize);
};
using Pieces = RowPieces<DispatchConfig::kVectors>;

// ---- Send ---------------------------------------------------------------------------------------

struct SendArgs {
  CommArgs comm;
  ExpertMap map;
  int64_t x, ids;                  // heap offsets of row 0, bytes
  int64_t hidden, rx_ids, counts;  // of the receiver's buffers
  Pieces pieces;
  int32_t choices;
};

class Sender {
 public:
  __device__ Sender(const SendArgs& args, const CommPlace& place)
      : args_(args),
        place_(place),
        heap_(args.comm.view.heaps[place.rank]),
        group_(place.rank / args.map.tp) {}

  // What every receiver is told first: how many rows there are.
  __device__ __forceinline__ void send_count() const {
    if (blockIdx.x != 0 || static_cast<int>(threadIdx.x) >= args_.map.groups) return;
    auto* counts = reinterpret_cast<int32_t*>(receiver(threadIdx.x) + args_.counts);
    ptx::store_remote_element(counts + group_, place_.rows.count);
  }

  __device__ __forceinline__ void send_rows() const {
    constexpr int kWarps = DispatchConfig::kWarps;
    const int per_row = args_.pieces.per_row();
    const int64_t end = int64_t{place_.rows.count} * per_row;
    for (int64_t at = first_piece<kWarps>(); at < end; at += piece_stride<kWarps>())
      send_piece(static_cast<int>(at / per_row), static_cast<int>(at % per_row));
  }

 private:
  __device__ __forceinline__ std::byte* receiver(int group) const {
    return args_.comm.view.heaps[group * args_.map.tp + place_.rank % args_.map.tp];
  }

  // Piece `piece` of the op's row `row`, and with the first its ids.
  __device__ __forceinline__ void send_piece(int row, int piece) const {
    const int lane = lane_index();
    const int64_t from = place_.rows.begin + int64_t{row};
    const int64_t to = int64_t{group_} * args_.map.max_tokens + row;
    const bool has_id = lane < args_.choices;
    const auto* ids = reinterpret_cast<const int32_t*>(heap_ + args_.ids) + from * args_.choices;
    const int32_t id = has_id ? ids[lane] : -1;
    Vec16 held[DispatchConfig::kVectors];
    load(from, piece, held);
    for (int group = 0; group < args_.map.groups; ++group) {
      std::byte* heap = receiver(group);
      const int peer = group * args_.map.tp + place_.rank % args_.map.tp;
      if (piece == 0 && has_id)
        ptx::store_remote_element(
            reinterpret_cast<int32_t*>(heap + args_.rx_ids) + to * args_.choices + lane, id);
      if (__any_sync(kFullWarp, args_.map.local(id, peer) >= 0) != 0)
        store(heap + args_.hidden, to, piece, held);
    }
  }

  __device__ __forceinline__ void load(int64_t row, int piece,
                                       Vec16 (&held)[DispatchConfig::kVectors]) const {
    const auto* x = reinterpret_cast<const Vec16*>(heap_ + args_.x) + row * args_.pieces.vectors;
#pragma unroll
    for (int i = 0; i < DispatchConfig::kVectors; ++i) {
      const int vector = args_.pieces.vector(piece, i);
      if (vector < args_.pieces.vectors) held[i] = x[vector];
    }
  }
  __device__ __forceinline__ void store(std::byte* hidden, int64_t row, int piece,
                                        const Vec16 (&held)[DispatchConfig::kVectors]) const {
    auto* to = reinterpret_cast<Vec16*>(hidden) + row * args_.pieces.vectors;
#pragma unroll
    for (int i = 0; i < DispatchConfig::kVectors; ++i) {
      const int vector = args_.pieces.vector(piece, i);
      if (vector < args_.pieces.vectors) ptx::store_remote(to + vector, held[i]);
    }
  }

  const SendArgs& args_;
  const CommPlace& place_;
  std::byte* heap_;  // own
  int group_;        // own
};

__global__ void __launch_bounds__(DispatchConfig::kThreads)
    moe_send_kernel(const __grid_constant__ SendArgs args) {
  ptx::wait_for_previous_kernel();
  const CommPlace place = world_place(args.comm);
  if (!group_barrier<CommPhase::kEntry>(args.comm, place)) return;
  const Sender sender(args, place);
  sender.send_count();
  sender.send_rows();
  group_barrier<CommPhase::kExit>(args.comm, place);
}

// ---- What arrived -------------------------------------------------------------------------------

struct SortArgs {
  const int32_t* counts;  // [groups]
  const int32_t* ids;     // [groups, max_tokens, choices]
  int32_t* rows;          // [groups, max_tokens, choices]
  int32_t* offsets;       // [per_position + 1]
  int32_t* tallies;       // [chunks, per_position]; after the scan: those of the chunks in front
  uint32_t* finished;     // blocks of `count`; zero between launches
  ExpertMap map;
  int32_t rank, choices;
};

// Received rows, numbered through in the order of (source group, token).
struct Received {
  const int32_t* counts;
  int32_t groups, max_tokens;

  __device__ __forceinline__ int of_group(int group) const {
    return min(max(counts[group], 0), max_tokens);  // the arena is not trusted
  }
  __device__ __forceinline__ int total() const {
    int sum = 0;
    for (int group = 0; group < groups; ++group) sum += of_group(group);
    return sum;
  }
  // Its row in the regions.
  __device__ __forceinline__ int64_t row(int number) const {
    int group = 0;
    for (; group + 1 < groups && number >= of_group(group); ++group) number -= of_group(group);
    return int64_t{group} * max_tokens + number;
  }
};

__device__ __forceinline__ Received received_of(const SortArgs& args) {
  return {args.counts, args.map.groups, args.map.max_tokens};
}

__host__ __device__ inline int chunk_rows(int choices) {
  return DispatchConfig::kChunkItems / choices;
}

// A chunk of choices, those of chunk_rows() received rows. A warp has kWarpItems that follow each
// other; `next` [kWarps, per_position] is what it counts in.
class Chunk {
 public:
  __device__ Chunk(const SortArgs& args, int rows_in_all, int chunk, int32_t* next)
      : args_(args),
        first_row_(chunk * chunk_rows(args.choices)),
        items_(min(chunk_rows(args.choices), rows_in_all - first_row_) * args.choices),
        next_(next + warp_index() * args.map.per_position) {}

  // Adds this warp's choices of every expert.
  __device__ __forceinline__ void tally() const {
    for_items([&](int64_t, int expert, int before, int count) {
      if (expert >= 0 && before == 0) next_[expert] += count;
      __syncwarp();  // the next choices count on
    });
  }

  // Writes the rows of this warp's choices; next_ holds the first of every expert.
  __device__ __forceinline__ void place() const {
    for_items([&](int64_t item, int expert, int before, int count) {
      if (item >= 0) args_.rows[item] = expert < 0 ? -1 : next_[expert] + before;
      __syncwarp();  // all have read
      if (expert >= 0 && before == 0) next_[expert] += count;
      __syncwarp();  // the next choices count on
    });
  }

 private:
  // body(place in ids or −1, local expert or −1, those of the same expert in front, in all), 32
  // choices at a time.
  template <typename Body>
  __device__ __forceinline__ void for_items(const Body& body) const {
    const Received received = received_of(args_);
    const int first = warp_index() * DispatchConfig::kWarpItems;
    for (int i = first; i < first + DispatchConfig::kWarpItems && i < items_; i += kWarpSize) {
      const int item = i + lane_index();
      int64_t at = -1;
      int expert = -1;
      if (item < items_) {
        at = received.row(first_row_ + item / args_.choices) * args_.choices + item % args_.choices;
        expert = args_.map.local(args_.ids[at], args_.rank);
      }
      const uint32_t same = __match_any_sync(kFullWarp, expert);
      const uint32_t in_front = same & ((1u << lane_index()) - 1);
      body(at, expert, __popc(in_front), __popc(same));
    }
  }

  const SortArgs& args_;
  int first_row_, items_;
  int32_t* next_;
};

struct SortShared {
  int32_t warps[DispatchConfig::kWarps];  // scratch of the scan
  int32_t next[1];                        // [kWarps, per_position]
};

inline int64_t sort_shared_bytes(int64_t per_position) {
  return static_cast<int64_t>(sizeof(int32_t)) * DispatchConfig::kWarps * (1 + per_position);
}

__device__ __forceinline__ SortShared& clear_tallies(const SortArgs& args) {
  const int count = DispatchConfig::kWarps * args.map.per_position;
  auto& shared = shared_memory<SortShared>(sizeof(int32_t) *
                                           static_cast<size_t>(DispatchConfig::kWarps + count));
  for (int i = threadIdx.x; i < count; i += DispatchConfig::kThreads) shared.next[i] = 0;
  __syncthreads();  // the tallies are zero
  return shared;
}

// Tallies of an expert → those of the chunks in front; returns all of them.
__device__ __forceinline__ int scan_chunks(int32_t* tallies, int chunks, int stride) {
  constexpr int kBatch = DispatchConfig::kBatch;
  int total = 0;
  for (int first = 0; first < chunks; first += kBatch) {
    int held[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i)
      held[i] = first + i < chunks ? tallies[int64_t{first + i} * stride] : 0;
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (first + i < chunks) tallies[int64_t{first + i} * stride] = total;
      total += held[i];
    }
  }
  return total;
}

// By one block: kThreads experts at a time.
__device__ __forceinline__ void scan(const SortArgs& args, int chunks, SortShared& shared) {
  const int experts = args.map.per_position;
  int base = 0;
  for (int first = 0; first < experts; first += DispatchConfig::kThreads) {
    const int expert = first + static_cast<int>(threadIdx.x);
    const int count = expert < experts ? scan_chunks(args.tallies + expert, chunks, experts) : 0;
    int total = 0;
    const int before = block_prefix<DispatchConfig::kThreads>(count, shared.warps, &total);
    if (expert < experts) args.offsets[expert] = base + before;
    base += total;
    __syncthreads();  // the scratch is free again
  }
  if (threadIdx.x == 0) args.offsets[experts] = base;
}

__global__ void __launch_bounds__(DispatchConfig::kThreads)
    moe_count_kernel(const __grid_constant__ SortArgs args) {
  ptx::wait_for_previous_kernel();
  ptx::allow_next_kernel();
  const int experts = args.map.per_position;
  SortShared& shared = clear_tallies(args);
  const int rows = received_of(args).total();
  const int per_chunk = chunk_rows(args.choices);
  const int chunks = (rows + per_chunk - 1) / per_chunk;
  const auto chunk = static_cast<int>(blockIdx.x);
  if (chunk < chunks) {
    Chunk(args, rows, chunk, shared.next).tally();
    __syncthreads();  // all warps have counted
    for (int e = threadIdx.x; e < experts; e += DispatchConfig::kThreads) {
      int count = 0;
      for (int warp = 0; warp < DispatchConfig::kWarps; ++warp)
        count += shared.next[warp * experts + e];
      args.tallies[int64_t{chunk} * experts + e] = count;
    }
  }
  __syncthreads();  // the block's tallies come before its count
  bool last = false;
  if (threadIdx.x == 0) {
    // release: publishes our tallies; acquire: the others', when ours is the last.
    last = ptx::add_acquire_release(args.finished, 1) + 1 == gridDim.x;
    if (last) *args.finished = 0;
  }
  if (__syncthreads_or(last) != 0) scan(args, chunks, shared);
}

__global__ void __launch_bounds__(DispatchConfig::kThreads)
    moe_place_kernel(const __grid_constant__ SortArgs args) {
  ptx::wait_for_previous_kernel();
  ptx::allow_next_kernel();
  const int experts = args.map.per_position;
  const int rows = received_of(args).total();
  const auto chunk = static_cast<int>(blockIdx.x);
  if (chunk * chunk_rows(args.choices) >= rows) return;
  SortShared& shared = clear_tallies(args);
  const Chunk work(args, rows, chunk, shared.next);
  work.tally();
  __syncthreads();  // all warps have counted
  for (int e = threadIdx.x; e < experts; e += DispatchConfig::kThreads) {
    int next = args.offsets[e] + args.tallies[int64_t{chunk} * experts + e];
    for (int warp = 0; warp < DispatchConfig::kWarps; ++warp) {
      int32_t& of_warp = shared.next[warp * experts + e];
      const int count = of_warp;
      of_warp = next;
      next += count;
    }
  }
  __syncthreads();  // every warp knows its first rows
  work.place();
}

// ---- Copy ---------------------------------------------------------------------------------------

struct CopyArgs {
  const int32_t* counts;    // [groups]
  const int32_t* rows;      // [groups, max_tokens, choices]
  const std::byte* hidden;  // [groups, max_tokens, row]
  std::byte* grouped;       // [groups · max_tokens · choices, row]
  int32_t groups, max_tokens, choices;
  Pieces pieces;
};

__device__ __forceinline__ void copy_piece(const CopyArgs& args, int64_t row, int piece) {
  const int lane = lane_index();
  const int32_t place = lane < args.choices ? args.rows[row * args.choices + lane] : -1;
  uint32_t places = __ballot_sync(kFullWarp, place >= 0);
  if (places == 0) return;
  const auto* from = reinterpret_cast<const Vec16*>(args.hidden) + row * args.pieces.vectors;
  Vec16 held[DispatchConfig::kVectors];
#pragma unroll
  for (int i = 0; i < DispatchConfig::kVectors; ++i) {
    const int vector = args.pieces.vector(piece, i);
    if (vector < args.pieces.vectors) held[i] = from[vector];
  }
  for (; places != 0; places &= places - 1) {
    const int64_t to_row = __shfl_sync(kFullWarp, place, __ffs(static_cast<int>(places)) - 1);
    auto* to = reinterpret_cast<Vec16*>(args.grouped) + to_row * args.pieces.vectors;
#pragma unroll
    for (int i = 0; i < DispatchConfig::kVectors; ++i) {
      const int vector = args.pieces.vector(piece, i);
      if (vector < args.pieces.vectors) to[vector] = held[i];
    }
  }
}

__global__ void __launch_bounds__(DispatchConfig::kThreads)
    moe_copy_kernel(const __grid_constant__ CopyArgs args) {
  constexpr int kWarps = DispatchConfig::kWarps;
  ptx::wait_for_previous_kernel();
  ptx::allow_next_kernel();
  const Received received{args.counts, args.groups, args.max_tokens};
  const int per_row = args.pieces.per_row();
  const int64_t end = int64_t{received.total()} * per_row;
  for (int64_t at = first_piece<kWarps>(); at < end; at += piece_stride<kWarps>())
    copy_piece(args, received.row(static_cast<int>(at / per_row)), static_cast<int>(at % per_row));
}

// ---- Launching ----------------------------------------------------------------------------------

enum Output { kHidden, kIds, kCounts, kRows, kGrouped, kOffsets };

struct DispatchShape {
  ExpertLayout layout;
  int32_t which;  // rows of x
  int32_t choices;
  Pieces pieces;

  int64_t most_received(const CudaBucket& bucket) const {
    return most_rows(bucket, which) * layout.groups;
  }
  int64_t chunks(const CudaBucket& bucket) const {
    const int64_t rows = chunk_rows(choices);
    return std::max<int64_t>(1, (most_received(bucket) + rows - 1) / rows);
  }
  // Blocks that the pieces of `rows` rows keep busy.
  int64_t piece_blocks(int64_t rows) const {
    constexpr int64_t kBlock =
        DispatchConfig::kWarps * DispatchConfig::kVectors * int64_t{kWarpSize};
    return (rows * pieces.vectors + kBlock - 1) / kBlock;
  }
  LaunchPlan plan(const CudaLaunch& launch) const {
    return plan_world(launch, piece_blocks(most_rows(launch.bucket, which)));
  }
  int64_t tally_bytes(const CudaBucket& bucket) const {
    return chunks(bucket) * layout.per_position * static_cast<int64_t>(sizeof(int32_t));
  }
};

SendArgs send_args(const DispatchShape& shape, const CudaLaunch& launch) {
  const CudaOperands& at = launch.operands[0];
  return {.comm = comm_args(launch, shape.which),
          .map = expert_map(shape.layout),
          .x = heap_offset(launch, at.in[0]),
          .ids = heap_offset(launch, at.in[1]),
          .hidden = heap_offset(launch, at.out[kHidden]),
          .rx_ids = heap_offset(launch, at.out[kIds]),
          .counts = heap_offset(launch, at.out[kCounts]),
          .pieces = shape.pieces,
          .choices = shape.choices};
}

SortArgs sort_args(const DispatchShape& shape, const CudaLaunch& launch, size_t local) {
  const CudaOperands& at = launch.operands[local];
  std::byte* tallies = launch.workspace + kWorkspaceCounterBytes +
                       static_cast<int64_t>(local) * shape.tally_bytes(launch.bucket);
  return {.counts = reinterpret_cast<const int32_t*>(at.out[kCounts]),
          .ids = reinterpret_cast<const int32_t*>(at.out[kIds]),
          .rows = reinterpret_cast<int32_t*>(at.out[kRows]),
          .offsets = reinterpret_cast<int32_t*>(at.out[kOffsets]),
          .tallies = reinterpret_cast<int32_t*>(tallies),
          .finished = reinterpret_cast<uint32_t*>(launch.workspace) + local,
          .map = expert_map(shape.layout),
          .rank = launch.ranks[local].rank,
          .choices = shape.choices};
}

CopyArgs copy_args(const DispatchShape& shape, const CudaOperands& at) {
  return {.counts = reinterpret_cast<const int32_t*>(at.out[kCounts]),
          .rows = reinterpret_cast<const int32_t*>(at.out[kRows]),
          .hidden = at.out[kHidden],
          .grouped = at.out[kGrouped],
          .groups = shape.layout.groups,
          .max_tokens = static_cast<int32_t>(shape.layout.max_tokens),
          .choices = shape.choices,
          .pieces = shape.pieces};
}

void launch_dispatch(const DispatchShape& shape, const CudaLaunch& launch) {
  constexpr int kThreads = DispatchConfig::kThreads;
  nanoweave::launch(moe_send_kernel, comm_shape(launch, shape.plan(launch), kThreads),
                    launch.stream, send_args(shape, launch));
  const auto chunks = static_cast<unsigned>(shape.chunks(launch.bucket));
  const auto shared = static_cast<size_t>(sort_shared_bytes(shape.layout.per_position));
  const unsigned copy_blocks = blocks_for(
      launch, shape.piece_blocks(shape.most_received(launch.bucket)), DispatchConfig::kBlocksPerSm);
  for (size_t local = 0; local < launch.ranks.size(); ++local) {
    const SortArgs sort = sort_args(shape, launch, local);
    nanoweave::launch(moe_count_kernel, row_shape(launch, chunks, kThreads, shared), launch.stream,
                      sort);
    nanoweave::launch(moe_place_kernel, row_shape(launch, chunks, kThreads, shared), launch.stream,
                      sort);
    nanoweave::launch(moe_copy_kernel, row_shape(launch, copy_blocks, kThreads), launch.stream,
                      copy_args(shape, launch.operands[local]));
  }
}

}  // namespace

CudaKernel prepare_cuda_moe_dispatch(const OpInstance& op, const CudaPlan& plan) {
  const BufferDesc& x = *op.input(0);
  require_vector_rows(op, x);
  require_reachable_experts(op, plan);
  const DispatchShape shape{.layout = expert_layout(op),
                            .which = which_rows(x, op.op.part()),
                            .choices = static_cast<int32_t>(op.input(1)->cols()),
                            .pieces = {static_cast<int32_t>(x.cols() * dtype_bytes(x.dtype) / 16)}};
  const int64_t local_ranks = std::min(plan.max_local_ranks, op.program.world);
  const int64_t shared = sort_shared_bytes(shape.layout.per_position);
  return {.launch = [=](const CudaLaunch& launch) { launch_dispatch(shape, launch); },
          .workspace_bytes =
              [=](const CudaDevice&, const CudaBucket& bucket) {
                return kWorkspaceCounterBytes + local_ranks * shape.tally_bytes(bucket);
              },
          .functions = {cuda_function(moe_send_kernel), cuda_function(moe_count_kernel, shared),
                        cuda_function(moe_place_kernel, shared), cuda_function(moe_copy_kernel)},
          .plan = [=](const CudaLaunch& launch) { return shape.plan(launch); }};
}

}  // namespace nanoweave
