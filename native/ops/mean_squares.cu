// mean_squares: qkv [T, (Hq + 2·Hkv)·D] → y [T, 2] f32, this rank's term of the mean of the squares
// of all query heads and of all key heads of the group. One block per row and mean; stays in the
// rank. Bytes per token: (Hq + Hkv)·D elements read.
#include "cuda/norm_row.cuh"
#include "cuda/rows.cuh"

namespace nanoweave {

namespace {

struct MeanSquaresConfig {
  static constexpr int kThreads = 256;
  static constexpr int kBlocksPerSm = 8;
};

struct MeanSquaresArgs {
  RowsRef rows;
  const std::byte* qkv;  // [T, width]
  float* y;              // [T, 2]
  int32_t width, query_cols, key_cols;
  int32_t ranks;
};

struct MeanSquaresShared {
  float sums[2][kWarpSize];  // by turn, so that consecutive sums need no barrier between them
};

template <typename T, int kWidth>
__global__ void __launch_bounds__(MeanSquaresConfig::kThreads)
    mean_squares_kernel(const __grid_constant__ MeanSquaresArgs args) {
  constexpr int kThreads = MeanSquaresConfig::kThreads;
  auto& shared = shared_memory<MeanSquaresShared>(sizeof(MeanSquaresShared));
  ptx::wait_for_previous_kernel();
  ptx::allow_next_kernel();
  const RowRange rows = rows_of(args.rows);
  int turn = 0;
  for (int32_t item = blockIdx.x; item < 2 * rows.count; item += gridDim.x, turn ^= 1) {
    const int64_t row = rows.begin + item / 2;
    const bool of_keys = item % 2 == 1;
    const int32_t cols = of_keys ? args.key_cols : args.query_cols;
    const T* x =
        reinterpret_cast<const T*>(args.qkv) + row * args.width + (of_keys ? args.query_cols : 0);
    float sum = 0;
    for_own_vectors<kThreads, kWidth>(cols, [&](int i) {
      float values[kWidth];
      load_vector<T, kWidth>(x + i, values);
      sum += squares(values);
    });
    const float total = block_sum<kThreads>(sum, shared.sums[turn]);
    if (threadIdx.x == 0)
      args.y[row * 2 + item % 2] = total / (static_cast<float>(args.ranks) * cols);
  }
}

}  // namespace

CudaKernel prepare_cuda_mean_squares(const OpInstance& op, const CudaPlan&) {
  const BufferDesc& qkv = *op.input(0);
  const int32_t which = which_rows(op.output(0), op.op.part());
  const auto head_dim = static_cast<int32_t>(op.integer("head_dim"));
  const MeanSquaresArgs constant{
      .rows = {},
      .qkv = nullptr,
      .y = nullptr,
      .width = static_cast<int32_t>(qkv.cols()),
      .query_cols = static_cast<int32_t>(op.integer("heads")) * head_dim,
      .key_cols = static_cast<int32_t>(op.integer("kv_heads")) * head_dim,
      .ranks = op.program.tp};
  const auto shape = [=](const CudaLaunch& launch) {
    const int64_t items = 2 * most_rows(launch.bucket, which);
    return row_shape(launch, blocks_for(launch, items, MeanSquaresConfig::kBlocksPerSm),
                     MeanSquaresConfig::kThreads, sizeof(MeanSquaresShared));
  };
  const auto arguments = [=](const CudaLaunch&, const CudaRank& rank, const CudaOperands& at) {
    MeanSquaresArgs args = constant;
    args.rows = {rank.step.counts, which};
    args.qkv = at.in[0];
    args.y = reinterpret_cast<float*>(at.out[0]);
    return args;
  };
  // Both ranges begin at multiples of a head.
  return with_vector_type(qkv.dtype, head_dim, [&](auto tag, auto width) {
    return per_rank(mean_squares_kernel<typename decltype(tag)::Type, decltype(width)::value>,
                    shape, arguments, sizeof(MeanSquaresShared));
  });
}

}  // namespace nanoweave
