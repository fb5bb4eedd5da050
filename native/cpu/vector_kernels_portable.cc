// VectorKernels for any target.
#include <algorithm>
#include <bit>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "cpu/attention.h"
#include "cpu/vector_kernels.h"

// clang-format off: the Simd first, then what is written over it.
#include "cpu/simd_portable.h"
namespace nanoweave {
namespace {
using Simd = Portable;
}
}  // namespace nanoweave
#include "cpu/simd_math.h"
#include "cpu/attention_kernel.h"
#include "cpu/row_kernels.h"
// clang-format on

namespace nanoweave {

const VectorKernels kPortableKernels = row_kernels();

}  // namespace nanoweave
