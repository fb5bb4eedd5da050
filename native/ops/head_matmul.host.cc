// head_matmul: y_h = x_h·W_hᵀ for every head h, x [T, heads·S], y [T, heads·N]. The heads' weights
// [N, K] lie below each other, each padded to whole panels; K ≤ S: the rest of a head's columns is
// not its input.
#include <algorithm>
#include <array>

#include "cpu/matmul.h"
#include "ops/op.h"

namespace nanoweave {

namespace {

constexpr int64_t kHeadRowMultiple = 16;  // rows of a head's weights: whole panels

}  // namespace

HostKernel prepare_head_matmul(const OpInstance& op) {
  const int64_t heads = op.integer("heads");
  op.require(heads > 0 && heads <= 4096, "heads must be within 1..4096");
  const BufferDesc& x = *op.input(0);
  const BufferDesc& weight = *op.input(1);
  const BufferDesc& y = op.output(0);
  op.require_activation(x, -1);
  op.require_activation(y, -1);
  op.require(x.shape[0].symbol == y.shape[0].symbol, "buffers %s and %s have rows of other symbols",
             x.name.c_str(), y.name.c_str());
  op.require(x.cols() % heads == 0 && y.cols() % heads == 0,
             "the columns of %s and %s must be multiples of %lld heads", x.name.c_str(),
             y.name.c_str(), static_cast<long long>(heads));
  const int64_t columns = y.cols() / heads;
  const int64_t padded = (columns + kHeadRowMultiple - 1) / kHeadRowMultiple * kHeadRowMultiple;
  op.require_weight_matrix(weight, heads * padded, -1);
  const int64_t depth = weight.cols();
  op.require(depth <= x.cols() / heads, "buffer %s has %lld columns a head, the weight has %lld",
             x.name.c_str(), static_cast<long long>(x.cols() / heads),
             static_cast<long long>(depth));
  op.require_same_part();
  op.require_distinct(0, 0);
  const int64_t head_bytes = packed_bytes(weight.dtype, padded, depth);

  return [=](const HostRun& run) {
    const Tensor& x = run.in[0];
    const Tensor& y = run.out[0];
    std::array<MatmulArgs, kMatmulsTogether> together;
    for (int64_t first = 0; first < heads; first += kMatmulsTogether) {
      const auto count = std::min<int64_t>(kMatmulsTogether, heads - first);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t head = first + i;
        together[i] = {.x = {x.data + head * (x.row_bytes() / heads), x.dtype, x.rows, depth},
                       .w = run.in[1].data + head * head_bytes,
                       .w_dtype = run.in[1].dtype,
                       .n = columns,
                       .y = {y.data + head * (y.row_bytes() / heads), y.dtype, y.rows, columns},
                       .deterministic = run.rank.deterministic,
                       .x_stride = x.row_bytes(),
                       .y_stride = y.row_bytes()};
      }
      matmuls({together.data(), static_cast<size_t>(count)}, run.rank.isa, *run.rank.pool,
              *run.rank.scratch);
    }
  };
}

}  // namespace nanoweave
