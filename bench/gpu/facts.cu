// Facts that no documentation settles for a machine: multicast objects on one device, cooperative
// launches inside graphs, and what a launch costs alone and inside a graph.
#include <cooperative_groups.h>
#include <cuda.h>

#include <functional>

#include "probe.h"

namespace probe {

namespace {

// ---- Driver API, without linking libcuda ---------------------------------------------------------

template <typename Function>
Function* driver_function(const char* name, unsigned version) {
  void* address = nullptr;
  cudaDriverEntryPointQueryResult found{};
  check(cudaGetDriverEntryPointByVersion(name, &address, version, cudaEnableDefault, &found), name);
  if (found != cudaDriverEntryPointSuccess || address == nullptr)
    throw std::runtime_error(std::string("the driver has no ") + name);
  return reinterpret_cast<Function*>(address);
}

std::string result_name(CUresult result) {
  const char* name = nullptr;
  driver_function<decltype(cuGetErrorName)>("cuGetErrorName", 6000)(result, &name);
  return name == nullptr ? std::to_string(static_cast<int>(result)) : name;
}

// How far a multicast object over one device gets: the first step that fails, or "works".
std::string multicast_on_one_device() {
  check(cudaFree(nullptr), "context");
  CUdevice device{};
  driver_function<decltype(cuDeviceGet)>("cuDeviceGet", 2000)(&device, 0);
  int supported = 0;
  driver_function<decltype(cuDeviceGetAttribute)>("cuDeviceGetAttribute", 2000)(
      &supported, CU_DEVICE_ATTRIBUTE_MULTICAST_SUPPORTED, device);
  CUmulticastObjectProp properties{};
  properties.numDevices = 1;
  properties.handleTypes = 0;
  properties.size = size_t{2} << 20;
  size_t granularity = 0;
  const CUresult sized = driver_function<decltype(cuMulticastGetGranularity)>(
      "cuMulticastGetGranularity", 12010)(&granularity, &properties,
                                          CU_MULTICAST_GRANULARITY_RECOMMENDED);
  if (sized == CUDA_SUCCESS) properties.size = std::max(properties.size, granularity);
  CUmemGenericAllocationHandle handle{};
  const CUresult created = driver_function<decltype(cuMulticastCreate)>(
      "cuMulticastCreate", 12010)(&handle, &properties);
  std::string steps = "{\"attribute\": " + std::to_string(supported) +
                      ", \"granularity\": " + quoted(result_name(sized)) +
                      ", \"create\": " + quoted(result_name(created));
  if (created == CUDA_SUCCESS) {
    const CUresult added = driver_function<decltype(cuMulticastAddDevice)>(
        "cuMulticastAddDevice", 12010)(handle, device);
    steps += ", \"addDevice\": " + quoted(result_name(added));
    driver_function<decltype(cuMemRelease)>("cuMemRelease", 10020)(handle);
  }
  return steps + "}";
}

// ---- Graphs -------------------------------------------------------------------------------------

// Every block adds one, waits for all, and writes what it then sees: the number of blocks.
__global__ void grid_sync_kernel(unsigned* counter, unsigned* seen) {
  if (threadIdx.x == 0) atomicAdd(counter, 1);
  cooperative_groups::this_grid().sync();
  if (threadIdx.x == 0) seen[blockIdx.x] = *reinterpret_cast<volatile unsigned*>(counter);
}

__global__ void empty_kernel() {}

class Graph {
 public:
  Graph(cudaStream_t stream, const std::function<void()>& enqueue) : stream_(stream) {
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "begin capture");
    enqueue();
    check(cudaStreamEndCapture(stream, &graph_), "end capture");
    check(cudaGraphInstantiate(&executable_, graph_, 0), "instantiate");
  }
  ~Graph() {
    cudaGraphExecDestroy(executable_);
    cudaGraphDestroy(graph_);
  }
  void launch() { check(cudaGraphLaunch(executable_, stream_), "graph launch"); }

 private:
  cudaStream_t stream_;
  cudaGraph_t graph_ = nullptr;
  cudaGraphExec_t executable_ = nullptr;
};

std::string cooperative_in_graph(cudaStream_t stream, int sms) {
  DeviceArray<unsigned> counter(1), seen(sms);
  unsigned* arguments[] = {counter.data(), seen.data()};
  void* pointers[] = {&arguments[0], &arguments[1]};
  try {
    Graph graph(stream, [&] {
      check(cudaMemsetAsync(counter.data(), 0, sizeof(unsigned), stream), "memset");
      check(cudaLaunchCooperativeKernel(reinterpret_cast<void*>(grid_sync_kernel), dim3(sms),
                                        dim3(32), pointers, 0, stream),
            "cooperative launch while capturing");
    });
    for (int replay = 0; replay < 3; ++replay) graph.launch();
    check(cudaStreamSynchronize(stream), "replay");
    std::vector<unsigned> host(sms);
    check(cudaMemcpy(host.data(), seen.data(), sms * sizeof(unsigned), cudaMemcpyDeviceToHost),
          "read");
    for (const unsigned value : host)
      if (value != static_cast<unsigned>(sms)) return quoted("runs, but its barrier does not hold");
    return quoted("works");
  } catch (const std::exception& error) {
    cudaGetLastError();
    return quoted(error.what());
  }
}

// Microseconds a launch of an empty kernel takes: one after another, and as a node of a graph.
std::string launch_costs(cudaStream_t stream) {
  constexpr int kLaunches = 1000;
  constexpr int kRepeats = 21;
  const auto launches = [&] {
    for (int i = 0; i < kLaunches; ++i) empty_kernel<<<1, 32, 0, stream>>>();
    check_launch("empty kernel");
  };
  const double single = measure(stream, kRepeats, launches).median_seconds / kLaunches;
  Graph many(stream, launches);
  const double node =
      measure(stream, kRepeats, [&] { many.launch(); }).median_seconds / kLaunches;
  Graph one(stream, [&] { empty_kernel<<<1, 32, 0, stream>>>(); });
  const double graph = measure(stream, kRepeats, [&] {
                         for (int i = 0; i < 100; ++i) one.launch();
                       }).median_seconds /
                       100;
  return "{\"streamLaunchUs\": " + number(single * 1e6) +
         ", \"graphNodeUs\": " + number(node * 1e6) +
         ", \"graphLaunchUs\": " + number(graph * 1e6) + "}";
}

std::string or_error(const std::function<std::string()>& fact) {
  try {
    return fact();
  } catch (const std::exception& error) {
    return quoted(error.what());
  }
}

}  // namespace

void print_facts() {
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
  int driver = 0, runtime = 0;
  check(cudaDriverGetVersion(&driver), "cudaDriverGetVersion");
  check(cudaRuntimeGetVersion(&runtime), "cudaRuntimeGetVersion");
  cudaStream_t stream;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
  const std::string text =
      "{\"device\": " + quoted(properties.name) + ", \"multiprocessors\": " +
      std::to_string(properties.multiProcessorCount) + ", \"driverCuda\": " +
      std::to_string(driver) + ", \"runtimeCuda\": " + std::to_string(runtime) +
      ", \"multicastOneDevice\": " + or_error(multicast_on_one_device) +
      ", \"cooperativeInGraph\": " +
      or_error([&] { return cooperative_in_graph(stream, properties.multiProcessorCount); }) +
      ", \"launch\": " + or_error([&] { return launch_costs(stream); }) + "}\n";
  check(cudaStreamDestroy(stream), "stream");
  std::fputs(text.c_str(), stdout);
}

}  // namespace probe
