#include "cuda/nccl_collectives.h"

#include "cuda/host_rows.h"

namespace nanoweave {

namespace {

// Calls body(group, local rank, its rows) for every local rank that has rows, in one group.
template <typename Body>
void for_ranks(const CudaLaunch& launch, int32_t which, const Body& body) {
  NcclGroup group(*launch.nccl, launch);
  for (size_t i = 0; i < launch.ranks.size(); ++i)
    if (const HostRows rows = host_rows(launch, i, which); rows.count > 0) body(group, i, rows);
  group.finish();
}

// Shares of NCCL's own calls are equal; others take a call per owner.
bool shares_are_equal(const HostRows& rows, int tp) { return rows.count % tp == 0; }

struct Slice {
  int64_t offset;  // bytes
  int64_t count;   // elements
};

Slice slice_of(const NcclRows& buffer, int64_t begin, int64_t end) {
  return {begin * buffer.row_bytes(), (end - begin) * buffer.cols};
}

Slice owned_slice(const NcclRows& buffer, const HostRows& rows, int tp, int owner) {
  const RowSpan own = owned_rows(rows.count, tp, owner);
  return slice_of(buffer, rows.begin + own.begin, rows.begin + own.end);
}

// Calls body(owner, its rows) for every rank of the group that owns some.
template <typename Body>
void for_owners(const HostRows& rows, const NcclRows& buffer, int tp, const Body& body) {
  for (int owner = 0; owner < tp; ++owner)
    if (const Slice part = owned_slice(buffer, rows, tp, owner); part.count > 0) body(owner, part);
}

}  // namespace

void nccl_sum(const CudaLaunch& launch, int32_t which, const NcclSharing& shared, const NcclRows& x,
              const NcclRows& y) {
  CHECK(shared.none() || !launch.counts.empty());
  for_ranks(launch, which, [&](NcclGroup& group, size_t i, const HostRows& rows) {
    const CudaRank& rank = launch.ranks[i];
    const Slice all = slice_of(x, rows.begin, rows.begin + rows.count);
    if (!shared[i]) {
      group.all_reduce(i, x.data[i] + all.offset, y.data[i] + all.offset, all.count, x.dtype);
    } else if (shares_are_equal(rows, rank.tp)) {
      const Slice own = owned_slice(y, rows, rank.tp, rank.tp_rank());
      group.reduce_scatter(i, x.data[i] + all.offset, y.data[i] + own.offset, own.count, x.dtype);
    } else {
      for_owners(rows, y, rank.tp, [&](int owner, const Slice& part) {
        group.reduce(i, x.data[i] + part.offset, y.data[i] + part.offset, part.count, x.dtype,
                     owner);
      });
    }
  });
}

void nccl_gather_rows(const CudaLaunch& launch, int32_t which, const NcclSharing& shared,
                      const NcclRows& y) {
  if (shared.none()) return;
  CHECK(!launch.counts.empty());
  for_ranks(launch, which, [&](NcclGroup& group, size_t i, const HostRows& rows) {
    const CudaRank& rank = launch.ranks[i];
    if (!shared[i]) return;
    if (shares_are_equal(rows, rank.tp)) {
      const Slice own = owned_slice(y, rows, rank.tp, rank.tp_rank());
      group.all_gather(i, y.data[i] + own.offset, y.data[i] + rows.begin * y.row_bytes(), own.count,
                       y.dtype);
    } else {
      for_owners(rows, y, rank.tp, [&](int owner, const Slice& part) {
        group.broadcast(i, y.data[i] + part.offset, y.data[i] + part.offset, part.count, y.dtype,
                        owner);
      });
    }
  });
}

void nccl_all_gather(const CudaLaunch& launch, int32_t which, const NcclRows& x,
                     const std::array<std::byte*, kMaxRanks>& gathered) {
  for_ranks(launch, which, [&](NcclGroup& group, size_t i, const HostRows& rows) {
    const Slice all = slice_of(x, rows.begin, rows.begin + rows.count);
    group.all_gather(i, x.data[i] + all.offset, gathered[i], all.count, x.dtype);
  });
}

}  // namespace nanoweave
