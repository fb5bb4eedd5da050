// gelu_mul: y = gate/2 · (1 + tanh(z)) · up with z = √(2/π)·(gate + 0.044715·gate³). See gated.cuh.
#include "ops/gated.cuh"

namespace nanoweave {

namespace {

template <typename T, int kWidth>
__global__ void __launch_bounds__(GatedConfig::kThreads)
    gelu_mul_kernel(const __grid_constant__ GatedArgs args) {
  gated_kernel_body<T, kWidth>(args, [](float gate) { return gelu_tanh(gate); });
}

}  // namespace

CudaKernel prepare_cuda_gelu_mul(const OpInstance& op, const CudaPlan&) {
  return prepare_gated(op, [](auto tag, auto width) {
    return gelu_mul_kernel<typename decltype(tag)::Type, decltype(width)::value>;
  });
}

}  // namespace nanoweave
