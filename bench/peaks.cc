// What the machine can do, measured with loops that do nothing else: bytes per second read and
// copied from memory that fits no cache, and multiply-adds per second out of registers, for a given
// number of threads. These are the ceilings behind "% of peak" in `nanoweave bench`.
// bench/peaks.ts compiles and runs this; the argument is the number of threads.
//
// Prints one JSON object; a rate the instruction set lacks is null. bf16 is AMX where there is AMX.
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <barrier>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

namespace {

constexpr size_t kBytesPerThread = size_t{512} << 20;
constexpr int kRounds = 30;

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Runs body(thread) on all threads at once, kRounds times after one to warm up; best and median
// seconds of a round, from the common start to the last finish.
struct Timing {
  double best, median;
};
Timing time_rounds(int threads, const std::function<void(int)>& body) {
  std::vector<double> seconds;
  Clock::time_point start;
  std::barrier begin(threads, [&]() noexcept { start = Clock::now(); });
  std::barrier end(threads, [&]() noexcept { seconds.push_back(seconds_since(start)); });
  std::vector<std::thread> pool;
  for (int thread = 0; thread < threads; thread++) {
    pool.emplace_back([&, thread] {
      for (int round = 0; round <= kRounds; round++) {
        begin.arrive_and_wait();
        body(thread);
        end.arrive_and_wait();
      }
    });
  }
  for (auto& thread : pool) thread.join();
  seconds.erase(seconds.begin());
  std::sort(seconds.begin(), seconds.end());
  return {seconds.front(), seconds[seconds.size() / 2]};
}

volatile uint64_t sink;

void read_all(const uint8_t* data, size_t bytes) {
  // Eight independent sums: the loads, not the adds, are the limit.
  const auto* words = reinterpret_cast<const uint64_t*>(data);
  typedef uint64_t Vector __attribute__((vector_size(32), aligned(32)));
  const auto* vectors = reinterpret_cast<const Vector*>(words);
  Vector sums[8] = {};
  for (size_t i = 0; i < bytes / 32; i += 8)
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++) sums[j] += vectors[i + j];
  uint64_t total = 0;
  for (const auto& sum : sums) total += sum[0] + sum[1] + sum[2] + sum[3];
  sink = total;
}

constexpr int64_t kSteps = 20'000'000;

// 12 chains hide the latency of the multiply-add on every core so far.
__attribute__((target("avx512f"))) double fma_avx512() {
  __m512 sums[12];
  for (int j = 0; j < 12; j++) sums[j] = _mm512_set1_ps(static_cast<float>(j));
  __m512 x = _mm512_set1_ps(1e-9f);
  for (int64_t i = 0; i < kSteps; i++) {
    asm volatile("" : "+v"(x));
#pragma GCC unroll 12
    for (int j = 0; j < 12; j++) sums[j] = _mm512_fmadd_ps(x, x, sums[j]);
  }
  float total = 0;
  for (auto& sum : sums) total += sum[0];
  sink = static_cast<uint64_t>(total);
  return 2.0 * 16 * 12 * kSteps;
}

__attribute__((target("avx2,fma"))) double fma_avx2() {
  __m256 sums[12];
  for (int j = 0; j < 12; j++) sums[j] = _mm256_set1_ps(static_cast<float>(j));
  __m256 x = _mm256_set1_ps(1e-9f);
  for (int64_t i = 0; i < kSteps; i++) {
    asm volatile("" : "+x"(x));
#pragma GCC unroll 12
    for (int j = 0; j < 12; j++) sums[j] = _mm256_fmadd_ps(x, x, sums[j]);
  }
  float total = 0;
  for (auto& sum : sums) total += sum[0];
  sink = static_cast<uint64_t>(total);
  return 2.0 * 8 * 12 * kSteps;
}

