// The protocol between ranks, on the device: barriers over epoch flags, bounded waits, the sum over
// a group and the store to a group. A collective runs as one cooperative grid per device: grid.y is
// the local rank, and block b of a rank meets block b of every other rank of its group.
#pragma once

#include "cuda/comm.h"
#include "cuda/nccl_collectives.h"
#include "cuda/rows.cuh"

namespace nanoweave {

struct CommArgs {
  CommView view;
  const StepCounts* counts[kMaxRanks];  // by local rank
  int32_t ranks[kMaxRanks];             // by local rank
  int32_t tp;
  int32_t world;
  int32_t lane;
  int32_t op;     // for the fault record
  int32_t which;  // rows the op works on
};

// This block's place in the collective.
struct CommPlace {
  int rank;
  int first;       // of the ranks that take part
  int count;       // of them
  int slot;        // their row of the pads
  uint32_t epoch;  // barriers this block has passed before the op
  RowRange rows;   // of this rank's group
};

__device__ __forceinline__ CommPlace place_among(const CommArgs& args, int first, int count,
                                                 int slot) {
  const int rank = args.ranks[blockIdx.y];
  return {rank,
          first,
          count,
          slot,
          args.view.pads[rank]->epochs[slot][blockIdx.x],
          rows_of({args.counts[blockIdx.y], args.which})};
}
// Among the ranks of its attention group.
__device__ __forceinline__ CommPlace comm_place(const CommArgs& args) {
  return place_among(args, args.ranks[blockIdx.y] / args.tp * args.tp, args.tp, args.lane);
}
// Among all ranks, whatever rows their groups have.
__device__ __forceinline__ CommPlace world_place(const CommArgs& args) {
  return place_among(args, 0, args.world, kCommLanes + args.lane);
}

enum class CommPhase : int32_t { kEntry, kExit };

__device__ __forceinline__ void report_fault(const CommArgs& args, int rank, int peer,
                                             CommPhase phase, uint32_t epoch, uint64_t now) {
  if (atomicCAS(&args.view.pads[rank]->fault_claimed, 0u, 1u) == 0u) {
    DeviceFault& fault = args.view.faults[rank];
    fault.rank = rank;
    fault.peer = peer;
    fault.op = args.op;
    fault.phase = static_cast<int32_t>(phase);
    fault.epoch = epoch;
    fault.time_ns = now;
    ptx::store_release_system(&fault.written, 1);  // release: publishes the record to the host
  }
  ptx::store_release_system(args.view.abort, 1);
}

// Until the peer has published `epoch`, the communicator aborts, or the time is over. The clock and
// the abort word (host memory) are looked at once in kSpins polls.
__device__ __forceinline__ bool wait_for_epoch(const CommArgs& args, const uint32_t* flag, int rank,
                                               int peer, CommPhase phase, uint32_t epoch) {
  constexpr uint32_t kSpins = 1024;
  uint64_t start = 0;
  for (uint32_t spin = 1;; ++spin) {
    // acquire: pairs with the peer's release in group_barrier().
    if (epoch_reached(ptx::load_acquire_system(flag), epoch)) return true;
    if (spin % kSpins != 0) continue;
    if (ptx::load_relaxed_system(args.view.abort) != 0) return false;
    const uint64_t now = ptx::global_timer_ns();
    if (start == 0) {
      start = now;
    } else if (now - start > args.view.timeout_ns) {
      report_fault(args, rank, peer, phase, epoch, now);
      return false;
    }
  }
}

// A barrier between this block and the same block of every rank that takes part; all threads call
// it. An op has exactly one of each phase. False: the communicator has failed, leave the kernel.
//
// kEntry: the partial sums were written by earlier kernels, which have ended, so the flag needs no
// release. kExit: what this block stored to others is published, and what it read may be
// overwritten once all have arrived.
template <CommPhase kPhase>
__device__ __forceinline__ bool group_barrier(const CommArgs& args, const CommPlace& place) {
  if (place.count == 1) return true;
  SignalPad* own = args.view.pads[place.rank];
  const uint32_t epoch = place.epoch + (kPhase == CommPhase::kEntry ? 1 : 2);
  __syncthreads();  // the block's stores come before the flags
  bool ok = true;
  if (static_cast<int>(threadIdx.x) < place.count) {
    const int peer = place.first + static_cast<int>(threadIdx.x);
    uint32_t* theirs = &args.view.pads[peer]->flags[place.slot][blockIdx.x][place.rank].epoch;
    if constexpr (kPhase == CommPhase::kEntry)
      ptx::store_relaxed_system(theirs, epoch);
    else
      ptx::store_release_system(theirs, epoch);  // release: pairs with wait_for_epoch()
    ok = wait_for_epoch(args, &own->flags[place.slot][blockIdx.x][peer].epoch, place.rank, peer,
                        kPhase, epoch);
  }
  ok = __syncthreads_and(ok) != 0;
  if (kPhase == CommPhase::kExit && threadIdx.x == 0) own->epochs[place.slot][blockIdx.x] = epoch;
  return ok;
}

// How a block reaches the other ranks: through the switch, or peer by peer.
template <typename T, bool kMulticast>
struct GroupMemory {
  static constexpr int kWidth = kPerVec16<T>;
  static constexpr int kInFlight = 4;  // peer loads before the first addition

