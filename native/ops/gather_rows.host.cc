// gather_rows: y[r] = x[rows[r].token_row], x [T, H] whole, y [R, H].
#include <cstring>

#include "ops/op.h"

namespace nanoweave {

HostKernel prepare_gather_rows(const OpInstance& op) {
  const BufferDesc& x = *op.input(0);
  const BufferDesc& y = op.output(0);
  op.require_activation(x, -1);
  op.require_activation(y, x.cols());
  op.require(x.shape[0].symbol == Symbol::kTokens && y.shape[0].symbol == Symbol::kRows,
             "takes rows of a [T, H] buffer into a [R, H] buffer");
  op.require(x.dtype == y.dtype, "buffers %s and %s differ in dtype", x.name.c_str(),
             y.name.c_str());
  op.require(op.op.part() < 0, "works on whole buffers, not on parts");

  return [](const HostRun& run) {
    const Tensor& x = run.in[0];
    const Tensor& y = run.out[0];
    for (int64_t r = 0; r < y.rows; ++r)
      std::memcpy(y.row(r), x.row(run.step.rows[r].token_row), y.row_bytes());
  };
}

}  // namespace nanoweave
