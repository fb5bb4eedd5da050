// The CUDA runtime as the backend uses it: devices, memory, streams, events, graphs. Two
// implementations: cudart (cudart/device.cc) and the emulation (emulation/device.cc). Every handle
// is freed by its destructor, unless the devices were given up (device_wait.h); nothing is copied.
// Memory is taken and freed while no collective can be under way: CUDA may wait for all devices.
//
// Errors: ERR_OUT_OF_MEMORY for memory; ERR_RANK_FAULT once a device is lost, and then for every
// call; ERR_INTERNAL for the rest.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "cuda/device_wait.h"
#include "cuda/op.h"

#if !defined(NANOWEAVE_EMULATION)
struct CUevent_st;
struct CUgraphExec_st;
#endif

namespace nanoweave {

#if defined(NANOWEAVE_EMULATION)
namespace emulation {
struct Event;
struct Graph;
}  // namespace emulation
using CudaEvent = emulation::Event*;
using CudaGraphExec = emulation::Graph*;
#else
using CudaEvent = CUevent_st*;          // cudaEvent_t
using CudaGraphExec = CUgraphExec_st*;  // cudaGraphExec_t
#endif

// ---- Devices ------------------------------------------------------------------------------------

struct CudaDriver {
  int num_devices = 0;
  std::string missing;  // why there is no device; empty where there is one
};

// What is there. Never throws, makes no context.
CudaDriver find_cuda_driver();

struct CudaDeviceInfo {
  CudaDevice device;
  std::string model;     // NVIDIA H200
  std::string features;  // sm_90
  int64_t memory_bytes = 0;
  int64_t free_bytes = 0;
  std::vector<int> peers;  // devices whose memory it maps
  std::string unusable;    // why this build cannot use it; empty: it can
};

CudaDeviceInfo describe_cuda_device(int ordinal);

// The calling thread's device from here on.
void use_device(int ordinal);
int64_t free_device_bytes(int ordinal);
bool can_map_peer(int ordinal, int peer);
// NVLink rather than PCIe between two devices that map each other.
bool is_nvlink(int ordinal, int peer);
// Once per pair; again is no error.
void enable_peer(int ordinal, int peer);

// ---- Memory -------------------------------------------------------------------------------------

// Memory of one device, uninitialised.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  DeviceMemory(int ordinal, int64_t bytes, const char* what);
  ~DeviceMemory();
  DeviceMemory(DeviceMemory&& other) noexcept { swap(other); }
  DeviceMemory& operator=(DeviceMemory&& other) noexcept {
    swap(other);
    return *this;
  }

  std::byte* data() const { return data_; }
  int64_t bytes() const { return bytes_; }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  void swap(DeviceMemory& other) noexcept {
    std::swap(ordinal_, other.ordinal_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
  }
  int ordinal_ = 0;
  std::byte* data_ = nullptr;
  int64_t bytes_ = 0;
};

// Page-locked host memory that every device maps at the same address; zeroed.
class PinnedMemory {
 public:
  PinnedMemory() = default;
  PinnedMemory(int64_t bytes, const char* what);
  ~PinnedMemory();
  PinnedMemory(PinnedMemory&& other) noexcept { swap(other); }
  PinnedMemory& operator=(PinnedMemory&& other) noexcept {
    swap(other);
    return *this;
  }

  std::byte* data() const { return data_; }
  int64_t bytes() const { return bytes_; }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  void swap(PinnedMemory& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
  }
  std::byte* data_ = nullptr;
  int64_t bytes_ = 0;
};

// ---- Streams and events -------------------------------------------------------------------------

class DeviceEvent {
 public:
  DeviceEvent() = default;
  // Of the current device. Only `timed` events have a time.
  explicit DeviceEvent(bool timed);
  ~DeviceEvent();
  DeviceEvent(DeviceEvent&& other) noexcept { std::swap(event_, other.event_); }
  DeviceEvent& operator=(DeviceEvent&& other) noexcept {
    std::swap(event_, other.event_);
    return *this;
  }

  void record(CudaStream stream);
  // Whether everything before the last record() has ended. Throws when the device is lost.
  bool done() const;
  void synchronize(std::chrono::milliseconds most = kMostHostWait) const;
  CudaEvent get() const { return event_; }

 private:
  CudaEvent event_ = nullptr;
};

// Between two timed events that are done.
double elapsed_us(const DeviceEvent& from, const DeviceEvent& to);

class DeviceStream {
 public:
  DeviceStream() = default;
  // Of the current device.
  explicit DeviceStream(bool high_priority);
  ~DeviceStream();
  DeviceStream(DeviceStream&& other) noexcept { std::swap(stream_, other.stream_); }
  DeviceStream& operator=(DeviceStream&& other) noexcept {
    std::swap(stream_, other.stream_);
    return *this;
  }

  // What comes later in this stream waits for the event's last record().
  void wait(const DeviceEvent& event);
  // Until all it has been given has ended.
  void synchronize(std::chrono::milliseconds most = kMostHostWait) const;
  CudaStream get() const { return stream_; }

 private:
  CudaStream stream_ = nullptr;
};

// Between any two places, host memory (pinned, else the call waits) or a device's.
void copy_async(void* to, const void* from, int64_t bytes, CudaStream stream);
// `rows` rows of `row_bytes`, pitches in bytes.
void copy_rows_async(void* to, int64_t to_pitch, const void* from, int64_t from_pitch,
                     int64_t row_bytes, int64_t rows, CudaStream stream);
void fill_async(void* to, int byte, int64_t bytes, CudaStream stream);

// ---- Graphs -------------------------------------------------------------------------------------

class DeviceGraph {
 public:
  DeviceGraph() = default;
  // Captures what `enqueue` puts into `stream` and into streams that wait for its events, and
  // uploads it. Other streams that take part must be joined again when `enqueue` returns.
  DeviceGraph(const DeviceStream& stream, const std::function<void()>& enqueue);
  ~DeviceGraph();
  DeviceGraph(DeviceGraph&& other) noexcept { std::swap(graph_, other.graph_); }
  DeviceGraph& operator=(DeviceGraph&& other) noexcept {
    std::swap(graph_, other.graph_);
    return *this;
  }

  void launch(CudaStream stream) const;

 private:
  CudaGraphExec graph_ = nullptr;
};

}  // namespace nanoweave
