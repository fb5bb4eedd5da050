// MulticastHeap over the driver's virtual memory: one physical allocation per device, all bound to
// one multicast object (CUDA driver API, "Multicast Object Management"). The driver's functions are
// asked for at run time, since older drivers do not have them.
#include "cuda/multicast_heap.h"

#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>

#include "core/error.h"
#include "cuda/device_wait.h"

namespace nanoweave {

namespace {

// create() turns it into the reason why there is no multicast heap.
struct Refusal {
  std::string why;
};
[[noreturn]] void give_up(std::string why) { throw Refusal{std::move(why)}; }

template <typename Function>
Function driver_function(const char* name, unsigned version) {
  void* address = nullptr;
  cudaDriverEntryPointQueryResult found{};
#if CUDART_VERSION >= 12050
  const cudaError_t status =
      cudaGetDriverEntryPointByVersion(name, &address, version, cudaEnableDefault, &found);
#else
  static_cast<void>(version);
  const cudaError_t status = cudaGetDriverEntryPoint(name, &address, cudaEnableDefault, &found);
#endif
  if (status != cudaSuccess || found != cudaDriverEntryPointSuccess || address == nullptr) {
    cudaGetLastError();
    give_up(std::string("the driver has no ") + name);
  }
  return reinterpret_cast<Function>(address);
}

struct Driver {
  PFN_cuDeviceGetAttribute_v2000 device_attribute =
      driver_function<PFN_cuDeviceGetAttribute_v2000>("cuDeviceGetAttribute", 2000);
  PFN_cuMemGetAllocationGranularity_v10020 memory_granularity =
      driver_function<PFN_cuMemGetAllocationGranularity_v10020>("cuMemGetAllocationGranularity",
                                                                10020);
  PFN_cuMemCreate_v10020 create = driver_function<PFN_cuMemCreate_v10020>("cuMemCreate", 10020);
  PFN_cuMemRelease_v10020 release = driver_function<PFN_cuMemRelease_v10020>("cuMemRelease", 10020);
  PFN_cuMemAddressReserve_v10020 reserve =
      driver_function<PFN_cuMemAddressReserve_v10020>("cuMemAddressReserve", 10020);
  PFN_cuMemAddressFree_v10020 free_address =
      driver_function<PFN_cuMemAddressFree_v10020>("cuMemAddressFree", 10020);
  PFN_cuMemMap_v10020 map = driver_function<PFN_cuMemMap_v10020>("cuMemMap", 10020);
  PFN_cuMemUnmap_v10020 unmap = driver_function<PFN_cuMemUnmap_v10020>("cuMemUnmap", 10020);
  PFN_cuMemSetAccess_v10020 set_access =
      driver_function<PFN_cuMemSetAccess_v10020>("cuMemSetAccess", 10020);
  PFN_cuMulticastCreate_v12010 multicast_create =
      driver_function<PFN_cuMulticastCreate_v12010>("cuMulticastCreate", 12010);
  PFN_cuMulticastAddDevice_v12010 add_device =
      driver_function<PFN_cuMulticastAddDevice_v12010>("cuMulticastAddDevice", 12010);
  PFN_cuMulticastBindMem_v12010 bind =
      driver_function<PFN_cuMulticastBindMem_v12010>("cuMulticastBindMem", 12010);
  PFN_cuMulticastUnbind_v12010 unbind =
      driver_function<PFN_cuMulticastUnbind_v12010>("cuMulticastUnbind", 12010);
  PFN_cuMulticastGetGranularity_v12010 multicast_granularity =
      driver_function<PFN_cuMulticastGetGranularity_v12010>("cuMulticastGetGranularity", 12010);
};

void require(CUresult status, const char* what) {
  if (status != CUDA_SUCCESS)
    give_up(std::string(what) + " failed with CUresult " + std::to_string(status));
}

size_t round_up(size_t bytes, size_t granularity) {
  return (bytes + granularity - 1) / granularity * granularity;
}

CUmemAllocationProp memory_of(int device) {
  CUmemAllocationProp properties{};
  properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  properties.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device};
  return properties;
}

}  // namespace

// Undoes in reverse order what has been done; a member of zero has not.
struct MulticastHeap::Impl {
  struct Heap {
    int device = 0;
    CUmemGenericAllocationHandle memory = 0;
    CUdeviceptr address = 0;
    bool is_mapped = false;
    bool is_bound = false;
  };

  Driver driver;
  size_t bytes = 0;
  std::vector<Heap> heaps;
  CUmemGenericAllocationHandle object = 0;
  CUdeviceptr address = 0;
  bool is_mapped = false;

