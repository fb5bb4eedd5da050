// Shared by the parts of nanoweave_matmul_check: the stand-alone program that verifies the CPU
// matmul against float64 and measures it against the machine's peaks.
#pragma once

#include <span>

#include "cpu/isa.h"
#include "cpu/matmul_kernel.h"

namespace nanoweave {

// The AMX kernel with its tile instructions emulated in scalar code.
const MatmulKernel& emulated_amx_kernel();

// For measuring work on `num_threads` threads. One: its CPU time, which leaves out the slices other
// programs got. Several: wall time.
double seconds(int num_threads);

// What the machine can do with `num_threads` threads at once, best of several tries.
double measure_pair_dot_flops(int num_threads);  // AVX512-BF16 dot products on registers; 0: none
double measure_tile_flops(int num_threads);      // AMX-BF16 on tile registers; 0: none
double measure_fma_flops(CpuIsa isa, int num_threads);  // float32 multiply-adds on registers
// Bytes/s of a plain read loop over memory far larger than the caches.
double measure_read_bandwidth(std::span<const std::byte> memory, int num_threads);

// Prints a table of shapes, speeds and shares of those peaks.
void bench_matmul(CpuIsa isa, int max_threads);

}  // namespace nanoweave
