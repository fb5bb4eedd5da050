#include "runtime/executor.h"

#include <array>
#include <cstring>

#include "core/error.h"

namespace nanoweave {

namespace {

constexpr int kMaxOperands = 32;  // parse_program allows 16 inputs and 16 outputs

// Row ranges of a step by kind: tokens of part p, tokens of parts 0..p, all tokens, logits rows,
// sequences. Operands name their entry once, at load.
constexpr int kMaxParts = 4;
constexpr int kPartSpan = 0;
constexpr int kUpToSpan = kMaxParts;
constexpr int kTokensSpan = 2 * kMaxParts;
constexpr int kRowsSpan = kTokensSpan + 1;
constexpr int kSeqsSpan = kTokensSpan + 2;
using RowSpans = std::array<RowSpan, kTokensSpan + 3>;

int token_span(const View& view) {
  if (view.part < 0) return kTokensSpan;
  return (view.up_to ? kUpToSpan : kPartSpan) + view.part;
}

int span_of(const BufferDesc& buffer, const View& view) {
  switch (buffer.row_symbol()) {
    case Symbol::kTokens:
      return token_span(view);
    case Symbol::kRows:
      return kRowsSpan;
    case Symbol::kSeqs:
      return kSeqsSpan;
    case Symbol::kNone:
      return kFixedRows;
  }
  return kFixedRows;
}

RowSpans compute_spans(const Program& program, const GroupStep& step) {
  RowSpans spans{};
  for (int part = 0; part < program.parts; ++part) {
    spans[kPartSpan + part] = {step.part_bounds[part], step.part_bounds[part + 1]};
    spans[kUpToSpan + part] = {0, step.part_bounds[part + 1]};
  }
  spans[kTokensSpan] = {0, step.num_tokens()};
  spans[kRowsSpan] = {0, static_cast<int64_t>(step.rows.size())};
  spans[kSeqsSpan] = {0, step.num_seqs()};
  return spans;
}

const StoredBuffer& find_stored(const BufferDesc& buffer, const WeightStore& store,
                                int64_t host_blocks) {
  return require_stored(buffer, store.find(buffer.name), host_blocks);
}

BoundOperand bind_operand(const Program& program, const View& view, const WeightStore& store,
                          std::byte* heap, int rank) {
  if (view.buffer < 0) return {};
  const BufferDesc& buffer = program.buffers[view.buffer];
  std::byte* base = buffer.space == Space::kArena
                        ? heap + buffer.offset
                        : find_stored(buffer, store, program.limits.num_host_blocks).data[rank];
  return {.base = base,
          .cols = buffer.cols(),
          .fixed_rows = buffer.max_rows(),
          .row_bytes = buffer.cols() * dtype_bytes(buffer.dtype),
          .dtype = buffer.dtype,
          .rows = span_of(buffer, view)};
}

// The first output with rows of the step decides whether there is anything to do, else the first
// such input. Ops across attention groups always run.
int governing_span(const Program& program, const OpDesc& op) {
  if (find_op(op.kind)->across_groups) return kFixedRows;
  for (const auto* views : {&op.outputs, &op.inputs})
    for (const View& view : *views)
      if (view.buffer >= 0)
        if (const int span = span_of(program.buffers[view.buffer], view); span != kFixedRows)
          return span;
  return kFixedRows;
}

BoundRank bind_rank(const LoadedProgram& loaded, const WeightStore& store, std::byte* heap,
                    int rank) {
  const Program& program = loaded.program;
  BoundRank bound;
  for (size_t i = 0; i < program.ops.size(); ++i) {
    const OpDesc& op = program.ops[i];
    bound.ops.push_back({.kernel = &loaded.kernels[i],
                         .label = &op.label,
                         .tokens = token_span({.part = op.part()}),
                         .governing = governing_span(program, op),
                         .num_inputs = static_cast<int>(op.inputs.size()),
                         .num_outputs = static_cast<int>(op.outputs.size()),
                         .first_operand = bound.operands.size()});
    for (const auto* views : {&op.inputs, &op.outputs})
      for (const View& view : *views)
        bound.operands.push_back(bind_operand(program, view, store, heap, rank));
  }
  for (const BufferDesc& buffer : program.buffers)
    if (buffer.space == Space::kKv)
      bound.kv.push_back(&find_stored(buffer, store, program.limits.num_host_blocks));
  bound.expert_weights =
      find_expert_weights(program, [&](const BufferDesc& buffer) -> const StoredBuffer& {
        return find_stored(buffer, store, program.limits.num_host_blocks);
      });
  return bound;
}

void return_expert_counts(const Step& step, const HostRank& rank) {
  if ((step.flags & kStepExpertCounts) != 0 && rank.result != nullptr)
    rank.result->groups[static_cast<size_t>(rank.group())].expert_counts =
        rank.experts->take_counts();
}

// Runs of {device block, host block, count}: to the host, then from it.
void swap_blocks(const BoundRank& bound, const GroupStep& step, int rank) {
  for (const StoredBuffer* kv : bound.kv) {
    const int64_t block_bytes = kv->cols * dtype_bytes(kv->dtype);
    const auto copy_runs = [&](std::span<const int32_t> runs, bool out) {
      for (size_t at = 0; at + 2 < runs.size(); at += 3) {
        std::byte* device = kv->data[rank] + runs[at] * block_bytes;
        std::byte* host = kv->host[rank] + runs[at + 1] * block_bytes;
        std::memcpy(out ? host : device, out ? device : host,
                    static_cast<size_t>(runs[at + 2] * block_bytes));
      }
    };
    copy_runs(step.swap_out, true);
    copy_runs(step.swap_in, false);
  }
}

void copy_blocks(const BoundRank& bound, const GroupStep& step, int rank) {
  for (const StoredBuffer* kv : bound.kv) {
    const int64_t block_bytes = kv->cols * dtype_bytes(kv->dtype);
    for (size_t i = 0; i + 1 < step.block_copies.size(); i += 2)
      std::memmove(kv->data[rank] + step.block_copies[i + 1] * block_bytes,
                   kv->data[rank] + step.block_copies[i] * block_bytes,
                   static_cast<size_t>(block_bytes));
  }
}

Tensor narrow(const BoundOperand& operand, const RowSpans& spans) {
  if (operand.rows == kAbsent) return {};
  if (operand.rows == kFixedRows)
    return {operand.base, operand.dtype, operand.fixed_rows, operand.cols};
  const RowSpan span = spans[operand.rows];
  if (span.end == span.begin) return {nullptr, operand.dtype, 0, operand.cols};
  return {operand.base + span.begin * operand.row_bytes, operand.dtype, span.end - span.begin,
          operand.cols};
}

}  // namespace

std::shared_ptr<const LoadedProgram> bind_program(Program program, const WeightStore& store,
                                                  const std::vector<std::byte*>& heaps) {
  auto loaded = std::make_shared<LoadedProgram>();
  loaded->program = std::move(program);
  for (const OpDesc& op : loaded->program.ops)
    loaded->kernels.push_back(prepare_host_op(loaded->program, op));
  for (int rank = 0; rank < static_cast<int>(heaps.size()); ++rank)
    loaded->ranks.push_back(bind_rank(*loaded, store, heaps[rank], rank));
  return loaded;
}

void run_program(const LoadedProgram& loaded, const Step& step, HostRank& rank,
                 RunPosition& position) {
  const BoundRank& bound = loaded.ranks[rank.rank];
  const GroupStep& group = step.groups[rank.group()];
  const RowSpans spans = compute_spans(loaded.program, group);
  swap_blocks(bound, group, rank.rank);
  copy_blocks(bound, group, rank.rank);
  rank.slots->apply(group);
  for_each_expert_copy(loaded.program, bound.expert_weights, step, rank.rank,
                       [](std::byte* to, const std::byte* from, int64_t bytes) {
                         std::memcpy(to, from, static_cast<size_t>(bytes));
                       });
  rank.experts->apply(step);
  if (group.returns_expert_choices && rank.result != nullptr) {
    const ExpertLimits& limits = loaded.program.limits.experts;
    rank.result->groups[static_cast<size_t>(rank.group())].expert_choices.assign(
        static_cast<size_t>(limits.tables * group.num_tokens() * limits.choices), -1);
  }

  std::array<Tensor, kMaxOperands> tensors;
  for (const BoundOp& op : bound.ops) {
    if (op.governing != kFixedRows && spans[op.governing].begin == spans[op.governing].end)
      continue;  // all ranks of the group see the same rows and skip alike
    position.op = op.label;
    if (rank.comm->aborted()) rank.comm->throw_aborted(rank.rank, *op.label, step.id);
    const int num_operands = op.num_inputs + op.num_outputs;
    const BoundOperand* operands = bound.operands.data() + op.first_operand;
    for (int i = 0; i < num_operands; ++i) tensors[i] = narrow(operands[i], spans);
    const std::span<const Tensor> all(tensors.data(), num_operands);
    (*op.kernel)({.rank = rank,
                  .step = group,
                  .step_id = step.id,
                  .label = *op.label,
                  .tokens = spans[op.tokens],
                  .in = all.first(op.num_inputs),
                  .out = all.subspan(op.num_inputs)});
  }
  return_expert_counts(step, rank);
  // An op that slept may have been cut short by the abort.
  if (rank.comm->aborted()) rank.comm->throw_aborted(rank.rank, "", step.id);
}

}  // namespace nanoweave
