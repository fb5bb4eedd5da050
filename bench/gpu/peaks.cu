// Ceilings: device memory (copied, read), float32 multiply-adds out of registers, and the bf16 matrix
// rate of cuBLASLt on random data (zeros run faster than real data does).
#include <cmath>

#include "blas.h"

namespace probe {

namespace {

constexpr size_t kBytes = size_t{2} << 30;  // many times any L2
constexpr int kRepeats = 20;
constexpr int kThreads = 512;

__global__ void __launch_bounds__(kThreads)
    copy_kernel(const uint4* __restrict__ from, uint4* __restrict__ to, size_t count) {
  const size_t stride = size_t{gridDim.x} * blockDim.x;
  size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x;
  for (; i + 3 * stride < count; i += 4 * stride) {
    uint4 v[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) v[j] = __ldcs(from + i + j * stride);
#pragma unroll
    for (int j = 0; j < 4; ++j) __stcs(to + i + j * stride, v[j]);
  }
  for (; i < count; i += stride) to[i] = from[i];
}

// The sum is written where it cannot be, so that no load is dropped.
__global__ void __launch_bounds__(kThreads)
    read_kernel(const uint4* __restrict__ from, size_t count, uint32_t* never) {
  const size_t stride = size_t{gridDim.x} * blockDim.x;
  size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x;
  uint32_t sum = 0;
  for (; i + 7 * stride < count; i += 8 * stride) {
    uint4 v[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) v[j] = __ldcs(from + i + j * stride);
#pragma unroll
    for (int j = 0; j < 8; ++j) sum |= v[j].x | v[j].y | v[j].z | v[j].w;
  }
  if (sum == 0x12345678) *never = sum;
}

constexpr int kChains = 16;
constexpr int kFmaSteps = 4096;

__global__ void __launch_bounds__(kThreads) fma_kernel(float* out, float a, float b) {
  float chain[kChains];
#pragma unroll
  for (int j = 0; j < kChains; ++j) chain[j] = threadIdx.x + j;
  for (int step = 0; step < kFmaSteps; ++step)
#pragma unroll
    for (int j = 0; j < kChains; ++j) chain[j] = fmaf(chain[j], a, b);
  float sum = 0;
#pragma unroll
  for (int j = 0; j < kChains; ++j) sum += chain[j];
  if (sum == 1.5f) *out = sum;
}

Spread faster(const Spread& a, const Spread& b) { return a.best_seconds < b.best_seconds ? a : b; }

std::string rate(double work, const Spread& spread) {
  return "{\"best\": " + number(work / spread.best_seconds) +
         ", \"median\": " + number(work / spread.median_seconds) + "}";
}

struct MemoryRates {
  std::string read, copy;
};

// The best of several grids, and of the driver's own copy.
MemoryRates measure_memory(int sms) {
  DeviceArray<uint16_t> from(kBytes / 2), to(kBytes / 2);
  fill_random_bf16(from.data(), from.count(), 1, nullptr);
  const auto* source = reinterpret_cast<const uint4*>(from.data());
  auto* target = reinterpret_cast<uint4*>(to.data());
  const size_t count = kBytes / sizeof(uint4);
  Spread copy = measure(nullptr, kRepeats, [&] {
    check(cudaMemcpyAsync(target, source, kBytes, cudaMemcpyDeviceToDevice), "copy");
  });
  Spread read{INFINITY, INFINITY};
  for (const int blocks_per_sm : {1, 2, 4, 8, 16}) {
    const int grid = sms * blocks_per_sm;
    copy = faster(copy, measure(nullptr, kRepeats, [&] {
                    copy_kernel<<<grid, kThreads>>>(source, target, count);
                    check_launch("copy");
                  }));
    read = faster(read, measure(nullptr, kRepeats, [&] {
                    read_kernel<<<grid, kThreads>>>(source, count,
                                                    reinterpret_cast<uint32_t*>(target));
                    check_launch("read");
                  }));
  }
  return {rate(kBytes, read), rate(2.0 * kBytes, copy)};
}

std::string measure_float32(int sms) {
  DeviceArray<float> out(1);
  const int grid = sms * 8;
  const Spread spread = measure(nullptr, kRepeats, [&] {
    fma_kernel<<<grid, kThreads>>>(out.data(), 0.999f, 0.001f);
    check_launch("fma");
  });
  return rate(2.0 * grid * kThreads * kChains * kFmaSteps, spread);
}

// 8192³ over two sets of operands; null where there is no cuBLASLt.
std::string measure_bf16(Blas* blas) {
  if (blas == nullptr) return "null";
  constexpr int kSize = 8192;
  constexpr size_t kCount = size_t{kSize} * kSize;
  DeviceArray<uint16_t> x(2 * kCount), w(2 * kCount), y(kCount);
  fill_random_bf16(x.data(), x.count(), 2, nullptr);
  fill_random_bf16(w.data(), w.count(), 3, nullptr);
  blas->plan(kSize, kSize, kSize, x.data(), w.data(), y.data(), nullptr);
  size_t set = 0;
  const Spread spread = measure(nullptr, kRepeats, [&] {
    set = kCount - set;
    blas->run(x.data() + set, w.data() + set, y.data(), nullptr);
  });
  return rate(2.0 * kSize * kSize * kSize, spread);
}

}  // namespace

void print_peaks() {
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
  const int sms = properties.multiProcessorCount;
  std::string why;
  const std::unique_ptr<Blas> blas = Blas::open(why);
  const MemoryRates memory = measure_memory(sms);
  const std::string text =
      "{\"threads\": " + std::to_string(sms) + ", \"device\": " + quoted(properties.name) +
      ", \"readBytesPerSecond\": " + memory.read + ", \"copyBytesPerSecond\": " + memory.copy +
      ", \"f32FlopPerSecond\": " + measure_float32(sms) +
      ", \"bf16FlopPerSecond\": " + measure_bf16(blas.get()) + ", \"instructionSet\": \"sm_" +
      std::to_string(10 * properties.major + properties.minor) +
      "\", \"l2Bytes\": " + std::to_string(properties.l2CacheSize) + ", \"cublaslt\": " +
      (blas == nullptr ? "null" : quoted(blas->version())) +
      (blas == nullptr ? ", \"missing\": " + quoted(why) : "") + "}\n";
  check(cudaDeviceSynchronize(), "peaks");
  std::fputs(text.c_str(), stdout);
}

}  // namespace probe
