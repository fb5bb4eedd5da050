// Cases of matmul and logits: the streaming, tiled and float32 kernels at sizes that do not divide
// their tiles, biases, parts, caps.
#include "cuda/check/op_case.h"

namespace nanoweave::check {

namespace {

struct Types {
  DType x, w, y;
};

OpCase matmul_case(const Types& types, int64_t rows, int64_t n, int64_t k, bool bias, int tp = 1) {
  OpCase c(std::string(dtype_name(types.x)) + "·" + dtype_name(types.w) + " " +
               std::to_string(rows) + "x" + std::to_string(n) + "x" + std::to_string(k) +
               (bias ? " bias" : ""),
           "matmul", tp);
  c.in(c.arena("x", types.x, Symbol::kTokens, k));
  c.in(c.matrix_weight("w", types.w, n, k));
  if (bias)
    c.in(c.vector_weight("bias", n));
  else
    c.absent();
  c.out(c.arena("y", types.y, Symbol::kTokens, n, Fill::kPoison));
  if (bias && tp > 1) c.attrs(R"({"bias_on": "rank0"})");
  c.steps[0].add_tokens(rows, 64);
  return c;
}

OpCase logits_case(DType dtype, int64_t rows, int64_t n, int64_t k, double softcap) {
  OpCase c(std::string(dtype_name(dtype)) + " " + std::to_string(rows) + "x" + std::to_string(n) +
               "x" + std::to_string(k) + (softcap > 0 ? " softcap" : ""),
           "logits");
  c.in(c.arena("x", dtype, Symbol::kRows, k));
  c.in(c.matrix_weight("w", dtype, n, k));
  c.out(c.arena("l", DType::kF32, Symbol::kRows, n, Fill::kPoison));
  if (softcap > 0) c.attrs("{\"softcap\": " + std::to_string(softcap) + "}");
  c.steps[0].add_tokens(rows, 64);
  for (int64_t r = 0; r < rows; ++r)
    c.steps[0].rows.insert(c.steps[0].rows.end(), {static_cast<int32_t>(r), -1, -1, 0});
  return c;
}

}  // namespace

void add_matmul_cases(Cases& cases) {
  for (const DType dtype : {DType::kBf16, DType::kF16}) {
    const Types types{dtype, dtype, dtype};
    cases.push_back(matmul_case(types, 1, 16, 8, false));
    cases.push_back(matmul_case(types, 1, 67, 200, true));
    cases.push_back(matmul_case(types, 8, 96, 1032, true));
    cases.push_back(matmul_case(types, 13, 65, 520, false));
    cases.push_back(matmul_case(types, 29, 130, 264, true));
    cases.push_back(matmul_case(types, 33, 70, 136, true));
    cases.push_back(matmul_case(types, 100, 129, 72, false));
    cases.push_back(matmul_case(types, 300, 260, 104, true));  // large tiles
    OpCase wide = matmul_case(types, 7, 200, 72, false);       // 32 rows of W per block
    wide.sm_budget = wide.device.sm_count = 2;
    cases.push_back(std::move(wide));
    for (const int64_t rows : {3, 17, 70}) {
      OpCase deterministic = matmul_case(types, rows, 67, 296, true);
      deterministic.name += " deterministic";
      deterministic.deterministic = true;
      cases.push_back(std::move(deterministic));
    }
    cases.push_back(matmul_case(types, 5, 9, 13, true));  // K is no multiple of 8
    cases.push_back(matmul_case({dtype, dtype, DType::kF32}, 5, 67, 64, true));
    cases.push_back(matmul_case({DType::kF32, dtype, DType::kF32}, 5, 67, 64, true));
    cases.push_back(logits_case(dtype, 1, 333, 64, 0));
    cases.push_back(logits_case(dtype, 40, 131, 72, 4));
  }
  const Types f32{DType::kF32, DType::kF32, DType::kF32};
  cases.push_back(matmul_case(f32, 1, 1, 1, false));
  cases.push_back(matmul_case(f32, 67, 130, 77, true));
  cases.push_back(matmul_case(f32, 4, 40, 32, true, 2));
  cases.push_back(logits_case(DType::kF32, 3, 70, 33, 2));
  for (const int part : {0, 1, 2})
    for (const int32_t first : {9, 40}) {
      OpCase c = matmul_case({DType::kBf16, DType::kBf16, DType::kBf16}, 80, 40, 64, true, 2);
      c.name += " part " + std::to_string(part) + " of " + std::to_string(first);
      c.use_part(part, 3);
      c.steps[0].part_bounds = {0, first, first, first + first / 3};
      c.steps[0].tokens.resize(static_cast<size_t>(first + first / 3));
      c.steps[0].positions.resize(c.steps[0].tokens.size());
      cases.push_back(std::move(c));
    }
}

}  // namespace nanoweave::check
