// Which instruction sets the CPU kernels may use, decided once per runtime from CPUID and the
// `cpuIsa` option. Levels are cumulative.
#pragma once

#include <string_view>

namespace nanoweave {

enum class CpuIsa { kPortable, kAvx2, kAvx512, kAvx512Bf16, kAmx };

CpuIsa detect_isa();  // the best this machine and OS allow (AMX: asks the kernel for tile state)
CpuIsa parse_isa(std::string_view name);  // "auto" → detect_isa(); ERR_USAGE unknown,
                                          // ERR_UNSUPPORTED_OPTION when above the machine's
const char* isa_name(CpuIsa isa);

}  // namespace nanoweave
