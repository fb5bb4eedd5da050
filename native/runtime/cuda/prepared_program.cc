#include "runtime/cuda/prepared_program.h"

#include "core/error.h"

namespace nanoweave {

namespace {

constexpr int kMaxPrograms = INT32_MAX / kFaultOps;

int find_sample_op(const Program& program) {
  for (size_t i = 0; i < program.ops.size(); ++i)
    if (program.ops[i].kind == "sample") return static_cast<int>(i);
  return -1;
}

bool share_bytes(const BufferDesc& a, const BufferDesc& b) {
  return a.space == Space::kArena && b.space == Space::kArena &&
         a.offset < b.offset + b.max_bytes() && b.offset < a.offset + a.max_bytes();
}

// Rows of logits are read from the arena after the step. Ops in front of `sample` that write there
// are ordered before it (verify_program).
void require_logits_kept(const PreparedProgram& prepared) {
  const BufferDesc* logits = logits_of(prepared);
  if (logits == nullptr) return;
  const Program& program = prepared.program;
  for (size_t i = prepared.sample_op + 1; i < program.ops.size(); ++i)
    for (const View& view : program.ops[i].outputs)
      if (share_bytes(program.buffers[view.buffer], *logits))
        fail(ErrorCode::kProgram, "op '%s' overwrites the logits of op '%s', which end the step",
             program.ops[i].label.c_str(), program.ops[prepared.sample_op].label.c_str());
}

}  // namespace

const BufferDesc* logits_of(const PreparedProgram& prepared) {
  if (prepared.sample_op < 0) return nullptr;
  return &prepared.program.buffers[prepared.program.ops[prepared.sample_op].inputs[0].buffer];
}

PreparedProgram prepare_program(Program program, int id, CudaPlan plan, bool graphs) {
  if (id >= kMaxPrograms) fail(ErrorCode::kUsage, "more than %d programs", kMaxPrograms);
  if (program.ops.size() > static_cast<size_t>(kFaultOps))
    fail(ErrorCode::kProgram, "more than %d ops on CUDA", kFaultOps);
  PreparedProgram prepared;
  prepared.program = std::move(program);
  prepared.plan = std::move(plan);
  prepared.plan.step = step_plan_config(prepared.program.limits, prepared.plan.deterministic);
  for (const OpDesc& op : prepared.program.ops)
    prepared.kernels.push_back(prepare_cuda_op(prepared.program, op, prepared.plan));
  prepared.lanes = plan_lanes(prepared.program);
  for (const CudaKernel& kernel : prepared.kernels)
    prepared.has_overlapped_matmuls |= kernel.uses_network_lane;
  prepared.lanes.used[static_cast<int>(Lane::kNetwork)] |= prepared.has_overlapped_matmuls;
  if (graphs) prepared.buckets = graph_buckets(prepared.program, prepared.plan.step);
  prepared.sample_op = find_sample_op(prepared.program);
  if (prepared.sample_op >= 0)
    prepared.sample_vocab = static_cast<int>(
        OpInstance{prepared.program, prepared.program.ops[prepared.sample_op]}.integer(
            "vocab_size"));
  prepared.fault_base = id * kFaultOps;
  require_logits_kept(prepared);
  return prepared;
}

}  // namespace nanoweave
