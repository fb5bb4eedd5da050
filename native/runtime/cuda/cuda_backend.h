// CudaBackend: all ranks on GPUs, several of them on one device if asked. Each device has a thread
// (DeviceWorker) that drives its ranks; loading is done by the control thread, with no step
// running.
#pragma once

#include <atomic>

#include "runtime/cuda/device_worker.h"
#include "runtime/cuda/weights.h"

namespace nanoweave {

class CudaBackend : public Backend {
 public:
  // Checks the devices; takes memory on them with the first load.
  explicit CudaBackend(const RuntimeConfig& config);
  ~CudaBackend() override;  // aborts what still runs, joins

  void load_weights(const WeightManifest& manifest, const ProgressCallback& progress) override;
  int load_program(Program program) override;
  const Program& program(int id) const override;
  void run(int program_id, std::shared_ptr<const Step> step, Done done) override;
  void abort(const EngineError& why) override;
  std::vector<uint8_t> read(int program_id, const std::string& buffer, int rank) override;
  void write(int program_id, const std::string& buffer, int rank,
             std::vector<uint8_t> bytes) override;

 private:
  struct LoadedProgram {
    std::shared_ptr<const PreparedProgram> prepared;
    std::vector<std::shared_ptr<DeviceProgram>> devices;  // in the order of DeviceParts::states
  };
  // All that lies on the devices.
  struct DeviceParts {
    HostCopies copies;
    std::vector<std::unique_ptr<DeviceState>> states;
    std::unique_ptr<CudaComm> comm;
    std::unique_ptr<CudaWeights> weights;
    std::vector<LoadedProgram> programs;
    std::vector<std::unique_ptr<DeviceWorker>> workers;  // last: their threads use the others
  };

  void open();
  void connect_peers();
  LoadedProgram bind(std::shared_ptr<const PreparedProgram> prepared) const;
  void require_same_tables(const ExpertLimits& limits) const;
  CudaPlan plan_for_devices();
  void plan_collectives(const LoadedProgram& loaded);
  bool plan_all(const LoadedProgram& loaded, std::string_view nccl_missing) const;
  void require_nccl(int a, int b);
  void capture(const LoadedProgram& loaded);
  EngineError explain_fault(const DeviceFault& fault) const;
  EngineError explain_stuck(const DeviceFault& fault, const std::string& label) const;
  struct ArenaBytes {
    std::byte* data;
    int64_t bytes;
  };
  ArenaBytes find_arena(int program_id, const std::string& buffer, int rank) const;

  const RuntimeConfig config_;
  std::vector<int> device_of_;  // [world]
  DeviceGroup group_;
  RootCause root_cause_;
  std::unique_ptr<DeviceParts> parts_;    // null until the first load
  std::atomic<CudaComm*> comm_{nullptr};  // that of parts_, for abort()
  std::vector<CudaDeviceInfo> devices_;   // used ones, ascending
};

}  // namespace nanoweave
