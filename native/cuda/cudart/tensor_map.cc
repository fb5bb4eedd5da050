// Tensor maps by the driver, whose function is asked for at run time: nothing links libcuda.
#include "cuda/tensor_map.h"

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstring>

#include "core/error.h"

namespace nanoweave {

namespace {

using EncodeTiled = decltype(&cuTensorMapEncodeTiled);

EncodeTiled find_encode_tiled() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
#if CUDART_VERSION >= 12050
  const cudaError_t status = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                              12000, cudaEnableDefault, &found);
#else
  const cudaError_t status =
      cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &found);
#endif
  if (status != cudaSuccess || found != cudaDriverEntryPointSuccess || function == nullptr)
    fail(ErrorCode::kInternal,
         "the CUDA driver has no cuTensorMapEncodeTiled: install a driver for CUDA 12 or later");
  return reinterpret_cast<EncodeTiled>(function);
}

}  // namespace

TensorMap make_tensor_map(const TensorMapShape& shape) {
  static_assert(sizeof(TensorMap) == sizeof(CUtensorMap) && alignof(TensorMap) == 64);
  static const EncodeTiled encode = find_encode_tiled();
  cuuint64_t sizes[3], strides[2];
  cuuint32_t box[3], steps[3] = {1, 1, 1};
  for (int i = 0; i < 3; ++i) {
    sizes[i] = static_cast<cuuint64_t>(shape.sizes[i]);
    box[i] = static_cast<cuuint32_t>(shape.box[i]);
  }
  for (int i = 0; i < 2; ++i) strides[i] = static_cast<cuuint64_t>(shape.strides[i]);
  CUtensorMap map;
  const CUresult result =
      encode(&map,
             shape.dtype == DType::kBf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                         : CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
             static_cast<cuuint32_t>(shape.rank), const_cast<void*>(shape.base), sizes, strides,
             box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS)
    fail(ErrorCode::kInternal, "cuTensorMapEncodeTiled failed with %d for a tensor of %lld x %lld",
         static_cast<int>(result), static_cast<long long>(shape.sizes[1]),
         static_cast<long long>(shape.sizes[0]));
  TensorMap made;
  std::memcpy(&made, &map, sizeof made);
  return made;
}

}  // namespace nanoweave
