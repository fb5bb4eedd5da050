// The choice of VectorKernels.
#include "cpu/vector_kernels.h"

namespace nanoweave {

const VectorKernels& vector_kernels(CpuIsa isa) {
#if defined(__x86_64__)
  if (isa >= CpuIsa::kAvx512Bf16) return kAvx512Bf16Kernels;
  if (isa >= CpuIsa::kAvx512) return kAvx512Kernels;
  if (isa >= CpuIsa::kAvx2) return kAvx2Kernels;
#endif
  return kPortableKernels;
}

}  // namespace nanoweave
