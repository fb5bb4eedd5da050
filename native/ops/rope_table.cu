// rope_table: table[t] = {cos(p·f_0), …, cos(p·f_{n-1}), sin(p·f_0), …} · factor, p the token's
// position, n = rotary / 2 frequencies, [T, rotary] f32. Stays in the rank; writes 4·rotary bytes
// per token. Angles are products of float32 values, as on the host, and so are the frequencies of
// dynamic NTK scaling, whose powers are taken in double.
#include "cuda/rows.cuh"

namespace nanoweave {

namespace {

struct RopeTableConfig {
  static constexpr int kThreads = 128;
  static constexpr int kBlocksPerSm = 8;
  static constexpr int kMaxHalf = 256;  // frequencies: they travel as an argument
  static_assert(kMaxHalf * sizeof(float) < 4096 - 256);
};

struct RopeTableArgs {
  RowsRef rows;
  const int32_t* positions;  // [T]
  float* table;              // [T, 2·half]
  int32_t half;
  float factor;
  double dynamic_original;  // positions from here on take other frequencies; < 0: none
  double dynamic_factor;
  double dynamic_base;
  float inv_freq[RopeTableConfig::kMaxHalf];
};

__device__ float dynamic_frequency(const RopeTableArgs& args, int32_t position, int i) {
  const double cols = 2.0 * args.half;
  const double base =
      args.dynamic_base * pow(args.dynamic_factor * (position + 1.0) / args.dynamic_original -
                                  (args.dynamic_factor - 1.0),
                              cols / (cols - 2.0));
  return static_cast<float>(pow(base, -2.0 * i / cols));
}

__global__ void __launch_bounds__(RopeTableConfig::kThreads)
    rope_table_kernel(const __grid_constant__ RopeTableArgs args) {
  ptx::wait_for_previous_kernel();
  ptx::allow_next_kernel();
  const RowRange rows = rows_of(args.rows);
  for (int32_t r = blockIdx.x; r < rows.count; r += gridDim.x) {
    const int64_t row = rows.begin + r;
    const int32_t position = args.positions[row];
    const bool dynamic = args.dynamic_original >= 0 && position >= args.dynamic_original;
    float* to = args.table + row * 2 * args.half;
    for (int i = threadIdx.x; i < args.half; i += RopeTableConfig::kThreads) {
      const float frequency = dynamic ? dynamic_frequency(args, position, i) : args.inv_freq[i];
      const float angle = static_cast<float>(position) * frequency;
      to[i] = cosf(angle) * args.factor;
      to[args.half + i] = sinf(angle) * args.factor;
    }
  }
}

}  // namespace

CudaKernel prepare_cuda_rope_table(const OpInstance& op, const CudaPlan&) {
  const std::vector<double> given = op.numbers("inv_freq");
  op.require(given.size() <= RopeTableConfig::kMaxHalf, "more than %d frequencies on CUDA",
             RopeTableConfig::kMaxHalf);
  RopeTableArgs constant{};
  constant.half = static_cast<int32_t>(given.size());
  std::copy(given.begin(), given.end(), constant.inv_freq);
  constant.factor = static_cast<float>(op.number_or("attention_factor", 1));
  constant.dynamic_original =
      op.has("dynamic_factor") ? static_cast<double>(op.integer("dynamic_original")) : -1;
  constant.dynamic_factor = op.number_or("dynamic_factor", 1);
  constant.dynamic_base = op.number_or("dynamic_base", 0);
  const int32_t which = which_rows(op.output(0), op.op.part());

  return per_rank(
      rope_table_kernel,
      [=](const CudaLaunch& launch) {
        const int64_t rows = most_rows(launch.bucket, which);
        return row_shape(launch, blocks_for(launch, rows, RopeTableConfig::kBlocksPerSm),
                         RopeTableConfig::kThreads);
      },
      [=](const CudaLaunch&, const CudaRank& rank, const CudaOperands& at) {
        RopeTableArgs args = constant;
        args.rows = {rank.step.counts, which};
        args.positions = rank.step.positions;
        args.table = reinterpret_cast<float*>(at.out[0]);
        return args;
      });
}

}  // namespace nanoweave
