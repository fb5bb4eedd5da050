// Cases of attention: decode (one and several rows, one and many splits), prefill, both in one
// step, every head size with a kernel of its own and some without, windows, caps, parts, padding.
#include "cuda/check/op_case.h"

namespace nanoweave::check {

namespace {

struct Heads {
  int64_t heads, kv_heads, head_dim;
};

struct Options {
  DType dtype = DType::kBf16;
  DType kv_dtype = DType::kBf16;
  int64_t block_size = 16;
  int64_t window = 0;
  double softcap = 0;
  float sinks = 0;  // logits in ±sinks; 0: none
  bool deterministic = false;
};

struct Sequence {
  int64_t rows, context, padding = 0;
};

OpCase attention_case(const std::string& name, const Heads& heads, const Options& options,
                      const std::vector<Sequence>& sequences) {
  OpCase c(name + ", " + dtype_name(options.dtype) + " heads " + std::to_string(heads.heads) + "/" +
               std::to_string(heads.kv_heads) + " D " + std::to_string(heads.head_dim),
           "attention");
  Limits& limits = c.program.limits;
  limits.block_size = options.block_size;
  limits.max_seqs = 4;
  int64_t blocks = 1;
  for (const Sequence& sequence : sequences) {
    const int64_t own = (sequence.context + options.block_size - 1) / options.block_size;
    limits.max_blocks_per_seq = std::max(limits.max_blocks_per_seq, own);
    blocks += own;
  }
  limits.num_blocks = blocks % 7 == 0 ? blocks + 1 : blocks;
  c.in(
      c.arena("q", options.dtype, Symbol::kTokens, heads.heads * heads.head_dim, Fill::kRandom, 2));
  c.in(c.kv_cache(options.kv_dtype, heads.kv_heads, heads.head_dim));
  if (options.sinks > 0)
    c.in(c.vector_weight("sinks", heads.heads, options.sinks));
  else
    c.absent();
  c.out(c.arena("o", options.dtype, Symbol::kTokens, heads.heads * heads.head_dim, Fill::kPoison));
  char attrs[256];
  std::snprintf(attrs, sizeof attrs,
                R"({"heads": %d, "kv_heads": %d, "head_dim": %d, "scale": %.6f)",
                static_cast<int>(heads.heads), static_cast<int>(heads.kv_heads),
                static_cast<int>(heads.head_dim), 2.0 / static_cast<double>(heads.head_dim));
  std::string json = attrs;
  if (options.window > 0) json += ", \"window\": " + std::to_string(options.window);
  if (options.softcap > 0) json += ", \"softcap\": " + std::to_string(options.softcap);
  c.attrs(json + "}");
  for (const Sequence& sequence : sequences)
    c.steps[0].add_sequence(limits, sequence.rows, sequence.context, sequence.padding);
  c.deterministic = options.deterministic;
  return c;
}

// On the default device, Hopper, and on one without wgmma.
void add_for_devices(Cases& cases, OpCase c) {
  cases.push_back(c);
  c.name += ", sm_80";
  c.device.arch = 80;
  c.device.max_shared_bytes = 163 << 10;
  cases.push_back(std::move(c));
}

void add_heads(Cases& cases, const Heads& heads, const Options& options) {
  cases.push_back(attention_case("decode", heads, options, {{1, 1}, {1, 37}, {1, 16}}));
  add_for_devices(cases, attention_case("prefill", heads, options, {{33, 33}, {17, 80}}));
}

}  // namespace

void add_attention_cases(Cases& cases) {
  for (const DType dtype : {DType::kBf16, DType::kF16})
    for (const int64_t head_dim : {32, 64, 80, 96, 128, 256}) {
      const Options options{.dtype = dtype, .kv_dtype = dtype};
      add_heads(cases, {4, 2, head_dim}, options);
    }
  const Options plain;
  // One split and many; rows that share a pass; more packed rows than one tile holds.
  cases.push_back(
      attention_case("decode, splits", {8, 1, 64}, plain, {{1, 700}, {1, 256}, {1, 257}}));
  cases.push_back(
      attention_case("decode, splits, rows", {12, 2, 32}, plain, {{7, 600}, {8, 8}, {2, 300}}));
  cases.push_back(attention_case("decode, most splits", {2, 1, 32}, plain, {{1, 33000}}));
  cases.push_back(attention_case("decode, one head each", {3, 3, 80}, plain, {{1, 65}, {1, 513}}));
  cases.push_back(attention_case("decode, 20 heads share", {20, 1, 64}, plain, {{1, 90}}));
  add_for_devices(
      cases, attention_case("mixed", {4, 2, 64}, plain, {{1, 300}, {40, 90}, {3, 20}, {9, 9}}));
  add_for_devices(cases,
                  attention_case("tiles of rows", {2, 1, 64}, plain, {{130, 150}, {128, 128}}));
  add_for_devices(
      cases, attention_case("padding", {4, 2, 64}, plain, {{1, 20, 3}, {10, 30, 5}, {1, 2, 9}}));
  // More key tiles than a ring holds, several tiles per block; the second half of a tile empty.
  for (const int64_t head_dim : {64, 96, 128, 256}) {
    OpCase c = attention_case("prefill, long", {2, 1, head_dim}, plain, {{70, 613}, {20, 131}});
    c.sm_budget = 1;
    cases.push_back(c);
    cases.back().lose_boxes(57);
    add_for_devices(cases, std::move(c));
  }
  // Windows, caps.
  for (const int64_t window : {1, 20, 64})
    for (const double softcap : {0.0, 3.0}) {
      Options options;
      options.window = window;
      options.softcap = softcap;
      const std::string name =
          "window " + std::to_string(window) + (softcap > 0 ? ", softcap" : "");
      add_for_devices(cases, attention_case(name, {4, 2, 64}, options,
                                            {{1, 300}, {90, 440}, {5, 70}, {20, 20}}));
      options.dtype = options.kv_dtype = DType::kF32;
      cases.push_back(attention_case(name, {4, 2, 8}, options, {{1, 100}, {10, 40}}));
    }
  // Sinks, small and far above every score; with many splits, rows that see nothing, a cap.
  for (const float sinks : {2.0f, 200.0f}) {
    Options options;
    options.sinks = sinks;
    add_for_devices(cases, attention_case("sinks", {8, 2, 64}, options,
                                          {{1, 700}, {1, 3, 2}, {90, 140}, {5, 5}}));
    options.window = 20;
    options.softcap = 3;
    add_for_devices(
        cases, attention_case("sinks, window, softcap", {4, 4, 128}, options, {{1, 90}, {30, 60}}));
    options.dtype = options.kv_dtype = DType::kF32;
    cases.push_back(attention_case("sinks", {4, 2, 8}, options, {{1, 100}, {10, 40, 1}}));
  }
  // Shapes of the generic kernel.
  for (const Options& options :
       {Options{.dtype = DType::kF32, .kv_dtype = DType::kF32},
        Options{.dtype = DType::kF32, .kv_dtype = DType::kF32, .block_size = 3},
        Options{.dtype = DType::kBf16, .kv_dtype = DType::kBf16, .block_size = 8},
        Options{.dtype = DType::kBf16, .kv_dtype = DType::kF32},
        Options{.dtype = DType::kF32, .kv_dtype = DType::kF16}}) {
    add_heads(cases, {4, 2, 16}, options);
    add_heads(cases, {2, 1, 7}, options);
  }
  cases.push_back(attention_case("odd head size", {2, 1, 72}, plain, {{1, 30}, {20, 30}}));
  // Larger blocks; a device with little shared memory.
  Options wide;
  wide.block_size = 64;
  add_for_devices(cases, attention_case("blocks of 64", {4, 2, 128}, wide, {{1, 200}, {30, 130}}));
  for (const int64_t head_dim : {128, 256}) {
    OpCase small =
        attention_case("little shared memory", {4, 2, head_dim}, plain, {{1, 300}, {20, 40}});
    small.device.arch = 89;
    small.device.max_shared_bytes = 99 << 10;
    cases.push_back(std::move(small));
  }
  // Deterministic: every row through the prefill kernel.
  Options deterministic;
  deterministic.deterministic = true;
  add_for_devices(cases, attention_case("deterministic", {4, 2, 64}, deterministic,
                                        {{1, 300}, {5, 40}, {20, 20}}));
  // Parts: a sequence cut in two, an empty part.
  for (const int part : {0, 1, 2}) {
    OpCase c = attention_case("part " + std::to_string(part), {4, 2, 64}, plain,
                              {{1, 30}, {60, 90}, {1, 5}});
    c.use_part(part, 3);
    c.steps[0].part_bounds = {0, 25, 25, 62};
    add_for_devices(cases, std::move(c));
  }
}

}  // namespace nanoweave::check
