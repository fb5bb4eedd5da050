// stall: one rank sleeps, x stays as it is. With ms < 0 it sleeps until the communicator aborts: a
// rank that died. Tests only.
#include <chrono>

#include "ops/op.h"

namespace nanoweave {

HostKernel prepare_stall(const OpInstance& op) {
  const int64_t rank = op.integer("rank");
  const int64_t ms = op.integer("ms");
  op.require(rank >= 0 && rank < op.program.world, "rank %lld of %d", static_cast<long long>(rank),
             op.program.world);
  op.require(ms <= 60'000, "sleeps at most a minute");
  op.require(ms >= 0 || op.program.world > 1, "a dead rank needs peers that notice it");
  op.require_in_place(0, 0);

  return [rank, ms](const HostRun& run) {
    if (run.rank.rank != rank) return;
    HostComm& comm = *run.rank.comm;
    if (ms >= 0) {
      comm.sleep_unless_aborted(std::chrono::milliseconds(ms));
      return;
    }
    while (!comm.sleep_unless_aborted(std::chrono::milliseconds(1000))) {
    }
  };
}

}  // namespace nanoweave
