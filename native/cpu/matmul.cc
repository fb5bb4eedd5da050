// Matmul over packed weights: portable form.
#include "cpu/matmul.h"

#include <cmath>

#include "core/error.h"
#include "cpu/scratch.h"

namespace nanoweave {
namespace {

float load_weight(DType dtype, const std::byte* panel, int64_t k, int64_t lane) {
  switch (dtype) {
    case DType::kBf16:
      return to_float(reinterpret_cast<const bf16*>(panel)[(k / 2 * 16 + lane) * 2 + k % 2]);
    case DType::kF16:
      return to_float(reinterpret_cast<const f16*>(panel)[k * 16 + lane]);
    default:
      return reinterpret_cast<const float*>(panel)[k * 16 + lane];
  }
}

}  // namespace

void matmul(const MatmulArgs& args, CpuIsa, ThreadPool& pool, Scratch& scratch) {
  const int64_t m = args.x.rows;
  const int64_t k = args.x.cols;
  CHECK(args.y.rows == m && args.y.cols == args.n);
  if (m == 0 || args.n == 0) return;
  auto* x = reinterpret_cast<float*>(scratch.get(m * k * int64_t{sizeof(float)}));
  load_floats(args.x.dtype, args.x.data, m * k, x);
  const int64_t panel_bytes = packed_bytes(args.w_dtype, 16, k);
  pool.parallel_for((args.n + 15) / 16, [&](int64_t index, int) {
    const std::byte* panel = args.w + index * panel_bytes;
    const int64_t lanes = args.n - index * 16 < 16 ? args.n - index * 16 : 16;
    for (int64_t row = 0; row < m; ++row) {
      float sums[16] = {};
      for (int64_t i = 0; i < k; ++i)
        for (int64_t lane = 0; lane < 16; ++lane)
          sums[lane] += x[row * k + i] * load_weight(args.w_dtype, panel, i, lane);
      for (int64_t lane = 0; lane < lanes; ++lane) {
        if (args.bias) sums[lane] += args.bias[index * 16 + lane];
        if (args.softcap > 0) sums[lane] = args.softcap * std::tanh(sums[lane] / args.softcap);
      }
      store_floats(args.y.dtype, sums, lanes,
                   args.y.row(row) + index * 16 * dtype_bytes(args.y.dtype));
    }
  });
}

}  // namespace nanoweave
