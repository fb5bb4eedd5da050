#include "runtime/cuda/lane_plan.h"

#include <algorithm>

namespace nanoweave {

namespace {

// By lane, the last op that has ended; −1: none.
using Clock = std::array<int, kLanes>;

}  // namespace

LanePlan plan_lanes(const Program& program) {
  LanePlan plan;
  plan.last.fill(-1);
  std::vector<Clock> clocks(program.ops.size());
  for (int index = 0; index < static_cast<int>(program.ops.size()); ++index) {
    const OpDesc& op = program.ops[index];
    const int lane = static_cast<int>(op.lane);
    LanePlan::Op& planned = plan.ops.emplace_back();
    planned.lane = lane;
    Clock& clock = clocks[index];
    if (plan.last[lane] >= 0)
      clock = clocks[plan.last[lane]];
    else
      clock.fill(-1);
    clock[lane] = plan.last[lane];

    // Latest first: what it waited for is waited for.
    std::vector<int> waits = op.waits;
    std::sort(waits.rbegin(), waits.rend());
    for (const int wait : waits) {
      const int from = plan.ops[wait].lane;
      if (wait <= clock[from]) continue;
      for (int l = 0; l < kLanes; ++l) clock[l] = std::max(clock[l], clocks[wait][l]);
      clock[from] = std::max(clock[from], wait);
      int& event = plan.ops[wait].records;
      if (event < 0) event = plan.num_events++;
      planned.waits.push_back(event);
    }
    plan.used[lane] = true;
    plan.last[lane] = index;
  }
  return plan;
}

}  // namespace nanoweave
