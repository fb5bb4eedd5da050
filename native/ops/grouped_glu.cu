// grouped_glu: y = act(gate)·up over the rows a rank received, gate_up [N, 2I] = gate then up, y
// [N, I]; how many rows there are stands in `offsets`. clamped_silu: gate ≤ limit, |up| ≤ limit,
// y = gate·σ(alpha·gate)·(up + 1). Stays in the rank. Bytes per row: 3·I elements.
#include "ops/gated.cuh"
#include "ops/grouped.cuh"

namespace nanoweave {

namespace {

struct GroupedGluArgs {
  GroupedRows rows;
  const std::byte* gate_up;  // [N, 2·width]
  std::byte* y;              // [N, width]
  int32_t width;
  float alpha, limit;  // of clamped_silu
};

struct Silu {
  __device__ static float combine(const GroupedGluArgs&, float gate, float up) {
    return silu(gate) * up;
  }
};
struct GeluTanh {
  __device__ static float combine(const GroupedGluArgs&, float gate, float up) {
    return gelu_tanh(gate) * up;
  }
};
struct ClampedSilu {
  __device__ static float combine(const GroupedGluArgs& args, float gate, float up) {
    const float g = gate > args.limit ? args.limit : gate;  // keeps NaN, as the host does
    const float u = up < -args.limit ? -args.limit : up > args.limit ? args.limit : up;
    return g / (1.0f + expf(-args.alpha * g)) * (u + 1.0f);
  }
};

template <typename T, int kWidth, typename Activation>
__global__ void __launch_bounds__(GatedConfig::kThreads)
    grouped_glu_kernel(const __grid_constant__ GroupedGluArgs args) {
  ptx::wait_for_previous_kernel();
  ptx::allow_next_kernel();
  const RowRange rows{0, args.rows.offset(args.rows.experts)};
  gated_rows<T, kWidth>(rows, args.gate_up, args.y, args.width,
                        [&](float gate, float up) { return Activation::combine(args, gate, up); });
}

template <typename Activation>
CudaKernel prepare(const OpInstance& op) {
  const BufferDesc& y = op.output(0);
  const auto width = static_cast<int32_t>(y.cols());
  const GroupedSize size = grouped_size(op);
  const auto alpha = static_cast<float>(op.number_or("alpha", 0));
  const auto limit = static_cast<float>(op.number_or("limit", 0));
  return with_vector_type(y.dtype, width, [&](auto tag, auto vector) {
    using T = typename decltype(tag)::Type;
    constexpr int kVector = decltype(vector)::value;
    return per_rank(
        grouped_glu_kernel<T, kVector, Activation>,
        [=](const CudaLaunch& launch) {
          const int64_t vectors = size.most_rows(launch.bucket) * (width / kVector);
          const int64_t blocks = (vectors + GatedConfig::kThreads - 1) / GatedConfig::kThreads;
          return row_shape(launch, blocks_for(launch, blocks, GatedConfig::kBlocksPerSm),
                           GatedConfig::kThreads);
        },
        [=](const CudaLaunch&, const CudaRank&, const CudaOperands& at) {
          return GroupedGluArgs{.rows = size.rows(at.in[1]),
                                .gate_up = at.in[0],
                                .y = at.out[0],
                                .width = width,
                                .alpha = alpha,
                                .limit = limit};
        });
  });
}

}  // namespace

CudaKernel prepare_cuda_grouped_glu(const OpInstance& op, const CudaPlan&) {
  const std::string activation = op.string_or("activation", "");
  if (activation == "clamped_silu") return prepare<ClampedSilu>(op);
  return activation == "gelu_tanh" ? prepare<GeluTanh>(op) : prepare<Silu>(op);
}

}  // namespace nanoweave
