// device.h over the CUDA runtime. The runtime library is linked statically and opens the driver by
// itself, so that this code loads and runs on a machine that has neither.
#include "cuda/device.h"

#include <dlfcn.h>

#include <cstdio>
#include <cstring>

#include "cuda/cudart/check.h"
#include "cuda/load_step.h"

namespace nanoweave {

namespace {

// Whether this build has machine code for the current device, seen on a kernel all backends use.
bool has_kernels_for_current_device() {
  cudaFuncAttributes attributes{};
  const cudaError_t status =
      cudaFuncGetAttributes(&attributes, load_step_functions().front().function);
  cudaGetLastError();
  return status == cudaSuccess;
}

// The oldest driver branch of each CUDA major version (CUDA release notes).
int needed_driver_branch(int cuda_version) {
  switch (cuda_version / 1000) {
    case 11:
      return 450;
    case 12:
      return 525;
    default:
      return 580;
  }
}

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

// The kernel module's version, "570.86.15", or empty.
std::string installed_driver() {
  std::FILE* file = std::fopen("/sys/module/nvidia/version", "r");
  if (file == nullptr) return {};
  char text[64] = {};
  if (std::fgets(text, sizeof text, file) != nullptr) text[std::strcspn(text, "\n")] = '\0';
  std::fclose(file);
  return text;
}

bool has_driver_library() {
  void* library = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
  if (library != nullptr) dlclose(library);
  return library != nullptr;
}

std::string describe_old_driver() {
  int supported = 0, built_for = 0;
  cudaDriverGetVersion(&supported);
  cudaRuntimeGetVersion(&built_for);
  const std::string installed = installed_driver();
  return "the NVIDIA driver is too old: " + (installed.empty() ? "it" : "version " + installed) +
         " supports CUDA " + version_text(supported) + ", this build needs CUDA " +
         version_text(built_for) + ", driver " + std::to_string(needed_driver_branch(built_for)) +
         " or newer";
}

std::string describe_missing(cudaError_t status) {
  switch (status) {
    case cudaErrorNoDevice:
      return "no GPU";
    case cudaErrorInsufficientDriver:
      return has_driver_library() ? describe_old_driver() : "no NVIDIA driver (libcuda.so.1)";
    default:
      return std::string("CUDA does not start: ") + cudaGetErrorString(status);
  }
}

// Restores the calling thread's device.
class DeviceScope {
 public:
  explicit DeviceScope(int ordinal) {
    check_cuda(cudaGetDevice(&previous_), "asking for the current device");
    check_cuda(cudaSetDevice(ordinal), "choosing a device");
  }
  ~DeviceScope() { cudaSetDevice(previous_); }
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

