// ExpertTables: which slot serves which expert, layer by layer, on one rank, and how often experts
// were chosen. A table has kExpertWays slots for each expert: a token's row picks one, so that
// replicas share the tokens in any proportion of 1 / kExpertWays. Every rank holds the same tables
// (a hash says so after each change); counts are those of the rank's own attention group. Rank
// thread only.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "program/step.h"

namespace nanoweave {

// Of the words of a table, [experts, kExpertWays]; a step names the xor over all tables.
uint32_t hash_expert_table(int64_t table, std::span<const int32_t> words);

class ExpertTables {
 public:
  // Experts are dealt evenly over the positions, as their weights are loaded.
  explicit ExpertTables(const ExpertLimits& limits = {});
  const ExpertLimits& limits() const { return limits_; }

  // Applies a step's tables; ERR_STEP when they are then not what the step says they must be.
  void apply(const Step& step);

  // [experts, kExpertWays] of a table.
  std::span<const int32_t> slots(int64_t table) const { return tables_[table].slots; }

  // Slot of an expert for a row of a group; −1 for what is no expert.
  int32_t slot(int64_t table, int32_t expert, int64_t row) const {
    if (expert < 0 || expert >= limits_.count) return -1;
    return tables_[table].slots[expert * kExpertWays + row % kExpertWays];
  }
  void count(int64_t table, int32_t expert) {
    if (expert >= 0 && expert < limits_.count) ++tables_[table].counts[expert];
  }
  // [tables, experts] choices since the last call.
  std::vector<int32_t> take_counts();

 private:
  struct Table {
    std::vector<int32_t> slots;   // [experts, kExpertWays]
    std::vector<int64_t> counts;  // [experts]
    uint32_t hash = 0;
  };

  ExpertLimits limits_;
  std::vector<Table> tables_;
};

}  // namespace nanoweave
