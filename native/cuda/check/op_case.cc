#include "cuda/check/op_case.h"

#include <algorithm>

namespace nanoweave::check {

OpCase::OpCase(std::string case_name, std::string kind, int tp, int world)
    : name(std::move(case_name)) {
  program.name = name;
  program.tp = tp;
  program.world = world > 0 ? world : tp;
  program.limits = {.max_tokens = 0,
                    .max_rows = 0,
                    .max_seqs = 4,
                    .num_blocks = 0,
                    .block_size = 0,
                    .max_blocks_per_seq = 0,
                    .vocab_size = 64,
                    .num_slots = 4};
  next_op(kind.c_str());
  steps.resize(program.world / tp);
}

View OpCase::add_buffer(CaseBuffer buffer) {
  buffers.push_back(std::move(buffer));
  return {.buffer = static_cast<int>(buffers.size()) - 1, .part = -1, .up_to = false};
}

View OpCase::arena(const char* buffer, DType dtype, Symbol rows, int64_t cols, Fill fill,
                   float scale) {
  return add_buffer({.desc = {.name = buffer,
                              .space = Space::kArena,
                              .dtype = dtype,
                              .layout = Layout::kPlain,
                              .shape = {{rows, 0}, {Symbol::kNone, cols}},
                              .offset = -1},
                     .fill = fill,
                     .scale = scale});
}

View OpCase::fixed(const char* buffer, DType dtype, int64_t rows, int64_t cols, Fill fill,
                   float scale) {
  return add_buffer({.desc = {.name = buffer,
                              .space = Space::kArena,
                              .dtype = dtype,
                              .layout = Layout::kPlain,
                              .shape = {{Symbol::kNone, rows}, {Symbol::kNone, cols}},
                              .offset = -1},
                     .fill = fill,
                     .scale = scale});
}

View OpCase::offsets(const char* buffer, int64_t experts) {
  return add_buffer({.desc = {.name = buffer,
                              .space = Space::kArena,
                              .dtype = DType::kI32,
                              .layout = Layout::kPlain,
                              .shape = {{Symbol::kNone, experts + 1}},
                              .offset = -1},
                     .fill = Fill::kPoison});
}

View OpCase::vector_weight(const char* buffer, int64_t size, float scale) {
  return add_buffer({.desc = {.name = buffer,
                              .space = Space::kWeight,
                              .dtype = DType::kF32,
                              .layout = Layout::kPlain,
                              .shape = {{Symbol::kNone, size}},
                              .offset = -1},
                     .fill = Fill::kRandom,
                     .scale = scale,
                     .same_on_all_ranks = true});
}

View OpCase::matrix_weight(const char* buffer, DType dtype, int64_t rows, int64_t cols,
                           float scale) {
  return add_buffer({.desc = {.name = buffer,
                              .space = Space::kWeight,
                              .dtype = dtype,
                              .layout = Layout::kMatmul,
                              .shape = {{Symbol::kNone, rows}, {Symbol::kNone, cols}},
                              .offset = -1},
                     .fill = Fill::kRandom,
                     .scale = scale});
}

View OpCase::kv_cache(DType dtype, int64_t kv_heads, int64_t head_dim) {
  return cache(dtype, 2, kv_heads, head_dim);
}

View OpCase::latent_cache(DType dtype, int64_t dim) { return cache(dtype, 1, 1, dim); }

View OpCase::cache(DType dtype, int64_t planes, int64_t heads, int64_t dim) {
  const Limits& limits = program.limits;
  return add_buffer({.desc = {.name = "kv",
                              .space = Space::kKv,
                              .dtype = dtype,
                              .layout = Layout::kPlain,
                              .shape = {{Symbol::kNone, limits.num_blocks},
                                        {Symbol::kNone, planes},
                                        {Symbol::kNone, heads},
                                        {Symbol::kNone, limits.block_size},
                                        {Symbol::kNone, dim}},
                              .offset = -1},
                     .fill = Fill::kRandom});
}

void OpCase::next_op(const char* kind) {
  program.ops.push_back({.kind = kind,
                         .label = kind,
                         .inputs = {},
                         .outputs = {},
                         .attrs = Json::parse("{}"),
                         .waits = {}});
}

void OpCase::attrs(const std::string& json) { program.ops.back().attrs = Json::parse(json); }

void OpCase::lose_boxes(int count) {
  name += ", lost boxes";
  lost_boxes = count;
  expects_fault = true;
  timeout_ns = 3 << 20;
}

void OpCase::use_part(int part, int parts) {
  program.parts = parts;
  for (OpDesc& op : program.ops)
    for (auto* views : {&op.inputs, &op.outputs})
      for (View& view : *views) {
        if (view.buffer < 0) continue;
        const BufferDesc& buffer = buffers[view.buffer].desc;
        const bool has_parts = buffer.space == Space::kKv || buffer.row_symbol() == Symbol::kTokens;
        if (!has_parts) continue;
        view.part = part;
        view.up_to = buffer.space == Space::kKv && views == &op.inputs;
      }
}

void CaseStep::add_sequence(const Limits& limits, int64_t count, int64_t context, int64_t padding) {
  if (seq_starts.empty()) seq_starts.push_back(0);
  const int64_t width = limits.max_blocks_per_seq;
  const int64_t blocks = (context + limits.block_size - 1) / limits.block_size;
  // Block ids jump through the cache: 7·i mod prime-sized pools never repeats within a step.
  std::vector<int32_t> table(width, -1);
  for (int64_t i = 0; i < blocks; ++i)
    table[i] = static_cast<int32_t>((blocks_used_ + i) * 7 % limits.num_blocks);
  blocks_used_ += blocks;
  CHECK(blocks_used_ <= limits.num_blocks && limits.num_blocks % 7 != 0 && blocks <= width);
  block_tables.insert(block_tables.end(), table.begin(), table.end());
  for (int64_t i = 0; i < count + padding; ++i) {
    const bool pads = i >= count;
    const int64_t position = pads ? 0 : context - count + i;
    tokens.push_back(static_cast<int32_t>(tokens.size() * 31 % limits.vocab_size));
    positions.push_back(static_cast<int32_t>(position));
    kv_slots.push_back(
        pads ? -1
             : static_cast<int32_t>(table[position / limits.block_size] * limits.block_size +
                                    position % limits.block_size));
  }
  seq_starts.push_back(static_cast<int32_t>(tokens.size()));
  seq_lens.push_back(static_cast<int32_t>(context));
}

void CaseStep::add_tokens(int64_t count, int64_t vocab_size) {
  for (int64_t i = 0; i < count; ++i) {
    positions.push_back(static_cast<int32_t>(positions.size()));
    tokens.push_back(static_cast<int32_t>((tokens.size() * 37 + 5) % vocab_size));
  }
}

}  // namespace nanoweave::check
