// gpu_probe: measures a GPU's ceilings and answers what only a GPU can, without the engine. One JSON
// object per command; scripts/gpu-run.sh keeps them. Built by nvcc alone, see scripts/gpu-bundle.sh.
#include <cmath>
#include <cstring>

#include "probe.h"

namespace probe {

namespace {

// SplitMix64's finaliser (Steele, Lea and Flood, 2014) on the element's number.
__global__ void fill_random_bf16_kernel(uint16_t* out, size_t count, uint32_t seed) {
  const size_t stride = size_t{gridDim.x} * blockDim.x;
  for (size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += stride) {
    uint64_t z = (i + (uint64_t{seed} << 40)) * 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    const float value = static_cast<float>(static_cast<uint32_t>(z >> 32)) * 0x1p-31f - 1.0f;
    out[i] = static_cast<uint16_t>(__float_as_uint(value) >> 16);
  }
}

}  // namespace

void fill_random_bf16(uint16_t* out, size_t count, uint32_t seed, cudaStream_t stream) {
  fill_random_bf16_kernel<<<1024, 256, 0, stream>>>(out, count, seed);
  check_launch("fill_random_bf16");
}

std::string quoted(const std::string& text) {
  std::string json = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') json += '\\';
    json += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
  }
  return json + "\"";
}

std::string number(double value) {
  if (!std::isfinite(value)) return "null";
  char text[32];
  std::snprintf(text, sizeof text, "%.6g", value);
  return text;
}

}  // namespace probe

int main(int argc, char** argv) {
  const std::string command = argc == 2 ? argv[1] : "";
  try {
    if (command == "peaks") {
      probe::print_peaks();
    } else if (command == "facts") {
      probe::print_facts();
    } else if (command == "interference") {
      probe::print_interference();
    } else if (command == "nccl") {
      probe::print_nccl_facts();
    } else {
      std::fputs("usage: gpu_probe peaks | facts | interference | nccl\n", stderr);
      return 2;
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "gpu_probe %s: %s\n", command.c_str(), error.what());
    return 1;
  }
  return 0;
}
