// moe_dispatch: tokens to the ranks of their experts. A rank sends its group's rows to one rank of
// every group (the one at its own place in the group), into that rank's region of the sender's
// group; x is the same on all ranks of a group. The receiver then sorts: rows of `grouped` are
// ordered by (local expert, source group, token), `rows` says where each choice went. All offsets
// are prefix sums, so the order does not depend on timing.
//
// Barriers: nobody reads the regions any more; all regions are written. The end of the step's
// moe_combine keeps the next layer's sends out.
#include <cstring>
#include <vector>

#include "ops/experts.h"
#include "ops/rows.h"

namespace nanoweave {
namespace {

enum Output { kHidden, kIds, kCounts, kRows, kGrouped, kOffsets };

void send(const HostRun& run, const ExpertLayout& layout) {
  const HostRank& rank = run.rank;
  const Tensor& x = run.in[0];
  const Tensor& ids = run.in[1];
  const int64_t k = ids.cols;
  for (int group = 0; group < layout.groups; ++group) {
    const int peer = group * layout.tp + rank.tp_rank();
    const Tensor hidden = run.at_peer(run.out[kHidden], peer);
    const Tensor rx_ids = run.at_peer(run.out[kIds], peer);
    const int64_t region = rank.group() * layout.max_tokens;
    mutable_ints(run.at_peer(run.out[kCounts], peer))[rank.group()] = static_cast<int32_t>(x.rows);
    for_row_chunks(rank, x.rows, x.cols, [&](int64_t begin, int64_t end, int) {
      for (int64_t t = begin; t < end; ++t) {
        const int32_t* chosen = ints(ids) + t * k;
        std::memcpy(rx_ids.row(region + t), chosen, static_cast<size_t>(k) * sizeof(int32_t));
        bool wanted = false;
        for (int64_t j = 0; j < k; ++j) wanted = wanted || layout.local(chosen[j], peer) >= 0;
        if (wanted)
          std::memcpy(hidden.row(region + t), x.row(t), static_cast<size_t>(x.row_bytes()));
      }
    });
  }
}

// Calls body(region row, choice, local expert) for what arrived, in the order of (source, token).
template <typename Body>
void for_received(const HostRun& run, const ExpertLayout& layout, const Body& body) {
  const Tensor& ids = run.out[kIds];
  for (int group = 0; group < layout.groups; ++group) {
    const int64_t first = group * layout.max_tokens;
    for (int64_t row = first; row < first + ints(run.out[kCounts])[group]; ++row)
      for (int64_t j = 0; j < ids.cols; ++j)
        body(row, j, layout.local(ints(ids)[row * ids.cols + j], run.rank.rank));
  }
}

void sort_by_expert(const HostRun& run, const ExpertLayout& layout) {
  const Tensor& hidden = run.out[kHidden];
  const Tensor& grouped = run.out[kGrouped];
  int32_t* rows = mutable_ints(run.out[kRows]);
  int32_t* offsets = mutable_ints(run.out[kOffsets]);
  const int64_t k = run.out[kIds].cols;
  // Counts, shifted by two so that the second pass leaves the offsets in place.
  std::vector<int32_t> next(layout.per_position + 2, 0);
  for_received(run, layout, [&](int64_t, int64_t, int64_t expert) {
    if (expert >= 0) ++next[expert + 2];
  });
  for (int64_t e = 2; e < layout.per_position + 2; ++e) next[e] += next[e - 1];
  for_received(run, layout, [&](int64_t row, int64_t j, int64_t expert) {
    rows[row * k + j] = expert < 0 ? -1 : next[expert + 1]++;
  });
  std::copy_n(next.begin(), layout.per_position + 1, offsets);

  for (int group = 0; group < layout.groups; ++group) {
    const int64_t first = group * layout.max_tokens;
    for_row_chunks(run.rank, ints(run.out[kCounts])[group], hidden.cols,
                   [&](int64_t begin, int64_t end, int) {
                     for (int64_t row = first + begin; row < first + end; ++row)
                       for (int64_t j = 0; j < k; ++j)
                         if (rows[row * k + j] >= 0)
                           std::memcpy(grouped.row(rows[row * k + j]), hidden.row(row),
                                       static_cast<size_t>(hidden.row_bytes()));
                   });
  }
}

}  // namespace

HostKernel prepare_moe_dispatch(const OpInstance& op) {
  const ExpertLayout layout = expert_layout(op);
  const BufferDesc& x = *op.input(0);
  op.require_activation(x, -1);
  op.require(x.shape[0].symbol == Symbol::kTokens, "buffer %s must have T rows", x.name.c_str());
  const int64_t k = require_choices(op, *op.input(1), DType::kI32);
  op.require(op.op.inputs[0].part == op.op.inputs[1].part, "x and ids are of different parts");
  const int64_t received = layout.received_rows();
  op.require(received * k <= INT32_MAX, "too many rows for int32 offsets");
  require_fixed(op, op.output(kHidden), received, x.cols(), x.dtype);
  require_fixed(op, op.output(kIds), received, k, DType::kI32);
  require_fixed(op, op.output(kCounts), 1, layout.groups, DType::kI32);
  require_fixed(op, op.output(kRows), received, k, DType::kI32);
  require_fixed(op, op.output(kGrouped), received * k, x.cols(), x.dtype);
  op.require(require_offsets(op, op.output(kOffsets)) == layout.per_position,
             "offsets must be for %lld experts", static_cast<long long>(layout.per_position));

  return [layout](const HostRun& run) {
    world_barrier(run, 0);
    send(run, layout);
    world_barrier(run, 1);
    sort_by_expert(run, layout);
  };
}

}  // namespace nanoweave
