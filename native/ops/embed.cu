// embed: x[t] = table[id(t)] · scale, [T, H]; the table is this rank's [V/W, H] shard, row-major,
// and ids of other ranks give zero rows. Stays in the rank. Bytes per token: H · (table + x).
#include "cuda/rows.cuh"

namespace nanoweave {

namespace {

struct EmbedConfig {
  static constexpr int kThreads = 256;
  static constexpr int kBlocksPerSm = 8;
};

struct EmbedArgs {
  RowsRef rows;
  const int32_t* tokens;   // [T]
  const std::byte* table;  // [shard, hidden]
  std::byte* x;            // [T, hidden]
  DType table_dtype, x_dtype;
  int32_t hidden;
  int32_t shard;     // ids this rank holds
  int32_t first_id;  // the first of them
  float scale;
};

// Table and x are of one type and rows a multiple of kWidth.
template <typename T, int kWidth>
__device__ void embed_row(const EmbedArgs& args, int64_t row, int32_t id, bool held) {
  const T* from = reinterpret_cast<const T*>(args.table) + int64_t{id} * args.hidden;
  T* to = reinterpret_cast<T*>(args.x) + row * args.hidden;
  for (int i = threadIdx.x * kWidth; i < args.hidden; i += EmbedConfig::kThreads * kWidth) {
    float values[kWidth] = {};
    if (held) load_vector<T, kWidth>(from + i, values);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) values[j] *= args.scale;
    store_vector<T, kWidth>(to + i, values);
  }
}

__device__ void embed_row_mixed(const EmbedArgs& args, int64_t row, int32_t id, bool held) {
  for (int i = threadIdx.x; i < args.hidden; i += EmbedConfig::kThreads) {
    const float value =
        held ? load_element(args.table_dtype, args.table, int64_t{id} * args.hidden + i) : 0;
    store_element(args.x_dtype, args.x, row * args.hidden + i, value * args.scale);
  }
}

// kWidth 0: types differ.
template <typename T, int kWidth>
__global__ void __launch_bounds__(EmbedConfig::kThreads)
    embed_kernel(const __grid_constant__ EmbedArgs args) {
  ptx::wait_for_previous_kernel();
  ptx::allow_next_kernel();
  const RowRange rows = rows_of(args.rows);
  for (int32_t r = blockIdx.x; r < rows.count; r += gridDim.x) {
    const int64_t row = rows.begin + r;
    const int32_t id = args.tokens[row] - args.first_id;
    const bool held = id >= 0 && id < args.shard;
    if constexpr (kWidth == 0)
      embed_row_mixed(args, row, id, held);
    else
      embed_row<T, kWidth>(args, row, id, held);
  }
}

}  // namespace

CudaKernel prepare_cuda_embed(const OpInstance& op, const CudaPlan&) {
  const BufferDesc& table = *op.input(0);
  const BufferDesc& x = op.output(0);
  const int32_t which = which_rows(x, op.op.part());
  const auto hidden = static_cast<int32_t>(x.cols());
  const auto shard = static_cast<int32_t>(table.shape[0].size);
  const auto scale = static_cast<float>(op.number_or("scale", 1));
  const DType table_dtype = table.dtype, x_dtype = x.dtype;

  const auto shape = [=](const CudaLaunch& launch) {
    const int64_t rows = most_rows(launch.bucket, which);
    return row_shape(launch, blocks_for(launch, rows, EmbedConfig::kBlocksPerSm),
                     EmbedConfig::kThreads);
  };
  const auto arguments = [=](const CudaLaunch&, const CudaRank& rank, const CudaOperands& at) {
    return EmbedArgs{.rows = {rank.step.counts, which},
                     .tokens = rank.step.tokens,
                     .table = at.in[0],
                     .x = at.out[0],
                     .table_dtype = table_dtype,
                     .x_dtype = x_dtype,
                     .hidden = hidden,
                     .shard = shard,
                     .first_id = rank.tp_rank() * shard,
                     .scale = scale};
  };
  if (table_dtype != x_dtype) return per_rank(embed_kernel<float, 0>, shape, arguments);
  return with_vector_type(x_dtype, hidden, [&](auto tag, auto width) {
    return per_rank(embed_kernel<typename decltype(tag)::Type, decltype(width)::value>, shape,
                    arguments);
  });
}

}  // namespace nanoweave
