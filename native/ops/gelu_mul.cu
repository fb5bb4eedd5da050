// gelu_mul: y = gate/2 · (1 + tanh(z)) · up with z = √(2/π)·(gate + 0.044715·gate³), computed as
// gate / (1 + e^−2z), which does not cancel for negative gates. See gated.cuh.
#include "ops/gated.cuh"

namespace nanoweave {

namespace {

template <typename T, int kWidth>
__global__ void __launch_bounds__(GatedConfig::kThreads)
    gelu_mul_kernel(const __grid_constant__ GatedArgs args) {
  gated_rows<T, kWidth>(args, [](float gate) {
    const float z = 0.7978845608f * (gate + 0.044715f * gate * gate * gate);
    return gate / (1.0f + expf(-2.0f * z));
  });
}

}  // namespace

CudaKernel prepare_cuda_gelu_mul(const OpInstance& op, const CudaPlan&) {
  return prepare_gated(op, [](auto tag, auto width) {
    return gelu_mul_kernel<typename decltype(tag)::Type, decltype(width)::value>;
  });
}

}  // namespace nanoweave
