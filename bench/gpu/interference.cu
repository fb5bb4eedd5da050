// What a kernel on another lane costs a matrix product: k multiprocessors are taken, by a copy (as a
// collective would) or by a wait, while cuBLASLt multiplies on a second stream. The planner's table of
// lane interference (NanoFlow, Zhu et al., 2024, §4.1) is made of such rows.
#include "blas.h"

namespace probe {

namespace {

constexpr size_t kCopyBytes = size_t{1} << 30;
constexpr int kThreads = 512;
constexpr uint64_t kDeadlineNs = 3'000'000'000;  // a host that is gone frees the device
constexpr int kProducts = 20;

__device__ uint64_t timer_ns() {
  uint64_t time;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(time));
  return time;
}

struct OccupyArgs {
  const volatile int* stop;  // host memory
  const uint4* from;
  uint4* to;
  size_t count;
  unsigned long long* copied;  // 16-byte words moved
  bool copies;
};

// One block takes a multiprocessor for itself: its shared memory leaves no room for another.
__global__ void __launch_bounds__(kThreads) occupy_kernel(OccupyArgs args) {
  const uint64_t begin = timer_ns();
  const size_t stride = size_t{gridDim.x} * blockDim.x;
  size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x;
  unsigned long long moved = 0;
  for (unsigned round = 0;; ++round) {
    if (round % 16 == 0 && (*args.stop != 0 || timer_ns() - begin > kDeadlineNs)) break;
    if (!args.copies) {
      __nanosleep(1000);
      continue;
    }
#pragma unroll 4
    for (int j = 0; j < 4; ++j) {
      args.to[i] = args.from[i];
      i += stride;
      if (i >= args.count) i = size_t{blockIdx.x} * blockDim.x + threadIdx.x;
    }
    moved += 4;
  }
  atomicAdd(args.copied, moved);
}

class Experiment {
 public:
  explicit Experiment(Blas& blas) : blas_(blas), from_(kCopyBytes / 16), to_(kCopyBytes / 16) {
    check(cudaStreamCreateWithFlags(&compute_, cudaStreamNonBlocking), "stream");
    check(cudaStreamCreateWithFlags(&other_, cudaStreamNonBlocking), "stream");
    check(cudaHostAlloc(&stop_, sizeof(int), cudaHostAllocMapped), "host memory");
    fill_random_bf16(reinterpret_cast<uint16_t*>(from_.data()), kCopyBytes / 2, 9, nullptr);
    check(cudaDeviceSynchronize(), "fill");
    check(cudaDeviceGetAttribute(&shared_bytes_, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0),
          "attribute");
    check(cudaFuncSetAttribute(occupy_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               shared_bytes_),
          "shared memory");
  }
  ~Experiment() {
    cudaFreeHost(stop_);
    cudaStreamDestroy(compute_);
    cudaStreamDestroy(other_);
  }

  // Rows for one product: alone, then beside 4, 8, … taken multiprocessors.
  std::string rows(int m, int n, int k, int sms) {
    DeviceArray<uint16_t> x(size_t(m) * k), w(size_t(n) * k), y(size_t(m) * n);
    fill_random_bf16(x.data(), x.count(), 4, compute_);
    fill_random_bf16(w.data(), w.count(), 5, compute_);
    const auto product = [&] {
      for (int i = 0; i < kProducts; ++i) blas_.run(x.data(), w.data(), y.data(), compute_);
    };
    std::string rows;
    double alone = 0;
    for (const bool copies : {true, false}) {
      for (const int taken : {0, 4, 8, 16, 24, 32, 48, 64}) {
        if (taken >= sms || (taken == 0 && !copies)) continue;
        blas_.plan(m, n, k, x.data(), w.data(), y.data(), compute_, sms - taken);
        const Beside beside = run_beside(taken, copies, product);
        if (taken == 0) alone = beside.seconds;
        if (!rows.empty()) rows += ",\n  ";
        rows += "{\"m\": " + std::to_string(m) + ", \"n\": " + std::to_string(n) +
                ", \"k\": " + std::to_string(k) + ", \"kind\": " +
                quoted(taken == 0 ? "alone" : copies ? "copy" : "wait") +
                ", \"sms\": " + std::to_string(taken) +
                ", \"matmulUs\": " + number(beside.seconds * 1e6) +
                ", \"slowdown\": " + number(beside.seconds / alone) +
                ", \"copyBytesPerSecond\": " + number(beside.copy_rate) + "}";
      }
    }
    return rows;
  }

 private:
  struct Beside {
    double seconds;    // of one product
    double copy_rate;  // bytes read and written
  };

  template <typename Product>
  Beside run_beside(int taken, bool copies, const Product& product) {
    DeviceArray<unsigned long long> copied(1);
    check(cudaMemsetAsync(copied.data(), 0, sizeof(unsigned long long), other_), "memset");
    *stop_ = 0;
    EventTimer around_copy;
    around_copy.begin(other_);
    if (taken > 0) {
      const OccupyArgs args{.stop = stop_,
                            .from = from_.data(),
                            .to = to_.data(),
                            .count = from_.count(),
                            .copied = copied.data(),
                            .copies = copies};
      occupy_kernel<<<taken, kThreads, shared_bytes_, other_>>>(args);
      check_launch("occupy");
    }
    const Spread spread = measure(compute_, 5, product);
    *const_cast<volatile int*>(stop_) = 1;
    const double seconds = around_copy.end_ms(other_) / 1e3;
    unsigned long long words = 0;
    check(cudaMemcpy(&words, copied.data(), sizeof words, cudaMemcpyDeviceToHost), "read");
    return {spread.median_seconds / kProducts, 32.0 * static_cast<double>(words) / seconds};
  }

  Blas& blas_;
  DeviceArray<uint4> from_, to_;
  cudaStream_t compute_, other_;
  int* stop_ = nullptr;
  int shared_bytes_ = 0;
};

}  // namespace

void print_interference() {
  int sms = 0;
  check(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, 0), "attribute");
  std::string why;
  const std::unique_ptr<Blas> blas = Blas::open(why);
  if (blas == nullptr) throw std::runtime_error(why);
  Experiment experiment(*blas);
  // A prefill and a decode product of an 8 B model.
  const std::string text = "{\"multiprocessors\": " + std::to_string(sms) + ", \"rows\": [\n  " +
                           experiment.rows(2048, 28672, 4096, sms) + ",\n  " +
                           experiment.rows(256, 28672, 4096, sms) + "]}\n";
  std::fputs(text.c_str(), stdout);
}

}  // namespace probe
