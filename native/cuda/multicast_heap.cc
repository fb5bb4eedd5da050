#include "cuda/multicast_heap.h"

#include <algorithm>

namespace nanoweave {

std::string refuse_multicast(std::span<const int> devices) {
  if (devices.size() <= 2) return "two ranks gain nothing from it";
  std::vector<int> sorted(devices.begin(), devices.end());
  std::sort(sorted.begin(), sorted.end());
  const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
  if (twice != sorted.end())
    return "several ranks share cuda:" + std::to_string(*twice) + ", it takes a device each";
  return {};
}

}  // namespace nanoweave