 private:
  int previous_ = 0;
};

// Of a query.
bool is_ready(cudaError_t status, const char* what) {
  if (status == cudaErrorNotReady) {
    cudaGetLastError();
    return false;
  }
  check_cuda(status, what);
  return true;
}

int attribute_of(int ordinal, cudaDeviceAttr attribute) {
  int value = 0;
  check_cuda(cudaDeviceGetAttribute(&value, attribute, ordinal), "asking for a device attribute");
  return value;
}

}  // namespace

// ---- Devices ------------------------------------------------------------------------------------

CudaDriver find_cuda_driver() {
  CudaDriver driver;
  const cudaError_t status = cudaGetDeviceCount(&driver.num_devices);
  if (status != cudaSuccess) {
    cudaGetLastError();
    driver.num_devices = 0;
    driver.missing = describe_missing(status);
  } else if (driver.num_devices == 0) {
    driver.missing = "no GPU";
  }
  return driver;
}

CudaDeviceInfo describe_cuda_device(int ordinal) {
  cudaDeviceProp properties{};
  check_cuda(cudaGetDeviceProperties(&properties, ordinal), "describing a device");
  CudaDeviceInfo info;
  const int arch = properties.major * 10 + properties.minor;
  info.device = {.ordinal = ordinal,
                 .arch = arch,
                 .sm_count = properties.multiProcessorCount,
                 .max_shared_bytes = static_cast<int64_t>(properties.sharedMemPerBlockOptin)};
  info.model = properties.name;
  info.features = "sm_" + std::to_string(arch);
  info.memory_bytes = static_cast<int64_t>(properties.totalGlobalMem);
  const int count = find_cuda_driver().num_devices;
  for (int peer = 0; peer < count; ++peer)
    if (peer != ordinal && can_map_peer(ordinal, peer)) info.peers.push_back(peer);
  if (attribute_of(ordinal, cudaDevAttrComputeMode) == cudaComputeModeProhibited) {
    info.unusable = "its compute mode prohibits use (nvidia-smi -c 0 allows it)";
    return info;
  }
  if (attribute_of(ordinal, cudaDevAttrCooperativeLaunch) == 0 || arch < 80) {
    info.unusable = "compute capability 8.0 or newer is needed";
    return info;
  }
  const DeviceScope scope(ordinal);
  info.free_bytes = free_device_bytes(ordinal);
  if (!has_kernels_for_current_device())
    info.unusable = "this build has no kernels for " + info.features +
                    "; build with NANOWEAVE_CUDA_ARCHITECTURES=" + std::to_string(arch);
  return info;
}

void use_device(int ordinal) { check_cuda(cudaSetDevice(ordinal), "choosing a device"); }

int64_t free_device_bytes(int ordinal) {
  const DeviceScope scope(ordinal);
  size_t free = 0, total = 0;
  check_cuda(cudaMemGetInfo(&free, &total), "asking for free device memory");
  return static_cast<int64_t>(free);
}

bool can_map_peer(int ordinal, int peer) {
  int can = 0;
  check_cuda(cudaDeviceCanAccessPeer(&can, ordinal, peer), "asking for peer access");
  return can != 0;
}

bool is_nvlink(int ordinal, int peer) {
  int atomics = 0;  // PCIe has none between devices
  check_cuda(
      cudaDeviceGetP2PAttribute(&atomics, cudaDevP2PAttrNativeAtomicSupported, ordinal, peer),
      "asking for the link to a peer");
  return atomics != 0;
}

void enable_peer(int ordinal, int peer) {
  const DeviceScope scope(ordinal);
  const cudaError_t status = cudaDeviceEnablePeerAccess(peer, 0);
  if (status == cudaErrorPeerAccessAlreadyEnabled) {
    cudaGetLastError();
    return;
  }
  check_cuda(status, "mapping a peer's memory");
}

// ---- Memory -------------------------------------------------------------------------------------

DeviceMemory::DeviceMemory(int ordinal, int64_t bytes, const char* what)
    : ordinal_(ordinal), bytes_(bytes) {
  if (bytes == 0) return;
  const DeviceScope scope(ordinal);
  void* memory = nullptr;
  const cudaError_t status = cudaMalloc(&memory, static_cast<size_t>(bytes));
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    fail(ErrorCode::kOutOfMemory, "cuda:%d has no %lld MiB for %s: %lld MiB are free", ordinal,
         static_cast<long long>(bytes >> 20), what,
         static_cast<long long>(free_device_bytes(ordinal) >> 20));
  }
  check_cuda(status, "allocating device memory");
  data_ = static_cast<std::byte*>(memory);
}

DeviceMemory::~DeviceMemory() {
  if (data_ != nullptr && !devices_given_up()) cudaFree(data_);
}

PinnedMemory::PinnedMemory(int64_t bytes, const char* what) : bytes_(bytes) {
  if (bytes == 0) return;
  void* memory = nullptr;
  const cudaError_t status = cudaHostAlloc(&memory, static_cast<size_t>(bytes),
                                           cudaHostAllocPortable | cudaHostAllocMapped);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    fail(ErrorCode::kOutOfMemory, "no %lld KiB of page-locked host memory for %s",
         static_cast<long long>(bytes >> 10), what);
  }
  check_cuda(status, "allocating page-locked memory");
  data_ = static_cast<std::byte*>(memory);
  std::memset(data_, 0, static_cast<size_t>(bytes));
}

PinnedMemory::~PinnedMemory() {
  if (data_ != nullptr && !devices_given_up()) cudaFreeHost(data_);
}

// ---- Streams and events -------------------------------------------------------------------------

