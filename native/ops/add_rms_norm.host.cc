// add_rms_norm: residual' = residual + (post_weight ? rms(x)·post_weight : x), in place;
// y = rms(residual')·weight, taken from the sum before it is rounded to the residual's dtype. With
// owned_groups only the rows this rank owns of so many groups are looked at. x may be f32 (a sum).
#include "ops/norm_row.h"
#include "ops/op.h"
#include "ops/row_groups.h"
#include "ops/rows.h"

namespace nanoweave {

HostKernel prepare_add_rms_norm(const OpInstance& op) {
  const BufferDesc& x = *op.input(0);
  const BufferDesc& residual = *op.input(1);
  const BufferDesc& y = op.output(0);
  op.require_activation(x, -1);
  op.require_activation(residual, x.cols());
  op.require_activation(y, x.cols());
  op.require_alike(y, residual);
  op.require(x.shape[0].symbol == y.shape[0].symbol, "buffers %s and %s have rows of other symbols",
             x.name.c_str(), y.name.c_str());
  op.require(x.dtype == DType::kF32 || x.dtype == y.dtype, "buffer %s is %s, not f32 or %s",
             x.name.c_str(), dtype_name(x.dtype), dtype_name(y.dtype));
  op.require_weight_vector(op.input(2), x.cols());
  op.require_weight_vector(op.input(3), x.cols());
  op.require_in_place(1, 1);
  op.require_same_part();
  const auto eps = static_cast<float>(op.number("eps"));
  op.require(eps >= 0, "eps is negative");

  const int owned_groups = op.has("owned_groups") ? require_groups(op, "owned_groups") : 0;

  return [=](const HostRun& run) {
    const Tensor& x = run.in[0];
    const Tensor& residual = run.out[1];
    const Tensor& y = run.out[0];
    const HostRank& rank = run.rank;
    const float* weight = floats(run.in[2]);
    const float* post_weight = floats(run.in[3]);
    const VectorKernels& kernels = vector_kernels(rank.isa);
    const ThreadFloats scratch(rank, x.cols);
    const auto normalize = [&](RowSpan rows) {
      for_row_chunks(rank, rows.end - rows.begin, x.cols,
                     [&](int64_t begin, int64_t end, int thread) {
                       float* row = scratch.of(thread);
                       for (int64_t r = rows.begin + begin; r < rows.begin + end; ++r) {
                         kernels.load(x.dtype, x.row(r), x.cols, row);
                         add_normalize_row(kernels, row, x.cols, residual.dtype, residual.row(r),
                                           weight, post_weight, eps);
                         kernels.store(y.dtype, row, y.cols, y.row(r));
                       }
                     });
    };
    if (owned_groups == 0) return normalize({0, x.rows});
    for (int group = 0; group < owned_groups; ++group)
      normalize(owned_group_rows(x.rows, owned_groups, group, rank.tp, rank.tp_rank()));
  };
}

}  // namespace nanoweave
