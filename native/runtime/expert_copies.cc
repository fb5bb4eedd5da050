#include "runtime/expert_copies.h"

namespace nanoweave {

ExpertWeights find_expert_weights(
    const Program& program, const std::function<const StoredBuffer&(const BufferDesc&)>& find) {
  ExpertWeights weights(static_cast<size_t>(program.limits.experts.tables));
  for (const OpDesc& op : program.ops) {
    if (op.kind != "moe_place" || op.part() > 0) continue;
    auto& of_table = weights[static_cast<size_t>(op.attrs.at("table").as_int())];
    for (const View& view : std::span(op.inputs).subspan(1))
      if (view.buffer >= 0) of_table.push_back(&find(program.buffers[view.buffer]));
  }
  return weights;
}

void for_each_expert_copy(
    const Program& program, const ExpertWeights& weights, const Step& step, int rank,
    const std::function<void(std::byte* to, const std::byte* from, int64_t bytes)>& copy) {
  if (step.expert_copies.empty()) return;
  const ExpertLimits& limits = program.limits.experts;
  const int64_t slots = limits.slots / limits.positions;
  const int64_t slices = program.world / limits.positions;
  for (size_t at = 0; at + 2 < step.expert_copies.size(); at += 3) {
    const int64_t from = step.expert_copies[at + 1], to = step.expert_copies[at + 2];
    if (to / slots != rank / slices) continue;
    const int64_t source = from / slots * slices + rank % slices;
    for (const StoredBuffer* weight : weights[static_cast<size_t>(step.expert_copies[at])]) {
      const int64_t bytes = weight->bytes / slots;
      copy(weight->data[rank] + to % slots * bytes,
           weight->data[static_cast<size_t>(source)] + from % slots * bytes, bytes);
    }
  }
}

}  // namespace nanoweave
