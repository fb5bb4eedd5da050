// What the ops that overlap a matmul with a collective share: their row groups (comm/protocol.h)
// and the flags that the ranks of a group raise for each other.
#pragma once

#include <array>

#include "ops/host_matmul.h"
#include "ops/op.h"

namespace nanoweave {

// A number of row groups.
inline int require_groups(const OpInstance& op, const char* attribute = "groups") {
  const int64_t groups = op.integer(attribute);
  op.require(groups >= 1 && groups <= kMaxRowGroups, "%s is %lld, between 1 and %d work", attribute,
             static_cast<long long>(groups), kMaxRowGroups);
  return static_cast<int>(groups);
}

inline Tensor take_rows(const Tensor& tensor, RowSpan rows) {
  Tensor part = tensor;
  part.data = tensor.row(rows.begin);
  part.rows = rows.end - rows.begin;
  return part;
}

// One run of an op on one rank: which groups are done where. Nano-batches may be in flight at the
// same time, so each has a slot.
class GroupFlags {
 public:
  GroupFlags(const HostRun& run, int part) : run_(run), slot_(part < 0 ? 0 : part) {}

  // This rank has done its part of the group.
  void publish(int group) {
    const HostRank& rank = run_.rank;
    epochs_[group] = rank.comm->publish_group(rank.rank, rank.tp_first(), rank.tp, slot_, group);
  }
  // Whether every rank has; after publish(group).
  bool is_complete(int group) const {
    const HostRank& rank = run_.rank;
    for (int peer = rank.tp_first(); peer < rank.tp_first() + rank.tp; ++peer)
      if (!rank.comm->has_published(peer, slot_, group, epochs_[group])) return false;
    return true;
  }
  void wait(int group) const {
    for (int peer = 0; peer < run_.rank.tp; ++peer) wait_for(peer, group);
  }
  // `peer`: rank of the attention group.
  void wait_for(int peer, int group) const {
    const HostRank& rank = run_.rank;
    rank.comm->wait_for_group(rank.rank, rank.tp_first() + peer, slot_, group, epochs_[group],
                              run_.label, run_.step_id);
  }

 private:
  const HostRun& run_;
  const int slot_;
  std::array<uint32_t, kMaxRowGroups> epochs_{};
};

// Multiplies group by group into `partial`, and calls reduce(rows) for each group that every rank
// has multiplied: between matmuls where it is complete already, waiting for it after the last.
template <typename Reduce>
void multiply_and_reduce(const HostRun& run, const HostMatmul& product, const Tensor& partial,
                         int groups, int part, const Reduce& reduce) {
  const Tensor& x = run.in[0];
  GroupFlags flags(run, part);
  int reduced = 0;
  for (int group = 0; group < groups; ++group) {
    const RowSpan rows = group_rows(x.rows, groups, group);
    product.run(run, take_rows(x, rows), take_rows(partial, rows), x.rows);
    flags.publish(group);
    while (reduced <= group && flags.is_complete(reduced)) reduce(reduced++);
  }
  for (; reduced < groups; ++reduced) {
    flags.wait(reduced);
    reduce(reduced);
  }
  run.group_barrier(groups);  // all y are stored, no partial is read any more
}

}  // namespace nanoweave
