#include "cuda/cudart/check.h"

#include "core/error.h"

namespace nanoweave {

namespace {

// The device's context is lost: every later call in this process returns the same.
bool is_sticky(cudaError_t status) {
  switch (status) {
    case cudaErrorIllegalAddress:
    case cudaErrorIllegalInstruction:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorMisalignedAddress:
    case cudaErrorHardwareStackError:
    case cudaErrorLaunchFailure:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorContained:
      return true;
    default:
      return false;
  }
}

}  // namespace

void check_cuda(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // not sticky: only the caller hears of it
  if (is_sticky(status))
    fail(ErrorCode::kRankFault,
         "the GPU failed (%s), noticed while %s; CUDA is unusable in this process: restart it",
         cudaGetErrorString(status), what);
  const ErrorCode code =
      status == cudaErrorMemoryAllocation ? ErrorCode::kOutOfMemory : ErrorCode::kInternal;
  fail(code, "%s failed: %s (%s)", what, cudaGetErrorString(status), cudaGetErrorName(status));
}

}  // namespace nanoweave
