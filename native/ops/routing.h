// How moe_route scores, chooses and weighs experts: its attributes, the same for host and device.
#pragma once

#include <cstdint>

#include "ops/op.h"

namespace nanoweave {

enum class Score : uint8_t { kSoftmax, kSigmoid, kSoftmaxChosen };

struct Routing {
  Score score;
  bool normalise;
  bool top2;  // groups are worth their two best experts, else their best
  float scale;
  int64_t experts, choices, groups, top_groups;

  int64_t group_size() const { return experts / groups; }
};

// Checks the operands and attributes of a moe_route.
Routing read_routing(const OpInstance& op);

}  // namespace nanoweave
