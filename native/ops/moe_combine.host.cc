// moe_combine: y = shared + Σ over a token's choices, in their order, of weight · output of the
// expert. The rows are fetched from the ranks that hold the expert; where several ranks hold slices
// of its width, their terms are added first, in rank order. All float32, one rounding: a row's bits
// depend on its choices alone, not on how many ranks the experts are spread over.
//
// `shared` is this rank's term of the shared expert's output (summed over the group in rank order),
// times σ(shared_gate) where there is a gate. A rank computes the rows it owns and stores them to
// all ranks of its group. Barriers: all outputs are written; all y are stored and nobody reads.
#include <cmath>
#include <optional>

#include "ops/experts.h"
#include "ops/reduce.h"
#include "ops/rows.h"

namespace nanoweave {
namespace {

enum Input { kExpertOut, kRows, kIds, kWeights, kShared, kSharedGate };

// The sum of one token: `total` [H] out, `row` [H] scratch.
class Combination {
 public:
  Combination(const HostRun& run, const ExpertLayout& layout)
      : run_(run), layout_(layout), kernels_(vector_kernels(run.rank.isa)) {}

  // The arena is not trusted: ERR_PROGRAM unless all rows that token() will fetch exist.
  void check(RowSpan tokens) const {
    const int64_t k = run_.in[kIds].cols;
    for (int64_t t = tokens.begin; t < tokens.end; ++t)
      for (int64_t j = 0; j < k; ++j) {
        const int32_t id = ints(run_.in[kIds])[t * k + j];
        if (id < 0 || id >= layout_.experts) continue;
        for (int slice = 0; slice < layout_.slices; ++slice) {
          const int peer = layout_.first_rank_of(id) + slice;
          const int32_t row = row_at(peer, t, j);
          if (row < 0 || row >= run_.in[kExpertOut].rows)
            fail(ErrorCode::kProgram, "op %s: rank %d has no row %d for choice %lld of token %lld",
                 run_.label.c_str(), peer, row, static_cast<long long>(j),
                 static_cast<long long>(t));
        }
      }
  }

  void token(int64_t t, float* total, float* row) const {
    const int64_t k = run_.in[kIds].cols;
    const int32_t* ids = ints(run_.in[kIds]) + t * k;
    const float* weights = floats(run_.in[kWeights]) + t * k;
    const int64_t width = run_.in[kExpertOut].cols;
    for (int64_t j = 0; j < k; ++j) {
      if (ids[j] < 0 || ids[j] >= layout_.experts) continue;
      fetch(t, j, layout_.first_rank_of(ids[j]), row);
      for (int64_t i = 0; i < width; ++i) total[i] += weights[j] * row[i];
    }
  }

 private:
  // Where `peer` has the output for a choice.
  int32_t row_at(int peer, int64_t t, int64_t choice) const {
    const int64_t place =
        (run_.rank.group() * layout_.max_tokens + t) * run_.in[kIds].cols + choice;
    return ints(run_.at_peer(run_.in[kRows], peer))[place];
  }
  void fetch(int64_t t, int64_t choice, int first_rank, float* out) const {
    for (int slice = 0; slice < layout_.slices; ++slice) {
      const int peer = first_rank + slice;
      const Tensor source = run_.at_peer(run_.in[kExpertOut], peer);
      const auto add = slice == 0 ? kernels_.load : kernels_.accumulate;
      add(source.dtype, source.row(row_at(peer, t, choice)), source.cols, out);
    }
  }

  const HostRun& run_;
  const ExpertLayout& layout_;
  const VectorKernels& kernels_;
};

void combine(const HostRun& run, const ExpertLayout& layout) {
  const HostRank& rank = run.rank;
  const Tensor& y = run.out[0];
  if (y.rows == 0) return;
  const VectorKernels& kernels = vector_kernels(rank.isa);
  const RowSpan rows = owned_rows(y.rows, rank.tp, rank.tp_rank());
  const Combination combination(run, layout);
  combination.check(rows);
  std::optional<GroupSum> shared;
  if (run.in[kShared]) shared.emplace(run, run.in[kShared]);
  const int64_t width = (y.cols + 15) / 16 * 16;
  const ThreadFloats scratch(rank, 2 * width);
  for_row_chunks(rank, rows.end - rows.begin, y.cols * (run.in[kIds].cols + 1),
                 [&](int64_t begin, int64_t end, int thread) {
                   float* total = scratch.of(thread);
                   for (int64_t t = rows.begin + begin; t < rows.begin + end; ++t) {
                     if (shared)
                       shared->row(t, total);
                     else
                       std::fill(total, total + y.cols, 0.0f);
                     if (run.in[kSharedGate]) {
                       const float gate = 1.0f / (1.0f + std::exp(-floats(run.in[kSharedGate])[t]));
                       for (int64_t i = 0; i < y.cols; ++i) total[i] *= gate;
                     }
                     combination.token(t, total, total + width);
                     store_row(run, kernels, total, y, t, true);
                   }
                 });
}

}  // namespace

HostKernel prepare_moe_combine(const OpInstance& op) {
  const ExpertLayout layout = expert_layout(op);
  const BufferDesc& y = op.output(0);
  op.require_activation(y, -1);
  op.require(y.shape[0].symbol == Symbol::kTokens, "buffer %s must have T rows", y.name.c_str());
  const int64_t k = require_choices(op, *op.input(kIds), DType::kI32);
  op.require(require_choices(op, *op.input(kWeights), DType::kF32) == k,
             "ids and weights differ in choices");
  const int64_t received = layout.received_rows();
  require_fixed(op, *op.input(kExpertOut), received * k, y.cols(), y.dtype);
  require_fixed(op, *op.input(kRows), received, k, DType::kI32);
  if (const BufferDesc* shared = op.input(kShared)) {
    op.require_activation(*shared, y.cols());
    op.require_alike(*shared, y);
  }
  if (const BufferDesc* gate = op.input(kSharedGate)) {
    op.require(op.input(kShared) != nullptr, "shared_gate without shared");
    op.require_activation(*gate, 1);
    op.require(gate->dtype == DType::kF32 && gate->shape[0].symbol == Symbol::kTokens,
               "buffer %s must be [T, 1] f32", gate->name.c_str());
  }
  for (const int input : {kIds, kWeights, kShared, kSharedGate})
    op.require(op.op.inputs[input].buffer < 0 || op.op.inputs[input].part == op.op.outputs[0].part,
               "operands are of different parts");
  for (const int input : {kExpertOut, kShared})
    if (op.input(input) != nullptr) op.require_distinct(input, 0);
  op.require(op.program.tp <= kMaxGroupRanks, "groups have at most %d ranks", kMaxGroupRanks);

  return [layout](const HostRun& run) {
    world_barrier(run, 0);
    combine(run, layout);
    world_barrier(run, 1);
  };
}

}  // namespace nanoweave
