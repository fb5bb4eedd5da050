// SideStreamPool: streams beside the lanes of all devices, for the ranks of a device that each need
// one of their own (cuda/nccl.h), and the events that order them.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <span>

#include "cuda/nccl.h"
#include "runtime/cuda/device_state.h"

namespace nanoweave {

class SideStreamPool {
 public:
  // All that may be asked for is made here: device threads only look it up.
  explicit SideStreamPool(std::span<const std::unique_ptr<DeviceState>> devices);

  // Valid as long as the pool.
  SideStreams streams();

 private:
  struct Side {
    DeviceStream stream;
    DeviceEvent forked, joined;
  };
  struct LaneSides {
    DeviceStream* lane = nullptr;
    std::deque<Side> sides;
  };

  std::map<CudaStream, LaneSides> lanes_;
};

}  // namespace nanoweave
