// device.h over the emulation. Memory ends at a page nobody may touch and starts out as 0xff bytes:
// NaN, −1. The environment says what the emulated machine is:
//
//   NANOWEAVE_EMULATION_DEVICES   GPUs; default 2
//   NANOWEAVE_EMULATION_MEMORY    MiB of each; default 256
//   NANOWEAVE_EMULATION_ARCH      compute capability · 10; default 90
//   NANOWEAVE_EMULATION_PEERS     0: no GPU maps another's memory
//   NANOWEAVE_EMULATION_SEED      of the order in which threads run
#include "cuda/device.h"

#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#include "cuda/emulation/gpu.h"
#include "cuda/launch.h"

namespace nanoweave {

using emulation::Gpu;

namespace {

constexpr int kMaxDevices = 8;
constexpr int64_t kMultiprocessors = 4;
constexpr int64_t kAlignment = 256;  // of an allocation

int64_t setting(const char* name, int64_t fallback) {
  const char* text = std::getenv(name);
  return text == nullptr ? fallback : std::strtoll(text, nullptr, 10);
}

int num_devices() {
  return static_cast<int>(
      std::clamp<int64_t>(setting("NANOWEAVE_EMULATION_DEVICES", 2), 0, kMaxDevices));
}

int64_t memory_bytes() { return setting("NANOWEAVE_EMULATION_MEMORY", 256) << 20; }

std::atomic<int64_t> used_bytes[kMaxDevices];

int64_t page_bytes() {
  static const int64_t bytes = sysconf(_SC_PAGESIZE);
  return bytes;
}

int64_t whole_pages(int64_t bytes) {
  return (bytes + page_bytes() - 1) / page_bytes() * page_bytes();
}

int64_t aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

std::byte* map_pages(int64_t pages) {
  void* memory = mmap(nullptr, static_cast<size_t>(pages), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) fail(ErrorCode::kOutOfMemory, "the host has no memory to emulate with");
  return static_cast<std::byte*>(memory);
}

// Page-locked memory: its bytes by address. Never destroyed: it is used while the process ends.
struct PinnedPages {
  std::mutex mutex;
  std::map<std::byte*, int64_t> pages;  // guarded by mutex
};

PinnedPages& pinned_pages() {
  static auto* const pinned = new PinnedPages;
  return *pinned;
}

// As CUDA, whose exit handler comes with the first call: page-locked memory is taken away.
void unload() {
  Gpu::instance().unload();
  const std::lock_guard lock(pinned_pages().mutex);
  for (const auto& [data, bytes] : pinned_pages().pages)
    mprotect(data, static_cast<size_t>(bytes), PROT_NONE);
}

}  // namespace

// ---- Devices ------------------------------------------------------------------------------------

CudaDriver find_cuda_driver() {
  static const bool unloads = std::atexit(unload) == 0;
  CHECK(unloads);
  CudaDriver driver{.num_devices = num_devices(), .missing = {}};
  if (driver.num_devices == 0) driver.missing = "no GPU";
  return driver;
}

CudaDeviceInfo describe_cuda_device(int ordinal) {
  CudaDeviceInfo info;
  const auto arch = static_cast<int>(setting("NANOWEAVE_EMULATION_ARCH", 90));
  info.device = {.ordinal = ordinal,
                 .arch = arch,
                 .sm_count = static_cast<int>(kMultiprocessors),
                 .max_shared_bytes = 227 << 10};
  info.model = "emulated GPU";
  info.features = "sm_" + std::to_string(arch);
  info.memory_bytes = memory_bytes();
  info.free_bytes = free_device_bytes(ordinal);
  for (int peer = 0; peer < num_devices(); ++peer)
    if (can_map_peer(ordinal, peer)) info.peers.push_back(peer);
  return info;
}

void use_device(int) {}

int64_t free_device_bytes(int ordinal) { return memory_bytes() - used_bytes[ordinal].load(); }

bool can_map_peer(int ordinal, int peer) {
  return ordinal != peer && setting("NANOWEAVE_EMULATION_PEERS", 1) != 0;
}

bool is_nvlink(int, int) { return true; }

void enable_peer(int, int) {}

void load_function(const CudaFunction& function, const CudaDevice&) {
  CHECK(function.function != nullptr);
}

// ---- Memory -------------------------------------------------------------------------------------

DeviceMemory::DeviceMemory(int ordinal, int64_t bytes, const char* what)
    : ordinal_(ordinal), bytes_(bytes) {
  if (bytes == 0) return;
  Gpu::instance().require_no_collective("device memory was taken");
  const int64_t pages = whole_pages(bytes);
  if (used_bytes[ordinal].fetch_add(pages) + pages > memory_bytes()) {
    used_bytes[ordinal].fetch_sub(pages);
    fail(ErrorCode::kOutOfMemory, "cuda:%d has no %lld MiB for %s: %lld MiB are free", ordinal,
         static_cast<long long>(bytes >> 20), what,
         static_cast<long long>(free_device_bytes(ordinal) >> 20));
  }
  std::byte* const base = map_pages(pages + page_bytes());
  std::memset(base, 0xff, static_cast<size_t>(pages));
  mprotect(base + pages, static_cast<size_t>(page_bytes()), PROT_NONE);
  data_ = base + pages - aligned(bytes);
}

DeviceMemory::~DeviceMemory() {
  if (data_ == nullptr || devices_given_up()) return;
  Gpu::instance().require_no_collective("device memory was freed");
  const int64_t pages = whole_pages(bytes_);
  munmap(data_ + aligned(bytes_) - pages, static_cast<size_t>(pages + page_bytes()));
  used_bytes[ordinal_].fetch_sub(pages);
}

PinnedMemory::PinnedMemory(int64_t bytes, const char*) : bytes_(bytes) {
  if (bytes == 0) return;
  Gpu::instance().require_no_collective("page-locked memory was taken");
  const int64_t pages = whole_pages(bytes);
  data_ = map_pages(pages);
  const std::lock_guard lock(pinned_pages().mutex);
  pinned_pages().pages[data_] = pages;
}

PinnedMemory::~PinnedMemory() {
  if (data_ == nullptr || devices_given_up()) return;
  Gpu::instance().require_no_collective("page-locked memory was freed");
  const std::lock_guard lock(pinned_pages().mutex);
  munmap(data_, static_cast<size_t>(pinned_pages().pages.at(data_)));
  pinned_pages().pages.erase(data_);
}

// ---- Streams and events -------------------------------------------------------------------------

DeviceEvent::DeviceEvent(bool) : event_(new emulation::Event) {}

DeviceEvent::~DeviceEvent() { delete event_; }

void DeviceEvent::record(CudaStream stream) { Gpu::instance().record(stream, *event_); }

bool DeviceEvent::done() const { return Gpu::instance().is_done(*event_); }

void DeviceEvent::synchronize(std::chrono::milliseconds most) const {
  wait_for_device([this] { return done(); }, most, "work before an event");
}

double elapsed_us(const DeviceEvent& from, const DeviceEvent& to) {
  return 1e-3 * static_cast<double>(to.get()->state->time_ns - from.get()->state->time_ns);
}

DeviceStream::DeviceStream(bool) : stream_(new emulation::Stream) {
  stream_->gpu = &Gpu::instance();
}

DeviceStream::~DeviceStream() {
  if (stream_ != nullptr) Gpu::instance().retire(std::unique_ptr<emulation::Stream>(stream_));
}

void DeviceStream::wait(const DeviceEvent& event) { Gpu::instance().wait(stream_, *event.get()); }

void DeviceStream::synchronize(std::chrono::milliseconds most) const {
  DeviceEvent event(false);
  event.record(stream_);
  event.synchronize(most);
}

void copy_async(void* to, const void* from, int64_t bytes, CudaStream stream) {
  copy_rows_async(to, bytes, from, bytes, bytes, 1, stream);
}

void copy_rows_async(void* to, int64_t to_pitch, const void* from, int64_t from_pitch,
                     int64_t row_bytes, int64_t rows, CudaStream stream) {
  if (row_bytes == 0 || rows == 0) return;
  Gpu::instance().submit(stream, [=] {
    for (int64_t row = 0; row < rows; ++row)
      std::memcpy(static_cast<std::byte*>(to) + row * to_pitch,
                  static_cast<const std::byte*>(from) + row * from_pitch,
                  static_cast<size_t>(row_bytes));
  });
}

void fill_async(void* to, int byte, int64_t bytes, CudaStream stream) {
  if (bytes == 0) return;
  Gpu::instance().submit(stream, [=] { std::memset(to, byte, static_cast<size_t>(bytes)); });
}

// ---- Graphs -------------------------------------------------------------------------------------

DeviceGraph::DeviceGraph(const DeviceStream& stream, const std::function<void()>& enqueue) {
  Gpu& gpu = Gpu::instance();
  gpu.begin_capture(stream.get());
  try {
    enqueue();
  } catch (...) {
    gpu.abandon_capture(stream.get());
    throw;
  }
  graph_ = gpu.end_capture(stream.get()).release();
}

DeviceGraph::~DeviceGraph() { delete graph_; }

void DeviceGraph::launch(CudaStream stream) const { Gpu::instance().launch(stream, *graph_); }

}  // namespace nanoweave
