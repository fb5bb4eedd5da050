#include "runtime/cuda/comm.h"

#include <cstring>

namespace nanoweave {

namespace {

constexpr int64_t kFaultsOffset = 64;  // the abort word has a cache line of its own
constexpr int64_t kSharedBytes = kFaultsOffset + kMaxRanks * int64_t{sizeof(DeviceFault)};

bool is_written(const DeviceFault& fault) {
  // acquire: pairs with the release in report_fault().
  return __atomic_load_n(&fault.written, __ATOMIC_ACQUIRE) != 0;
}

SignalPad pad_at(uint32_t epoch) {
  SignalPad pad{};
  for (auto& slot : pad.epochs)
    for (uint32_t& word : slot) word = epoch;
  for (auto& slot : pad.flags)
    for (auto& block : slot)
      for (FlagLine& line : block) line.epoch = epoch;
  return pad;
}

}  // namespace

CudaComm::CudaComm(std::span<const int> device_of, int64_t heap_bytes,
                   std::chrono::milliseconds timeout, uint32_t first_epoch)
    : shared_(kSharedBytes, "the fault records") {
  const auto pad = std::make_unique<SignalPad>(pad_at(first_epoch));
  for (size_t rank = 0; rank < device_of.size(); ++rank) {
    const int device = device_of[rank];
    use_device(device);
    heaps_.emplace_back(device, heap_bytes, "the activations of a rank");
    pads_.emplace_back(device, int64_t{sizeof(SignalPad)}, "a rank's signal pad");
    view_.heaps[rank] = heaps_.back().data();
    view_.pads[rank] = pads_.back().as<SignalPad>();
    const DeviceStream stream(false);
    fill_async(heaps_.back().data(), 0, heap_bytes, stream.get());
    copy_async(view_.pads[rank], pad.get(), int64_t{sizeof(SignalPad)}, stream.get());
    stream.synchronize();
  }
  view_.abort = shared_.as<uint32_t>();
  view_.faults = reinterpret_cast<DeviceFault*>(shared_.data() + kFaultsOffset);
  view_.timeout_ns =
      static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(timeout).count());
}

void CudaComm::abort() { __atomic_store_n(view_.abort, 1u, __ATOMIC_RELEASE); }

bool CudaComm::aborted() const { return __atomic_load_n(view_.abort, __ATOMIC_ACQUIRE) != 0; }

std::optional<DeviceFault> CudaComm::root_fault() const {
  std::optional<DeviceFault> root;
  bool root_is_last = false;  // its peer waited for nobody
  for (int rank = 0; rank < kMaxRanks; ++rank) {
    const DeviceFault& fault = view_.faults[rank];
    if (!is_written(fault)) continue;
    const bool is_last = !is_written(view_.faults[fault.peer]);
    const bool is_better = !root || (is_last && !root_is_last) ||
                           (is_last == root_is_last && fault.time_ns < root->time_ns);
    if (!is_better) continue;
    root = fault;
    root_is_last = is_last;
  }
  return root;
}

}  // namespace nanoweave
