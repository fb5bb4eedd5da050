// CudaKernel: one op of a program, prepared for CUDA. It checks the instance once, at load (the
// host contract of ops/op.h first, then what CUDA adds), and afterwards launches any number of
// times without looking at device memory, allocating or synchronising: a launch may be captured
// into a graph.
//
// Who launches: the thread of a device, once per op, for all ranks placed there. An op that stays
// in its rank launches one kernel per local rank; a collective launches one for all of them
// (grid.y = local ranks, cooperative), so that ranks that wait for each other run at once or the
// launch fails.
//
// What decides a launch: the bucket, the device and the plan of the program, never the step. Sizes,
// part bounds, tokens and tables are read by the kernels from DeviceStep. Grids cover the bucket;
// rows beyond the step's are not touched.
//
// Workspace: one per lane and device, of the largest size its kernels ask for. Its first
// kWorkspaceCounterBytes are zero when it is made, and every kernel leaves them zero.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "cuda/comm.h"
#include "cuda/expert_states.h"
#include "cuda/slots.h"
#include "cuda/step.h"
#include "ops/op.h"

#if !defined(NANOWEAVE_EMULATION)
struct CUstream_st;
#endif

namespace nanoweave {

#if defined(NANOWEAVE_EMULATION)
namespace emulation {
struct Stream;
}
using CudaStream = emulation::Stream*;
#else
using CudaStream = CUstream_st*;  // cudaStream_t
#endif

class CublasLt;
class NcclWorld;

inline constexpr int kMaxOperands = 6;  // inputs, and outputs, of one op
inline constexpr int64_t kWorkspaceCounterBytes = 256 << 10;

struct CudaDevice {
  int ordinal = 0;
  int arch = 0;  // 80, 89, 90, 100: compute capability · 10
  int sm_count = 0;
  int64_t max_shared_bytes = 0;  // one block may ask for
};

// The most a step of this bucket has. A captured graph belongs to one bucket.
struct CudaBucket {
  int64_t tokens = 0;
  int64_t part_tokens = 0;  // of the largest part
  int64_t rows = 0;
  int64_t seqs = 0;
  bool decode_only = false;  // every segment fits the decode list (StepPlanConfig)
};

// Where a rank's sampling results go: device memory or mapped host memory. Null pointers on all
// ranks but the first of a group.
struct SampleResult {
  int32_t* sampled;     // [maxRows] −1: did not sample
  float* logprobs;      // [maxRows] NaN: not asked
  int32_t* top_tokens;  // [maxRows, kMaxTopLogprobs] the first `top` of the row's flags
  float* top_logprobs;  // [maxRows, kMaxTopLogprobs]
};

// A rank of this device, fixed from load to close.
struct CudaRank {
  int rank = 0;
  int tp = 1;
  DeviceStep step{};
  SlotStates slots{};
  SampleResult result{};
  ExpertStates experts{};

  int tp_first() const { return rank / tp * tp; }
  int tp_rank() const { return rank % tp; }
};

// An op's operands on one rank: row 0 of the whole buffer, whatever part the op works on. Null:
// optional input absent.
struct CudaOperands {
  std::array<std::byte*, kMaxOperands> in{};
  std::array<std::byte*, kMaxOperands> out{};
};

// The network lane, for ops of another lane that overlap their own matmul with their own
// collective.
struct NetworkLane {
  CudaStream stream = nullptr;
  int comm_slot = 0;
  int sm_budget = 0;
  // The network lane waits for what `lane` has been given so far, and the reverse.
  std::function<void(CudaStream lane)> follow;
  std::function<void(CudaStream lane)> lead;
};

struct CudaLaunch {
  CudaStream stream = nullptr;
  const CudaDevice& device;
  std::span<const CudaRank> ranks;         // local to the device
  std::span<const CudaOperands> operands;  // by local rank
  CudaBucket bucket;
  int sm_budget = 0;  // multiprocessors this lane may fill
  std::byte* workspace = nullptr;
  int op_index = 0;  // for the fault record
  // This step's sizes, by local rank. Empty: the host does not know them (a captured graph).
  std::span<const StepCounts> counts = {};
  CublasLt* cublaslt = nullptr;    // this device's; null where the plan says it is missing
  const CommView* comm = nullptr;  // of every launch: faults are reported there
  // Collectives only.
  int world = 1;            // ranks of all devices
  int comm_slot = 0;        // the lane's
  int max_local_ranks = 1;  // of the device that holds most, the same on all devices
  Link link = Link::kSameDevice;
  bool peer_access = true;
  bool few_blocks = false;   // another lane computes meanwhile
  int32_t few = kFewBlocks;  // of a rank, then
  // Why the ranks have no multicast heaps or no communicators; empty: they have, or can be given.
  std::string_view multicast_missing = {};
  std::string_view nccl_missing = "it is not loaded";
  NcclWorld* nccl = nullptr;             // there where a plan says NCCL
  const NetworkLane* network = nullptr;  // null: the op has that lane itself
};

// A kernel and the most dynamic shared memory it is launched with. The backend loads all of them
// on every device before the first step: loading one while another spins would deadlock.
struct CudaFunction {
  const void* function = nullptr;
  int64_t shared_bytes = 0;  // or less, on devices that have less
};

struct CudaKernel {
  std::function<void(const CudaLaunch&)> launch;
  // Bytes of workspace, counters included, on a device and bucket. Null: none.
  std::function<int64_t(const CudaDevice&, const CudaBucket&)> workspace_bytes;
  std::vector<CudaFunction> functions;
  // Collectives only: how a launch will go. ERR_PROGRAM where the form asked for cannot be had; the
  // backend asks at load, for each bucket, and compares the devices' answers by hash.
  std::function<LaunchPlan(const CudaLaunch&)> plan = nullptr;
  bool uses_network_lane = false;  // beside its own
};

// What prepare_cuda_op() needs beside the program.
struct CudaPlan {
  bool deterministic = false;
  StepPlanConfig step;
  bool peer_access = true;                            // inside of every group
  std::string world_missing = {};                     // why not between groups; empty: it is there
  int max_local_ranks = kMaxRanks;                    // of a device
  std::string cublaslt_missing = "it is not loaded";  // empty: launches bring it
};

struct CudaOpDef {
  const char* name;  // of ops/table.cc
  CudaKernel (*prepare)(const OpInstance& instance, const CudaPlan& plan);
};

std::span<const CudaOpDef> cuda_op_table();

// Checks the op as prepare_host_op() does, then what CUDA adds. ERR_PROGRAM names the op's label
// and what this backend does not have.
CudaKernel prepare_cuda_op(const Program& program, const OpDesc& op, const CudaPlan& plan);

}  // namespace nanoweave
