#include "runtime/cpu_backend.h"

#include <algorithm>
#include <system_error>

#include "core/futex.h"
#include "cpu/host_info.h"

namespace nanoweave {

namespace {

constexpr int kSpinsForNextStep = 2000;  // tens of µs: the next step of a running batch is near

const std::string kNoOp;

}  // namespace

CpuBackend::CpuBackend(const RuntimeConfig& config)
    : config_(config), world_(static_cast<int>(config.devices.size())), store_(world_) {
  const CpuIsa isa = parse_isa(config.cpu_isa);
  const int cores = host_info().hardware_threads;
  const int threads =
      config.threads_per_rank > 0 ? config.threads_per_rank : std::max(1, cores / world_);
  oversubscribed_ = int64_t{threads} * world_ > cores;

  for (int rank = 0; rank < world_; ++rank) {
    heaps_.emplace_back(config.heap_bytes, false, "a symmetric heap");
    heap_bases_.push_back(heaps_.back().data());
  }
  comm_ = std::make_unique<HostComm>(heap_bases_, config.heap_bytes,
                                     std::chrono::milliseconds(config.wait_timeout_ms),
                                     oversubscribed_);
  comm_->start_epochs_at(config.first_epoch);
  for (int rank = 0; rank < world_; ++rank) {
    workers_.push_back(std::make_unique<Worker>(threads, !oversubscribed_));
    Worker& worker = *workers_.back();
    worker.rank = {.rank = rank,
                   .world = world_,
                   .tp = config.tp,
                   .isa = isa,
                   .deterministic = config.deterministic,
                   .pool = &worker.pool,
                   .comm = comm_.get(),
                   .scratch = &worker.scratch,
                   .slots = &worker.slots,
                   .experts = &worker.experts};
  }
  try {
    for (auto& worker : workers_)
      worker->thread = std::thread([this, &worker = *worker] { work(worker); });
  } catch (const std::system_error&) {
    stop_workers();
    fail(ErrorCode::kOutOfMemory, "the system has no thread left for a rank");
  }
}

CpuBackend::~CpuBackend() {
  abort(EngineError(ErrorCode::kClosed, "the runtime was closed while the step ran"));
  stop_workers();
}

void CpuBackend::stop_workers() {
  for (auto& worker : workers_) {
    {
      const std::lock_guard lock(worker->mutex);
      worker->stop = true;
    }
    worker->ready.notify_one();
  }
  for (auto& worker : workers_)
    if (worker->thread.joinable()) worker->thread.join();
}

void CpuBackend::load_weights(const WeightManifest& manifest, const ProgressCallback& progress) {
  constexpr int kMaxLoaders = 16;
  store_.load(manifest, progress, std::min(host_info().hardware_threads, kMaxLoaders));
}

int CpuBackend::load_program(Program program) {
  if (program.world != world_ || program.tp != config_.tp)
    fail(ErrorCode::kProgram, "the program is for world %d, tp %d; the runtime has %d, %d",
         program.world, program.tp, world_, config_.tp);
  if (program.arena_bytes > config_.heap_bytes)
    fail(ErrorCode::kProgram, "the program needs an arena of %lld bytes, the heap has %lld",
         static_cast<long long>(program.arena_bytes), static_cast<long long>(config_.heap_bytes));
  refuse_cuda_only(program);
  const int64_t num_slots = program.limits.num_slots;
  // All that can fail comes first: an id stands for a program that runs.
  std::shared_ptr<const LoadedProgram> loaded =
      bind_program(std::move(program), store_, heap_bases_);
  programs_.reserve(programs_.size() + 1);
  create_expert_tables(loaded->program.limits.experts);
  for (auto& worker : workers_) {  // slots outlive programs: a sequence may change program
    if (num_slots <= worker->num_slots) continue;
    SlotTable grown(num_slots);
    for (int64_t slot = 0; slot < worker->num_slots; ++slot)
      grown[slot] = std::move(worker->slots[slot]);
    worker->slots = std::move(grown);
    worker->num_slots = num_slots;
  }
  programs_.push_back(std::move(loaded));
  return static_cast<int>(programs_.size()) - 1;
}

// Tables outlive programs too; ERR_PROGRAM for other tables than those there are.
void CpuBackend::create_expert_tables(const ExpertLimits& limits) {
  if (limits.tables == 0 || workers_[0]->experts.limits() == limits) return;
  if (workers_[0]->experts.limits().tables > 0)
    fail(ErrorCode::kProgram, "the programs of one runtime must have the same expert tables");
  std::vector<ExpertTables> tables;  // all or none: memory may be short
  for (size_t i = 0; i < workers_.size(); ++i) tables.emplace_back(limits);
  for (size_t i = 0; i < workers_.size(); ++i) workers_[i]->experts = std::move(tables[i]);
}

const Program& CpuBackend::program(int id) const {
  if (id < 0 || id >= static_cast<int>(programs_.size()))
    fail(ErrorCode::kUsage, "there is no program %d", id);
  return programs_[id]->program;
}

void CpuBackend::run(int program_id, std::shared_ptr<const Step> step, Done done) {
  program(program_id);  // checks the id
  const auto run = std::make_shared<StepRun>(std::move(step), world_, std::move(done));
  for (auto& worker : workers_) {
    {
      const std::lock_guard lock(worker->mutex);
      worker->steps.push_back({programs_[program_id], run});
      worker->num_queued.fetch_add(1, std::memory_order_release);
    }
    worker->ready.notify_one();
  }
}

void CpuBackend::abort(const EngineError& why) {
  root_cause_.report(why);
  comm_->fault({.reason = why.what()});
}

CpuBackend::QueuedStep CpuBackend::next_step(Worker& worker) {
  for (int spins = 0; !oversubscribed_ && spins < kSpinsForNextStep &&
                      worker.num_queued.load(std::memory_order_acquire) == 0;
       ++spins)
    spin_pause();
  std::unique_lock lock(worker.mutex);
  worker.ready.wait(lock, [&] { return worker.stop || !worker.steps.empty(); });
  if (worker.steps.empty()) return {};
  QueuedStep step = std::move(worker.steps.front());
  worker.steps.pop_front();
  worker.num_queued.fetch_sub(1, std::memory_order_relaxed);
  return step;
}

void CpuBackend::work(Worker& worker) {
  for (;;) {
    const auto [program, run] = next_step(worker);
    if (run == nullptr) return;
    run_step(worker, *program, *run);
    if (run->arrive()) run->complete(run->failed() ? root_cause_.get() : nullptr);
  }
}

void CpuBackend::run_step(Worker& worker, const LoadedProgram& program, StepRun& run) {
  HostRank& rank = worker.rank;
  RunPosition position;
  run.mark_started();
  try {
    if (comm_->aborted()) comm_->throw_aborted(rank.rank, kNoOp, run.step().id);
    rank.result = rank.tp_rank() == 0 ? &run.result() : nullptr;
    worker.pool.begin_step();
    run_program(program, run.step(), rank, position);
  } catch (...) {
    const std::string& op = position.op != nullptr ? *position.op : kNoOp;
    const int step = run.step().id;
    run.mark_failed();
    // First writer wins: after a timeout or an echo the record is already there.
    comm_->fault({.rank = rank.rank,
                  .step = step,
                  .op = op,
                  .reason = root_cause_.report_current(rank.rank, op, step)});
  }
  worker.pool.end_step();
}

CpuBackend::ArenaBytes CpuBackend::find_arena(int program_id, const std::string& buffer,
                                              int rank) const {
  if (rank < 0 || rank >= world_) fail(ErrorCode::kUsage, "rank %d of a world of %d", rank, world_);
  for (const BufferDesc& desc : program(program_id).buffers)
    if (desc.name == buffer && desc.space == Space::kArena)
      return {heap_bases_[rank] + desc.offset, desc.max_bytes()};
  fail(ErrorCode::kUsage, "program %d has no arena buffer '%.128s'", program_id, buffer.c_str());
}

std::vector<uint8_t> CpuBackend::read(int program_id, const std::string& buffer, int rank) {
  if (program_id == -1) return store_.read(buffer, rank);
  const ArenaBytes arena = find_arena(program_id, buffer, rank);
  const auto* begin = reinterpret_cast<const uint8_t*>(arena.data);
  return {begin, begin + arena.bytes};
}

void CpuBackend::write(int program_id, const std::string& buffer, int rank,
                       std::vector<uint8_t> bytes) {
  if (program_id == -1) return store_.write(buffer, rank, bytes);
  const ArenaBytes arena = find_arena(program_id, buffer, rank);
  if (static_cast<int64_t>(bytes.size()) > arena.bytes)
    fail(ErrorCode::kUsage, "%zu bytes for '%s', which has %lld", bytes.size(), buffer.c_str(),
         static_cast<long long>(arena.bytes));
  std::copy(bytes.begin(), bytes.end(), reinterpret_cast<uint8_t*>(arena.data));
}

}  // namespace nanoweave
