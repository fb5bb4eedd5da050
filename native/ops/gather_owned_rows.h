// The first half of all_gather_matmul, and all of all_gather_rows: the rows a rank owns of a group
// go to the same place on every other rank of its attention group.
#pragma once

#include <cstring>

#include "ops/op.h"
#include "ops/row_groups.h"

namespace nanoweave {

inline void push_owned_rows(const HostRun& run, const Tensor& x, int groups, int group) {
  const HostRank& rank = run.rank;
  const RowSpan own = owned_group_rows(x.rows, groups, group, rank.tp, rank.tp_rank());
  const auto bytes = static_cast<size_t>((own.end - own.begin) * x.row_bytes());
  if (bytes == 0) return;
  for (int peer = rank.tp_first(); peer < rank.tp_first() + rank.tp; ++peer)
    if (peer != rank.rank)
      std::memcpy(run.at_peer(x, peer).row(own.begin), x.row(own.begin), bytes);
}

}  // namespace nanoweave
