// Speeds of the CPU matmul beside the machine's peaks, measured in the same run. Weights are taken
// from different places of a large arena in turn, so that decode shapes find them in memory, not in
// a cache; the fastest of many runs is shown because other programs may share the machine.
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <vector>

#include "core/error.h"
#include "cpu/scratch.h"
#include "driver/matmul_check.h"

namespace nanoweave {
namespace {

struct Shape {
  const char* what;
  int64_t m, n, k;
};

// Projections of a 0.5 B decoder (hidden 896, intermediate 4864, vocabulary 151936), then squares.
constexpr Shape kShapes[] = {
    {"decode qkv", 1, 1152, 896},      {"decode gate_up", 1, 9728, 896},
    {"decode down", 1, 896, 4864},     {"decode lm_head", 1, 151936, 896},
    {"decode gate_up", 4, 9728, 896},  {"decode gate_up", 8, 9728, 896},
    {"decode gate_up", 16, 9728, 896}, {"decode lm_head", 16, 151936, 896},
    {"prefill gate", 64, 4864, 896},   {"prefill gate", 512, 4864, 896},
    {"prefill down", 512, 896, 4864},  {"prefill qkv", 512, 1152, 896},
    {"square", 1024, 1024, 1024},      {"square", 2048, 2048, 2048},
};

struct Types {
  const char* name;
  DType x, w, y;
};

constexpr Types kTypes[] = {{"bf16", DType::kBf16, DType::kBf16, DType::kBf16},
                            {"f32", DType::kF32, DType::kF32, DType::kF32},
                            {"f32·bf16", DType::kF32, DType::kBf16, DType::kF32},
                            {"f16", DType::kF16, DType::kF16, DType::kF16}};

// Large, in huge pages where the system gives them, filled with normal numbers of either sign in
// every dtype the bytes are read as.
struct Arena {
  explicit Arena(size_t bytes) : bytes(bytes) {
    void* mapping =
        mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED)
      fail(ErrorCode::kOutOfMemory,
           "the bench needs %zu bytes for weights: run it where they are free", bytes);
    madvise(mapping, bytes, MADV_HUGEPAGE);
    data = static_cast<std::byte*>(mapping);
    uint32_t state = 1;
    for (size_t i = 0; i + 1 < bytes; i += 2) {
      state = state * 1664525u + 1013904223u;
      const auto bits = static_cast<uint16_t>((state >> 16 & 0x83ffu) | 0x3c00u);
      std::memcpy(data + i, &bits, 2);
    }
  }
  ~Arena() { munmap(data, bytes); }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  size_t bytes;
  std::byte* data = nullptr;
};

struct Peaks {
  double tiles, pair_dots, fmas, bandwidth;

  double flops(const MatmulKernel& kernel) const {
    if (kernel.operand != DType::kBf16) return fmas;
    return kernel.enter != nullptr ? tiles : pair_dots;  // only tiles need entering
  }
};

void bench_case(const Shape& shape, const Types& types, CpuIsa isa, ThreadPool& pool,
                const Arena& arena, const Peaks& peaks) {
  const int64_t w_bytes = packed_bytes(types.w, shape.n, shape.k);
  const auto arena_bytes = static_cast<int64_t>(arena.bytes);
  std::vector<std::byte> x(static_cast<size_t>(shape.m * shape.k * dtype_bytes(types.x)));
  std::memcpy(x.data(), arena.data, x.size());
  std::vector<std::byte> y(static_cast<size_t>(shape.m * shape.n * dtype_bytes(types.y)));
  MatmulArgs args{.x = {x.data(), types.x, shape.m, shape.k},
                  .w = arena.data,
                  .w_dtype = types.w,
                  .n = shape.n,
                  .y = {y.data(), types.y, shape.m, shape.n}};
  Scratch scratch;
  double best = 1e30;
  int64_t offset = 0;
  pool.begin_step();
  const double begin = seconds(pool.num_threads());
  for (int run = 0; run < 5 || (seconds(pool.num_threads()) - begin < 0.4 && run < 2000); ++run) {
    if (offset + w_bytes > arena_bytes) offset = 0;
    args.w = arena.data + offset;
    offset += (w_bytes + 4095) / 4096 * 4096;
    const double start = seconds(pool.num_threads());
    matmul(args, isa, pool, scratch);
    best = std::min(best, seconds(pool.num_threads()) - start);
  }
  pool.end_step();
  const double flops = 2.0 * static_cast<double>(shape.m * shape.n * shape.k);
  const double bytes = static_cast<double>(w_bytes) + static_cast<double>(x.size() + y.size());
  const MatmulKernel& kernel = choose_kernel(args, isa);
  const double peak = peaks.flops(kernel);
  std::printf(
      "%-15s %4lld x %6lld x %5lld  %-9s %-15s %d %9.1f us %8.1f GFLOP/s %5.1f%% %7.1f GB/s "
      "%5.1f%%\n",
      shape.what, static_cast<long long>(shape.m), static_cast<long long>(shape.n),
      static_cast<long long>(shape.k), types.name, kernel.name, pool.num_threads(), best * 1e6,
      flops / best * 1e-9, flops / best / peak * 100, bytes / best * 1e-9,
      bytes / best / peaks.bandwidth * 100);
  std::fflush(stdout);
}

}  // namespace

void bench_matmul(CpuIsa isa, int max_threads) {
  const Arena arena(size_t{1} << 30);
  for (int threads = 1; threads <= max_threads; ++threads) {
    const Peaks peaks{.tiles = measure_tile_flops(threads),
                      .pair_dots = measure_pair_dot_flops(threads),
                      .fmas = measure_fma_flops(isa, threads),
                      .bandwidth = measure_read_bandwidth({arena.data, arena.bytes}, threads)};
    std::printf(
        "%d thread(s): peak %.1f GFLOP/s in bf16 tiles, %.1f in bf16 pair dots, %.1f in f32 "
        "multiply-adds (%s); reads %.1f GB/s\n",
        threads, peaks.tiles * 1e-9, peaks.pair_dots * 1e-9, peaks.fmas * 1e-9, isa_name(isa),
        peaks.bandwidth * 1e-9);
    ThreadPool pool(threads, true);
    for (const Types& types : kTypes)
      for (const Shape& shape : kShapes) bench_case(shape, types, isa, pool, arena, peaks);
  }
}

}  // namespace nanoweave
