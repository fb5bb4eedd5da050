// CPUID decides; __builtin_cpu_supports also checks that the operating system saves the registers.
// AMX tile state must be asked of the Linux kernel once per process before first use.
#include "cpu/isa.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <string>

#include "core/error.h"

namespace nanoweave {

namespace {

constexpr int kArchReqXcompPerm = 0x1023;
constexpr int kXfeatureTileData = 18;

bool has_amx_bf16() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  const bool tile = edx & (1u << 24);
  const bool bf16 = edx & (1u << 22);
  return tile && bf16 && syscall(SYS_arch_prctl, kArchReqXcompPerm, kXfeatureTileData) == 0;
}

CpuIsa detect() {
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") ||
      !__builtin_cpu_supports("f16c"))
    return CpuIsa::kPortable;
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq"))
    return CpuIsa::kAvx2;
  if (!__builtin_cpu_supports("avx512bf16")) return CpuIsa::kAvx512;
  return has_amx_bf16() ? CpuIsa::kAmx : CpuIsa::kAvx512Bf16;
}

}  // namespace

CpuIsa detect_isa() {
  static const CpuIsa isa = detect();
  return isa;
}

CpuIsa parse_isa(std::string_view name) {
  const CpuIsa best = detect_isa();
  if (name == "auto") return best;
  for (const CpuIsa isa :
       {CpuIsa::kPortable, CpuIsa::kAvx2, CpuIsa::kAvx512, CpuIsa::kAvx512Bf16, CpuIsa::kAmx}) {
    if (name != isa_name(isa)) continue;
    if (isa > best)
      fail(ErrorCode::kUnsupportedOption, "cpuIsa '%s' asked for, this machine's best is '%s'",
           isa_name(isa), isa_name(best));
    return isa;
  }
  fail(ErrorCode::kUsage,
       "unknown cpuIsa '%.32s'; known: auto, portable, avx2, avx512, avx512bf16, amx",
       std::string(name).c_str());
}

const char* isa_name(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kPortable:
      return "portable";
    case CpuIsa::kAvx2:
      return "avx2";
    case CpuIsa::kAvx512:
      return "avx512";
    case CpuIsa::kAvx512Bf16:
      return "avx512bf16";
    case CpuIsa::kAmx:
      return "amx";
  }
  return "?";
}

}  // namespace nanoweave
