// A build without CUDA.
#include "runtime/gpu_support.h"

namespace nanoweave {

namespace {

const char kMissing[] = "built without CUDA";

}  // namespace

GpuDescriptions describe_gpus() { return {.devices = {}, .missing = kMissing}; }

std::string describe_cuda_build() { return "off"; }

std::unique_ptr<Backend> make_cuda_backend(const RuntimeConfig& config) {
  fail(ErrorCode::kNoDevice, "no device '%.64s': this addon was %s", config.devices[0].c_str(),
       kMissing);
}

}  // namespace nanoweave
