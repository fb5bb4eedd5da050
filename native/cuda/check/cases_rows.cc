// Cases of the ops that work row by row: embed, rope_table, the norms, split_rope_cache, gated
// activations, gather_rows, copy.
#include "cuda/check/op_case.h"

namespace nanoweave::check {

namespace {

constexpr DType kDTypes[] = {DType::kF32, DType::kBf16, DType::kF16};

std::string shape_name(DType dtype, int64_t rows, int64_t cols) {
  return std::string(dtype_name(dtype)) + " " + std::to_string(rows) + "x" + std::to_string(cols);
}

void add_embed(Cases& cases, DType table, DType act, int64_t rows, int64_t hidden, int tp) {
  OpCase c(
      shape_name(act, rows, hidden) + " table " + dtype_name(table) + " tp " + std::to_string(tp),
      "embed", tp);
  c.program.limits.vocab_size = 64;
  c.in(c.matrix_weight("table", table, 64 / tp, hidden));
  c.out(c.arena("x", act, Symbol::kTokens, hidden, Fill::kPoison));
  c.attrs(R"({"scale": 5.5})");
  c.steps[0].add_tokens(rows, 64);
  // The last row takes the token sampled last in slot 2: none yet, token 0.
  c.steps[0].tokens.back() = -3;
  c.tolerance = Tolerance::kClose;
  cases.push_back(std::move(c));
}

void add_rope_table(Cases& cases, int64_t rows, int64_t half, bool dynamic) {
  OpCase c(std::to_string(rows) + "x" + std::to_string(2 * half) + (dynamic ? " dynamic" : ""),
           "rope_table");
  std::string freqs;
  for (int64_t i = 0; i < half; ++i)
    freqs += (i == 0 ? "" : ",") + std::to_string(1.0 / static_cast<double>(1 + i * i));
  c.out(c.arena("table", DType::kF32, Symbol::kTokens, 2 * half, Fill::kPoison));
  std::string attrs = R"({"inv_freq": [)";
  attrs += freqs + R"(], "attention_factor": 1.25)";
  if (dynamic) attrs += R"(, "dynamic_factor": 2, "dynamic_base": 10000, "dynamic_original": 3)";
  c.attrs(attrs + "}");
  c.steps[0].add_tokens(rows, 64);
  for (int32_t& position : c.steps[0].positions) position *= 13;
  cases.push_back(std::move(c));
}

void add_norms(Cases& cases, DType dtype, int64_t rows, int64_t hidden, int part) {
  for (const bool post : {false, true}) {
    OpCase c(shape_name(dtype, rows, hidden) + (post ? " post" : "") +
                 (part < 0 ? "" : " part " + std::to_string(part)),
             "add_rms_norm");
    c.in(c.arena("x", dtype, Symbol::kTokens, hidden));
    const View residual = c.arena("residual", dtype, Symbol::kTokens, hidden);
    c.in(residual);
    c.in(c.vector_weight("weight", hidden));
    if (post)
      c.in(c.vector_weight("post_weight", hidden));
    else
      c.absent();
    c.out(c.arena("y", dtype, Symbol::kTokens, hidden, Fill::kPoison));
    c.out(residual);
    c.attrs(R"({"eps": 1e-5})");
    c.steps[0].add_tokens(rows, 64);
    if (part >= 0) {
      const auto third = static_cast<int32_t>(rows / 3);
      c.use_part(part, 3);  // the middle part is empty
      c.steps[0].part_bounds = {0, third, third, static_cast<int32_t>(rows)};
    }
    cases.push_back(std::move(c));
  }
  OpCase c(shape_name(dtype, rows, hidden), "rms_norm");
  c.in(c.arena("x", dtype, Symbol::kTokens, hidden));
  c.in(c.vector_weight("weight", hidden));
  c.out(c.arena("y", dtype, Symbol::kTokens, hidden, Fill::kPoison));
  c.attrs(R"({"eps": 1e-5})");
  c.steps[0].add_tokens(rows, 64);
  if (part >= 0) {
    const auto third = static_cast<int32_t>(rows / 3);
    c.use_part(part, 3);
    c.steps[0].part_bounds = {0, third, third, static_cast<int32_t>(rows)};
  }
  cases.push_back(std::move(c));
}

struct Heads {
  int64_t heads, kv_heads, head_dim, rotary;
};

enum class HeadNorms { kNone, kEach, kTogether };

void add_mean_squares(Cases& cases, DType dtype, int64_t rows, const Heads& heads, int tp) {
  OpCase c(std::string(dtype_name(dtype)) + " heads " + std::to_string(heads.heads) + "/" +
               std::to_string(heads.kv_heads) + " D " + std::to_string(heads.head_dim),
           "mean_squares", tp);
  c.in(c.arena("qkv", dtype, Symbol::kTokens, (heads.heads + 2 * heads.kv_heads) * heads.head_dim));
  c.out(c.arena("y", DType::kF32, Symbol::kTokens, 2, Fill::kPoison));
  c.attrs("{\"heads\": " + std::to_string(heads.heads) +
          ", \"kv_heads\": " + std::to_string(heads.kv_heads) +
          ", \"head_dim\": " + std::to_string(heads.head_dim) + "}");
  c.steps[0].add_tokens(rows, 64);
  cases.push_back(std::move(c));
}

void add_split_rope(Cases& cases, DType act, DType kv, const Heads& heads, HeadNorms norms) {
  const bool together = norms == HeadNorms::kTogether;
  OpCase c(std::string(dtype_name(act)) + " kv " + dtype_name(kv) + " heads " +
               std::to_string(heads.heads) + "/" + std::to_string(heads.kv_heads) + " D " +
               std::to_string(heads.head_dim) + " rotary " + std::to_string(heads.rotary) +
               (norms == HeadNorms::kNone ? "" : " norms") + (together ? " together" : ""),
           "split_rope_cache");
  Limits& limits = c.program.limits;
  limits.num_blocks = 13;
  limits.block_size = 4;
  limits.max_blocks_per_seq = 6;
  const int64_t width = (heads.heads + 2 * heads.kv_heads) * heads.head_dim;
  c.in(c.arena("qkv", act, Symbol::kTokens, width));
  c.in(c.arena("table", DType::kF32, Symbol::kTokens, heads.rotary));
  if (norms != HeadNorms::kNone) {
    c.in(c.vector_weight("q_norm", (together ? heads.heads : 1) * heads.head_dim));
    c.in(c.vector_weight("k_norm", (together ? heads.kv_heads : 1) * heads.head_dim));
  } else {
    c.absent();
    c.absent();
  }
  if (together)
    c.in(c.arena("means", DType::kF32, Symbol::kTokens, 2));
  else
    c.absent();
  c.out(c.arena("q", act, Symbol::kTokens, heads.heads * heads.head_dim, Fill::kPoison));
  c.out(c.kv_cache(kv, heads.kv_heads, heads.head_dim));
  c.attrs("{\"heads\": " + std::to_string(heads.heads) + ", \"kv_heads\": " +
          std::to_string(heads.kv_heads) + ", \"head_dim\": " + std::to_string(heads.head_dim) +
          ", \"rotary_dim\": " + std::to_string(heads.rotary) +
          ", \"eps\": " + (together ? "2" : "1e-6") + "}");  // random means are above −1
  c.steps[0].add_sequence(limits, 5, 9);
  c.steps[0].add_sequence(limits, 1, 7, 1);
  cases.push_back(std::move(c));
}

void add_gated(Cases& cases, const char* kind, DType dtype, int64_t rows, int64_t width) {
  OpCase c(shape_name(dtype, rows, width), kind);
  c.in(c.arena("gate_up", dtype, Symbol::kTokens, 2 * width, Fill::kRandom, 2));
  c.out(c.arena("y", dtype, Symbol::kTokens, width, Fill::kPoison));
  c.steps[0].add_tokens(rows, 64);
  cases.push_back(std::move(c));
}

void add_gather_and_copy(Cases& cases, DType dtype, int64_t rows, int64_t cols) {
  OpCase gather(shape_name(dtype, rows, cols), "gather_rows");
  gather.in(gather.arena("x", dtype, Symbol::kTokens, cols));
  gather.out(gather.arena("y", dtype, Symbol::kRows, cols, Fill::kPoison));
  gather.steps[0].add_tokens(rows, 64);
  for (int64_t r = 0; r < rows; r += 2) {
    const auto token_row = static_cast<int32_t>(rows - 1 - r);
    gather.steps[0].rows.insert(gather.steps[0].rows.end(), {token_row, -1, -1, 0});
  }
  gather.tolerance = Tolerance::kExact;
  cases.push_back(std::move(gather));

  OpCase copy(shape_name(dtype, rows, cols), "copy");
  copy.in(copy.arena("x", dtype, Symbol::kTokens, cols));
  copy.out(copy.arena("y", dtype, Symbol::kTokens, cols, Fill::kPoison));
  copy.steps[0].add_tokens(rows, 64);
  copy.tolerance = Tolerance::kExact;
  cases.push_back(std::move(copy));
}

}  // namespace

void add_row_cases(Cases& cases) {
  for (const DType dtype : kDTypes) {
    add_embed(cases, dtype, dtype, 5, 48, 1);
    add_embed(cases, dtype, dtype, 7, 13, 2);
    add_norms(cases, dtype, 1, 8, -1);
    add_norms(cases, dtype, 11, 1000, 2);
    add_norms(cases, dtype, 7, 4099, 1);  // part 1 of 3 is empty
    add_split_rope(cases, dtype, dtype, {4, 2, 16, 16}, HeadNorms::kEach);
    add_split_rope(cases, dtype, dtype, {3, 1, 80, 32}, HeadNorms::kNone);
    add_split_rope(cases, dtype, dtype, {6, 2, 20, 8}, HeadNorms::kTogether);
    add_mean_squares(cases, dtype, 7, {3, 1, 13, 0}, 1);
    add_mean_squares(cases, dtype, 5, {8, 2, 64, 0}, 2);
    for (const char* kind : {"silu_mul", "gelu_mul"}) {
      add_gated(cases, kind, dtype, 1, 1);
      add_gated(cases, kind, dtype, 5, 256);
      add_gated(cases, kind, dtype, 3, 67);
    }
    add_gather_and_copy(cases, dtype, 7, 40);
    add_gather_and_copy(cases, dtype, 1, 3);
  }
  add_embed(cases, DType::kBf16, DType::kF32, 5, 48, 1);
  add_split_rope(cases, DType::kBf16, DType::kF32, {4, 4, 128, 128}, HeadNorms::kEach);
  add_split_rope(cases, DType::kF32, DType::kF16, {2, 1, 7, 6}, HeadNorms::kEach);
  add_split_rope(cases, DType::kF32, DType::kBf16, {2, 1, 7, 6}, HeadNorms::kTogether);
  add_rope_table(cases, 1, 1, false);
  add_rope_table(cases, 9, 32, false);
  add_rope_table(cases, 9, 20, true);
}

}  // namespace nanoweave::check
