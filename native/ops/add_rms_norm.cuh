// add_rms_norm as a step of another op: after NCCL has summed.
#pragma once

#include "cuda/op.h"

namespace nanoweave {

struct AddRmsNorm {
  const std::byte* x;        // [T, hidden]; may be y
  std::byte* residual;       // [T, hidden]
  const float* weight;       // [hidden]
  const float* post_weight;  // [hidden] or null
  std::byte* y;              // [T, hidden]
  DType dtype;
  int32_t hidden;
  float eps;
  int32_t which;    // rows
  bool owned_only;  // those that the rank owns in its group
};

void launch_add_rms_norm(const CudaLaunch& launch, const CudaRank& rank, const AddRmsNorm& norm);
std::vector<CudaFunction> add_rms_norm_functions(DType dtype, int32_t hidden);

}  // namespace nanoweave
