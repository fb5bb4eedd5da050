// nanoweave_matmul_check: verifies the CPU matmul against float64 on every instruction set of the
// machine, or measures it (`nanoweave_matmul_check bench [isa] [threads]`).
//
// What is checked, per kernel: packing in blocks; close to float64 within the rounding bound of the
// chain; exact on small integers; the bits of a row are the same for every M, N and thread count;
// nothing outside y is written. Operands sit in allocations of their exact size, so that a run
// under AddressSanitizer also catches every read past an end.
#include "driver/matmul_check.h"

#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string_view>
#include <vector>

#include "core/error.h"
#include "cpu/scratch.h"

namespace nanoweave {
namespace {

constexpr size_t kGuardBytes = 64;  // on either side of y
constexpr DType kFloats[] = {DType::kF32, DType::kBf16, DType::kF16};

int failures = 0;

__attribute__((format(printf, 1, 2))) void report(const char* format, ...) {
  if (++failures > 20) return;
  va_list arguments;
  va_start(arguments, format);
  std::vfprintf(stderr, format, arguments);
  va_end(arguments);
  std::fputc('\n', stderr);
}

// Exactly `bytes` bytes, so that AddressSanitizer sees the ends.
struct Bytes {
  explicit Bytes(int64_t bytes) : size(static_cast<size_t>(bytes)), data(new std::byte[size]) {}
  size_t size;
  std::unique_ptr<std::byte[]> data;
};

struct Problem {
  int64_t m, n, k;
  DType x_dtype, w_dtype, y_dtype;
  bool has_bias;
  float softcap;
  bool integers;  // operands are small integers: every sum is exact
};

// Operands as given to the matmul, and as float64.
struct Operands {
  Problem p;
  Bytes x, w;
  std::vector<double> x_values, w_values;  // [m, k], [n, k]
  std::vector<float> bias;
};

float random_value(const Problem& p, std::mt19937& random) {
  if (p.integers) return static_cast<float>(static_cast<int>(random() % 9) - 4);
  return std::normal_distribution<float>(0, 1)(random);
}

double value_at(DType dtype, const std::byte* data, int64_t index) {
  float value = 0;
  load_floats(dtype, data + index * dtype_bytes(dtype), 1, &value);
  return value;
}

Bytes random_matrix(const Problem& p, DType dtype, int64_t rows, int64_t cols, std::mt19937& random,
                    std::vector<double>& values) {
  Bytes matrix(rows * cols * dtype_bytes(dtype));
  values.resize(static_cast<size_t>(rows * cols));
  for (int64_t i = 0; i < rows * cols; ++i) {
    const float value = random_value(p, random);
    store_floats(dtype, &value, 1, matrix.data.get() + i * dtype_bytes(dtype));
    values[static_cast<size_t>(i)] = value_at(dtype, matrix.data.get(), i);
  }
  return matrix;
}

// Packs W in blocks cut at random rows and columns, over poisoned memory.
Bytes pack_randomly(const Problem& p, const Bytes& matrix, std::mt19937& random) {
  Bytes packed(packed_bytes(p.w_dtype, p.n, p.k));
  std::memset(packed.data.get(), 0xff, packed.size);  // NaN in every dtype
  const int64_t bytes = dtype_bytes(p.w_dtype);
  for (int64_t row = 0; row < p.n;) {
    const int64_t row_count = std::min<int64_t>(p.n - row, 1 + static_cast<int64_t>(random() % 40));
    for (int64_t col = 0; col < p.k;) {
      const int64_t limit = random() % 2 ? p.k : 70;
      const int64_t col_count =
          std::min<int64_t>(p.k - col, 1 + static_cast<int64_t>(random()) % limit);
      pack_block(p.w_dtype, matrix.data.get() + (row * p.k + col) * bytes, p.k * bytes, row_count,
                 col_count, packed.data.get(), p.n, p.k, row, col);
      col += col_count;
    }
    row += row_count;
  }
  return packed;
}

Operands make_operands(const Problem& p, std::mt19937& random) {
  std::vector<double> x_values, w_values;
  Bytes x = random_matrix(p, p.x_dtype, p.m, p.k, random, x_values);
  const Bytes matrix = random_matrix(p, p.w_dtype, p.n, p.k, random, w_values);
  Bytes w = pack_randomly(p, matrix, random);
  std::vector<float> bias;
  if (p.has_bias)
    for (int64_t i = 0; i < p.n; ++i) bias.push_back(random_value(p, random));
  bias.shrink_to_fit();
  return {p, std::move(x), std::move(w), std::move(x_values), std::move(w_values), std::move(bias)};
}

void check_packing(const Operands& o) {
  const Problem& p = o.p;
  std::vector<float> row(static_cast<size_t>(p.k));
  for (int64_t i = 0; i < p.n; ++i) {
    unpack_row(p.w_dtype, o.w.data.get(), p.n, p.k, i, row.data());
    for (int64_t j = 0; j < p.k; ++j)
      if (row[static_cast<size_t>(j)] != o.w_values[static_cast<size_t>(i * p.k + j)])
        return report("unpack_row: %s [%lld, %lld] differs at (%lld, %lld)", dtype_name(p.w_dtype),
                      static_cast<long long>(p.n), static_cast<long long>(p.k),
                      static_cast<long long>(i), static_cast<long long>(j));
  }
  // Everything past the last row or column is zero.
  Bytes again(static_cast<int64_t>(o.w.size));
  std::memset(again.data.get(), 0, again.size);
  const int64_t width = p.k * dtype_bytes(p.w_dtype);
  Bytes plain(p.n * width);
  for (int64_t i = 0; i < p.n * p.k; ++i) {
    const auto value = static_cast<float>(o.w_values[static_cast<size_t>(i)]);
    store_floats(p.w_dtype, &value, 1, plain.data.get() + i * dtype_bytes(p.w_dtype));
  }
  pack_block(p.w_dtype, plain.data.get(), width, p.n, p.k, again.data.get(), p.n, p.k, 0, 0);
  if (std::memcmp(again.data.get(), o.w.data.get(), again.size) != 0)
    report("pack_block: %s [%lld, %lld]: padding is not zero", dtype_name(p.w_dtype),
           static_cast<long long>(p.n), static_cast<long long>(p.k));
}

// The first `n` columns of y for rows [row_begin, row_end) of x; poisoned before, guarded on both
// sides. Scratch memory is poisoned in every other run; in the others it has no slack, so that
// AddressSanitizer sees its end.
std::vector<std::byte> run(const MatmulKernel& kernel, const Operands& o, int64_t row_begin,
                           int64_t row_end, int64_t n, ThreadPool& pool) {
  const Problem& p = o.p;
  const int64_t rows = row_end - row_begin;
  const int64_t x_row = p.k * dtype_bytes(p.x_dtype);
  Bytes x(rows * x_row);
  std::memcpy(x.data.get(), o.x.data.get() + row_begin * x_row, x.size);
  const auto y_bytes = static_cast<size_t>(rows * n * dtype_bytes(p.y_dtype));
  std::vector<std::byte> guarded(y_bytes + 2 * kGuardBytes, std::byte{0xff});
  Scratch scratch;
  static bool poison = false;
  if ((poison = !poison)) std::memset(scratch.get(1 << 21), 0xff, 1 << 21);
  matmul_with(kernel,
              {.x = {x.data.get(), p.x_dtype, rows, p.k},
               .w = o.w.data.get(),
               .w_dtype = p.w_dtype,
               .n = n,
               .bias = p.has_bias ? o.bias.data() : nullptr,
               .y = {guarded.data() + kGuardBytes, p.y_dtype, rows, n},
               .softcap = p.softcap},
              pool, scratch);
  for (size_t i = 0; i < kGuardBytes; ++i)
    if (guarded[i] != std::byte{0xff} || guarded[kGuardBytes + y_bytes + i] != std::byte{0xff}) {
      report("%s: wrote outside y at [%lld, %lld, %lld]", kernel.name, static_cast<long long>(rows),
             static_cast<long long>(p.n), static_cast<long long>(p.k));
      break;
    }
  return {guarded.begin() + kGuardBytes, guarded.end() - kGuardBytes};
}

// Unit in the last place that rounding to `dtype` adds, relative and absolute.
double rounding(DType dtype, double value) {
  switch (dtype) {
    case DType::kBf16:
      return std::abs(value) * 0x1p-8;
    case DType::kF16:
      return std::max(std::abs(value) * 0x1p-11, 0x1p-25);
    default:
      return std::abs(value) * 0x1p-23;
  }
}

void check_values(const MatmulKernel& kernel, const Operands& o, const std::vector<std::byte>& y) {
  const Problem& p = o.p;
  for (int64_t row = 0; row < p.m; ++row) {
    for (int64_t col = 0; col < p.n; ++col) {
      double sum = 0, magnitude = 0;
      for (int64_t k = 0; k < p.k; ++k) {
        const double product = o.x_values[static_cast<size_t>(row * p.k + k)] *
                               o.w_values[static_cast<size_t>(col * p.k + k)];
        sum += product;
        magnitude += std::abs(product);
      }
      if (p.has_bias) sum += o.bias[static_cast<size_t>(col)];
      if (p.has_bias) magnitude += std::abs(o.bias[static_cast<size_t>(col)]);
      // A chain of k roundings, each at most half a unit of a partial sum.
      double bound = p.integers ? 0 : static_cast<double>(p.k + 2) * 0x1p-24 * magnitude;
      if (p.softcap > 0) {
        sum = p.softcap * std::tanh(sum / p.softcap);
        bound += 0x1p-21 * std::abs(sum);
      }
      const bool exact = p.integers && p.softcap == 0 && p.y_dtype == DType::kF32;
      if (!exact) bound += rounding(p.y_dtype, std::abs(sum) + bound);
      const double got = value_at(p.y_dtype, y.data(), row * p.n + col);
      if (!(std::abs(got - sum) <= bound))
        return report(
            "%s: [%lld, %lld, %lld] %s x, %s y: y[%lld, %lld] is %.9g, expected %.9g "
            "within %.3g",
            kernel.name, static_cast<long long>(p.m), static_cast<long long>(p.n),
            static_cast<long long>(p.k), dtype_name(p.x_dtype), dtype_name(p.y_dtype),
            static_cast<long long>(row), static_cast<long long>(col), got, sum, bound);
    }
  }
}

struct Pools {
  ThreadPool one{1, false}, two{2, false}, three{3, false};
};

// The same rows in other batches and on other thread counts: equal bits.
void check_bits(const MatmulKernel& kernel, const Operands& o, const std::vector<std::byte>& y,
                Pools& pools, std::mt19937& random) {
  const Problem& p = o.p;
  const int64_t y_row = p.n * dtype_bytes(p.y_dtype);
  for (ThreadPool* pool : {&pools.two, &pools.three})
    if (run(kernel, o, 0, p.m, p.n, *pool) != y)
      report("%s: bits differ on %d threads at [%lld, %lld, %lld]", kernel.name,
             pool->num_threads(), static_cast<long long>(p.m), static_cast<long long>(p.n),
             static_cast<long long>(p.k));
  for (int attempt = 0; attempt < 3; ++attempt) {
    const auto begin = static_cast<int64_t>(random() % static_cast<uint64_t>(p.m));
    const int64_t rows = attempt == 0 ? 1 : 1 + static_cast<int64_t>(random()) % (p.m - begin);
    const std::vector<std::byte> part = run(kernel, o, begin, begin + rows, p.n, pools.two);
    if (std::memcmp(part.data(), y.data() + begin * y_row, part.size()) != 0)
      report("%s: rows %lld … +%lld alone differ from the same rows of [%lld, %lld, %lld]",
             kernel.name, static_cast<long long>(begin), static_cast<long long>(rows),
             static_cast<long long>(p.m), static_cast<long long>(p.n), static_cast<long long>(p.k));
  }
}

// Fewer columns of the same W: equal bits in those there are.
void check_columns(const MatmulKernel& kernel, const Operands& o, const std::vector<std::byte>& y,
                   Pools& pools, std::mt19937& random) {
  const Problem& p = o.p;
  const int64_t n = 1 + static_cast<int64_t>(random()) % p.n;
  const auto part_row = static_cast<size_t>(n * dtype_bytes(p.y_dtype));
  const auto y_row = static_cast<size_t>(p.n * dtype_bytes(p.y_dtype));
  const std::vector<std::byte> part = run(kernel, o, 0, p.m, n, pools.two);
  for (size_t row = 0; row < static_cast<size_t>(p.m); ++row)
    if (std::memcmp(part.data() + row * part_row, y.data() + row * y_row, part_row) != 0)
      return report("%s: bits differ with n = %lld of [%lld, %lld, %lld]", kernel.name,
                    static_cast<long long>(n), static_cast<long long>(p.m),
                    static_cast<long long>(p.n), static_cast<long long>(p.k));
}

void check_problem(const MatmulKernel& kernel, const Problem& p, Pools& pools,
                   std::mt19937& random) {
  const Operands o = make_operands(p, random);
  check_packing(o);
  const std::vector<std::byte> y = run(kernel, o, 0, p.m, p.n, pools.one);
  check_values(kernel, o, y);
  check_bits(kernel, o, y, pools, random);
  check_columns(kernel, o, y, pools, random);
}

struct Candidate {
  const MatmulKernel* kernel;
  DType w_dtype;
};

std::vector<Candidate> candidates(CpuIsa isa) {
  std::vector<Candidate> list;
  for (const DType dtype : kFloats) {
    list.push_back({portable_kernel(dtype), dtype});
    if (isa >= CpuIsa::kAvx2) list.push_back({avx2_kernel(dtype), dtype});
    if (isa >= CpuIsa::kAvx512) list.push_back({avx512_kernel(dtype), dtype});
  }
  if (isa >= CpuIsa::kAvx512Bf16) list.push_back({avx512_bf16_kernel(), DType::kBf16});
  if (isa >= CpuIsa::kAmx) list.push_back({amx_kernel(), DType::kBf16});
  list.push_back({&emulated_amx_kernel(), DType::kBf16});
  return list;
}

// Which kernel serves which operands.
void check_choice() {
  const auto chosen = [](DType x, DType w, int64_t rows, bool deterministic, CpuIsa isa) {
    return &choose_kernel(
        {.x = {nullptr, x, rows, 1}, .w_dtype = w, .y = {}, .deterministic = deterministic}, isa);
  };
  const auto expect = [](const MatmulKernel* got, const MatmulKernel* wanted) {
    if (got != wanted) report("choose_kernel: got %s, expected %s", got->name, wanted->name);
  };
  constexpr DType kB = DType::kBf16;
  expect(chosen(kB, kB, 15, false, CpuIsa::kAmx), avx512_bf16_kernel());
  expect(chosen(kB, kB, 16, false, CpuIsa::kAmx), amx_kernel());
  expect(chosen(kB, kB, 16, true, CpuIsa::kAmx), avx512_bf16_kernel());
  expect(chosen(kB, kB, 16, false, CpuIsa::kAvx512Bf16), avx512_bf16_kernel());
  expect(chosen(kB, kB, 16, false, CpuIsa::kAvx512), avx512_kernel(kB));
  expect(chosen(DType::kF32, kB, 16, false, CpuIsa::kAmx), avx512_kernel(kB));
  expect(chosen(kB, DType::kF16, 16, false, CpuIsa::kAvx2), avx2_kernel(DType::kF16));
  expect(chosen(kB, kB, 16, false, CpuIsa::kPortable), portable_kernel(kB));
}

template <size_t kCount>
int64_t pick(const int64_t (&values)[kCount], std::mt19937& random) {
  return values[random() % kCount];
}

int check(int problems_per_kernel) {
  constexpr int64_t kRows[] = {1, 1, 2, 3, 5, 6, 7, 8, 9, 15, 16, 17, 31, 32, 33, 37, 53, 70};
  constexpr int64_t kColumns[] = {1, 2, 15, 16, 17, 31, 33, 47, 48, 64, 97, 128, 211, 400};
  constexpr int64_t kDepths[] = {1, 2, 3, 7, 16, 31, 32, 33, 64, 67, 96, 128, 251, 257, 512};
  constexpr int64_t kDeep[] = {2111, 2304, 4099, 4864};  // k is cut when rows are many
  check_choice();
  Pools pools;
  const std::vector<Candidate> list = candidates(detect_isa());
  for (const Candidate& candidate : list) {
    std::mt19937 random(1);
    for (int i = 0; i < problems_per_kernel; ++i) {
      const bool deep = i % 16 == 15;
      Problem p{.m = deep ? 25 + static_cast<int64_t>(random() % 20) : pick(kRows, random),
                .n = deep ? 1 + static_cast<int64_t>(random() % 70) : pick(kColumns, random),
                .k = deep ? pick(kDeep, random) : pick(kDepths, random),
                .x_dtype = kFloats[random() % 3],
                .w_dtype = candidate.w_dtype,
                .y_dtype = kFloats[random() % 3],
                .has_bias = random() % 2 == 0,
                .softcap = random() % 4 == 0 ? 3.0f : 0.0f,
                .integers = random() % 3 == 0};
      if (candidate.kernel->operand == DType::kBf16) p.x_dtype = DType::kBf16;
      check_problem(*candidate.kernel, p, pools, random);
    }
    std::printf("%-20s %d problems\n", candidate.kernel->name, problems_per_kernel);
    std::fflush(stdout);
  }
  // An empty sum is the bias; no rows is no work.
  for (const Candidate& candidate : list) {
    const DType x = candidate.kernel->operand;
    std::mt19937 random(2);
    check_problem(*candidate.kernel,
                  {.m = 3,
                   .n = 20,
                   .k = 0,
                   .x_dtype = x,
                   .w_dtype = candidate.w_dtype,
                   .y_dtype = DType::kF32,
                   .has_bias = true,
                   .softcap = 0,
                   .integers = false},
                  pools, random);
  }
  if (failures > 0)
    std::fprintf(stderr, "%d failures\n", failures);
  else
    std::printf("all kernels agree with float64\n");
  return failures > 0 ? 1 : 0;
}

}  // namespace
}  // namespace nanoweave

// nanoweave_matmul_check [problems per kernel] | bench [isa] [threads]
int main(int argc, char** argv) {
  try {
    if (argc > 1 && std::string_view(argv[1]) == "bench") {
      nanoweave::bench_matmul(nanoweave::parse_isa(argc > 2 ? argv[2] : "auto"),
                              argc > 3 ? std::atoi(argv[3]) : 2);
      return 0;
    }
    return nanoweave::check(argc > 1 ? std::atoi(argv[1]) : 400);
  } catch (const nanoweave::EngineError& error) {
    std::fprintf(stderr, "%s: %s\n", nanoweave::error_code_name(error.code), error.what());
    return 1;
  }
}
