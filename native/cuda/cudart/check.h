// What a failed call of the CUDA runtime becomes.
#pragma once

#include <cuda_runtime_api.h>

namespace nanoweave {

// Throws unless the call succeeded. `what` reads "allocating the KV cache".
void check_cuda(cudaError_t status, const char* what);

}  // namespace nanoweave