__attribute__((target("avx512f,avx512bf16"))) double dot_bf16() {
  __m512 sums[12];
  for (int j = 0; j < 12; j++) sums[j] = _mm512_set1_ps(static_cast<float>(j));
  __m512i bits = _mm512_set1_epi16(0x3000);
  for (int64_t i = 0; i < kSteps; i++) {
    asm volatile("" : "+v"(bits));
    const auto x = reinterpret_cast<__m512bh>(bits);
#pragma GCC unroll 12
    for (int j = 0; j < 12; j++) sums[j] = _mm512_dpbf16_ps(sums[j], x, x);
  }
  float total = 0;
  for (auto& sum : sums) total += sum[0];
  sink = static_cast<uint64_t>(total);
  return 2.0 * 32 * 12 * kSteps;
}

// AMX-BF16: four tiles of sums from two by two tiles of zeros, as a matmul uses them. GCC 12's
// intrinsics lose the configuration, so it is assembly.
double tiles_bf16() {
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
  constexpr int64_t kTileSteps = kSteps / 4;
  for (int64_t i = 0; i < kTileSteps; i++)
    asm volatile(
        "tdpbf16ps %tmm6, %tmm4, %tmm0\n tdpbf16ps %tmm7, %tmm4, %tmm1\n"
        "tdpbf16ps %tmm6, %tmm5, %tmm2\n tdpbf16ps %tmm7, %tmm5, %tmm3");
  asm volatile("tilerelease");
  return 2.0 * 16 * 16 * 32 * 4 * kTileSteps;
}

// The kernel wants to be asked before a process first uses tiles.
bool has_tiles() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  constexpr unsigned kBf16AndTile = 1u << 22 | 1u << 24;
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return (edx & kBf16AndTile) == kBf16AndTile &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

void print_rate(const char* name, bool present, int threads, double (*kernel)()) {
  if (!present) {
    std::printf("  \"%s\": null,\n", name);
    return;
  }
  double flops = 0;
  const Timing timing = time_rounds(threads, [&](int thread) {
    const double done = kernel();
    if (thread == 0) flops = done;
  });
  std::printf("  \"%s\": { \"best\": %.4g, \"median\": %.4g },\n", name,
              flops * threads / timing.best, flops * threads / timing.median);
}

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::max(1, std::atoi(argv[1])) : 1;
  struct Free {
    void operator()(uint8_t* pointer) const { std::free(pointer); }
  };
  std::vector<std::unique_ptr<uint8_t, Free>> source, target;
  for (int thread = 0; thread < threads; thread++) {
    for (auto* list : {&source, &target}) {
      list->emplace_back(static_cast<uint8_t*>(std::aligned_alloc(4096, kBytesPerThread)));
      std::memset(list->back().get(), thread + 1, kBytesPerThread);
    }
  }
  const double bytes = static_cast<double>(kBytesPerThread) * threads;
  const Timing read =
      time_rounds(threads, [&](int thread) { read_all(source[thread].get(), kBytesPerThread); });
  const Timing copy = time_rounds(threads, [&](int thread) {
    std::memcpy(target[thread].get(), source[thread].get(), kBytesPerThread);
  });
  std::printf("{\n  \"threads\": %d,\n", threads);
  std::printf("  \"readBytesPerSecond\": { \"best\": %.4g, \"median\": %.4g },\n",
              bytes / read.best, bytes / read.median);
  std::printf("  \"copyBytesPerSecond\": { \"best\": %.4g, \"median\": %.4g },\n",
              2 * bytes / copy.best, 2 * bytes / copy.median);
  const bool avx512 = __builtin_cpu_supports("avx512f");
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  print_rate("f32FlopPerSecond", avx2 || avx512, threads, avx512 ? fma_avx512 : fma_avx2);
  const bool tiles = has_tiles();
  print_rate("bf16FlopPerSecond", tiles || __builtin_cpu_supports("avx512bf16"), threads,
             tiles ? tiles_bf16 : dot_bf16);
  std::printf("  \"instructionSet\": \"%s\"\n}\n", tiles ? "amx" : avx512 ? "avx512" : avx2 ? "avx2" : "none");
}
