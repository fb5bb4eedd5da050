// rms_norm: y = x / sqrt(mean(x²) + eps) · weight per row of [T, H]. One block per row; stays in
// the rank. Bytes per token: x and y once each; the weight stays in L2.
#include "cuda/norm_row.cuh"
#include "cuda/rows.cuh"

namespace nanoweave {

namespace {

struct RmsNormConfig {
  static constexpr int kThreads = 256;
  static constexpr int kBlocksPerSm = 8;
};

struct RmsNormArgs {
  RowsRef rows;
  const std::byte* x;   // [T, hidden]
  const float* weight;  // [hidden]
  std::byte* y;         // [T, hidden]
  int32_t hidden;
  float eps;
};

template <typename T, int kWidth>
__global__ void __launch_bounds__(RmsNormConfig::kThreads)
    rms_norm_kernel(const __grid_constant__ RmsNormArgs args) {
  constexpr int kThreads = RmsNormConfig::kThreads;
  auto& shared = shared_memory<NormShared>(norm_shared_bytes(args.hidden));
  ptx::wait_for_previous_kernel();
  ptx::allow_next_kernel();
  const RowRange rows = rows_of(args.rows);
  int turn = 0;
  for (int32_t r = blockIdx.x; r < rows.count; r += gridDim.x, turn ^= 1) {
    const int64_t offset = int64_t{rows.begin + r} * args.hidden;
    const T* x = reinterpret_cast<const T*>(args.x) + offset;
    T* y = reinterpret_cast<T*>(args.y) + offset;
    float sum = 0;
    for_own_vectors<kThreads, kWidth>(args.hidden, [&](int i) {
      float values[kWidth];
      load_vector<T, kWidth>(x + i, values);
      sum += squares(values);
      put_floats(shared.row + i, values);
    });
    const float scale = inverse_rms<kThreads>(sum, args.hidden, args.eps, shared.sums[turn]);
    for_own_vectors<kThreads, kWidth>(args.hidden, [&](int i) {
      float values[kWidth];
      scale_by_weight(shared.row + i, args.weight + i, scale, values);
      store_vector<T, kWidth>(y + i, values);
    });
  }
}

}  // namespace

CudaKernel prepare_cuda_rms_norm(const OpInstance& op, const CudaPlan&) {
  const BufferDesc& y = op.output(0);
  const int32_t which = which_rows(y, op.op.part());
  const auto hidden = static_cast<int32_t>(y.cols());
  op.require(hidden <= kMaxNormCols, "rows of more than %lld columns on CUDA",
             static_cast<long long>(kMaxNormCols));
  const auto eps = static_cast<float>(op.number("eps"));
  const auto shape = [=](const CudaLaunch& launch) {
    const int64_t rows = most_rows(launch.bucket, which);
    return row_shape(launch, blocks_for(launch, rows, RmsNormConfig::kBlocksPerSm),
                     RmsNormConfig::kThreads, norm_shared_bytes(hidden));
  };
  const auto arguments = [=](const CudaLaunch&, const CudaRank& rank, const CudaOperands& at) {
    return RmsNormArgs{.rows = {rank.step.counts, which},
                       .x = at.in[0],
                       .weight = reinterpret_cast<const float*>(at.in[1]),
                       .y = at.out[0],
                       .hidden = hidden,
                       .eps = eps};
  };
  return with_vector_type(y.dtype, hidden, [&](auto tag, auto width) {
    return per_rank(rms_norm_kernel<typename decltype(tag)::Type, decltype(width)::value>, shape,
                    arguments, norm_shared_bytes(hidden));
  });
}

}  // namespace nanoweave
