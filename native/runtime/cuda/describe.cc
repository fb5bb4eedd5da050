#include "cuda/device.h"
#include "runtime/gpu_support.h"

namespace nanoweave {

namespace {

std::string name_of(int ordinal) { return "cuda:" + std::to_string(ordinal); }

GpuDescription to_description(const CudaDeviceInfo& info) {
  GpuDescription gpu{.name = name_of(info.device.ordinal),
                     .model = info.model,
                     .memory_bytes = info.memory_bytes,
                     .free_bytes = info.free_bytes,
                     .multiprocessors = info.device.sm_count,
                     .features = {info.features},
                     .peers = {}};
  for (const int peer : info.peers) gpu.peers.push_back(name_of(peer));
  return gpu;
}

}  // namespace

GpuDescriptions describe_gpus() {
  const CudaDriver driver = find_cuda_driver();
  GpuDescriptions found{.devices = {}, .missing = driver.missing};
  for (int ordinal = 0; ordinal < driver.num_devices; ++ordinal) {
    std::string problem;
    try {
      const CudaDeviceInfo info = describe_cuda_device(ordinal);
      problem = info.unusable;
      if (problem.empty()) found.devices.push_back(to_description(info));
    } catch (const EngineError& error) {
      problem = error.what();
    }
    if (problem.empty()) continue;
    if (!found.missing.empty()) found.missing += "; ";
    found.missing += name_of(ordinal) + ": " + problem;
  }
  return found;
}

std::string describe_cuda_build() { return NANOWEAVE_CUDA_BUILD; }

}  // namespace nanoweave
