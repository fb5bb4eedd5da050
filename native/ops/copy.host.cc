// copy: y = x, [T, C]. For benches and tests.
#include <cstring>

#include "ops/op.h"
#include "ops/rows.h"

namespace nanoweave {

HostKernel prepare_copy(const OpInstance& op) {
  const BufferDesc& x = *op.input(0);
  const BufferDesc& y = op.output(0);
  op.require_activation(x, -1);
  op.require_activation(y, x.cols());
  op.require_alike(x, y);
  op.require_same_part();

  return [](const HostRun& run) {
    const Tensor& x = run.in[0];
    const Tensor& y = run.out[0];
    for_row_chunks(run.rank, x.rows, x.cols, [&](int64_t begin, int64_t end, int) {
      std::memcpy(y.row(begin), x.row(begin), (end - begin) * x.row_bytes());
    });
  };
}

}  // namespace nanoweave
