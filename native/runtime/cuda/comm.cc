#include "runtime/cuda/comm.h"

#include <cstring>

#include "core/error.h"

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

CudaComm::CudaComm(CudaCommOptions options, HostCopies& copies)
    : options_(std::move(options)), shared_(kSharedBytes, "the fault records") {
  make_heaps();
  const auto pad = std::make_unique<SignalPad>(pad_at(options_.first_epoch));
  for (size_t rank = 0; rank < options_.device_of.size(); ++rank) {
    const int device = options_.device_of[rank];
    use_device(device);
    pads_.emplace_back(device, int64_t{sizeof(SignalPad)}, "a rank's signal pad");
    view_.pads[rank] = pads_.back().as<SignalPad>();
    const DeviceStream stream(false);
    fill_async(view_.heaps[rank], 0, options_.heap_bytes, stream.get());
    stream.synchronize();
    copies.write(device, pads_.back().data(), std::as_bytes(std::span(pad.get(), 1)));
  }
  view_.abort = shared_.as<uint32_t>();
  view_.faults = reinterpret_cast<DeviceFault*>(shared_.data() + kFaultsOffset);
  view_.timeout_ns = static_cast<uint64_t>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(options_.timeout).count());
}

// ---- Heaps --------------------------------------------------------------------------------------

void CudaComm::make_heaps() {
  if (make_multicast_heaps()) return;
  for (size_t rank = 0; rank < options_.device_of.size(); ++rank) {
    const int device = options_.device_of[rank];
    use_device(device);
    heaps_.emplace_back(device, options_.heap_bytes, "the activations of a rank");
    view_.heaps[rank] = heaps_.back().data();
  }
}

// All groups or none: they run the same launches.
bool CudaComm::make_multicast_heaps() {
  if (options_.deterministic) multicast_missing_ = "a switch does not sum in rank order";
  if (!options_.peer_access) multicast_missing_ = "the devices cannot map each other's memory";
  if (options_.heap_bytes == 0) multicast_missing_ = "the heaps are empty";
  const std::span<const int> devices = options_.device_of;
  const auto tp = static_cast<size_t>(options_.tp);
  std::vector<int> all(devices.begin(), devices.end());
  std::sort(all.begin(), all.end());
  all.erase(std::unique(all.begin(), all.end()), all.end());
  for (size_t first = 0; first < devices.size() && multicast_missing_.empty(); first += tp)
    multicast_heaps_.push_back(MulticastHeap::create(
        devices.subspan(first, tp), options_.world_access ? all : devices.subspan(first, tp),
        options_.heap_bytes, multicast_missing_));
  if (!multicast_missing_.empty()) {
    multicast_heaps_.clear();
    return false;
  }
  for (size_t rank = 0; rank < devices.size(); ++rank) {
    const MulticastHeap& heap = *multicast_heaps_[rank / tp];
    view_.heaps[rank] = heap.heap(static_cast<int>(rank % tp));
    view_.multicast[rank] = heap.multicast();
  }
  return true;
}

// ---- NCCL ---------------------------------------------------------------------------------------

NcclOptions CudaComm::nccl_options() const {
  return {.tp = options_.tp,
          .devices = options_.device_of,
          .timeout = options_.timeout,
          .max_blocks = 0,
          .set_device = use_device,
          .side_streams = {}};
}

const std::string& CudaComm::nccl_missing() {
  if (nccl_missing_) return *nccl_missing_;
  std::string why;
  nccl_library_ = NcclLibrary::open(why);
  if (nccl_library_ != nullptr) why = NcclWorld::refuse(*nccl_library_, nccl_options());
  return nccl_missing_.emplace(why);
}

void CudaComm::connect_nccl(std::span<const std::unique_ptr<DeviceState>> devices) {
  if (nccl_owner_ != nullptr) return;
  CHECK(nccl_missing().empty());
  side_streams_ = std::make_unique<SideStreamPool>(devices);
  NcclOptions options = nccl_options();
  options.side_streams = side_streams_->streams();
  nccl_owner_ = std::make_unique<NcclWorld>(*nccl_library_, std::move(options));
  nccl_.store(nccl_owner_.get());
  if (aborted()) nccl_owner_->abort();  // abort() came before it could see them
}

// ---- Faults -------------------------------------------------------------------------------------

void CudaComm::abort() {
  __atomic_store_n(view_.abort, 1u, __ATOMIC_SEQ_CST);
  if (NcclWorld* const nccl = nccl_.load()) nccl->abort();
}

bool CudaComm::aborted() const { return __atomic_load_n(view_.abort, __ATOMIC_SEQ_CST) != 0; }

void CudaComm::check() {
  if (NcclWorld* const nccl = nccl_.load()) nccl->check();
}

std::optional<DeviceFault> CudaComm::root_fault() const {
  std::optional<DeviceFault> root;
  bool root_is_last = false;  // its peer waited for nobody
  for (int rank = 0; rank < kMaxRanks; ++rank) {
    const DeviceFault& fault = view_.faults[rank];
    if (!is_written(fault)) continue;
    const bool is_last = fault.peer == kNoPeer || !is_written(view_.faults[fault.peer]);
    const bool is_better = !root || (is_last && !root_is_last) ||
                           (is_last == root_is_last && fault.time_ns < root->time_ns);
    if (!is_better) continue;
    root = fault;
    root_is_last = is_last;
  }
  return root;
}

}  // namespace nanoweave
