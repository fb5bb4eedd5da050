// rms_norm: y = x / sqrt(mean(x²) + eps) · weight per row of [T, H].
#include "ops/norm_row.h"
#include "ops/op.h"
#include "ops/rows.h"

namespace nanoweave {

HostKernel prepare_rms_norm(const OpInstance& op) {
  const BufferDesc& x = *op.input(0);
  const BufferDesc& y = op.output(0);
  op.require_activation(x, -1);
  op.require_activation(y, x.cols());
  op.require_alike(x, y);
  op.require_weight_vector(op.input(1), x.cols());
  op.require_same_part();
  const auto eps = static_cast<float>(op.number("eps"));
  op.require(eps >= 0, "eps is negative");

  return [eps](const HostRun& run) {
    const Tensor& x = run.in[0];
    const Tensor& y = run.out[0];
    const float* weight = floats(run.in[1]);
    const VectorKernels& kernels = vector_kernels(run.rank.isa);
    const ThreadFloats scratch(run.rank, x.cols);
    for_row_chunks(run.rank, x.rows, x.cols, [&](int64_t begin, int64_t end, int thread) {
      float* row = scratch.of(thread);
      for (int64_t r = begin; r < end; ++r) {
        kernels.load(x.dtype, x.row(r), x.cols, row);
        normalize_row(kernels, row, x.cols, weight, eps);
        kernels.store(y.dtype, row, y.cols, y.row(r));
      }
    });
  };
}

}  // namespace nanoweave