  ~Impl();
  void choose_size(int64_t wanted);
  void create_object();
  void create_heap(Heap& heap, std::span<const int> readers);
  void map(CUmemGenericAllocationHandle memory, std::span<const int> readers, CUdeviceptr& address,
           bool& is_mapped);
};

MulticastHeap::Impl::~Impl() {
  if (devices_given_up()) return;
  if (is_mapped) driver.unmap(address, bytes);
  if (address != 0) driver.free_address(address, bytes);
  for (const Heap& heap : heaps) {
    if (heap.is_bound) driver.unbind(object, heap.device, 0, bytes);
    if (heap.is_mapped) driver.unmap(heap.address, bytes);
    if (heap.address != 0) driver.free_address(heap.address, bytes);
    if (heap.memory != 0) driver.release(heap.memory);
  }
  if (object != 0) driver.release(object);
}

void MulticastHeap::Impl::choose_size(int64_t wanted) {
  size_t granularity = 0;
  CUmulticastObjectProp object_properties{};
  object_properties.numDevices = static_cast<unsigned>(heaps.size());
  object_properties.size = static_cast<size_t>(wanted);
  require(driver.multicast_granularity(&granularity, &object_properties,
                                       CU_MULTICAST_GRANULARITY_RECOMMENDED),
          "asking for the multicast granularity");
  bytes = round_up(static_cast<size_t>(wanted), granularity);
  for (const Heap& heap : heaps) {
    const CUmemAllocationProp properties = memory_of(heap.device);
    require(
        driver.memory_granularity(&granularity, &properties, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED),
        "asking for the granularity of memory");
    bytes = round_up(bytes, granularity);
  }
}

// All devices join before any memory is bound.
void MulticastHeap::Impl::create_object() {
  CUmulticastObjectProp properties{};
  properties.numDevices = static_cast<unsigned>(heaps.size());
  properties.size = bytes;
  require(driver.multicast_create(&object, &properties), "cuMulticastCreate");
  for (const Heap& heap : heaps)
    require(driver.add_device(object, heap.device), "cuMulticastAddDevice");
}

void MulticastHeap::Impl::map(CUmemGenericAllocationHandle memory, std::span<const int> readers,
                              CUdeviceptr& at, bool& is_mapped_there) {
  require(driver.reserve(&at, bytes, 0, 0, 0), "reserving addresses");
  require(driver.map(at, bytes, 0, memory, 0), "mapping memory");
  is_mapped_there = true;
  std::vector<CUmemAccessDesc> access;
  for (const int device : readers)
    access.push_back({.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device},
                      .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE});
  require(driver.set_access(at, bytes, access.data(), access.size()),
          "letting all devices access memory");
}

void MulticastHeap::Impl::create_heap(Heap& heap, std::span<const int> readers) {
  const CUmemAllocationProp properties = memory_of(heap.device);
  require(driver.create(&heap.memory, bytes, &properties, 0), "allocating a heap");
  map(heap.memory, readers, heap.address, heap.is_mapped);
  require(driver.bind(object, 0, heap.memory, 0, bytes, 0), "cuMulticastBindMem");
  heap.is_bound = true;
}

MulticastHeap::MulticastHeap(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {
  for (const Impl::Heap& heap : impl_->heaps)
    heaps_.push_back(reinterpret_cast<std::byte*>(heap.address));
  multicast_ = reinterpret_cast<std::byte*>(impl_->address);
}

MulticastHeap::~MulticastHeap() = default;

std::unique_ptr<MulticastHeap> MulticastHeap::create(std::span<const int> devices,
                                                     std::span<const int> readers, int64_t bytes,
                                                     std::string& why) {
  why = refuse_multicast(devices);
  if (!why.empty()) return nullptr;
  try {
    auto impl = std::make_unique<Impl>();
    for (const int device : devices) {
      int is_supported = 0;
      require(impl->driver.device_attribute(&is_supported, CU_DEVICE_ATTRIBUTE_MULTICAST_SUPPORTED,
                                            device),
              "asking for multicast support");
      if (is_supported == 0)
        give_up("cuda:" + std::to_string(device) + " has no multicast (NVSwitch, sm_90 or newer)");
      impl->heaps.push_back({.device = device});
    }
    impl->choose_size(bytes);
    impl->create_object();
    for (Impl::Heap& heap : impl->heaps) impl->create_heap(heap, readers);
    impl->map(impl->object, devices, impl->address, impl->is_mapped);
    return std::unique_ptr<MulticastHeap>(new MulticastHeap(std::move(impl)));
  } catch (const Refusal& refusal) {
    why = refusal.why;
    return nullptr;
  }
}

}  // namespace nanoweave
