#include "runtime/cuda/device_program.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "cuda/launch.h"
#include "cuda/load_step.h"

namespace nanoweave {

namespace {

constexpr int kMain = static_cast<int>(Lane::kCompute);
// Of a collective that runs beside matmuls of another nano-batch (kernels.md §2): more would only
// take multiprocessors from them.
constexpr int kOverlappedNetworkBudget = 32;

int64_t result_bytes(const Limits& limits) {
  return limits.max_rows * int64_t{sizeof(int32_t)} * (2 + 2 * kMaxTopLogprobs);
}

// Sampled tokens and log-probabilities first, next to each other: one copy brings both.
SampleResult place_result(const Limits& limits, std::byte* memory) {
  auto* words = reinterpret_cast<int32_t*>(memory);
  const int64_t rows = limits.max_rows;
  return {.sampled = words,
          .logprobs = reinterpret_cast<float*>(words + rows),
          .top_tokens = words + 2 * rows,
          .top_logprobs = reinterpret_cast<float*>(words + (2 + kMaxTopLogprobs) * rows)};
}

}  // namespace

DeviceProgram::DeviceProgram(std::shared_ptr<const PreparedProgram> prepared, DeviceState& state,
                             const CudaComm& comm, const DeviceGroup& group,
                             const FindStored& find_stored)
    : prepared_(std::move(prepared)), state_(state), comm_(comm), group_(group) {
  use_device(state.device().ordinal);
  bind_ranks(find_stored, comm);
  for (int i = 0; i < prepared_->lanes.num_events; ++i) events_.emplace_back(false);
  fork_ = DeviceEvent(false);
  for (DeviceEvent& join : joins_) join = DeviceEvent(false);
  follow_ = DeviceEvent(false);
  lead_ = DeviceEvent(false);
  network_ = network_lane();
  load_functions();
}

void DeviceProgram::bind_ranks(const FindStored& find_stored, const CudaComm& comm) {
  const Program& program = prepared_->program;
  const int device = state_.device().ordinal;
  operands_.resize(program.ops.size());
  expert_weights_ = find_expert_weights(program, [&](const BufferDesc& buffer) -> const auto& {
    return require_stored(buffer, find_stored(buffer.name), program.limits.num_host_blocks);
  });
  for (size_t local = 0; local < state_.ranks().size(); ++local) {
    const int rank = state_.ranks()[local];
    const auto stored = [&](const BufferDesc& buffer) -> const StoredBuffer& {
      return require_stored(buffer, find_stored(buffer.name), program.limits.num_host_blocks);
    };
    const auto address_of = [&](const View& view) -> std::byte* {
      if (view.buffer < 0) return nullptr;
      const BufferDesc& buffer = program.buffers[view.buffer];
      if (buffer.space == Space::kArena) return comm.heap(rank) + buffer.offset;
      return stored(buffer).data[rank];
    };
    for (size_t op = 0; op < program.ops.size(); ++op) {
      CudaOperands& operands = operands_[op].emplace_back();
      const OpDesc& desc = program.ops[op];
      CHECK(desc.inputs.size() <= kMaxOperands && desc.outputs.size() <= kMaxOperands);
      std::transform(desc.inputs.begin(), desc.inputs.end(), operands.in.begin(), address_of);
      std::transform(desc.outputs.begin(), desc.outputs.end(), operands.out.begin(), address_of);
    }
    std::vector<KvBuffer>& kv = kv_.emplace_back();
    for (const BufferDesc& buffer : program.buffers)
      if (buffer.space == Space::kKv)
        kv.push_back({.data = stored(buffer).data[rank],
                      .host = stored(buffer).host[rank],
                      .block_bytes = stored(buffer).row_bytes()});

    step_memory_.emplace_back(device, device_step_bytes(program.limits), "a step");
    ranks_.push_back({.rank = rank,
                      .tp = group_.tp,
                      .step = place_device_step(program.limits, step_memory_.back().data())});
    result_memory_.emplace_back();
    if (ranks_.back().tp_rank() != 0 || prepared_->sample_op < 0) continue;
    result_memory_.back() = DeviceMemory(device, result_bytes(program.limits), "a step's results");
    ranks_.back().result = place_result(program.limits, result_memory_.back().data());
  }
}

void DeviceProgram::load_functions() const {
  const CudaDevice& device = state_.device();
  for (const CudaFunction& function : load_step_functions()) load_function(function, device);
  for (const CudaKernel& kernel : prepared_->kernels)
    for (const CudaFunction& function : kernel.functions) load_function(function, device);
}

const std::byte* DeviceProgram::logits(size_t local_rank) const {
  return operands_[prepared_->sample_op][local_rank].in[0];
}

bool DeviceProgram::reserve() {
  const Program& program = prepared_->program;
  std::vector<CudaBucket> buckets = largest_buckets(program);
  buckets.insert(buckets.end(), prepared_->buckets.begin(), prepared_->buckets.end());
  std::array<int64_t, kLanes> bytes{};
  for (size_t i = 0; i < program.ops.size(); ++i) {
    const CudaKernel& kernel = prepared_->kernels[i];
    if (!kernel.workspace_bytes) continue;
    int64_t& most = bytes[prepared_->lanes.ops[i].lane];
    for (const CudaBucket& bucket : buckets)
      most = std::max(most, kernel.workspace_bytes(state_.device(), bucket));
  }
  bool moved = state_.grow_slots(program.limits.num_slots, program.limits.vocab_size);
  moved |= state_.grow_experts(program.limits);
  for (int lane = 0; lane < kLanes; ++lane) moved |= state_.grow_workspace(lane, bytes[lane]);
  return moved;
}

// ---- Collectives --------------------------------------------------------------------------------

uint64_t DeviceProgram::plan_collectives(std::string_view nccl_missing) {
  nccl_missing_ = nccl_missing;
  uint64_t hash = kNoPlans;
  nccl_buckets_.clear();
  uses_nccl_ = false;
  for (const CudaBucket& bucket : prepared_->buckets)
    nccl_buckets_.push_back(plan_bucket(bucket, hash));
  for (const CudaBucket& bucket : largest_buckets(prepared_->program))
    uses_nccl_ |= plan_bucket(bucket, hash);
  for (const bool is_nccl : nccl_buckets_) uses_nccl_ |= is_nccl;
  if (!uses_nccl_) nccl_missing_ = "no step is large enough";
  return hash;
}

// Whether any goes through NCCL. As for an eager step: a bucket that takes NCCL is never captured,
// and the others' plans do not depend on what the host knows.
bool DeviceProgram::plan_bucket(const CudaBucket& bucket, uint64_t& hash) const {
  const std::vector<StepCounts> counts(ranks_.size());
  bool any = false;
  for (size_t i = 0; i < prepared_->kernels.size(); ++i) {
    const CudaKernel& kernel = prepared_->kernels[i];
    if (!kernel.plan) continue;
    const LaunchPlan plan = kernel.plan(make_launch(static_cast<int>(i), bucket, counts));
    hash = hash_launch_plan(hash, plan);
    any |= plan.form == CollectiveForm::kNccl;
  }
  return any;
}

// ---- Launching ----------------------------------------------------------------------------------

bool DeviceProgram::is_overlapped() const {
  return prepared_->program.parts > 1 || prepared_->has_overlapped_matmuls;
}

// Alike on all devices: block b of a rank meets block b of the others.
int DeviceProgram::network_budget() const {
  const int all = group_.min_sm_count;
  if (!is_overlapped()) return all;
  const double share = prepared_->program.network_share;
  if (share == 0) return std::min(all, kOverlappedNetworkBudget);
  return std::clamp(static_cast<int>(std::lround(share * all)), 1, all);
}

// Where a share of the device was asked for, the other lanes leave it free.
int DeviceProgram::sm_budget(int lane) const {
  if (lane == static_cast<int>(Lane::kNetwork)) return network_budget();
  const int all = state_.device().sm_count;
  const bool is_shared = is_overlapped() && prepared_->program.network_share > 0;
  return is_shared ? std::max(1, all - network_budget()) : all;
}

void DeviceProgram::capture() {
  use_device(state_.device().ordinal);
  graphs_.clear();
  for (size_t local = 0; local < ranks_.size(); ++local) {
    ranks_[local].slots = state_.slots(local);
    ranks_[local].experts = state_.experts(local);
  }
  for (size_t i = 0; i < prepared_->buckets.size(); ++i) {
    std::optional<DeviceGraph>& graph = graphs_.emplace_back();
    if (!nccl_buckets_[i])
      graph.emplace(state_.main(), [&] { enqueue_ops(prepared_->buckets[i], {}); });
  }
  state_.main().synchronize();
}

void DeviceProgram::enqueue(const CudaBucket& step, std::span<const StepCounts> counts) {
  const int bucket = find_bucket(prepared_->buckets, step);
  if (bucket >= 0 && graphs_[bucket])
    graphs_[bucket]->launch(state_.main().get());
  else
    enqueue_ops(step, counts);
}

void DeviceProgram::enqueue_ops(const CudaBucket& bucket, std::span<const StepCounts> counts) {
  const LanePlan& plan = prepared_->lanes;
  bool forked = false;
  for (int lane = 0; lane < kLanes; ++lane) {
    if (lane == kMain || !plan.used[lane]) continue;
    if (!forked) fork_.record(state_.main().get());
    forked = true;
    state_.lane(lane).wait(fork_);
  }
  for (size_t i = 0; i < plan.ops.size(); ++i) {
    const LanePlan::Op& op = plan.ops[i];
    DeviceStream& stream = state_.lane(op.lane);
    for (const int event : op.waits) stream.wait(events_[event]);
    launch_op(static_cast<int>(i), bucket, counts);
    if (op.records >= 0) events_[op.records].record(stream.get());
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    if (lane == kMain || !plan.used[lane]) continue;
    joins_[lane].record(state_.lane(lane).get());
    state_.main().wait(joins_[lane]);
  }
}

void DeviceProgram::launch_op(int index, const CudaBucket& bucket,
                              std::span<const StepCounts> counts) {
  const int lane = prepared_->lanes.ops[index].lane;
  const CudaKernel& kernel = prepared_->kernels[index];
  CHECK(!kernel.workspace_bytes ||
        kernel.workspace_bytes(state_.device(), bucket) <= state_.workspace_bytes(lane));
  kernel.launch(make_launch(index, bucket, counts));
}

// A wait is for what was recorded when it was asked for, so that one event serves all groups.
NetworkLane DeviceProgram::network_lane() {
  const int lane = static_cast<int>(Lane::kNetwork);
  DeviceStream& network = state_.lane(lane);
  const auto stream_of = [this](CudaStream given) -> DeviceStream& {
    int index = 0;
    while (state_.lane(index).get() != given) ++index;
    return state_.lane(index);
  };
  return {.stream = network.get(),
          .comm_slot = lane,
          .sm_budget = sm_budget(lane),
          .follow =
              [this, &network](CudaStream given) {
                follow_.record(given);
                network.wait(follow_);
              },
          .lead =
              [this, &network, stream_of](CudaStream given) {
                lead_.record(network.get());
                stream_of(given).wait(lead_);
              }};
}

CudaLaunch DeviceProgram::make_launch(int index, const CudaBucket& bucket,
                                      std::span<const StepCounts> counts) const {
  const int lane = prepared_->lanes.ops[index].lane;
  return {.stream = state_.lane(lane).get(),
          .device = state_.device(),
          .ranks = ranks_,
          .operands = operands_[index],
          .bucket = bucket,
          .sm_budget = sm_budget(lane),
          .workspace = state_.workspace(lane),
          .op_index = prepared_->fault_base + index,
          .counts = counts,
          .cublaslt = state_.cublaslt(),
          .comm = &comm_.view(),
          .world = prepared_->program.world,
          .comm_slot = lane,
          .max_local_ranks = group_.max_local_ranks,
          .link = group_.link,
          .peer_access = group_.peer_access,
          .few_blocks = prepared_->program.parts > 1,
          .few = prepared_->program.network_share > 0
                     ? std::max(1, network_budget() / group_.max_local_ranks)
                     : kFewBlocks,
          .multicast_missing = comm_.multicast_missing(),
          .nccl_missing = nccl_missing_,
          .nccl = comm_.nccl(),
          .network = lane == static_cast<int>(Lane::kNetwork) ? nullptr : &network_};
}

}  // namespace nanoweave
