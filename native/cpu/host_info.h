// What this machine offers the process: processor, hardware threads, memory. Read from /proc, the
// scheduler and the control group; nothing is cached.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace nanoweave {

struct HostInfo {
  std::string model;                  // as in /proc/cpuinfo
  int hardware_threads = 1;           // this process may use: affinity and the group's CPU quota
  int64_t memory_bytes = 0;           // of the machine, or the group's limit when that is lower
  int64_t free_memory_bytes = 0;      // available without swapping, within that limit
  std::vector<std::string> features;  // "avx2", "avx512bf16", …
};

HostInfo host_info();

}  // namespace nanoweave
