// matmul and logits: which kernel serves a shape. 16-bit x and W of one type, with rows of whole
// 16-byte vectors, go to the tensor cores: few rows to the streaming kernel, more to a tiled one,
// on Hopper the one of warpgroups; deterministic always to the tiled one, whose bits do not depend
// on the number of rows. Everything else is float32 multiply-adds.
#include "ops/matmul.cuh"
#include "ops/overlapped.cuh"

namespace nanoweave {

namespace {

CudaKernel matmul_tiled(const MatmulShape& shape, bool deterministic) {
  const CudaKernel any = matmul_tile(shape);
  if (!kBuiltForHopper) return any;
  const CudaKernel hopper = matmul_wgmma(shape, deterministic);
  CudaKernel both{.launch =
                      [any = any.launch, hopper = hopper.launch](const CudaLaunch& launch) {
                        (runs_wgmma(launch.device) ? hopper : any)(launch);
                      },
                  .workspace_bytes = nullptr,
                  .functions = any.functions};
  both.functions.insert(both.functions.end(), hopper.functions.begin(), hopper.functions.end());
  return both;
}

CudaKernel choose_kernel(const MatmulShape& shape, bool deterministic) {
  const MatmulArgs& args = shape.constant;
  const bool tensor_cores =
      args.x_dtype == args.w_dtype && args.x_dtype != DType::kF32 && args.k % 8 == 0;
  if (!tensor_cores) return matmul_simt(shape);
  const CudaKernel tile = matmul_tiled(shape, deterministic);
  if (deterministic) return tile;
  const CudaKernel stream = matmul_stream(shape);
  CudaKernel both{.launch =
                      [tile = tile.launch, stream = stream.launch,
                       which = shape.which](const CudaLaunch& launch) {
                        if (most_rows(launch.bucket, which) <= kStreamRows)
                          stream(launch);
                        else
                          tile(launch);
                      },
                  .workspace_bytes = nullptr,
                  .functions = tile.functions};
  both.functions.insert(both.functions.end(), stream.functions.begin(), stream.functions.end());
  return both;
}

MatmulShape describe(const OpInstance& op, const BufferDesc& y, int32_t which) {
  const BufferDesc& x = *op.input(0);
  const BufferDesc& w = *op.input(1);
  op.require(x.cols() <= INT32_MAX / 2 && y.cols() <= INT32_MAX / 2, "the matrix is too large");
  MatmulShape shape{};
  shape.constant.x_dtype = x.dtype;
  shape.constant.w_dtype = w.dtype;
  shape.constant.y_dtype = y.dtype;
  shape.constant.n = static_cast<int32_t>(y.cols());
  shape.constant.k = static_cast<int32_t>(x.cols());
  shape.constant.x_pitch = shape.constant.k;
  shape.constant.y_pitch = shape.constant.n;
  shape.which = which;
  shape.x_rows = x.max_rows();
  return shape;
}

}  // namespace

CudaKernel cuda_matmul(const OpInstance& op, const CudaPlan& plan, const BufferDesc& y,
                       int32_t which) {
  MatmulShape shape = describe(op, y, which);
  shape.bias_on_first = op.string_or("bias_on", "all") == "rank0";
  // The tensor-core kernels store x's type or float32.
  const bool is_common =
      shape.constant.y_dtype == shape.constant.x_dtype || shape.constant.y_dtype == DType::kF32;
  return with_cublaslt(op, shape, plan,
                       is_common ? choose_kernel(shape, plan.deterministic) : matmul_simt(shape));
}

CudaKernel prepare_cuda_matmul(const OpInstance& op, const CudaPlan& plan) {
  const BufferDesc& y = op.output(0);
  return cuda_matmul(op, plan, y, which_rows(y, op.op.part()));
}

CudaKernel prepare_cuda_logits(const OpInstance& op, const CudaPlan& plan) {
  const BufferDesc& y = op.output(0);
  MatmulShape shape = describe(op, y, which_rows(y, op.op.part()));
  shape.constant.softcap = static_cast<float>(op.number_or("softcap", 0));
  return with_cublaslt(op, shape, plan, choose_kernel(shape, plan.deterministic));
}

}  // namespace nanoweave
