// DeviceProgram: a program bound to one device: operands of its ranks, their step memory, and a
// graph per bucket. Enqueues steps; never waits.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/cuda/comm.h"
#include "runtime/cuda/device_state.h"
#include "runtime/cuda/prepared_program.h"
#include "runtime/expert_copies.h"
#include "runtime/stored_buffer.h"

namespace nanoweave {

// What the devices of a backend have in common, for launches that must be alike on all.
struct DeviceGroup {
  int tp = 1;
  int max_local_ranks = 1;
  int min_sm_count = 1;
  bool peer_access = true;         // inside every group of ranks
  Link link = Link::kSameDevice;   // the slowest inside a group of ranks
  std::string world_missing = {};  // why groups cannot reach each other; empty: they can
};

using FindStored = std::function<const StoredBuffer*(const std::string& name)>;

class DeviceProgram {
 public:
  // Loads the kernels on the device; graphs come with capture().
  DeviceProgram(std::shared_ptr<const PreparedProgram> prepared, DeviceState& state,
                const CudaComm& comm, const DeviceGroup& group, const FindStored& find_stored);

  const PreparedProgram& prepared() const { return *prepared_; }
  const std::vector<CudaRank>& ranks() const { return ranks_; }
  // KV buffers of a local rank, what steps swap them to, and the bytes of a block in each.
  struct KvBuffer {
    std::byte* data;
    std::byte* host;
    int64_t block_bytes;
  };
  const std::vector<KvBuffer>& kv(size_t local_rank) const { return kv_[local_rank]; }

  const ExpertWeights& expert_weights() const { return expert_weights_; }

  // Row 0 of the logits a local rank samples from.
  const std::byte* logits(size_t local_rank) const;

  // Plans the collectives of every size of step and gives a hash of it, which must be the same on
  // all devices. `nccl_missing`, empty where NCCL may be planned for, must outlive the program.
  uint64_t plan_collectives(std::string_view nccl_missing);
  bool uses_nccl() const { return uses_nccl_; }

  // Makes room in the device's workspaces and slots. True: they have moved, so that all programs
  // of the device must capture again.
  bool reserve();
  // Captures all graphs anew, but none that holds NCCL's work: aborting its communicators would
  // wait for them. No step may be running.
  void capture();

  // The ops of a step into the main lane, by graph where its bucket has one. `counts` by local
  // rank.
  void enqueue(const CudaBucket& step, std::span<const StepCounts> counts);

 private:
  void load_functions() const;
  void bind_ranks(const FindStored& find_stored, const CudaComm& comm);
  void enqueue_ops(const CudaBucket& bucket, std::span<const StepCounts> counts);
  void launch_op(int index, const CudaBucket& bucket, std::span<const StepCounts> counts);
  CudaLaunch make_launch(int index, const CudaBucket& bucket,
                         std::span<const StepCounts> counts) const;
  bool plan_bucket(const CudaBucket& bucket, uint64_t& hash) const;
  bool is_overlapped() const;
  int network_budget() const;
  int sm_budget(int lane) const;
  NetworkLane network_lane();

  const std::shared_ptr<const PreparedProgram> prepared_;
  DeviceState& state_;
  const CudaComm& comm_;
  const DeviceGroup group_;

  std::vector<DeviceMemory> step_memory_, result_memory_;
  std::vector<CudaRank> ranks_;                      // local
  std::vector<std::vector<CudaOperands>> operands_;  // [op][local rank]
  std::vector<std::vector<KvBuffer>> kv_;            // [local rank]
  ExpertWeights expert_weights_;
  std::vector<DeviceEvent> events_;  // of the lane plan
  DeviceEvent fork_;
  std::array<DeviceEvent, kLanes> joins_;
  DeviceEvent follow_, lead_;  // of overlapped matmuls, recorded anew for each group
  NetworkLane network_;        // refers to this
  std::string_view nccl_missing_;
  bool uses_nccl_ = false;
  std::vector<bool> nccl_buckets_;                  // by bucket
  std::vector<std::optional<DeviceGraph>> graphs_;  // by bucket; empty until captured
};

}  // namespace nanoweave