  const CommArgs& args;
  const CommPlace& place;

  // Float32 sums of the elements at heap offset `at` (bytes) of all ranks; in rank order, except
  // through the switch.
  __device__ __forceinline__ void sum(int64_t at, float (&total)[kWidth]) const {
    if constexpr (kMulticast) {
      unpack<T>(ptx::multicast_load_reduce<T>(args.view.multicast[place.rank] + at), total);
    } else {
#pragma unroll
      for (int j = 0; j < kWidth; ++j) total[j] = 0;
      for (int base = 0; base < place.count; base += kInFlight) {
        Vec16 held[kInFlight] = {};
#pragma unroll
        for (int p = 0; p < kInFlight; ++p)
          if (base + p < place.count)
            held[p] = *reinterpret_cast<const Vec16*>(args.view.heaps[place.first + base + p] + at);
#pragma unroll
        for (int p = 0; p < kInFlight; ++p) {
          if (base + p >= place.count) continue;
          float values[kWidth];
          unpack<T>(held[p], values);
          // The first term is taken as it is: 0 + −0 would lose its sign.
#pragma unroll
          for (int j = 0; j < kWidth; ++j)
            total[j] = base + p == 0 ? values[j] : total[j] + values[j];
        }
      }
    }
  }

  // To heap offset `at` of every rank of the group.
  __device__ __forceinline__ void store_all(int64_t at, const Vec16& value) const {
    if constexpr (kMulticast) {
      ptx::multicast_store(args.view.multicast[place.rank] + at, value);
    } else {
      for (int peer = 0; peer < place.count; ++peer)
        ptx::store_remote(args.view.heaps[place.first + peer] + at, value);
    }
  }
  __device__ __forceinline__ void store_own(int64_t at, const Vec16& value) const {
    *reinterpret_cast<Vec16*>(args.view.heaps[place.rank] + at) = value;
  }
};

// ---- Launching ----------------------------------------------------------------------------------

// Where an arena operand lies in every heap.
inline int64_t heap_offset(const CudaLaunch& launch, const std::byte* operand) {
  return operand - launch.comm->heaps[launch.ranks[0].rank];
}

inline CommArgs comm_args(const CudaLaunch& launch, int32_t which) {
  CommArgs args{};
  args.view = *launch.comm;
  for (size_t i = 0; i < launch.ranks.size(); ++i) {
    args.counts[i] = launch.ranks[i].step.counts;
    args.ranks[i] = launch.ranks[i].rank;
  }
  args.tp = launch.ranks[0].tp;
  args.world = launch.world;
  args.lane = launch.comm_slot;
  args.op = launch.op_index;
  args.which = which;
  return args;
}

// Rows of whole 16-byte vectors, as most collectives take them.
inline bool has_vector_rows(const BufferDesc& buffer) {
  return buffer.cols() * dtype_bytes(buffer.dtype) % 16 == 0;
}
inline void require_vector_rows(const OpInstance& op, const BufferDesc& buffer) {
  op.require(has_vector_rows(buffer), "rows of buffer %s must be a multiple of 16 bytes on CUDA",
             buffer.name.c_str());
}

// What prepare() of a collective settles for its launches.
struct CollectiveOp {
  CollectiveForm form;  // asked for
  int32_t which;        // rows it works on
  int64_t row_bytes;    // of what is moved
  int64_t block_bytes;  // of rows that keep one block busy
  bool deterministic;
  bool needs_counts;  // NCCL would have to know who owns which row
  bool may_use_nccl;
  bool whole_vectors;  // a switch sums nothing less
  std::string label;
};

inline CollectiveOp collective_op(const OpInstance& op, const CudaPlan& plan,
                                  const BufferDesc& moved, int32_t which, int64_t block_bytes,
                                  bool needs_counts = false) {
  return {.form = op.collective_form(),
          .which = which,
          .row_bytes = moved.cols() * dtype_bytes(moved.dtype),
          .block_bytes = block_bytes,
          .deterministic = plan.deterministic,
          .needs_counts = needs_counts,
          .may_use_nccl = true,
          .whole_vectors = has_vector_rows(moved),
          .label = op.op.label};
}

[[noreturn]] inline void refuse_collective(const CollectiveOp& op, const CudaLaunch& launch,
                                           const LaunchPlan& plan) {
  std::string why(plan.form == CollectiveForm::kMulticast ? launch.multicast_missing
                  : plan.form == CollectiveForm::kNccl    ? launch.nccl_missing
                                                          : std::string_view());
  if (op.deterministic || why.empty()) why = plan.refused;
  if (plan.form == CollectiveForm::kMulticast && !op.whole_vectors)
    why = "a switch sums whole 16-byte vectors, and its rows are none";
  fail(ErrorCode::kProgram, "op %s: form %s cannot be had here: %s", op.label.c_str(),
       collective_form_name(plan.form), why.c_str());
}

inline GroupTraits group_traits(const CollectiveOp& op, const CudaLaunch& launch) {
  return {.link = launch.link,
          .peer_access = launch.peer_access,
          .multicast = op.whole_vectors && launch.comm->multicast[launch.ranks[0].rank] != nullptr,
          .nccl = op.may_use_nccl && launch.nccl_missing.empty(),
          .deterministic = op.deterministic,
          .few_blocks = launch.few_blocks,
          .few = launch.few,
          .max_local_ranks = launch.max_local_ranks,
          .sm_budget = launch.sm_budget};
}

inline LaunchPlan plan_collective(const CollectiveOp& op, const CudaLaunch& launch) {
  const CudaRank& rank = launch.ranks[0];
  const GroupTraits traits = group_traits(op, launch);
  const int64_t rows = most_rows(launch.bucket, op.which);
  const LaunchPlan plan = plan_launch(
      {.rows = rows,
       .row_bytes = op.row_bytes,
       .blocks = (rows * op.row_bytes + op.block_bytes - 1) / op.block_bytes,
       .world = rank.tp,
       .rows_known = op.needs_counts ? !launch.counts.empty() : host_knows_rows(launch, op.which),
       .form = op.form},
      traits);
  if (plan.refused != nullptr) refuse_collective(op, launch, plan);
  return plan;
}

// An operand in the arena, as NCCL's collectives take it. `at`: the operand of a CudaOperands.
template <typename At>
NcclRows nccl_rows(const CudaLaunch& launch, const BufferDesc& buffer, const At& at) {
  NcclRows rows{.data = {}, .cols = buffer.cols(), .dtype = buffer.dtype};
  for (size_t i = 0; i < launch.ranks.size(); ++i) rows.data[i] = at(launch.operands[i]);
  return rows;
}

inline LaunchShape comm_shape(const CudaLaunch& launch, const LaunchPlan& plan, unsigned threads,
                              size_t shared_bytes = 0) {
  return {.blocks_x = static_cast<unsigned>(plan.blocks),
          .blocks_y = static_cast<unsigned>(launch.ranks.size()),
          .threads = threads,
          .shared_bytes = shared_bytes,
          .cooperative = true};
}

}  // namespace nanoweave
