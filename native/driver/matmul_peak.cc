// The machine's ceilings for the matmul bench: multiply-adds that never leave the registers, and a
// loop that only reads memory.
#include <algorithm>
#include <cstring>
#include <ctime>
#include <functional>
#include <thread>
#include <vector>

#include "driver/matmul_check.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace nanoweave {
namespace {

constexpr int kChains = 12;  // independent sums: covers latency · throughput of every machine known
constexpr int kTries = 10;

// Seconds of the fastest of several runs of `work(thread)` on all threads at once.
double fastest(int num_threads, const std::function<void(int)>& work) {
  double best = 1e30;
  for (int attempt = 0; attempt < kTries; ++attempt) {
    std::vector<std::thread> threads;
    const double begin = seconds(num_threads);
    for (int thread = 1; thread < num_threads; ++thread) threads.emplace_back(work, thread);
    work(0);
    for (std::thread& thread : threads) thread.join();
    best = std::min(best, seconds(num_threads) - begin);
  }
  return best;
}

#if defined(__x86_64__)

// Each returns the flops it did; `iterations` rounds over the chains.
__attribute__((target("avx512f,avx512bf16"))) double pair_dots(int64_t iterations) {
  __m512 sum[kChains];
#pragma GCC unroll 16
  for (int i = 0; i < kChains; ++i) sum[i] = _mm512_set1_ps(static_cast<float>(i));
  const auto x = reinterpret_cast<__m512bh>(_mm512_set1_epi32(0x3c003c00));
  for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < kChains; ++j) {
      sum[j] = _mm512_dpbf16_ps(sum[j], x, x);
      asm volatile("" : "+v"(sum[j]));
    }
  }
  return static_cast<double>(iterations) * kChains * 64;
}

// Four tiles of sums from two by two tiles of zeros. Assembly: see cpu/matmul_amx.cc.
double tile_dots(int64_t iterations) {
  struct alignas(64) Config {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  };
  static constexpr Config kConfig;
  asm volatile("ldtilecfg %0" ::"m"(kConfig));
  asm volatile(
      "tilezero %tmm0\n tilezero %tmm1\n tilezero %tmm2\n tilezero %tmm3\n"
      "tilezero %tmm4\n tilezero %tmm5\n tilezero %tmm6\n tilezero %tmm7");
  for (int64_t i = 0; i < iterations; ++i)
    asm volatile(
        "tdpbf16ps %tmm6, %tmm4, %tmm0\n tdpbf16ps %tmm7, %tmm4, %tmm1\n"
        "tdpbf16ps %tmm6, %tmm5, %tmm2\n tdpbf16ps %tmm7, %tmm5, %tmm3");
  asm volatile("tilerelease");
  return static_cast<double>(iterations) * 4 * 16 * 16 * 32 * 2;
}

__attribute__((target("avx512f"))) double fmas_avx512(int64_t iterations) {
  __m512 sum[kChains];
#pragma GCC unroll 16
  for (int i = 0; i < kChains; ++i) sum[i] = _mm512_set1_ps(static_cast<float>(i));
  const __m512 x = _mm512_set1_ps(0.5f);
  for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < kChains; ++j) {
      sum[j] = _mm512_fmadd_ps(x, x, sum[j]);
      asm volatile("" : "+v"(sum[j]));
    }
  }
  return static_cast<double>(iterations) * kChains * 32;
}

__attribute__((target("avx2,fma"))) double fmas_avx2(int64_t iterations) {
  __m256 sum[kChains];
#pragma GCC unroll 16
  for (int i = 0; i < kChains; ++i) sum[i] = _mm256_set1_ps(static_cast<float>(i));
  const __m256 x = _mm256_set1_ps(0.5f);
  for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < kChains; ++j) {
      sum[j] = _mm256_fmadd_ps(x, x, sum[j]);
      asm volatile("" : "+x"(sum[j]));
    }
  }
  return static_cast<double>(iterations) * kChains * 16;
}

double mul_adds_sse2(int64_t iterations) {
  __m128 sum[kChains];
#pragma GCC unroll 16
  for (int i = 0; i < kChains; ++i) sum[i] = _mm_set1_ps(static_cast<float>(i));
  __m128 x = _mm_set1_ps(0.5f);
  for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < kChains; ++j) {
      asm volatile("" : "+x"(x));
      sum[j] = _mm_add_ps(_mm_mul_ps(x, x), sum[j]);
      asm volatile("" : "+x"(sum[j]));
    }
  }
  return static_cast<double>(iterations) * kChains * 8;
}

double measure_flops(int num_threads, double (*loop)(int64_t)) {
  constexpr int64_t kIterations = 400000;
  const double time = fastest(num_threads, [&](int) { loop(kIterations); });
  return loop(1) * kIterations * num_threads / time;
}

#endif

}  // namespace

double seconds(int num_threads) {
  timespec now{};
  clock_gettime(num_threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

#if defined(__x86_64__)

double measure_pair_dot_flops(int num_threads) {
  return detect_isa() >= CpuIsa::kAvx512Bf16 ? measure_flops(num_threads, pair_dots) : 0;
}

double measure_tile_flops(int num_threads) {
  return detect_isa() >= CpuIsa::kAmx ? measure_flops(num_threads, tile_dots) : 0;
}

double measure_fma_flops(CpuIsa isa, int num_threads) {
  if (isa >= CpuIsa::kAvx512) return measure_flops(num_threads, fmas_avx512);
  if (isa >= CpuIsa::kAvx2) return measure_flops(num_threads, fmas_avx2);
  return measure_flops(num_threads, mul_adds_sse2);
}

#else

double measure_pair_dot_flops(int) { return 0; }
double measure_tile_flops(int) { return 0; }
double measure_fma_flops(CpuIsa, int) { return 0; }

#endif

double measure_read_bandwidth(std::span<const std::byte> memory, int num_threads) {
  typedef float Vec __attribute__((vector_size(16)));
  const size_t share = memory.size() / static_cast<size_t>(num_threads) / 64 * 64;
  double best = 0;
  for (const size_t ahead : {size_t{0}, size_t{512}, size_t{4096}}) {  // bytes prefetched ahead
    const double time = fastest(num_threads, [&](int thread) {
      const std::byte* data = memory.data() + static_cast<size_t>(thread) * share;
      for (size_t i = 0; i < share; i += 64) {
        if (ahead > 0) __builtin_prefetch(data + i + ahead);
        Vec line[4];
        std::memcpy(line, data + i, 64);
        asm volatile("" : : "x"(line[0]), "x"(line[1]), "x"(line[2]), "x"(line[3]));
      }
    });
    best = std::max(best, static_cast<double>(share) * num_threads / time);
  }
  return best;
}

}  // namespace nanoweave
