#include "cpu/host_info.h"

#include <sched.h>

#include <algorithm>
#include <charconv>
#include <fstream>
#include <sstream>

#include "cpu/isa.h"

namespace nanoweave {

namespace {

constexpr const char* kGroupFolder = "/sys/fs/cgroup/";

std::string cpu_model() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with("model name")) continue;
    const size_t colon = line.find(": ");
    if (colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown CPU";
}

// Bytes of a "Name:   123 kB" line of /proc/meminfo; 0 when absent.
int64_t meminfo_bytes(const char* name) {
  std::ifstream file("/proc/meminfo");
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with(name)) continue;
    std::istringstream fields(line.substr(std::string(name).size()));
    int64_t kilobytes = 0;
    if (fields >> kilobytes) return kilobytes * 1024;
  }
  return 0;
}

// The words of a control group file (cgroup v2, as mounted in a container); empty when absent.
std::vector<std::string> group_words(const char* name) {
  std::ifstream file(std::string(kGroupFolder) + name);
  std::vector<std::string> words;
  for (std::string word; file >> word;) words.push_back(word);
  return words;
}

int64_t to_number(const std::string& text) {
  int64_t value = -1;  // "max" and anything unreadable
  std::from_chars(text.data(), text.data() + text.size(), value);
  return value;
}

// Bytes the control group uses and cannot give back at once: cached file pages that no process
// works with (a loaded model's checkpoint) are counted by the kernel, but free for the asking.
int64_t group_used_bytes() {
  const auto used = group_words("memory.current");
  if (used.size() != 1) return -1;
  int64_t bytes = to_number(used[0]);
  const auto stat = group_words("memory.stat");  // "name value" lines
  for (size_t i = 0; i + 1 < stat.size(); i += 2)
    if (stat[i] == "inactive_file") bytes -= std::max<int64_t>(0, to_number(stat[i + 1]));
  return std::max<int64_t>(0, bytes);
}

int usable_threads() {
  cpu_set_t set;
  CPU_ZERO(&set);
  int threads = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
  const auto quota = group_words("cpu.max");  // "quota period" in µs
  if (quota.size() == 2 && to_number(quota[0]) > 0 && to_number(quota[1]) > 0) {
    const int64_t cores = (to_number(quota[0]) + to_number(quota[1]) - 1) / to_number(quota[1]);
    threads = static_cast<int>(std::min<int64_t>(threads, cores));
  }
  return std::max(1, threads);
}

}  // namespace

HostInfo host_info() {
  HostInfo info;
  info.model = cpu_model();
  info.hardware_threads = usable_threads();
  info.memory_bytes = meminfo_bytes("MemTotal:");
  info.free_memory_bytes = meminfo_bytes("MemAvailable:");
  const auto limit = group_words("memory.max");
  const int64_t used = group_used_bytes();
  if (limit.size() == 1 && used >= 0 && to_number(limit[0]) > 0) {
    info.memory_bytes = std::min(info.memory_bytes, to_number(limit[0]));
    info.free_memory_bytes =
        std::min(info.free_memory_bytes, std::max<int64_t>(0, to_number(limit[0]) - used));
  }
  for (const CpuIsa isa : {CpuIsa::kAvx2, CpuIsa::kAvx512, CpuIsa::kAvx512Bf16, CpuIsa::kAmx})
    if (isa <= detect_isa()) info.features.emplace_back(isa_name(isa));
  return info;
}

}  // namespace nanoweave
