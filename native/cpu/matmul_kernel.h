// What the matmul driver (matmul.cc) and the kernels of each instruction set say to each other.
//
// A kernel multiplies a few rows of x by a run of packed panels: `sweep` leaves float32 sums,
// `finish` turns them into y. The driver chooses blocks, cuts k, and splits the work over threads.
//
// Bits: a sum is one chain of multiply-adds (or pair dot products) over ascending k. Cutting k
// stores the chain's float32 state and resumes from it, which changes nothing, and every row count
// runs the same instructions per element. So a row's bits depend on the kernel, x, W and K alone;
// never on M, N, the number of threads or the blocking.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/matmul.h"

namespace nanoweave {

constexpr int kPanelWidth = 16;  // rows of W in a panel = columns of y

// sums[row, panel·16 + lane] (+)= Σ over the groups of x[row, k] · W[panel·16 + lane, k].
struct Sweep {
  const std::byte* x = nullptr;  // [rows, x_stride], of the kernel's operand dtype, at the first k
  int64_t x_stride = 0;          // bytes
  const std::byte* w = nullptr;  // first panel, at the first k
  int64_t panel_stride = 0;      // bytes
  int64_t groups = 0;            // k groups (a group is two k for bf16 weights, else one)
  int rows = 0;                  // 1 … max_rows
  int panels = 0;                // ≥ 1
  float* sums = nullptr;         // [rows rounded up to row_multiple, sums_stride]
  int64_t sums_stride = 0;       // floats
  bool resume = false;           // continue the chains in sums, else start from zero
  bool whole_panels = false;     // k is not cut: panels follow each other without gaps
  bool read_once = false;        // no other rows will pass over these panels
};

// y = sums (+ bias), soft-capped, rounded to y's dtype.
struct Finish {
  const float* sums = nullptr;  // [rows, sums_stride]
  int64_t sums_stride = 0;      // floats
  int rows = 0;
  int64_t columns = 0;          // columns of y to write; the last panel may be partial
  const float* bias = nullptr;  // [columns] or null
  float softcap = 0;
  std::byte* y = nullptr;  // first row, first column
  int64_t y_stride = 0;    // bytes
  DType y_dtype = DType::kF32;
};

struct MatmulKernel {
  const char* name;
  DType operand;     // dtype the rows of x are given in: f32, or bf16 for the dot products
  int max_rows;      // rows of one sweep
  int row_multiple;  // rows of x and sums that must exist, as zeros beyond the last
  int k_multiple;    // k that must exist in rows of x, as zeros beyond the last
  int (*panels_for)(int rows);  // panels a sweep of that many rows takes at a time
  void (*sweep)(const Sweep&);
  void (*finish)(const Finish&);
  // Around the sweeps of one thread: AMX tile configuration. Null: nothing to do.
  void (*enter)();
  void (*leave)();
};

// The kernels of one instruction set for weights of `w_dtype`, operands float32. Null where the
// compiler's target has none.
const MatmulKernel* portable_kernel(DType w_dtype);
const MatmulKernel* avx2_kernel(DType w_dtype);
const MatmulKernel* avx512_kernel(DType w_dtype);
// bf16 weights and bf16 operands.
const MatmulKernel* avx512_bf16_kernel();
const MatmulKernel* amx_kernel();

// The kernel matmul() uses.
const MatmulKernel& choose_kernel(const MatmulArgs& args, CpuIsa isa);

// matmul() with a kernel of the caller's choice: checks and benches.
void matmul_with(const MatmulKernel& kernel, const MatmulArgs& args, ThreadPool& pool,
                 Scratch& scratch);

}  // namespace nanoweave
