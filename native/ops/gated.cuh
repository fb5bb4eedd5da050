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

template <typename T, int kWidth, typename Activation>
__device__ __forceinline__ void gated_rows(const GatedArgs& args, const Activation& activation) {
  ptx::wait_for_previous_kernel();
  ptx::allow_next_kernel();
  const RowRange rows = rows_of(args.rows);
  const uint32_t per_row = static_cast<uint32_t>(args.width) / kWidth;
  const uint64_t vectors = static_cast<uint64_t>(rows.count) * per_row;
  const uint64_t stride = static_cast<uint64_t>(gridDim.x) * GatedConfig::kThreads;
  for (uint64_t v = blockIdx.x * GatedConfig::kThreads + threadIdx.x; v < vectors; v += stride) {
    const auto r = static_cast<uint32_t>(v / per_row);
    const int64_t row = rows.begin + static_cast<int64_t>(r);
    const auto i = static_cast<int64_t>(v - uint64_t{r} * per_row) * kWidth;
    const T* gate = reinterpret_cast<const T*>(args.gate_up) + row * 2 * args.width + i;
    float values[kWidth], up[kWidth];
    load_vector<T, kWidth>(gate, values);
    load_vector<T, kWidth>(gate + args.width, up);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) values[j] = activation(values[j]) * up[j];
    store_vector<T, kWidth>(reinterpret_cast<T*>(args.y) + row * args.width + i, values);
  }
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
