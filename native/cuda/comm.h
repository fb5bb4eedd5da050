// What the ranks of a communicator share on the device: heaps at equal offsets, a signal pad per
// rank, an abort word and a fault record that the host sees. Plain data for host and kernels; the
// protocol over it is comm.cuh.
#pragma once

#include <cstddef>
#include <cstdint>

#include "comm/launch_plan.h"

namespace nanoweave {

inline constexpr int kMaxRanks = 16;  // of a world
// Barriers in flight: of a group and of the world, one each per lane. Groups skip ops for which
// they have no rows, so their epochs say nothing about the world's.
inline constexpr int kCommLanes = 4;
inline constexpr int kCommSlots = 2 * kCommLanes;

// 32 bytes: a flag line is one sector, written by one rank and polled by one thread.
struct alignas(32) FlagLine {
  uint32_t epoch;
};

// One per rank, in device memory, zeroed when the communicator is made and never reset: epochs only
// grow, so a captured graph replays. A slot is used by one collective at a time.
struct SignalPad {
  uint32_t epochs[kCommSlots][kMaxCommBlocks];  // barriers this rank's block has passed
  uint32_t fault_claimed;                       // 1: a block of this rank has written its fault
  FlagLine flags[kCommSlots][kMaxCommBlocks][kMaxRanks];  // last: by source rank
};

inline constexpr int32_t kNoPeer = -1;

// A rank's fault, in mapped host memory; valid once `written` is 1. Ranks that wait for the same
// dead peer write one each: the host takes the earliest for the cause.
struct DeviceFault {
  uint32_t written;
  int32_t rank;   // who noticed
  int32_t peer;   // whom it waited for; kNoPeer: its own copy engine
  int32_t op;     // index in the program
  int32_t phase;  // barrier of the op: 0 entry, 1 exit
  uint32_t epoch;
  uint64_t time_ns;  // %globaltimer
};

struct CommView {
  std::byte* heaps[kMaxRanks];  // base of each rank's heap, as this device addresses it
  SignalPad* pads[kMaxRanks];
  std::byte* multicast[kMaxRanks];  // [rank] stands for all heaps of the rank's group; or null
  uint32_t* abort;                  // mapped host memory; not 0: give up
  DeviceFault* faults;              // [kMaxRanks], mapped host memory
  uint64_t timeout_ns;
};

}  // namespace nanoweave
