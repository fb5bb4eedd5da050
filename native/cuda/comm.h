// What the ranks of a communicator share on the device: heaps at equal offsets, a signal pad per
// rank, an abort word and a fault record that the host sees. Plain data for host and kernels; the
// protocol over it is comm.cuh.
#pragma once

#include <cstddef>
#include <cstdint>

#include "comm/protocol.h"

namespace nanoweave {

inline constexpr int kMaxRanks = 16;       // of a world
inline constexpr int kCommSlots = 4;       // collectives in flight: one per lane
inline constexpr int kMaxCommBlocks = 64;  // of one rank's share of a collective

// 32 bytes: a flag line is one sector, written by one rank and polled by one thread.
struct alignas(32) FlagLine {
  uint32_t epoch;
};

// One per rank, in device memory, zeroed when the communicator is made and never reset: epochs only
// grow, so a captured graph replays. A slot is used by one collective at a time.
struct SignalPad {
  uint32_t epochs[kCommSlots][kMaxCommBlocks];            // barriers this rank's block has passed
  FlagLine flags[kCommSlots][kMaxCommBlocks][kMaxRanks];  // last: by source rank
};

// First fault of a communicator, in mapped host memory. `claimed` goes from 0 to 1 once; the other
// fields are valid when `written` is 1.
struct DeviceFault {
  uint32_t claimed;
  uint32_t written;
  int32_t rank;   // who noticed
  int32_t peer;   // whom it waited for
  int32_t op;     // index in the program
  int32_t phase;  // barrier of the op: 0 entry, 1 exit
  uint32_t epoch;
};

struct CommView {
  std::byte* heaps[kMaxRanks];  // base of each rank's heap, as this device addresses it
  SignalPad* pads[kMaxRanks];
  std::byte* multicast[kMaxRanks];  // [rank] stands for all heaps of the rank's group; or null
  uint32_t* abort;                  // mapped host memory; not 0: give up
  DeviceFault* fault;
  uint64_t timeout_ns;
};

// The launch plan of the reducing collectives: a pure function of what every rank knows at load, so
// that all devices agree on the number of blocks. Which form runs is decided on the device from the
// rows of the step.
struct CollectivePlan {
  int blocks = 1;  // of one rank
};

// `max_local_ranks`: of the device that holds most ranks. `sm_budget`: multiprocessors the
// collective may fill, so that all its blocks run at once. `work` is how many blocks' worth of rows
// (or of 16-byte vectors) the largest step of the bucket has.
inline CollectivePlan plan_collective(int64_t work, int max_local_ranks, int sm_budget,
                                      bool multicast) {
  // Multicast saturates the links from 16 blocks on (kernels.md §2).
  const int64_t preferred = multicast ? 16 : kMaxCommBlocks;
  const int64_t room = sm_budget / max_local_ranks;
  const int64_t blocks = work < preferred ? work : preferred;
  const int64_t fitting = blocks < room ? blocks : room;
  return {.blocks = static_cast<int>(fitting < 1 ? 1 : fitting)};
}

}  // namespace nanoweave
