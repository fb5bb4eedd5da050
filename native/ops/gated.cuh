// silu_mul and gelu_mul: gate_up [T, 2I] → y [T, I], y = f(gate) · up, gate first. One thread per
// vector; stays in the rank. Bytes per token: 3·I elements.
#pragma once

#include "cuda/rows.cuh"

namespace nanoweave {

struct GatedConfig {
  static constexpr int kThreads = 256;
  static constexpr int kBlocksPerSm = 8;
};

struct GatedArgs {
  RowsRef rows;
  const std::byte* gate_up;  // [T, 2·width]
  std::byte* y;              // [T, width]
  int32_t width;
};

// y = combine(gate, up) for the rows; all blocks of the grid take part.
template <typename T, int kWidth, typename Combine>
__device__ __forceinline__ void gated_rows(const RowRange& rows, const std::byte* gate_up,
                                           std::byte* y, int32_t width, const Combine& combine) {
  const uint32_t per_row = static_cast<uint32_t>(width) / kWidth;
  const uint64_t vectors = static_cast<uint64_t>(rows.count) * per_row;
  const uint64_t stride = static_cast<uint64_t>(gridDim.x) * GatedConfig::kThreads;
  for (uint64_t v = blockIdx.x * GatedConfig::kThreads + threadIdx.x; v < vectors; v += stride) {
    const auto r = static_cast<uint32_t>(v / per_row);
    const int64_t row = rows.begin + static_cast<int64_t>(r);
    const auto i = static_cast<int64_t>(v - uint64_t{r} * per_row) * kWidth;
    const T* gate = reinterpret_cast<const T*>(gate_up) + row * 2 * width + i;
    float values[kWidth], up[kWidth];
    load_vector<T, kWidth>(gate, values);
    load_vector<T, kWidth>(gate + width, up);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) values[j] = combine(values[j], up[j]);
    store_vector<T, kWidth>(reinterpret_cast<T*>(y) + row * width + i, values);
  }
}

// The activations of gates; z of GELU is √(2/π)·(gate + 0.044715·gate³), and gate/2 · (1 + tanh(z))
// is computed as gate / (1 + e^−2z), which does not cancel for negative gates.
__device__ __forceinline__ float silu(float gate) { return gate / (1.0f + expf(-gate)); }
__device__ __forceinline__ float gelu_tanh(float gate) {
  const float z = 0.7978845608f * (gate + 0.044715f * gate * gate * gate);
  return gate / (1.0f + expf(-2.0f * z));
}

template <typename T, int kWidth, typename Activation>
__device__ __forceinline__ void gated_kernel_body(const GatedArgs& args,
                                                  const Activation& activation) {
  ptx::wait_for_previous_kernel();
  ptx::allow_next_kernel();
  gated_rows<T, kWidth>(rows_of(args.rows), args.gate_up, args.y, args.width,
                        [&](float gate, float up) { return activation(gate) * up; });
}

// Launcher: `kernel_of(tag, width)` names the instantiation.
template <typename KernelOf>
CudaKernel prepare_gated(const OpInstance& op, const KernelOf& kernel_of) {
  const BufferDesc& y = op.output(0);
  const int32_t which = which_rows(y, op.op.part());
  const auto width = static_cast<int32_t>(y.cols());
  return with_vector_type(y.dtype, width, [&](auto tag, auto vector) {
    constexpr int kVector = decltype(vector)::value;
    return per_rank(
        kernel_of(tag, vector),
        [=](const CudaLaunch& launch) {
          const int64_t vectors = most_rows(launch.bucket, which) * (width / kVector);
          const int64_t blocks = (vectors + GatedConfig::kThreads - 1) / GatedConfig::kThreads;
          return row_shape(launch, blocks_for(launch, blocks, GatedConfig::kBlocksPerSm),
                           GatedConfig::kThreads);
        },
        [=](const CudaLaunch&, const CudaRank& rank, const CudaOperands& at) {
          return GatedArgs{.rows = {rank.step.counts, which},
                           .gate_up = at.in[0],
                           .y = at.out[0],
                           .width = width};
        });
  });
}

}  // namespace nanoweave
