#include "runtime/cuda/side_streams.h"

namespace nanoweave {

SideStreamPool::SideStreamPool(std::span<const std::unique_ptr<DeviceState>> devices) {
  for (const auto& device : devices) {
    use_device(device->device().ordinal);
    for (int lane = 0; lane < kLanes; ++lane) {
      DeviceStream& stream = device->lane(lane);
      LaneSides& made = lanes_[stream.get()];
      made.lane = &stream;
      const bool high_priority = lane == static_cast<int>(Lane::kNetwork);
      for (size_t rank = 1; rank < device->ranks().size(); ++rank)
        made.sides.push_back({.stream = DeviceStream(high_priority),
                              .forked = DeviceEvent(false),
                              .joined = DeviceEvent(false)});
    }
  }
}

SideStreams SideStreamPool::streams() {
  return {.fork =
              [this](CudaStream lane, int index) {
                Side& side = lanes_.at(lane).sides.at(index - 1);
                side.forked.record(lane);
                side.stream.wait(side.forked);
                return side.stream.get();
              },
          .join =
              [this](CudaStream lane, int index) {
                LaneSides& sides = lanes_.at(lane);
                Side& side = sides.sides.at(index - 1);
                side.joined.record(side.stream.get());
                sides.lane->wait(side.joined);
              }};
}

}  // namespace nanoweave
