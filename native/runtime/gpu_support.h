// What this build can do with GPUs: runtime/cuda/ in a build with CUDA (or its emulation),
// runtime/cuda/absent.cc in one without.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "runtime/backend.h"

namespace nanoweave {

struct GpuDescription {
  std::string name;   // cuda:0
  std::string model;  // NVIDIA H200
  int64_t memory_bytes = 0;
  int64_t free_bytes = 0;
  int multiprocessors = 0;
  std::vector<std::string> features;  // sm_90
  std::vector<std::string> peers;     // names
};

struct GpuDescriptions {
  std::vector<GpuDescription> devices;
  std::string missing;  // why there is none that works; empty: all is well
};

GpuDescriptions describe_gpus();

// "off", "emulated", or the CUDA version and the architectures compiled for.
std::string describe_cuda_build();

// All devices of `config` are cuda:N. ERR_NO_DEVICE says what is missing.
std::unique_ptr<Backend> make_cuda_backend(const RuntimeConfig& config);

}  // namespace nanoweave
