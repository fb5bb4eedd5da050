// DeviceState: what the programs of one device share: its streams, a workspace for each lane, the
// sampling slots of its ranks, and its expert tables. Grows while programs are loaded, with no step
// running.
#pragma once

#include <array>
#include <memory>
#include <vector>

#include "cuda/cublaslt.h"
#include "cuda/device.h"
#include "ops/expert_tables.h"
#include "runtime/cuda/lane_plan.h"

namespace nanoweave {

class DeviceState {
 public:
  // `ranks`: those placed here, ascending; `tp` of a group.
  DeviceState(const CudaDevice& device, std::vector<int> ranks, int tp);

  const CudaDevice& device() const { return device_; }
  const std::vector<int>& ranks() const { return ranks_; }

  DeviceStream& lane(int lane) { return lanes_[lane]; }
  // The lane that starts and ends every step.
  DeviceStream& main() { return lanes_[static_cast<int>(Lane::kCompute)]; }
  DeviceStream& upload() { return upload_; }
  // All streams.
  void synchronize(std::chrono::milliseconds most = kMostHostWait) const;

  // Makes the device's handle on the first call; null stays null.
  void use_cublaslt(const CublasLtLibrary* library);
  CublasLt* cublaslt() const { return cublaslt_.get(); }

  std::byte* workspace(int lane) const { return workspaces_[lane].data(); }
  int64_t workspace_bytes(int lane) const { return workspaces_[lane].bytes(); }
  const SlotStates& slots(size_t local_rank) const { return slots_[local_rank].states; }

  const ExpertStates& experts(size_t local_rank) const { return experts_[local_rank].states; }

  // The tables as steps have left them, and the copy of them that kernels read.
  // Device thread, and control thread while no step runs.
  ExpertTables& expert_tables() { return expert_tables_; }
  int32_t* device_expert_tables() const { return expert_table_memory_.as<int32_t>(); }

  // True: the memory has moved, so that graphs captured before are stale.
  bool grow_workspace(int lane, int64_t bytes);
  bool grow_slots(int64_t num_slots, int64_t vocab_size);
  // The first program with expert tables makes them; later ones have the same.
  bool grow_experts(const Limits& limits);

 private:
  struct SlotMemory {
    DeviceMemory params, counts, bias, allowed;
    SlotStates states{};
  };

  // Nothing but on the first rank of a group.
  struct ExpertMemory {
    DeviceMemory counts, chosen;
    ExpertStates states{};
  };

  SlotMemory make_slots(int64_t num_slots, int64_t vocab_size);
  void make_expert_tables(const ExpertLimits& limits);
  void copy_slots(const SlotMemory& from, const SlotMemory& to);

  const CudaDevice device_;
  const std::vector<int> ranks_;
  const int tp_;
  std::unique_ptr<CublasLt> cublaslt_;
  std::array<DeviceStream, kLanes> lanes_;
  DeviceStream upload_;
  std::array<DeviceMemory, kLanes> workspaces_;
  int64_t num_slots_ = 0;
  std::vector<SlotMemory> slots_;  // by local rank
  ExpertTables expert_tables_;
  DeviceMemory expert_table_memory_;
  std::vector<ExpertMemory> experts_;  // by local rank
};

}  // namespace nanoweave
