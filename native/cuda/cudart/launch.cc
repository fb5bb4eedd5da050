// Launching through the CUDA runtime. Kernels of one stream follow each other by programmatic
// launch where the device has it (sm_90): a kernel's blocks may be resident before the one in front
// has ended, and wait in wait_for_previous_kernel().
#include "cuda/launch.h"

#include <algorithm>

#include "cuda/cudart/check.h"

namespace nanoweave {

void load_function(const CudaFunction& function, const CudaDevice& device) {
  cudaFuncAttributes attributes{};
  check_cuda(cudaFuncGetAttributes(&attributes, function.function), "loading a kernel");
  if (function.shared_bytes > 0)
    check_cuda(cudaFuncSetAttribute(
                   function.function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                   static_cast<int>(std::min(function.shared_bytes, device.max_shared_bytes))),
               "reserving a kernel's shared memory");
}

void launch_function(const void* function, const LaunchShape& shape, CudaStream stream,
                     void* args) {
  cudaLaunchAttribute attribute{};
  if (shape.cooperative) {
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
  } else if (shape.programmatic) {
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(shape.blocks_x, shape.blocks_y, shape.blocks_z);
  config.blockDim = dim3(shape.threads);
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = shape.cooperative || shape.programmatic ? 1 : 0;
  void* parameters[] = {args};
  check_cuda(cudaLaunchKernelExC(&config, function, parameters), "launching a kernel");
}

}  // namespace nanoweave
