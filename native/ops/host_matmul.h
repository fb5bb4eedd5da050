// HostMatmul: y = x·Wᵀ + bias for operands (x, weight, bias?) of an op, all rows at once or some of
// them. Shared by matmul and the ops that overlap one with a collective.
#pragma once

#include "ops/op.h"

namespace nanoweave {

class HostMatmul {
 public:
  // Checks inputs 0 to 2 of the op, and `y` against them.
  HostMatmul(const OpInstance& op, const BufferDesc& y);

  // `x` and `y`: the same rows of the op's x and of its product. `whole_rows`: all rows of the op,
  // so that a row's bits do not depend on which others come with it.
  void run(const HostRun& run, const Tensor& x, const Tensor& y, int64_t whole_rows) const;

 private:
  bool first_rank_only_ = false;  // the bias
};

}  // namespace nanoweave
