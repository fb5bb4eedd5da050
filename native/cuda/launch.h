// Launching a kernel: one template for the device and for the emulation. Errors of the launch
// itself throw; what goes wrong on the device shows at the backend's next synchronisation.
#pragma once

#include "core/error.h"
#include "cuda/op.h"

#if defined(NANOWEAVE_EMULATION)
#include "cuda/emulation/machine.h"
#endif

namespace nanoweave {

// What CUDA allows in a grid's second and third dimension; kernels whose work may be more loop.
inline constexpr unsigned kMaxBlocksY = 65535;

struct LaunchShape {
  unsigned blocks_x = 1, blocks_y = 1, blocks_z = 1;
  unsigned threads = 1;
  size_t shared_bytes = 0;
  bool cooperative = false;   // all blocks run at once
  bool programmatic = false;  // may start before the kernel in front has ended (sm_90)
};

template <typename Args>
CudaFunction cuda_function(void (*kernel)(Args), int64_t shared_bytes = 0) {
  return {.function = reinterpret_cast<const void*>(kernel), .shared_bytes = shared_bytes};
}

// Makes a function launchable on the current device: loads it, allows its shared memory (at most
// what the device has: launches ask for no more).
void load_function(const CudaFunction& function, const CudaDevice& device);

#if defined(NANOWEAVE_EMULATION)

template <typename Args>
void launch(void (*kernel)(Args), const LaunchShape& shape, CudaStream stream, const Args& args) {
  CHECK(shape.blocks_y <= kMaxBlocksY && shape.blocks_z <= kMaxBlocksY);
  auto grid = std::make_unique<emulation::Grid>();
  grid->name = __PRETTY_FUNCTION__;
  grid->blocks = {shape.blocks_x, shape.blocks_y, shape.blocks_z};
  grid->threads = {shape.threads, 1, 1};
  grid->shared_bytes = shape.shared_bytes;
  grid->cooperative = shape.cooperative;
  grid->body = [kernel, args] { kernel(args); };
  emulation::enqueue(stream, std::move(grid));
}

#else

void launch_function(const void* function, const LaunchShape& shape, CudaStream stream, void* args);

template <typename Args>
void launch(void (*kernel)(Args), const LaunchShape& shape, CudaStream stream, const Args& args) {
  launch_function(reinterpret_cast<const void*>(kernel), shape, stream, const_cast<Args*>(&args));
}

#endif

}  // namespace nanoweave
