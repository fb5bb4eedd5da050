// moe_place: the experts of a token's choices become the slots that serve them, by the rank's
// expert table of the layer; counts the choices. slots[t, j] = table[ids[t, j]][way of row t], −1
// stays −1. All ranks of a group get the same slots; the first of them counts.
//
// The weights are operands only to say which buffers the table governs: `ep` positions with equally
// many slots each, one after the other (the executor copies slots between ranks).
#include <algorithm>

#include "ops/experts.h"

namespace nanoweave {

HostKernel prepare_moe_place(const OpInstance& op) {
  const ExpertLimits& limits = op.program.limits.experts;
  const int64_t table = op.integer("table");
  op.require(table >= 0 && table < limits.tables, "there are %lld expert tables",
             static_cast<long long>(limits.tables));
  const BufferDesc& ids = *op.input(0);
  const int64_t k = require_choices(op, ids, DType::kI32);
  op.require(k == limits.choices && require_choices(op, op.output(0), DType::kI32) == k,
             "ids and slots must have %lld choices", static_cast<long long>(limits.choices));
  const int64_t slots = limits.slots / limits.positions;
  for (size_t input = 1; input < op.op.inputs.size(); ++input) {
    const BufferDesc* weight = op.input(static_cast<int>(input));
    if (weight == nullptr) continue;
    const int64_t rows = weight->shape[0].size;
    op.require(weight->space == Space::kWeight && rows % slots == 0 &&
                   rows / slots % kExpertRowMultiple == 0,
               "weight %s must have whole panels for each of %lld slots", weight->name.c_str(),
               static_cast<long long>(slots));
  }

  return [table](const HostRun& run) {
    ExpertTables& tables = *run.rank.experts;
    const bool counts = run.rank.tp_rank() == 0;
    const Tensor& ids = run.in[0];
    for (int64_t t = 0; t < ids.rows; ++t)
      for (int64_t j = 0; j < ids.cols; ++j) {
        const int32_t expert = ints(ids)[t * ids.cols + j];
        // Groups with few tokens begin at different replicas.
        const int64_t row = run.tokens.begin + t + run.rank.group();
        mutable_ints(run.out[0])[t * ids.cols + j] = tables.slot(table, expert, row);
        if (counts) tables.count(table, expert);
      }
    if (run.rank.result != nullptr && run.step.returns_expert_choices) {
      auto& choices = run.rank.result->groups[run.rank.group()].expert_choices;
      std::copy_n(ints(ids), ids.rows * ids.cols,
                  choices.begin() + (table * run.step.num_tokens() + run.tokens.begin) * ids.cols);
    }
  };
}

}  // namespace nanoweave
