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

// On the default device, Hopper, and on one without wgmma.
void add_for_devices(Cases& cases, OpCase c) {
  cases.push_back(c);
  c.name += ", sm_80";
  c.device.arch = 80;
  c.device.max_shared_bytes = 163 << 10;
  cases.push_back(std::move(c));
}

// All forms of the tiled kernels, with fewer multiprocessors than tiles and more steps than stages.
void add_tiles(Cases& cases, const Types& types) {
  struct Size {
    int64_t rows, n, k;
    int sms;
  };
  for (const Size& size : {Size{200, 520, 328, 1}, Size{130, 392, 456, 1}, Size{61, 264, 712, 3},
                           Size{129, 263, 136, 2}, Size{65, 2, 8, 4}}) {
    OpCase c = matmul_case(types, size.rows, size.n, size.k, size.n % 3 == 0);
    c.name += " on " + std::to_string(size.sms);
    c.sm_budget = c.device.sm_count = size.sms;
    add_for_devices(cases, std::move(c));
  }
}

// Through cuBLASLt: one plan for two runs.
OpCase cublaslt_case(const Types& types, int64_t rows, int64_t n, int64_t k, bool bias,
                     const std::string& calls) {
  OpCase c = matmul_case(types, rows, n, k, bias);
  c.name += " cublaslt";
  c.attrs(R"({"implementation": "cublaslt"})");
  c.cublaslt = true;
  c.repeats = 2;
  c.expects_calls = "plan " + calls + "\nmatmul " + calls + "\nmatmul " + calls + "\n";
  return c;
}

void add_cublaslt_cases(Cases& cases) {
  const Types bf16{DType::kBf16, DType::kBf16, DType::kBf16};
  const Types f16{DType::kF16, DType::kF16, DType::kF16};
  const Types f32{DType::kF32, DType::kF32, DType::kF32};
  cases.push_back(cublaslt_case(bf16, 1, 16, 8, false, "1x16x8 type 14 to 14"));
  cases.push_back(cublaslt_case(bf16, 37, 67, 72, true, "37x67x72 type 14 to 14 bias"));
  cases.push_back(cublaslt_case(f16, 33, 130, 40, true, "33x130x40 type 2 to 2 bias"));
  cases.push_back(cublaslt_case(f32, 41, 29, 77, true, "41x29x77 type 0 to 0 bias"));
  cases.push_back(cublaslt_case({DType::kBf16, DType::kBf16, DType::kF32}, 35, 40, 24, true,
                                "35x40x24 type 14 to 0 bias"));
  OpCase budget = cublaslt_case(bf16, 40, 32, 16, false, "40x32x16 type 14 to 14 sms 3");
  budget.sm_budget = 3;
  cases.push_back(std::move(budget));
  // Left to itself: many rows take it, few do not, nor does anything it cannot serve.
  const auto automatic = [&](OpCase c, const char* calls) {
    c.name += " auto";
    c.cublaslt = true;
    c.expects_calls = calls;
    cases.push_back(std::move(c));
  };
  automatic(matmul_case(bf16, 33, 16, 16, false),
            "plan 33x16x16 type 14 to 14\nmatmul 33x16x16 type 14 to 14\n");
  automatic(matmul_case(bf16, 32, 16, 16, false), "");
  automatic(matmul_case({DType::kF32, DType::kBf16, DType::kF32}, 40, 16, 16, false), "");
  automatic(logits_case(DType::kBf16, 40, 16, 16, 4), "");
  automatic(logits_case(DType::kBf16, 40, 16, 16, 0),
            "plan 40x16x16 type 14 to 0\nmatmul 40x16x16 type 14 to 0\n");
  OpCase own = matmul_case(bf16, 40, 16, 16, false);
  own.attrs(R"({"implementation": "own"})");
  automatic(std::move(own), "");
  OpCase deterministic = matmul_case(bf16, 40, 16, 16, false);
  deterministic.deterministic = true;
  automatic(std::move(deterministic), "");
  // A part, with sizes and without.
  for (const bool counts_known : {true, false}) {
    OpCase part = cublaslt_case(bf16, 60, 24, 16, true, "15x24x16 type 14 to 14 bias");
    part.use_part(1, 3);
    part.steps[0].part_bounds = {0, 40, 55, 60};
    part.counts_known = counts_known;
    if (!counts_known) part.expects_error = "has no size that cuBLASLt could be told";
    cases.push_back(std::move(part));
  }
  // Refused by name.
  const auto refused = [&](OpCase c, const char* error) {
    c.name += " refused";
    c.expects_error = error;
    cases.push_back(std::move(c));
  };
  OpCase missing = cublaslt_case(bf16, 40, 16, 16, false, "");
  missing.cublaslt = false;
  refused(std::move(missing), "cublaslt cannot be had here: the case has none");
  OpCase pinned = cublaslt_case(bf16, 40, 16, 16, false, "");
  pinned.deterministic = true;
  refused(std::move(pinned), "not deterministic");
  refused(cublaslt_case({DType::kF32, DType::kBf16, DType::kF32}, 40, 16, 16, false, ""),
          "different types");
}

}  // namespace

void add_matmul_cases(Cases& cases) {
  add_cublaslt_cases(cases);
  for (const DType dtype : {DType::kBf16, DType::kF16}) {
    const Types types{dtype, dtype, dtype};
    cases.push_back(matmul_case(types, 1, 16, 8, false));
    cases.push_back(matmul_case(types, 1, 67, 200, true));
    cases.push_back(matmul_case(types, 8, 96, 1032, true));
    cases.push_back(matmul_case(types, 13, 65, 520, false));
    cases.push_back(matmul_case(types, 29, 130, 264, true));
    add_for_devices(cases, matmul_case(types, 33, 70, 136, true));
    add_for_devices(cases, matmul_case(types, 100, 129, 72, false));
    add_for_devices(cases, matmul_case(types, 300, 260, 104, true));  // large tiles
    for (const int count : {1, 7}) {
      cases.push_back(matmul_case(types, 100, 129, 520, false));
      cases.back().lose_boxes(count);
    }
    add_tiles(cases, types);
    OpCase wide = matmul_case(types, 7, 200, 72, false);  // 32 rows of W per block
    wide.sm_budget = wide.device.sm_count = 2;
    cases.push_back(std::move(wide));
    for (const int64_t rows : {3, 17, 70}) {
      OpCase deterministic = matmul_case(types, rows, 67, 296, true);
      deterministic.name += " deterministic";
      deterministic.deterministic = true;
      add_for_devices(cases, std::move(deterministic));
    }
    cases.push_back(matmul_case(types, 5, 9, 13, true));  // K is no multiple of 8
    cases.push_back(matmul_case({dtype, dtype, DType::kF32}, 5, 67, 64, true));
    cases.push_back(matmul_case({DType::kF32, dtype, DType::kF32}, 5, 67, 64, true));
    cases.push_back(logits_case(dtype, 1, 333, 64, 0));
    add_for_devices(cases, logits_case(dtype, 40, 131, 72, 4));
    add_for_devices(cases, matmul_case({dtype, dtype, DType::kF32}, 67, 134, 64, true));
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
      add_for_devices(cases, std::move(c));
    }
}

}  // namespace nanoweave::check
