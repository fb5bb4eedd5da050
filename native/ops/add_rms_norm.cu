// add_rms_norm: residual' = residual + (post_weight ? rms(x)·post_weight : x), in place;
// y = rms(residual')·weight, taken before residual' is rounded. [T, H], one block per row; stays in
// the rank. x may be f32, a sum that was not rounded; with owned_groups only the rows the rank owns
// of so many row groups are looked at. Bytes per token: x, y and twice the residual.
#include "cuda/norm_row.cuh"
#include "cuda/rows.cuh"
#include "ops/add_rms_norm.cuh"

namespace nanoweave {

namespace {

struct AddRmsNormConfig {
  static constexpr int kThreads = 256;
  static constexpr int kBlocksPerSm = 8;
};

struct AddRmsNormArgs {
  RowsRef rows;
  const std::byte* x;        // [T, hidden]
  std::byte* residual;       // [T, hidden]
  const float* weight;       // [hidden]
  const float* post_weight;  // [hidden] or null
  std::byte* y;              // [T, hidden]
  int32_t hidden;
  float eps;
  int32_t groups;         // of the rows
  int32_t owners, owner;  // of each group, the share `owner` of `owners`
};

// kWidth elements in accesses of up to 16 bytes.
template <typename X, int kWidth>
__device__ __forceinline__ void load_wide(const X* from, float (&out)[kWidth]) {
  if constexpr (sizeof(X) * kWidth <= 16) {
    load_vector<X, kWidth>(from, out);
  } else {
    constexpr int kPart = kPerVec16<X>;
#pragma unroll
    for (int first = 0; first < kWidth; first += kPart) {
      float part[kPart];
      load_vector<X, kPart>(from + first, part);
#pragma unroll
      for (int k = 0; k < kPart; ++k) out[first + k] = part[k];
    }
  }
}

// X: of x, T: of the rest, kWidth of which are one access.
template <typename X, typename T, int kWidth>
__global__ void __launch_bounds__(AddRmsNormConfig::kThreads)
    add_rms_norm_kernel(const __grid_constant__ AddRmsNormArgs args) {
  constexpr int kThreads = AddRmsNormConfig::kThreads;
  auto& shared = shared_memory<NormShared>(norm_shared_bytes(args.hidden));
  ptx::wait_for_previous_kernel();
  ptx::allow_next_kernel();
  const RowRange rows = rows_of(args.rows);
  int turn = 0;
  for (int group = 0; group < args.groups; ++group) {
    const RowSpan own = owned_group_rows(rows.count, args.groups, group, args.owners, args.owner);
    for (int64_t r = own.begin + blockIdx.x; r < own.end; r += gridDim.x, turn ^= 1) {
      const int64_t offset = (rows.begin + r) * args.hidden;
      const X* x = reinterpret_cast<const X*>(args.x) + offset;
      T* y = reinterpret_cast<T*>(args.y) + offset;
      float sum = 0;
      for_own_vectors<kThreads, kWidth>(args.hidden, [&](int i) {
        float values[kWidth];
        load_wide<X, kWidth>(x + i, values);
        sum += squares(values);
        put_floats(shared.row + i, values);
      });
      const float scale = add_residual<T, kThreads, kWidth>(
          shared, turn, sum, reinterpret_cast<T*>(args.residual) + offset, args.post_weight,
          args.hidden, args.eps);
      for_own_vectors<kThreads, kWidth>(args.hidden, [&](int i) {
        float values[kWidth];
        scale_by_weight(shared.row + i, args.weight + i, scale, values);
        store_vector<T, kWidth>(y + i, values);
      });
    }
  }
}

LaunchShape norm_shape(const CudaLaunch& launch, int32_t which, int32_t hidden) {
  const int64_t rows = most_rows(launch.bucket, which);
  return row_shape(launch, blocks_for(launch, rows, AddRmsNormConfig::kBlocksPerSm),
                   AddRmsNormConfig::kThreads, norm_shared_bytes(hidden));
}

// Calls body(kernel) with the instance for these types and rows.
template <typename Body>
auto with_norm_kernel(DType dtype, DType x_dtype, int32_t hidden, const Body& body) {
  return with_vector_type(dtype, hidden, [&](auto tag, auto width) {
    using T = typename decltype(tag)::Type;
    constexpr int kWidth = decltype(width)::value;
    if (x_dtype == dtype) return body(add_rms_norm_kernel<T, T, kWidth>);
    return body(add_rms_norm_kernel<float, T, kWidth>);
  });
}

}  // namespace

void launch_add_rms_norm(const CudaLaunch& launch, const CudaRank& rank, const AddRmsNorm& norm) {
  const AddRmsNormArgs args{.rows = {rank.step.counts, norm.which},
                            .x = norm.x,
                            .residual = norm.residual,
                            .weight = norm.weight,
                            .post_weight = norm.post_weight,
                            .y = norm.y,
                            .hidden = norm.hidden,
                            .eps = norm.eps,
                            .groups = std::max(norm.owned_groups, 1),
                            .owners = norm.owned_groups > 0 ? rank.tp : 1,
                            .owner = norm.owned_groups > 0 ? rank.tp_rank() : 0};
  with_norm_kernel(norm.dtype, norm.x_dtype, norm.hidden, [&](auto kernel) {
    nanoweave::launch(kernel, norm_shape(launch, norm.which, norm.hidden), launch.stream, args);
  });
}

std::vector<CudaFunction> add_rms_norm_functions(DType dtype, DType x_dtype, int32_t hidden) {
  return with_norm_kernel(dtype, x_dtype, hidden, [&](auto kernel) {
    return std::vector{cuda_function(kernel, norm_shared_bytes(hidden))};
  });
}

CudaKernel prepare_cuda_add_rms_norm(const OpInstance& op, const CudaPlan&) {
  const BufferDesc& y = op.output(0);
  const auto hidden = static_cast<int32_t>(y.cols());
  op.require(hidden <= kMaxNormCols, "rows of more than %lld columns on CUDA",
             static_cast<long long>(kMaxNormCols));
  AddRmsNorm norm{};
  norm.dtype = y.dtype;
  norm.x_dtype = op.input(0)->dtype;
  norm.owned_groups = static_cast<int>(op.integer_or("owned_groups", 0));
  norm.hidden = hidden;
  norm.eps = static_cast<float>(op.number("eps"));
  norm.which = which_rows(y, op.op.part());
  return {.launch =
              [=](const CudaLaunch& launch) {
                for (size_t i = 0; i < launch.ranks.size(); ++i) {
                  const CudaOperands& at = launch.operands[i];
                  AddRmsNorm own = norm;
                  own.x = at.in[0];
                  own.residual = at.out[1];
                  own.weight = reinterpret_cast<const float*>(at.in[2]);
                  own.post_weight = reinterpret_cast<const float*>(at.in[3]);
                  own.y = at.out[0];
                  launch_add_rms_norm(launch, launch.ranks[i], own);
                }
              },
          .workspace_bytes = nullptr,
          .functions = add_rms_norm_functions(y.dtype, norm.x_dtype, hidden)};
}

}  // namespace nanoweave
