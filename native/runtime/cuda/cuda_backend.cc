#include "runtime/cuda/cuda_backend.h"

#include <algorithm>
#include <charconv>

#include "runtime/gpu_support.h"

namespace nanoweave {

namespace {

// The N of cuda:N; ERR_NO_DEVICE for another name.
int parse_device(const std::string& name) {
  constexpr std::string_view kPrefix = "cuda:";
  int ordinal = -1;
  if (name.starts_with(kPrefix)) {
    const char* end = name.data() + name.size();
    const auto parsed = std::from_chars(name.data() + kPrefix.size(), end, ordinal);
    if (parsed.ec == std::errc() && parsed.ptr == end && ordinal >= 0) return ordinal;
  }
  fail(ErrorCode::kNoDevice, "no device '%.64s'", name.c_str());
}

CudaDeviceInfo require_device(int ordinal, const CudaDriver& driver) {
  if (driver.num_devices == 0)
    fail(ErrorCode::kNoDevice, "no device cuda:%d: %s", ordinal, driver.missing.c_str());
  if (ordinal >= driver.num_devices)
    fail(ErrorCode::kNoDevice, "no device cuda:%d, there are %d", ordinal, driver.num_devices);
  CudaDeviceInfo info = describe_cuda_device(ordinal);
  if (!info.unusable.empty())
    fail(ErrorCode::kNoDevice, "cuda:%d (%s) is unusable: %s", ordinal, info.model.c_str(),
         info.unusable.c_str());
  return info;
}

}  // namespace

std::unique_ptr<Backend> make_cuda_backend(const RuntimeConfig& config) {
  return std::make_unique<CudaBackend>(config);
}

CudaBackend::CudaBackend(const RuntimeConfig& config) : config_(config) {
  if (config.devices.size() > static_cast<size_t>(kMaxRanks))
    fail(ErrorCode::kUnsupportedLayout, "%zu ranks on CUDA, at most %d", config.devices.size(),
         kMaxRanks);
  const CudaDriver driver = find_cuda_driver();
  for (const std::string& name : config.devices) device_of_.push_back(parse_device(name));
  std::vector<int> used = device_of_;
  std::sort(used.begin(), used.end());
  used.erase(std::unique(used.begin(), used.end()), used.end());
  group_ = {.tp = config.tp, .max_local_ranks = 1, .min_sm_count = INT32_MAX};
  for (const int ordinal : used) {
    devices_.push_back(require_device(ordinal, driver));
    const auto local = std::count(device_of_.begin(), device_of_.end(), ordinal);
    group_.max_local_ranks = std::max(group_.max_local_ranks, static_cast<int>(local));
    group_.min_sm_count = std::min(group_.min_sm_count, devices_.back().device.sm_count);
  }
}

CudaBackend::~CudaBackend() {
  if (parts_ == nullptr) return;
  abort(EngineError(ErrorCode::kClosed, "the runtime was closed while the step ran"));
  bool lost = false;
  for (const auto& worker : parts_->workers) {
    worker->stop();
    lost |= worker->lost();
  }
  // Freeing memory waits for a device that has stopped answering: leave it all.
  if (lost || devices_given_up()) (void)parts_.release();
}

// ---- Loading ------------------------------------------------------------------------------------

void CudaBackend::open() {
  if (parts_ != nullptr) return;
  connect_peers();
  const std::chrono::milliseconds timeout(config_.wait_timeout_ms);
  auto parts = std::make_unique<DeviceParts>();
  parts->comm =
      std::make_unique<CudaComm>(CudaCommOptions{.device_of = device_of_,
                                                 .tp = config_.tp,
                                                 .heap_bytes = config_.heap_bytes,
                                                 .timeout = timeout,
                                                 .first_epoch = config_.first_epoch,
                                                 .peer_access = group_.peer_access,
                                                 .world_access = group_.world_missing.empty(),
                                                 .deterministic = config_.deterministic},
                                 parts->copies);
  parts->weights = std::make_unique<CudaWeights>(device_of_, parts->copies);
  for (const CudaDeviceInfo& info : devices_) {
    std::vector<int> ranks;
    for (int rank = 0; rank < static_cast<int>(device_of_.size()); ++rank)
      if (device_of_[rank] == info.device.ordinal) ranks.push_back(rank);
    parts->states.push_back(
        std::make_unique<DeviceState>(info.device, std::move(ranks), config_.tp));
    parts->workers.push_back(std::make_unique<DeviceWorker>(
        *parts->states.back(), *parts->comm, root_cause_, timeout,
        [this](const DeviceFault& fault) { return explain_fault(fault); }));
  }
  parts_ = std::move(parts);
  comm_.store(parts_->comm.get(), std::memory_order_release);
}

// Ranks of a group read and write each other's heaps; where they cannot, all goes through NCCL.
// Ranks of different groups do so for tokens on their way to experts: ops that need it refuse to
// load where it is missing.
void CudaBackend::connect_peers() {
  for (size_t a = 0; a < device_of_.size(); ++a)
    for (size_t b = 0; b < device_of_.size(); ++b) {
      const int from = device_of_[a], to = device_of_[b];
      if (from == to) continue;
      const bool same_group = static_cast<int>(a) / config_.tp == static_cast<int>(b) / config_.tp;
      if (!can_map_peer(from, to)) {
        group_.world_missing =
            "cuda:" + std::to_string(from) + " cannot map the memory of cuda:" + std::to_string(to);
        if (same_group) require_nccl(static_cast<int>(a), static_cast<int>(b));
        continue;
      }
      enable_peer(from, to);
      if (!same_group) continue;
      const Link link = is_nvlink(from, to) ? Link::kNvlink : Link::kPcie;
      if (link == Link::kPcie || group_.link == Link::kSameDevice) group_.link = link;
    }
}

void CudaBackend::require_nccl(int a, int b) {
  group_.peer_access = false;
  std::string why;
  if (config_.deterministic)
    why = "it does not sum in rank order: not deterministic";
  else if (NcclLibrary::open(why) != nullptr)
    return;
  fail(ErrorCode::kUnsupportedLayout,
       "ranks %d and %d work together, but cuda:%d cannot map the memory of cuda:%d, and NCCL, the "
       "other way between them, cannot serve: %s. Place them on one GPU, or on GPUs connected by "
       "NVLink or under one PCIe root",
       a, b, device_of_[a], device_of_[b], why.c_str());
}

void CudaBackend::load_weights(const WeightManifest& manifest, const ProgressCallback& progress) {
  open();
  parts_->weights->load(manifest, progress);
}

CudaBackend::LoadedProgram CudaBackend::bind(
    std::shared_ptr<const PreparedProgram> prepared) const {
  LoadedProgram loaded{.prepared = std::move(prepared), .devices = {}};
  const auto find = [&](const std::string& name) { return parts_->weights->find(name); };
  for (const auto& state : parts_->states)
    loaded.devices.push_back(
        std::make_shared<DeviceProgram>(loaded.prepared, *state, *parts_->comm, group_, find));
  return loaded;
}

int CudaBackend::load_program(Program program) {
  const auto world = static_cast<int>(device_of_.size());
  if (program.world != world || program.tp != config_.tp)
    fail(ErrorCode::kProgram, "the program is for world %d, tp %d; the runtime has %d, %d",
         program.world, program.tp, world, config_.tp);
  if (program.arena_bytes > config_.heap_bytes)
    fail(ErrorCode::kProgram, "the program needs an arena of %lld bytes, the heap has %lld",
         static_cast<long long>(program.arena_bytes), static_cast<long long>(config_.heap_bytes));
  open();
  require_same_tables(program.limits.experts);
  const auto id = static_cast<int>(parts_->programs.size());
  LoadedProgram loaded = bind(std::make_shared<const PreparedProgram>(
      prepare_program(std::move(program), id, plan_for_devices(), config_.graphs)));
  plan_collectives(loaded);
  capture(loaded);
  parts_->programs.push_back(std::move(loaded));
  return id;
}

// Tables outlive programs, as sampling slots do.
void CudaBackend::require_same_tables(const ExpertLimits& limits) const {
  const ExpertLimits& there = parts_->states[0]->expert_tables().limits();
  if (limits.tables > 0 && there.tables > 0 && limits != there)
    fail(ErrorCode::kProgram, "the programs of one runtime must have the same expert tables");
}

// Looks for cuBLASLt, and gives the devices a handle of it.
CudaPlan CudaBackend::plan_for_devices() {
  CudaPlan plan{.deterministic = config_.deterministic,
                .step = {},
                .peer_access = group_.peer_access,
                .world_missing = group_.world_missing,
                .max_local_ranks = group_.max_local_ranks,
                .cublaslt_missing = "its sums depend on the number of rows: not deterministic"};
  if (config_.deterministic) return plan;
  const CublasLtLibrary* const library = CublasLtLibrary::open(plan.cublaslt_missing);
  for (const auto& state : parts_->states) state->use_cublaslt(library);
  return plan;
}

// NCCL is looked for, and its communicators are made, only where a plan takes it.
void CudaBackend::plan_collectives(const LoadedProgram& loaded) {
  if (!plan_all(loaded, "")) return;
  const std::string& missing = parts_->comm->nccl_missing();
  if (!missing.empty())
    plan_all(loaded, missing);
  else
    parts_->comm->connect_nccl(parts_->states);
}

// Whether any plan takes NCCL.
bool CudaBackend::plan_all(const LoadedProgram& loaded, std::string_view nccl_missing) const {
  uint64_t first = 0;
  for (size_t i = 0; i < loaded.devices.size(); ++i) {
    const uint64_t hash = loaded.devices[i]->plan_collectives(nccl_missing);
    if (i == 0) first = hash;
    if (hash != first)
      fail(ErrorCode::kUnsupportedLayout,
           "cuda:%d and cuda:%d plan the collectives of program '%s' differently (%016llx, "
           "%016llx), so that they would not meet; use GPUs of one model",
           devices_[0].device.ordinal, devices_[i].device.ordinal,
           loaded.prepared->program.name.c_str(), static_cast<unsigned long long>(first),
           static_cast<unsigned long long>(hash));
  }
  return loaded.devices[0]->uses_nccl();
}

// All that can fail without a trace comes first; then graphs, those of earlier programs too where
// the memory they name has moved. Those that could not be captured again must not run.
void CudaBackend::capture(const LoadedProgram& loaded) {
  for (size_t device = 0; device < loaded.devices.size(); ++device)
    parts_->workers[device]->reserve(*loaded.devices[device]);
  try {
    for (size_t device = 0; device < loaded.devices.size(); ++device) {
      if (loaded.devices[device]->reserve())
        for (const LoadedProgram& earlier : parts_->programs) earlier.devices[device]->capture();
      loaded.devices[device]->capture();
    }
  } catch (...) {
    if (!parts_->programs.empty()) root_cause_.report_current(-1, {}, -1);
    throw;
  }
}

// ---- Running ------------------------------------------------------------------------------------

const Program& CudaBackend::program(int id) const {
  if (parts_ == nullptr || id < 0 || id >= static_cast<int>(parts_->programs.size()))
    fail(ErrorCode::kUsage, "there is no program %d", id);
  return parts_->programs[id].prepared->program;
}

void CudaBackend::run(int program_id, std::shared_ptr<const Step> step, Done done) {
  program(program_id);  // checks the id
  const LoadedProgram& loaded = parts_->programs[program_id];
  const auto run = std::make_shared<StepRun>(
      std::move(step), static_cast<int>(parts_->workers.size()), std::move(done));
  for (size_t i = 0; i < parts_->workers.size(); ++i)
    parts_->workers[i]->submit(loaded.devices[i], run);
}

void CudaBackend::abort(const EngineError& why) {
  root_cause_.report(why);
  if (CudaComm* const comm = comm_.load(std::memory_order_acquire)) comm->abort();
}

EngineError CudaBackend::explain_stuck(const DeviceFault& fault, const std::string& label) const {
  EngineError error(
      ErrorCode::kRankFault,
      "rank " + std::to_string(fault.rank) + " waited " + std::to_string(config_.wait_timeout_ms) +
          " ms for the copy engine of cuda:" + std::to_string(device_of_[fault.rank]) + " in op '" +
          label + "'; the runtime must be closed and made anew");
  error.rank = fault.rank;
  error.op = label;
  return error;
}

EngineError CudaBackend::explain_fault(const DeviceFault& fault) const {
  const Program& program = parts_->programs[fault.op / kFaultOps].prepared->program;
  const std::string& label = program.ops[fault.op % kFaultOps].label;
  if (fault.peer == kNoPeer) return explain_stuck(fault, label);
  EngineError error(ErrorCode::kRankTimeout,
                    "rank " + std::to_string(fault.rank) + " waited " +
                        std::to_string(config_.wait_timeout_ms) + " ms for rank " +
                        std::to_string(fault.peer) + " at barrier " + std::to_string(fault.phase) +
                        " of op '" + label + "'; the runtime must be closed and made anew");
  error.rank = fault.peer;
  error.op = label;
  return error;
}

// ---- Tests' access ------------------------------------------------------------------------------

CudaBackend::ArenaBytes CudaBackend::find_arena(int program_id, const std::string& buffer,
                                                int rank) const {
  if (rank < 0 || rank >= static_cast<int>(device_of_.size()))
    fail(ErrorCode::kUsage, "rank %d of a world of %zu", rank, device_of_.size());
  for (const BufferDesc& desc : program(program_id).buffers)
    if (desc.name == buffer && desc.space == Space::kArena)
      return {parts_->comm->heap(rank) + desc.offset, desc.max_bytes()};
  fail(ErrorCode::kUsage, "program %d has no arena buffer '%.128s'", program_id, buffer.c_str());
}

std::vector<uint8_t> CudaBackend::read(int program_id, const std::string& buffer, int rank) {
  open();
  if (program_id == -1) return parts_->weights->read(buffer, rank);
  const ArenaBytes arena = find_arena(program_id, buffer, rank);
  std::vector<uint8_t> bytes(static_cast<size_t>(arena.bytes));
  parts_->copies.read(device_of_[rank], arena.data, std::as_writable_bytes(std::span(bytes)));
  return bytes;
}

void CudaBackend::write(int program_id, const std::string& buffer, int rank,
                        std::vector<uint8_t> bytes) {
  open();
  if (program_id == -1) return parts_->weights->write(buffer, rank, bytes);
  const ArenaBytes arena = find_arena(program_id, buffer, rank);
  if (static_cast<int64_t>(bytes.size()) > arena.bytes)
    fail(ErrorCode::kUsage, "%zu bytes for '%s', which has %lld", bytes.size(), buffer.c_str(),
         static_cast<long long>(arena.bytes));
  parts_->copies.write(device_of_[rank], arena.data, std::as_bytes(std::span(bytes)));
}

}  // namespace nanoweave
