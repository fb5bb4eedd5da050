// Matmul through cuBLASLt, where that pays: many rows. It computes the rows that the host knows of
// (host_rows.h): those of this step, or all of the bucket, whose surplus nobody looks at; a row of
// y depends on its row of x alone. The bias goes into the epilogue, in y's type: a float32 bias is
// rounded to a 16-bit y's type first, which changes nothing where the checkpoint had that type.
// Its choice of algorithm depends on the number of rows, so that deterministic never takes it.
#include "cuda/cublaslt.h"
#include "ops/matmul.cuh"

namespace nanoweave {

namespace {

struct RoundBiasConfig {
  static constexpr int kThreads = 256;
};

struct RoundBiasArgs {
  const float* bias;  // [n]
  std::byte* rounded;
  int32_t n;
};

template <typename T>
__global__ void __launch_bounds__(RoundBiasConfig::kThreads)
    round_bias_kernel(const __grid_constant__ RoundBiasArgs args) {
  ptx::wait_for_previous_kernel();
  ptx::allow_next_kernel();
  const int i = static_cast<int>(blockIdx.x) * RoundBiasConfig::kThreads + threadIdx.x;
  if (i < args.n) reinterpret_cast<T*>(args.rounded)[i] = round_to<T>(args.bias[i]);
}

uint32_t alignment_of(const std::byte* pointer) {
  const auto address = reinterpret_cast<uintptr_t>(pointer) | 256;
  return static_cast<uint32_t>(address & -address);
}

int64_t rounded_bias_bytes(const MatmulShape& shape) {
  return (int64_t{shape.constant.n} * 2 + 255) / 256 * 256;
}

const std::byte* bias_of(const MatmulShape& shape, const CudaLaunch& launch,
                         const MatmulArgs& args) {
  const DType dtype = shape.constant.y_dtype;
  if (args.bias == nullptr || dtype == DType::kF32)
    return reinterpret_cast<const std::byte*>(args.bias);
  std::byte* rounded = launch.workspace + kWorkspaceCounterBytes;
  const auto blocks = static_cast<unsigned>((shape.constant.n + RoundBiasConfig::kThreads - 1) /
                                            RoundBiasConfig::kThreads);
  nanoweave::launch(dtype == DType::kBf16 ? round_bias_kernel<bf16> : round_bias_kernel<f16>,
                    row_shape(launch, blocks, RoundBiasConfig::kThreads), launch.stream,
                    RoundBiasArgs{.bias = args.bias, .rounded = rounded, .n = shape.constant.n});
  return rounded;
}

void launch_cublaslt(const MatmulShape& shape, const CudaLaunch& launch) {
  const MatmulArgs& constant = shape.constant;
  for (size_t i = 0; i < launch.ranks.size(); ++i) {
    const HostRows rows = host_rows(launch, i, shape.which);
    if (rows.count == 0) continue;
    const MatmulArgs args = matmul_args(shape, launch.ranks[i], launch.operands[i]);
    CublasLtMatmul call{};
    call.x = args.x + rows.begin * constant.k * dtype_bytes(constant.x_dtype);
    call.w = args.w;
    call.bias = bias_of(shape, launch, args);
    call.y = args.y + rows.begin * constant.n * dtype_bytes(constant.y_dtype);
    call.workspace = launch.workspace + kWorkspaceCounterBytes + rounded_bias_bytes(shape);
    call.shape = {.rows = rows.count,
                  .n = constant.n,
                  .k = constant.k,
                  .operands = constant.x_dtype,
                  .result = constant.y_dtype,
                  .has_bias = call.bias != nullptr,
                  .sm_target = launch.sm_budget < launch.device.sm_count ? launch.sm_budget : 0,
                  .x_alignment = alignment_of(call.x),
                  .w_alignment = alignment_of(call.w),
                  .y_alignment = alignment_of(call.y),
                  .workspace_bytes = CublasLt::kWorkspaceBytes};
    launch.cublaslt->matmul(call, launch.stream);
  }
}

// Why cuBLASLt cannot serve this op; empty: it can.
std::string refuse(const MatmulShape& shape, const CudaPlan& plan) {
  const MatmulArgs& args = shape.constant;
  if (!plan.cublaslt_missing.empty()) return plan.cublaslt_missing;
  if (plan.deterministic) return "its sums depend on the number of rows: not deterministic";
  if (args.x_dtype != args.w_dtype) return "x and the weight have different types";
  if (args.y_dtype != args.x_dtype && args.y_dtype != DType::kF32)
    return "y has neither the type of x nor f32";
  return args.softcap > 0 ? "it has no soft cap" : "";
}

// Few rows are bound by reading W once, which our own kernels do; those for f32 are slower.
bool pays(const MatmulShape& shape, const CudaLaunch& launch) {
  constexpr int64_t kFloat32Rows = 8;
  return most_rows(launch.bucket, shape.which) >
         (shape.constant.x_dtype == DType::kF32 ? kFloat32Rows : kStreamRows);
}

}  // namespace

CudaKernel with_cublaslt(const OpInstance& op, const MatmulShape& shape, const CudaPlan& plan,
                         CudaKernel own) {
  const std::string wanted = op.string_or("implementation", "auto");
  if (wanted == "own") return own;
  const std::string refused = refuse(shape, plan);
  const bool is_forced = wanted == "cublaslt";
  op.require(!is_forced || refused.empty(), "implementation cublaslt cannot be had here: %s",
             refused.c_str());
  if (!refused.empty()) return own;
  const std::string label = op.op.label;
  CudaKernel either{
      .launch =
          [=, launch_own = own.launch](const CudaLaunch& launch) {
            const bool is_possible = host_knows_rows(launch, shape.which);
            if (is_forced && !is_possible)
              fail(ErrorCode::kProgram,
                   "op %s: a part of a captured step has no size that cuBLASLt could "
                   "be told; leave implementation to 'auto'",
                   label.c_str());
            if (is_forced || (is_possible && pays(shape, launch)))
              launch_cublaslt(shape, launch);
            else
              launch_own(launch);
          },
      .workspace_bytes =
          [=, own_bytes = own.workspace_bytes](const CudaDevice& device, const CudaBucket& bucket) {
            const int64_t bytes =
                kWorkspaceCounterBytes + rounded_bias_bytes(shape) + CublasLt::kWorkspaceBytes;
            return own_bytes ? std::max(bytes, own_bytes(device, bucket)) : bytes;
          },
      .functions = std::move(own.functions)};
  if (shape.constant.y_dtype == DType::kBf16)
    either.functions.push_back(cuda_function(round_bias_kernel<bf16>));
  if (shape.constant.y_dtype == DType::kF16)
    either.functions.push_back(cuda_function(round_bias_kernel<f16>));
  return either;
}

}  // namespace nanoweave
