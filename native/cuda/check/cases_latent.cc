// Cases of latent attention: decode and prefill over one and many splits, divided rows and rows
// whose partial results have no room, sizes of DeepSeek and odd ones, mixed types, padding, parts;
// the rotation and the cache; the matmuls of each head.
#include "cuda/check/op_case.h"

namespace nanoweave::check {

namespace {

struct Latent {
  int64_t heads, latent, rope;
};

struct Options {
  DType dtype = DType::kBf16;
  DType cache = DType::kBf16;
  int64_t block_size = 16;
};

struct Sequence {
  int64_t rows, context, padding = 0;
};

constexpr Options kFloat{.dtype = DType::kF32, .cache = DType::kF32};
constexpr Options kHalf{.dtype = DType::kF16, .cache = DType::kF16};

std::string sizes_text(const std::string& name, const Latent& size, const Options& options) {
  return name + ", " + dtype_name(options.dtype) + " on " + dtype_name(options.cache) + " heads " +
         std::to_string(size.heads) + " L " + std::to_string(size.latent) + " R " +
         std::to_string(size.rope);
}

void set_limits(OpCase& c, const Options& options, const std::vector<Sequence>& sequences) {
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
  for (const Sequence& sequence : sequences)
    c.steps[0].add_sequence(limits, sequence.rows, sequence.context, sequence.padding);
}

std::string sizes_json(const Latent& size) {
  return "{\"heads\": " + std::to_string(size.heads) +
         ", \"latent_dim\": " + std::to_string(size.latent) +
         ", \"rope_dim\": " + std::to_string(size.rope);
}

OpCase attention_case(const std::string& name, const Latent& size, const Options& options,
                      const std::vector<Sequence>& sequences) {
  OpCase c(sizes_text(name, size, options), "mla_attention");
  set_limits(c, options, sequences);
  c.in(c.arena("q_latent", options.dtype, Symbol::kTokens, size.heads * size.latent, Fill::kRandom,
               2));
  c.in(c.arena("q_rope", options.dtype, Symbol::kTokens, size.heads * size.rope, Fill::kRandom, 2));
  c.in(c.latent_cache(options.cache, size.latent + size.rope));
  c.out(c.arena("o", options.dtype, Symbol::kTokens, size.heads * size.latent, Fill::kPoison));
  c.attrs(sizes_json(size) + ", \"scale\": " +
          std::to_string(2.0 / static_cast<double>(size.latent + size.rope)) + "}");
  return c;
}

OpCase split_case(const std::string& name, const Latent& size, int64_t nope, bool interleaved,
                  const Options& options, const std::vector<Sequence>& sequences) {
  OpCase c(sizes_text(name, size, options) + (interleaved ? " interleaved" : ""),
           "mla_split_rope_cache");
  set_limits(c, options, sequences);
  c.in(c.arena("q", options.dtype, Symbol::kTokens, size.heads * (nope + size.rope)));
  c.in(c.arena("latent", options.dtype, Symbol::kTokens, size.latent + size.rope));
  c.in(c.arena("table", DType::kF32, Symbol::kTokens, size.rope));
  c.in(c.vector_weight("norm", size.latent));
  c.out(c.arena("q_rope", options.dtype, Symbol::kTokens, size.heads * size.rope, Fill::kPoison));
  c.out(c.latent_cache(options.cache, size.latent + size.rope));
  c.attrs(sizes_json(size) + ", \"eps\": 0.000001" +
          (interleaved ? ", \"interleaved\": true}" : "}"));
  return c;
}

struct HeadMatmul {
  DType x, w, y;
  int64_t rows, heads, columns, depth, n;
};

OpCase matmul_case(const HeadMatmul& size) {
  OpCase c(std::string(dtype_name(size.x)) + "·" + dtype_name(size.w) + " to " +
               dtype_name(size.y) + " " + std::to_string(size.rows) + "x" + std::to_string(size.n) +
               "x" + std::to_string(size.depth) + " of " + std::to_string(size.heads) + "·" +
               std::to_string(size.columns),
           "head_matmul");
  const int64_t padded = (size.n + 15) / 16 * 16;
  c.in(c.arena("x", size.x, Symbol::kTokens, size.heads * size.columns));
  c.in(c.matrix_weight("w", size.w, size.heads * padded, size.depth));
  c.out(c.arena("y", size.y, Symbol::kTokens, size.heads * size.n, Fill::kPoison));
  c.attrs("{\"heads\": " + std::to_string(size.heads) + "}");
  c.steps[0].add_tokens(size.rows, 64);
  return c;
}

void add_attention(Cases& cases) {
  const Latent tiny{3, 16, 8}, published{16, 512, 64};
  for (const Options& options : {Options{}, kHalf, kFloat}) {
    cases.push_back(attention_case("one key", {1, 1, 2}, options, {{1, 1}}));
    cases.push_back(attention_case("one vector of 16 bytes", {1, 8, 8}, options, {{1, 1}}));
    cases.push_back(attention_case("decode", tiny, options, {{1, 1}, {1, 37}, {1, 16}}));
    cases.push_back(attention_case("prefill", tiny, options, {{33, 33}, {17, 80}}));
    cases.push_back(
        attention_case("splits", {17, 24, 8}, options, {{1, 1100}, {1, 512}, {1, 513}, {2, 40}}));
    cases.push_back(attention_case("DeepSeek", published, options, {{1, 530}, {3, 35}}));
    cases.push_back(attention_case("padding", tiny, options, {{1, 20, 3}, {4, 30, 5}, {1, 2, 9}}));
  }
  cases.push_back(attention_case("128 heads", {128, 512, 64}, {}, {{1, 40}}));
  cases.push_back(attention_case("33 heads", {33, 72, 16}, {}, {{1, 70}, {2, 9}}));
  // Shapes that tensor cores do not take, and blocks that tiles do not divide.
  cases.push_back(attention_case("odd latent", {5, 21, 6}, {}, {{1, 40}, {3, 20}}));
  cases.push_back(attention_case("blocks of 5", {5, 40, 8}, {.block_size = 5}, {{1, 67}, {3, 20}}));
  for (const Options& options : {Options{.cache = DType::kF32}, Options{.dtype = DType::kF32},
                                 Options{.dtype = DType::kF32, .cache = DType::kF16}})
    cases.push_back(attention_case("mixed types", {4, 32, 8}, options, {{1, 40}, {3, 20}}));
  // No room for the two tiles.
  OpCase small = attention_case("little shared memory", published, {}, {{1, 40}});
  small.device.arch = 89;
  small.device.max_shared_bytes = 99 << 10;
  cases.push_back(std::move(small));
  // More rows than are planned at once, on one multiprocessor; rows that have no partials left.
  OpCase many = attention_case("261 rows", {1, 8, 8}, {}, {{258, 258}, {3, 530}});
  many.sm_budget = 1;
  cases.push_back(std::move(many));
  cases.push_back(attention_case("undivided", {1, 8, 8}, {}, {{44, 1044}, {1, 600}}));
  OpCase twice = attention_case("twice", {17, 24, 8}, {}, {{1, 1100}, {1, 600}});
  twice.repeats = 2;  // the counters are zero again
  cases.push_back(std::move(twice));
  for (const int part : {0, 1, 2}) {
    OpCase c =
        attention_case("part " + std::to_string(part), tiny, {}, {{1, 30}, {60, 90}, {1, 5}});
    c.use_part(part, 3);
    c.steps[0].part_bounds = {0, 25, 25, 62};
    cases.push_back(std::move(c));
  }
  OpCase wide = attention_case("refused", {1, 513, 8}, {}, {{1, 1}});
  wide.expects_error = "latent_dim above 512";
  cases.push_back(std::move(wide));
}

void add_splits(Cases& cases) {
  for (const bool interleaved : {false, true}) {
    for (const Options& options : {Options{}, kHalf, kFloat}) {
      cases.push_back(split_case("", {1, 1, 2}, 0, interleaved, options, {{1, 1}}));
      cases.push_back(
          split_case("", {3, 37, 6}, 5, interleaved, options, {{7, 20, 2}, {1, 3}, {2, 2, 1}}));
    }
    cases.push_back(
        split_case("DeepSeek", {16, 512, 64}, 128, interleaved, {}, {{5, 20}, {1, 40}}));
    cases.push_back(split_case("mixed types", {2, 16, 4}, 8, interleaved,
                               {.dtype = DType::kF32, .cache = DType::kBf16}, {{3, 9}}));
  }
  OpCase part = split_case("part", {2, 16, 4}, 8, true, kFloat, {{20, 25}, {2, 2}});
  part.use_part(1, 2);
  part.steps[0].part_bounds = {0, 9, 22};
  cases.push_back(std::move(part));
}

void add_matmuls(Cases& cases) {
  for (const DType dtype : {DType::kBf16, DType::kF16, DType::kF32}) {
    // Small, medium and large tiles; columns that are not multiplied; weights that are padded.
    cases.push_back(matmul_case({dtype, dtype, dtype, 1, 1, 8, 8, 16}));
    cases.push_back(matmul_case({dtype, dtype, dtype, 7, 3, 24, 16, 67}));
    cases.push_back(matmul_case({dtype, dtype, dtype, 61, 5, 40, 40, 32}));
    cases.push_back(matmul_case({dtype, dtype, dtype, 131, 2, 136, 128, 130}));
    cases.push_back(matmul_case({dtype, dtype, dtype, 5, 3, 13, 11, 9}));
    cases.push_back(matmul_case({dtype, dtype, DType::kF32, 9, 2, 24, 24, 20}));
  }
  cases.push_back(matmul_case({DType::kF32, DType::kBf16, DType::kF32, 9, 2, 24, 24, 20}));
  cases.push_back(matmul_case({DType::kBf16, DType::kBf16, DType::kBf16, 2, 128, 192, 128, 512}));
  OpCase part = matmul_case({DType::kBf16, DType::kBf16, DType::kBf16, 40, 3, 24, 16, 33});
  part.use_part(1, 3);
  part.steps[0].part_bounds = {0, 11, 30, 40};
  cases.push_back(std::move(part));
}

}  // namespace

void add_latent_cases(Cases& cases) {
  add_attention(cases);
  add_splits(cases);
  add_matmuls(cases);
}

}  // namespace nanoweave::check
