// CpuBackend: all ranks on the CPU. A rank is one worker thread with its own pool, heap, scratch
// and slot table; it takes steps from a first-in first-out queue and runs each to its end, so steps
// of the runtime follow each other on every rank without a meeting point in between.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <thread>

#include "runtime/executor.h"
#include "runtime/region.h"
#include "runtime/root_cause.h"
#include "runtime/step_run.h"
#include "runtime/weight_store.h"

namespace nanoweave {

class CpuBackend : public Backend {
 public:
  explicit CpuBackend(const RuntimeConfig& config);
  ~CpuBackend() override;  // aborts what still runs, joins

  void load_weights(const WeightManifest& manifest, const ProgressCallback& progress) override;
  int load_program(Program program) override;
  const Program& program(int id) const override;
  void run(int program_id, std::shared_ptr<const Step> step, Done done) override;
  void abort(const EngineError& why) override;
  std::vector<uint8_t> read(int program_id, const std::string& buffer, int rank) override;
  void write(int program_id, const std::string& buffer, int rank,
             std::vector<uint8_t> bytes) override;

 private:
  struct QueuedStep {
    std::shared_ptr<const LoadedProgram> program;
    std::shared_ptr<StepRun> run;
  };

  // One rank. `steps` and `stop` are guarded by `mutex`; the rest is the rank thread's during steps
  // and the control thread's between them.
  struct Worker {
    explicit Worker(int threads, bool spin) : pool(threads, spin), slots(0) {}

    ThreadPool pool;
    Scratch scratch;
    SlotTable slots;
    ExpertTables experts;
    int64_t num_slots = 0;
    HostRank rank;

    std::mutex mutex;
    std::condition_variable ready;
    std::deque<QueuedStep> steps;
    bool stop = false;
    std::atomic<int> num_queued{0};  // mirrors steps.size(), so that the thread can spin on it
    std::thread thread;
  };

  struct ArenaBytes {
    std::byte* data;
    int64_t bytes;
  };

  void work(Worker& worker);
  QueuedStep next_step(Worker& worker);  // null: stop
  void run_step(Worker& worker, const LoadedProgram& program, StepRun& run);
  void stop_workers();
  void create_expert_tables(const ExpertLimits& limits);
  ArenaBytes find_arena(int program_id, const std::string& buffer, int rank) const;

  const RuntimeConfig config_;
  const int world_;
  bool oversubscribed_ = false;
  WeightStore store_;
  std::vector<Region> heaps_;  // [world]
  std::vector<std::byte*> heap_bases_;
  std::unique_ptr<HostComm> comm_;
  std::vector<std::shared_ptr<const LoadedProgram>> programs_;

  RootCause root_cause_;

  std::vector<std::unique_ptr<Worker>> workers_;  // last: their threads use all of the above
};

}  // namespace nanoweave
