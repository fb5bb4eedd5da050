// LanePlan: how the ops of a program go to streams, one per lane, and which events join them. A
// wait inside a lane needs none (streams are in order), nor does one that another implies.
#pragma once

#include <array>
#include <vector>

#include "program/program.h"

namespace nanoweave {

inline constexpr int kLanes = 3;

struct LanePlan {
  struct Op {
    int lane = 0;
    std::vector<int> waits;  // events its stream waits for before the op
    int records = -1;        // event recorded behind it
  };
  std::vector<Op> ops;
  int num_events = 0;
  std::array<bool, kLanes> used{};  // lanes with ops
  std::array<int, kLanes> last{};   // a lane's last op; −1: none
};

LanePlan plan_lanes(const Program& program);

}  // namespace nanoweave
