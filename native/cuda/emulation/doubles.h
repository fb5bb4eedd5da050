// Joins the doubles of NCCL and cuBLASLt (cuda/double) to the emulated streams.
#pragma once

#include "core/shared_library.h"

namespace nanoweave::emulation {

// ERR_UNSUPPORTED_OPTION for a library that is no double: NVIDIA's own need a GPU.
void join_double(const SharedLibrary& library);

}  // namespace nanoweave::emulation
