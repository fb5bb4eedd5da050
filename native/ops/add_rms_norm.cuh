// add_rms_norm as a step of another op: after NCCL has summed.
#pragma once

#include "cuda/op.h"

namespace nanoweave {

struct AddRmsNorm {
  const std::byte* x;        // [T, hidden] of x_dtype; may be y
  std::byte* residual;       // [T, hidden]
  const float* weight;       // [hidden]
  const float* post_weight;  // [hidden] or null
  std::byte* y;              // [T, hidden]
  DType dtype, x_dtype;      // x may be f32 where the others are not
  int32_t hidden;
  float eps;
  int32_t which;     // rows
  int owned_groups;  // those that the rank owns of so many row groups; 0: all
};

void launch_add_rms_norm(const CudaLaunch& launch, const CudaRank& rank, const AddRmsNorm& norm);
std::vector<CudaFunction> add_rms_norm_functions(DType dtype, DType x_dtype, int32_t hidden);

}  // namespace nanoweave
