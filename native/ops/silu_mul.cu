// silu_mul: y = gate / (1 + e^−gate) · up. See gated.cuh.
#include "ops/gated.cuh"

namespace nanoweave {

namespace {

template <typename T, int kWidth>
__global__ void __launch_bounds__(GatedConfig::kThreads)
    silu_mul_kernel(const __grid_constant__ GatedArgs args) {
  gated_kernel_body<T, kWidth>(args, [](float gate) { return silu(gate); });
}

}  // namespace

CudaKernel prepare_cuda_silu_mul(const OpInstance& op, const CudaPlan&) {
  return prepare_gated(op, [](auto tag, auto width) {
    return silu_mul_kernel<typename decltype(tag)::Type, decltype(width)::value>;
  });
}

}  // namespace nanoweave
