// ExpertTables: first content, changes and their hash.
#include "ops/expert_tables.h"

#include <algorithm>

#include "core/error.h"

namespace nanoweave {

// FNV-1a over words, begun with the number of the table; lib/parallel/balance/slots.ts has the
// same.
uint32_t hash_expert_table(int64_t table, std::span<const int32_t> words) {
  constexpr uint32_t kPrime = 16777619;
  uint32_t hash = (2166136261u ^ static_cast<uint32_t>(table)) * kPrime;
  for (const int32_t word : words) hash = (hash ^ static_cast<uint32_t>(word)) * kPrime;
  return hash;
}

ExpertTables::ExpertTables(const ExpertLimits& limits)
    : limits_(limits), tables_(static_cast<size_t>(limits.tables)) {
  const int64_t slots = limits.slots / limits.positions;
  const int64_t homes = (limits.count + limits.positions - 1) / limits.positions;
  for (size_t number = 0; number < tables_.size(); ++number) {
    Table& table = tables_[number];
    for (int64_t expert = 0; expert < limits.count; ++expert)
      table.slots.insert(table.slots.end(), kExpertWays,
                         static_cast<int32_t>(expert / homes * slots + expert % homes));
    table.counts.assign(static_cast<size_t>(limits.count), 0);
    table.hash = hash_expert_table(static_cast<int64_t>(number), table.slots);
  }
}

void ExpertTables::apply(const Step& step) {
  if (step.expert_tables.empty()) return;
  const int64_t words = limits_.count * kExpertWays;
  for (size_t at = 1; at < step.expert_tables.size(); at += static_cast<size_t>(words) + 1) {
    const int32_t number = step.expert_tables[at];
    const auto slots = step.expert_tables.subspan(at + 1, static_cast<size_t>(words));
    Table& table = tables_[number];
    std::copy(slots.begin(), slots.end(), table.slots.begin());
    table.hash = hash_expert_table(number, table.slots);
  }
  uint32_t hash = 0;
  for (const Table& table : tables_) hash ^= table.hash;
  if (static_cast<int32_t>(hash) != step.expert_tables[0])
    fail(ErrorCode::kStep,
         "the expert tables have hash %#x, the plan says %#x: ranks and plan no longer agree", hash,
         static_cast<uint32_t>(step.expert_tables[0]));
}

std::vector<int32_t> ExpertTables::take_counts() {
  std::vector<int32_t> counts;
  counts.reserve(tables_.size() * static_cast<size_t>(limits_.count));
  for (Table& table : tables_)
    for (int64_t& count : table.counts) {
      counts.push_back(static_cast<int32_t>(std::min<int64_t>(count, INT32_MAX)));
      count = 0;
    }
  return counts;
}

}  // namespace nanoweave
