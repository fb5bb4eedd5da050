// What the probe's parts share: checks, timing by device events, and JSON as text.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <vector>

namespace probe {

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess)
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}
// A launch reports its own failure, and an earlier kernel's at the next synchronisation.
inline void check_launch(const char* what) { check(cudaGetLastError(), what); }

template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t count) : count_(count) {
    check(cudaMalloc(&data_, count * sizeof(T)), "cudaMalloc");
  }
  ~DeviceArray() { cudaFree(data_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  T* data() const { return data_; }
  size_t count() const { return count_; }

 private:
  T* data_ = nullptr;
  size_t count_;
};

// Milliseconds between two points of a stream, taken on the device.
class EventTimer {
 public:
  EventTimer() {
    check(cudaEventCreate(&begin_), "cudaEventCreate");
    check(cudaEventCreate(&end_), "cudaEventCreate");
  }
  ~EventTimer() {
    cudaEventDestroy(begin_);
    cudaEventDestroy(end_);
  }
  void begin(cudaStream_t stream) { check(cudaEventRecord(begin_, stream), "cudaEventRecord"); }
  float end_ms(cudaStream_t stream) {
    check(cudaEventRecord(end_, stream), "cudaEventRecord");
    check(cudaEventSynchronize(end_), "cudaEventSynchronize");
    float ms = 0;
    check(cudaEventElapsedTime(&ms, begin_, end_), "cudaEventElapsedTime");
    return ms;
  }

 private:
  cudaEvent_t begin_, end_;
};

struct Spread {
  double best_seconds;
  double median_seconds;
};

// `work` enqueues on `stream`; once before the clock starts, then `repeats` times.
template <typename Work>
Spread measure(cudaStream_t stream, int repeats, const Work& work) {
  EventTimer timer;
  work();
  std::vector<double> seconds;
  for (int i = 0; i < repeats; ++i) {
    timer.begin(stream);
    work();
    seconds.push_back(timer.end_ms(stream) / 1e3);
  }
  std::sort(seconds.begin(), seconds.end());
  return {seconds.front(), seconds[seconds.size() / 2]};
}

// Fills with bf16 values uniform in [-1, 1), different for every seed.
void fill_random_bf16(uint16_t* out, size_t count, uint32_t seed, cudaStream_t stream);

std::string quoted(const std::string& text);
std::string number(double value);

// Each prints one JSON object to stdout.
void print_peaks();
void print_facts();
void print_interference();
// Apart from the others: a library that hangs must not take them along.
void print_nccl_facts();

}  // namespace probe
