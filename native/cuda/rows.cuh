// The rows an op works on, named at load and counted on the device; and what launchers of row-wise
// kernels share: choice of element type, grids that cover a bucket.
#pragma once

#include <algorithm>

#include "cuda/host_rows.h"
#include "cuda/launch.h"
#include "cuda/numeric.cuh"
#include "cuda/ptx.cuh"

namespace nanoweave {

struct RowsRef {
  const StepCounts* counts;
  int32_t which;
};

struct RowRange {
  int32_t begin;  // row of the whole buffer
  int32_t count;
};

__device__ __forceinline__ RowRange rows_of(const RowsRef& ref) {
  const int32_t base = ungrouped(ref.which);
  if (base == kLogitsRows) return take_group(ref.which, RowRange{0, ref.counts->num_rows});
  if (base == kAllTokens) return take_group(ref.which, RowRange{0, ref.counts->num_tokens});
  const int32_t begin = ref.counts->part_bounds[base];
  return take_group(ref.which, RowRange{begin, ref.counts->part_bounds[base + 1] - begin});
}

// Blocks for `items` units of work that a block takes one after the other: all at once on a wide
// device, a few rounds of it otherwise.
inline unsigned blocks_for(const CudaLaunch& launch, int64_t items, int blocks_per_sm) {
  const int64_t room = int64_t{launch.sm_budget} * blocks_per_sm;
  return static_cast<unsigned>(std::clamp<int64_t>(items, 1, std::max<int64_t>(room, 1)));
}

inline LaunchShape row_shape(const CudaLaunch& launch, unsigned blocks, unsigned threads,
                             size_t shared_bytes = 0) {
  return {.blocks_x = blocks,
          .threads = threads,
          .shared_bytes = shared_bytes,
          .programmatic = launch.device.arch >= 90};
}

// A kernel that stays in its rank: launched once per local rank. `shape` maps a launch to its
// LaunchShape, `arguments` (launch, rank, operands) to the kernel's.
template <typename Args, typename Shape, typename Arguments>
CudaKernel per_rank(void (*kernel)(Args), const Shape& shape, const Arguments& arguments,
                    int64_t shared_bytes = 0) {
  return {.launch =
              [=](const CudaLaunch& launch) {
                for (size_t i = 0; i < launch.ranks.size(); ++i) {
                  const Args args = arguments(launch, launch.ranks[i], launch.operands[i]);
                  nanoweave::launch(kernel, shape(launch), launch.stream, args);
                }
              },
          .workspace_bytes = nullptr,
          .functions = {cuda_function(kernel, shared_bytes)}};
}

// Whether kernels for sm_90a were compiled into this binary, and run on a device. They are Hopper's
// alone: sm_100 has other matrix instructions.
#if defined(NANOWEAVE_SM90A) || defined(NANOWEAVE_EMULATION)
inline constexpr bool kBuiltForHopper = true;
#else
inline constexpr bool kBuiltForHopper = false;
#endif
inline bool runs_wgmma(const CudaDevice& device) { return kBuiltForHopper && device.arch == 90; }

template <typename T>
struct TypeTag {
  using Type = T;
};

// Calls body(TypeTag<T>) for a float dtype; the host contract has refused the others.
template <typename Body>
auto with_float_type(DType dtype, const Body& body) {
  if (dtype == DType::kBf16) return body(TypeTag<bf16>{});
  if (dtype == DType::kF16) return body(TypeTag<f16>{});
  CHECK(dtype == DType::kF32);
  return body(TypeTag<float>{});
}

// Calls body(TypeTag<T>, width): 16-byte accesses where rows are a multiple of them, else elements.
template <int kWidth>
struct Width {
  static constexpr int value = kWidth;
};
template <typename Body>
auto with_vector_type(DType dtype, int64_t cols, const Body& body) {
  return with_float_type(dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    if (cols % kPerVec16<T> == 0) return body(tag, Width<kPerVec16<T>>{});
    return body(tag, Width<1>{});
  });
}

}  // namespace nanoweave
