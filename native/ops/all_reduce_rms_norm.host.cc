// all_reduce_rms_norm: all_reduce(partial), then add_rms_norm, on one pass over each row (the order
// reduce-scatter → + residual → RMSNorm → all-gather is TokenWeave's). The sum is not rounded
// before it is added to the residual.
//
// one_shot: every rank sums and normalises every row; residuals stay replicated.
// two_shot: a rank does so for the rows it owns, keeps only their residual current, and stores y to
// all. Both forms give a row the same bits. Barriers: all partials written; all y stored.
#include "ops/norm_row.h"
#include "ops/op.h"
#include "ops/reduce.h"
#include "ops/rows.h"

namespace nanoweave {

HostKernel prepare_all_reduce_rms_norm(const OpInstance& op) {
  const BufferDesc& partial = *op.input(0);
  const BufferDesc& residual = *op.input(1);
  const BufferDesc& y = op.output(0);
  op.require_activation(partial, -1);
  op.require_activation(residual, partial.cols());
  op.require_activation(y, partial.cols());
  op.require_alike(partial, y);
  op.require_alike(partial, residual);
  op.require_weight_vector(op.input(2), partial.cols());
  op.require_weight_vector(op.input(3), partial.cols());
  op.require_in_place(1, 1);
  op.require_same_part();
  op.require_distinct(0, 0);
  op.require_distinct(0, 1);
  op.require(op.program.tp <= kMaxGroupRanks, "groups have at most %d ranks", kMaxGroupRanks);
  const auto eps = static_cast<float>(op.number("eps"));
  op.require(eps >= 0, "eps is negative");
  const int64_t sharded_from = plan_sharding(op.collective_form(), op.program.tp);

  return [=](const HostRun& run) {
    const Tensor& partial = run.in[0];
    const Tensor& residual = run.out[1];
    const Tensor& y = run.out[0];
    if (partial.rows == 0) return;
    const HostRank& rank = run.rank;
    const float* weight = floats(run.in[2]);
    const float* post_weight = floats(run.in[3]);
    const VectorKernels& kernels = vector_kernels(rank.isa);
    const bool two_shot = partial.rows >= sharded_from;
    const RowSpan rows =
        two_shot ? owned_rows(partial.rows, rank.tp, rank.tp_rank()) : RowSpan{0, partial.rows};
    const ThreadFloats scratch(rank, partial.cols);
    run.group_barrier(0);
    const GroupSum sum(run, partial);
    for_row_chunks(rank, rows.end - rows.begin, partial.cols * rank.tp,
                   [&](int64_t begin, int64_t end, int thread) {
                     float* row = scratch.of(thread);
                     for (int64_t r = rows.begin + begin; r < rows.begin + end; ++r) {
                       sum.row(r, row);
                       add_normalize_row(kernels, row, partial.cols, residual.dtype,
                                         residual.row(r), weight, post_weight, eps);
                       store_row(run, kernels, row, y, r, two_shot);
                     }
                   });
    run.group_barrier(1);
  };
}

}  // namespace nanoweave
