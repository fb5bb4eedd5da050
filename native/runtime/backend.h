// Backend: what a kind of device must do for the runtime. The one interface with virtual functions.
// A backend drives all ranks placed on its devices. All calls but run() and abort() come from the
// runtime's control thread, never concurrently with a running step.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "comm/host_comm.h"
#include "core/error.h"
#include "program/manifest.h"
#include "program/program.h"
#include "program/step.h"

namespace nanoweave {

struct RuntimeConfig {
  std::vector<std::string> devices;  // [world]
  int tp = 1;
  int64_t heap_bytes = 0;
  int threads_per_rank = 0;
  int wait_timeout_ms = 30000;
  bool deterministic = false;
  std::string cpu_isa = "auto";
  bool graphs = true;        // CUDA: capture decoding steps
  uint32_t first_epoch = 0;  // of the barriers; tests of the wrap-around
};

using ProgressCallback = std::function<void(int64_t bytes_done, int64_t bytes_total)>;

class Backend {
 public:
  virtual ~Backend() = default;

  virtual void load_weights(const WeightManifest& manifest, const ProgressCallback& progress) = 0;
  virtual int load_program(Program program) = 0;  // already parsed and verified
  virtual const Program& program(int id) const = 0;

  // Starts a step on all ranks and returns; `done` is called once, from a device thread, with the
  // result or with the root cause (a rank's own failure rather than its peers' timeouts). Steps run
  // in the order given. A failed step poisons the backend: later steps fail with the same cause.
  using Done = std::function<void(std::unique_ptr<StepResult>, std::exception_ptr)>;
  virtual void run(int program_id, std::shared_ptr<const Step> step, Done done) = 0;

  // Thread-safe: running and queued steps fail with `why`, as does every later one. Returns at
  // once.
  virtual void abort(const EngineError& why) = 0;

  virtual std::vector<uint8_t> read(int program_id, const std::string& buffer, int rank) = 0;
  virtual void write(int program_id, const std::string& buffer, int rank,
                     std::vector<uint8_t> bytes) = 0;
};

// One line per backend. ERR_USAGE for options without a meaning, ERR_NO_DEVICE for a device that is
// not there.
std::unique_ptr<Backend> make_backend(const RuntimeConfig& config);

}  // namespace nanoweave
