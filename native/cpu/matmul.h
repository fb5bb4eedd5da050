// Matmul on the CPU: y = x · Wᵀ (+ bias), W packed once at load.
//
// Packed layout of W [N, K] (rows padded with zeros to a multiple of 16; K padded with zeros to a
// multiple of 2 for 2-byte types):
//   [N / 16] panels · [K / v] groups · [16] rows · [v] consecutive k    v = 2 for bf16, 1 for f16
//   and f32
// which is at once the VNNI layout of AMX tiles and AVX512-BF16 and a unit-stride layout for float
// FMAs. Weights keep the dtype they are stored in; x is f32, bf16 or f16.
//
// Compute: when both x and W are bf16 and the ISA has it, bf16 dot products with float32
// accumulation; otherwise float32 FMAs on converted operands (exact for bf16 and f16 weights: f32
// precision means no rounding of operands). Every output element is one accumulation chain over k
// in a fixed order that does not depend on M or N: a row's bits do not depend on its batch.
// Exception: AMX takes over from AVX512-BF16 at M ≥ 16; `deterministic` pins one kernel.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "core/tensor.h"
#include "cpu/isa.h"
#include "cpu/thread_pool.h"

namespace nanoweave {

// Bytes of the packed form.
int64_t packed_bytes(DType dtype, int64_t rows, int64_t cols);

// Writes one row-major [row_count, col_count] block of W (dtype `dtype`, converted already) into
// the packed matrix at (dest_row, dest_col). The block that holds the last row (column) also writes
// the zeros below (right of) it. Blocks of several calls may be written by several threads when
// they share no panel.
void pack_block(DType dtype, const std::byte* source, int64_t source_row_stride_bytes,
                int64_t row_count, int64_t col_count, std::byte* packed, int64_t rows, int64_t cols,
                int64_t dest_row, int64_t dest_col);

// Row `row` of the packed matrix as float32 (embedding look-up; tests).
void unpack_row(DType dtype, const std::byte* packed, int64_t rows, int64_t cols, int64_t row,
                float* out);

struct MatmulArgs {
  Tensor x;                      // [M, K]
  const std::byte* w = nullptr;  // packed [N, K]
  DType w_dtype = DType::kF32;
  int64_t n = 0;                // rows of W
  const float* bias = nullptr;  // [N] or null
  Tensor y;                     // [M, N] f32, bf16 or f16
  float softcap = 0;            // > 0: y = softcap · tanh(y / softcap)
  bool deterministic = false;
  int64_t x_stride = 0;  // bytes between rows of x and of y; 0: they are contiguous
  int64_t y_stride = 0;
  // Rows of the matmul that x is a part of; 0: x is all of it. The kernel is chosen by them, so
  // that parts have the bits of the whole.
  int64_t whole_rows = 0;
};

// Runs on the calling rank's pool. `scratch` belongs to the rank and grows as needed.
void matmul(const MatmulArgs& args, CpuIsa isa, ThreadPool& pool, struct Scratch& scratch);

// Each of them with the bits that matmul() gives; up to kMatmulsTogether are one round of the pool.
void matmuls(std::span<const MatmulArgs> all, CpuIsa isa, ThreadPool& pool,
             struct Scratch& scratch);
inline constexpr size_t kMatmulsTogether = 32;

}  // namespace nanoweave
