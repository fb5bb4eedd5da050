// add_rms_norm: residual' = residual + (post_weight ? rms(x)·post_weight : x), in place;
// y = rms(residual')·weight, taken from the sum before it is rounded to the residual's dtype.
#include "ops/norm_row.h"
#include "ops/op.h"
#include "ops/rows.h"

namespace nanoweave {

HostKernel prepare_add_rms_norm(const OpInstance& op) {
  const BufferDesc& x = *op.input(0);
  const BufferDesc& residual = *op.input(1);
  const BufferDesc& y = op.output(0);
  op.require_activation(x, -1);
  op.require_activation(residual, x.cols());
  op.require_activation(y, x.cols());
  op.require_alike(x, y);
  op.require_alike(x, residual);
  op.require_weight_vector(op.input(2), x.cols());
  op.require_weight_vector(op.input(3), x.cols());
  op.require_in_place(1, 1);
  op.require_same_part();
  const auto eps = static_cast<float>(op.number("eps"));
  op.require(eps >= 0, "eps is negative");

  return [eps](const HostRun& run) {
    const Tensor& x = run.in[0];
    const Tensor& residual = run.out[1];
    const Tensor& y = run.out[0];
    const float* weight = floats(run.in[2]);
    const float* post_weight = floats(run.in[3]);
    const VectorKernels& kernels = vector_kernels(run.rank.isa);
    const ThreadFloats scratch(run.rank, x.cols);
    for_row_chunks(run.rank, x.rows, x.cols, [&](int64_t begin, int64_t end, int thread) {
      float* row = scratch.of(thread);
      for (int64_t r = begin; r < end; ++r) {
        kernels.load(x.dtype, x.row(r), x.cols, row);
        add_normalize_row(kernels, row, x.cols, residual.dtype, residual.row(r), weight,
                          post_weight, eps);
        kernels.store(y.dtype, row, y.cols, y.row(r));
      }
    });
  };
}

}  // namespace nanoweave
