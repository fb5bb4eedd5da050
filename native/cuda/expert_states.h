// Expert tables, counts and choices on the device: what ops/expert_tables.h is on the host. Steps
// replace tables before their ops; moe_place reads them and counts; a step that asks for counts
// takes them after its ops.
#pragma once

#include <cstdint>

namespace nanoweave {

using ExpertCount = unsigned long long;  // that atomicAdd() takes

// Of a rank. Counts and choices: only on the first rank of a group, null on the others.
struct ExpertStates {
  const int32_t* tables;  // [tables, experts, kExpertWays], the same memory for a device's ranks
  ExpertCount* counts;    // [tables, experts] choices since they were last taken
  int32_t* chosen;        // [tables, max_tokens, choices] of the last step
  int64_t max_tokens;
};

}  // namespace nanoweave
