#include "ops/experts.h"

namespace nanoweave {

ExpertLayout expert_layout(const OpInstance& op) {
  const Program& program = op.program;
  const int64_t experts = op.integer("experts");
  const int64_t ep = op.integer("ep");
  op.require(experts > 0 && experts <= kMaxExperts, "experts must be within 1..%lld",
             static_cast<long long>(kMaxExperts));
  op.require(ep > 0 && ep <= program.world && program.world % ep == 0,
             "ep must divide the %d ranks", program.world);
  return {.experts = experts,
          .per_position = (experts + ep - 1) / ep,
          .slices = static_cast<int>(program.world / ep),
          .groups = program.world / program.tp,
          .tp = program.tp,
          .max_tokens = program.limits.max_tokens};
}

void require_fixed(const OpInstance& op, const BufferDesc& buffer, int64_t rows, int64_t cols,
                   DType dtype) {
  op.require(buffer.space == Space::kArena, "buffer %s must be in the arena", buffer.name.c_str());
  op.require_matrix(buffer, Symbol::kNone, cols);
  op.require(rows < 0 || buffer.shape[0].size == rows, "buffer %s has %lld rows, %lld are expected",
             buffer.name.c_str(), static_cast<long long>(buffer.shape[0].size),
             static_cast<long long>(rows));
  op.require(buffer.dtype == dtype, "buffer %s is %s, %s is expected", buffer.name.c_str(),
             dtype_name(buffer.dtype), dtype_name(dtype));
}

int64_t require_offsets(const OpInstance& op, const BufferDesc& buffer) {
  op.require(buffer.space == Space::kArena && buffer.shape.size() == 1 &&
                 buffer.shape[0].symbol == Symbol::kNone && buffer.shape[0].size > 1 &&
                 buffer.shape[0].size <= kMaxExperts + 1 && buffer.dtype == DType::kI32,
             "buffer %s must be a vector of i32 offsets in the arena", buffer.name.c_str());
  return buffer.shape[0].size - 1;
}

const int32_t* checked_offsets(const HostRun& run, const Tensor& offsets, int64_t rows) {
  const int32_t* values = ints(offsets);
  int32_t previous = 0;
  for (int64_t e = 0; e < offsets.rows * offsets.cols; ++e) {
    if (values[e] < previous || values[e] > rows)
      fail(ErrorCode::kProgram, "op %s: offset %lld of its experts is %d, must be %d..%lld",
           run.label.c_str(), static_cast<long long>(e), values[e], previous,
           static_cast<long long>(rows));
    previous = values[e];
  }
  return values;
}

int64_t require_choices(const OpInstance& op, const BufferDesc& buffer, DType dtype) {
  op.require(buffer.space == Space::kArena, "buffer %s must be in the arena", buffer.name.c_str());
  op.require_matrix(buffer, Symbol::kTokens, -1);
  op.require(buffer.dtype == dtype, "buffer %s is %s, %s is expected", buffer.name.c_str(),
             dtype_name(buffer.dtype), dtype_name(dtype));
  op.require(buffer.cols() <= kMaxChoices, "buffer %s has more than %lld choices",
             buffer.name.c_str(), static_cast<long long>(kMaxChoices));
  return buffer.cols();
}

}  // namespace nanoweave
