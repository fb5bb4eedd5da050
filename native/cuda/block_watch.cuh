// What ends the waits inside a block that a broken kernel or copy engine would leave without an
// end: the same deadline and fault record as between ranks. Looked at only once a wait has failed
// to end in the time that the hardware sleeps for it. A thread that gives up tells its block and
// goes on with whatever is there: all such waits of its rank then end at once, so the kernel does,
// and the step fails. Who fetches for the block must stop then: a barrier that lacks bytes takes no
// arrival.
#pragma once

#include "cuda/op.h"
#include "cuda/ptx.cuh"

namespace nanoweave {

// Part of a kernel's arguments.
struct BlockWatch {
  SignalPad* pad;      // this rank's
  DeviceFault* fault;  // this rank's
  uint32_t* abort;
  uint32_t timeout;  // of block_clock()
  int32_t rank;
  int32_t op;
};

// In units of about a millisecond (2^20 ns).
__device__ __forceinline__ uint32_t block_clock() {
  return static_cast<uint32_t>(ptx::global_timer_ns() >> 20);
}

__device__ __forceinline__ void report_stuck_block(const BlockWatch& watch) {
  if (atomicCAS(&watch.pad->fault_claimed, 0u, 1u) == 0u) {
    DeviceFault& fault = *watch.fault;
    fault.rank = watch.rank;
    fault.peer = kNoPeer;
    fault.op = watch.op;
    fault.phase = 0;
    fault.epoch = 0;
    fault.time_ns = ptx::global_timer_ns();
    ptx::store_release_system(&fault.written, 1);  // release: publishes the record to the host
  }
  ptx::store_release_system(watch.abort, 1);
}

// Of a wait that began at `start`: whether to go on without what it waited for. `given_up` is the
// block's, in shared memory; the thread's next arrival publishes it.
__device__ __forceinline__ bool gives_up(const BlockWatch& watch, uint32_t start,
                                         uint32_t& given_up) {
  if (ptx::load_relaxed_system(&watch.pad->fault_claimed) == 0) {
    if (block_clock() - start <= watch.timeout) return false;
    report_stuck_block(watch);
  }
  *static_cast<volatile uint32_t*>(&given_up) = 1;
  return true;
}

inline BlockWatch block_watch(const CudaLaunch& launch, const CudaRank& rank) {
  return {.pad = launch.comm->pads[rank.rank],
          .fault = launch.comm->faults + rank.rank,
          .abort = launch.comm->abort,
          .timeout = static_cast<uint32_t>(launch.comm->timeout_ns >> 20) + 1,
          .rank = rank.rank,
          .op = launch.op_index};
}

}  // namespace nanoweave
