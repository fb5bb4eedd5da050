// The backend factory: devices of a runtime are all of one kind.
#include <algorithm>

#include "runtime/backend.h"
#include "runtime/cpu_backend.h"
#include "runtime/gpu_support.h"

namespace nanoweave {

namespace {

constexpr size_t kMaxWorld = 64;
constexpr int kMaxThreadsPerRank = 1024;
constexpr int64_t kMaxHeapBytes = int64_t{1} << 44;

void check_config(const RuntimeConfig& config) {
  const size_t world = config.devices.size();
  if (world < 1 || world > kMaxWorld)
    fail(ErrorCode::kUsage, "a runtime of %zu ranks, must be 1..%zu", world, kMaxWorld);
  if (config.tp < 1 || world % static_cast<size_t>(config.tp) != 0)
    fail(ErrorCode::kUsage, "tp %d does not divide the %zu ranks", config.tp, world);
  if (config.heap_bytes < 0 || config.heap_bytes > kMaxHeapBytes)
    fail(ErrorCode::kUsage, "heapBytes is %lld, must be 0..2^44",
         static_cast<long long>(config.heap_bytes));
  if (config.threads_per_rank < 0 || config.threads_per_rank > kMaxThreadsPerRank)
    fail(ErrorCode::kUsage, "threadsPerRank is %d, must be 0..%d", config.threads_per_rank,
         kMaxThreadsPerRank);
  if (config.wait_timeout_ms < 1)
    fail(ErrorCode::kUsage, "waitTimeoutMs is %d, must be positive", config.wait_timeout_ms);
}

}  // namespace

std::unique_ptr<Backend> make_backend(const RuntimeConfig& config) {
  check_config(config);
  const auto is_cpu = [](const std::string& device) { return device == "cpu"; };
  const auto is_cuda = [](const std::string& device) { return device.starts_with("cuda:"); };
  const auto& devices = config.devices;
  if (std::all_of(devices.begin(), devices.end(), is_cpu))
    return std::make_unique<CpuBackend>(config);
  if (std::all_of(devices.begin(), devices.end(), is_cuda)) return make_cuda_backend(config);
  for (const std::string& device : devices)
    if (!is_cpu(device) && !is_cuda(device))
      fail(ErrorCode::kNoDevice, "no device '%.64s'; devices are cpu and cuda:0, cuda:1, …",
           device.c_str());
  fail(ErrorCode::kUsage, "the ranks of a runtime must all be on the CPU or all on GPUs");
}

}  // namespace nanoweave