DeviceEvent::DeviceEvent(bool timed) {
  check_cuda(cudaEventCreateWithFlags(&event_, timed ? cudaEventDefault : cudaEventDisableTiming),
             "making an event");
}

DeviceEvent::~DeviceEvent() {
  if (event_ != nullptr && !devices_given_up()) cudaEventDestroy(event_);
}

void DeviceEvent::record(CudaStream stream) {
  check_cuda(cudaEventRecord(event_, stream), "recording an event");
}

bool DeviceEvent::done() const { return is_ready(cudaEventQuery(event_), "waiting for a step"); }

void DeviceEvent::synchronize(std::chrono::milliseconds most) const {
  wait_for_device([this] { return done(); }, most, "work before an event");
}

double elapsed_us(const DeviceEvent& from, const DeviceEvent& to) {
  float milliseconds = 0;
  check_cuda(cudaEventElapsedTime(&milliseconds, from.get(), to.get()), "timing a step");
  return 1000.0 * milliseconds;
}

DeviceStream::DeviceStream(bool high_priority) {
  int lowest = 0, highest = 0;
  check_cuda(cudaDeviceGetStreamPriorityRange(&lowest, &highest), "asking for priorities");
  check_cuda(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking,
                                          high_priority ? highest : lowest),
             "making a stream");
}

DeviceStream::~DeviceStream() {
  if (stream_ != nullptr && !devices_given_up()) cudaStreamDestroy(stream_);
}

void DeviceStream::wait(const DeviceEvent& event) {
  check_cuda(cudaStreamWaitEvent(stream_, event.get(), 0), "waiting for an event");
}

void DeviceStream::synchronize(std::chrono::milliseconds most) const {
  wait_for_device([this] { return is_ready(cudaStreamQuery(stream_), "waiting for a stream"); },
                  most, "work in a stream");
}

void copy_async(void* to, const void* from, int64_t bytes, CudaStream stream) {
  if (bytes == 0) return;
  check_cuda(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDefault, stream),
             "copying memory");
}

void copy_rows_async(void* to, int64_t to_pitch, const void* from, int64_t from_pitch,
                     int64_t row_bytes, int64_t rows, CudaStream stream) {
  if (row_bytes == 0 || rows == 0) return;
  if (to_pitch == row_bytes && from_pitch == row_bytes)
    return copy_async(to, from, rows * row_bytes, stream);
  check_cuda(cudaMemcpy2DAsync(to, static_cast<size_t>(to_pitch), from,
                               static_cast<size_t>(from_pitch), static_cast<size_t>(row_bytes),
                               static_cast<size_t>(rows), cudaMemcpyDefault, stream),
             "copying rows");
}

void fill_async(void* to, int byte, int64_t bytes, CudaStream stream) {
  if (bytes == 0) return;
  check_cuda(cudaMemsetAsync(to, byte, static_cast<size_t>(bytes), stream), "filling memory");
}

// ---- Graphs -------------------------------------------------------------------------------------

DeviceGraph::DeviceGraph(const DeviceStream& stream, const std::function<void()>& enqueue) {
  check_cuda(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeThreadLocal),
             "capturing a graph");
  cudaGraph_t graph = nullptr;
  try {
    enqueue();
  } catch (...) {
    cudaStreamEndCapture(stream.get(), &graph);
    if (graph != nullptr) cudaGraphDestroy(graph);
    cudaGetLastError();
    throw;
  }
  check_cuda(cudaStreamEndCapture(stream.get(), &graph), "capturing a graph");
  const cudaError_t status = cudaGraphInstantiate(&graph_, graph, 0);
  cudaGraphDestroy(graph);
  check_cuda(status, "preparing a graph");
  const cudaError_t uploaded = cudaGraphUpload(graph_, stream.get());
  if (uploaded != cudaSuccess) cudaGraphExecDestroy(graph_);
  check_cuda(uploaded, "uploading a graph");
}

DeviceGraph::~DeviceGraph() {
  if (graph_ != nullptr && !devices_given_up()) cudaGraphExecDestroy(graph_);
}

void DeviceGraph::launch(CudaStream stream) const {
  check_cuda(cudaGraphLaunch(graph_, stream), "launching a graph");
}

}  // namespace nanoweave
