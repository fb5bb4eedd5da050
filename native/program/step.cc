// Decoding and validation of a step. Nothing of the submitted words is trusted: every offset is
// compared with the length before it is used, and every id, slot, block and row with the program's
// limits, so that ops may index with them.
#include "program/step.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <string>
#include <unordered_set>
#include <utility>

#include "core/error.h"

namespace nanoweave {

namespace {

constexpr int kNumSectionKinds = 17;
constexpr std::array<const char*, kNumSectionKinds + 1> kSectionNames = {"",
                                                                         "partBounds",
                                                                         "tokens",
                                                                         "positions",
                                                                         "kvSlots",
                                                                         "seqStarts",
                                                                         "seqLens",
                                                                         "blockTables",
                                                                         "rows",
                                                                         "slotParams",
                                                                         "slotHistory",
                                                                         "slotBias",
                                                                         "blockCopies",
                                                                         "swapOut",
                                                                         "swapIn",
                                                                         "allowedTokens",
                                                                         "expertTables",
                                                                         "expertCopies"};
constexpr int kMaxTopLogprobs = 20;
constexpr int64_t kMaxResultWords = int64_t{1} << 28;  // logits, or choices, of one step: 1 GiB
constexpr int32_t kEmptyBounds[5] = {0, 0, 0, 0, 0};

using Words = std::span<const int32_t>;
using Sections = std::array<Words, kNumSectionKinds + 1>;

// An entry of the section table.
struct Section {
  int32_t kind;
  int32_t group;
  Words words;
};

class GroupParser {
 public:
  GroupParser(const Program& program, int group, const Sections& sections)
      : limits_(program.limits), parts_(program.parts), group_(group), sections_(sections) {}

  GroupStep parse() {
    parse_tokens();
    parse_part_bounds();
    if (limits_.num_blocks > 0)
      parse_kv();
    else
      refuse_kv();
    parse_sequences();
    parse_rows();
    parse_slot_params();
    parse_slot_lists();
    parse_block_copies();
    step_.swap_out = parse_swaps(StepSection::kSwapOut, 1);
    step_.swap_in = parse_swaps(StepSection::kSwapIn, 0);
    parse_allowed_tokens();
    if (group_ != 0) refuse_experts();
    return step_;
  }

  // Group 0 only: what the sections say is for all ranks.
  Words parse_expert_tables() const {
    constexpr StepSection kind = StepSection::kExpertTables;
    const Words words = section(kind);
    if (words.empty()) return words;
    if (limits_.experts.tables == 0) refuse(kind, 0, "the program has no expert tables", words[0]);
    const int64_t entry = limits_.experts.count * kExpertWays + 1;
    const auto count = (static_cast<int64_t>(words.size()) - 1) / entry;
    require_length(kind, 1 + count * entry);
    for (int64_t at = 1; at < 1 + count * entry; at += entry) {
      require_range(kind, at, 0, limits_.experts.tables);
      for (int64_t i = 1; i < entry; ++i) require_range(kind, at + i, 0, limits_.experts.slots);
    }
    return words;
  }

  Words parse_expert_copies() const {
    constexpr StepSection kind = StepSection::kExpertCopies;
    const Words words = section(kind);
    const auto copies = static_cast<int64_t>(words.size()) / 3;
    require_length(kind, copies * 3);
    const int64_t slots = limits_.experts.slots;
    std::unordered_set<int64_t> destinations;
    for (int64_t at = 0; at < copies * 3; at += 3) {
      require_range(kind, at, 0, limits_.experts.tables);
      require_range(kind, at + 1, 0, slots);
      require_range(kind, at + 2, 0, slots);
      if (!destinations.insert(words[at] * slots + words[at + 2]).second)
        refuse(kind, at + 2, "a slot is the destination of two copies", words[at + 2]);
    }
    for (int64_t at = 0; at < copies * 3; at += 3)
      if (destinations.contains(words[at] * slots + words[at + 1]))
        refuse(kind, at + 1, "a copied slot is a destination too", words[at + 1]);
    return words;
  }

 private:
  void refuse_experts() const {
    for (const auto kind : {StepSection::kExpertTables, StepSection::kExpertCopies})
      if (!section(kind).empty())
        refuse(kind, 0, "expert sections stand in group 0",
               static_cast<int64_t>(section(kind).size()));
  }

  Words section(StepSection kind) const { return sections_[static_cast<size_t>(kind)]; }

  [[noreturn]] void refuse(StepSection kind, int64_t index, const char* why, int64_t value) const {
    fail(ErrorCode::kStep, "step section %s of group %d, word %lld: %s (%lld)",
         kSectionNames[static_cast<size_t>(kind)], group_, static_cast<long long>(index), why,
         static_cast<long long>(value));
  }

  void require_length(StepSection kind, int64_t wanted) const {
    const auto got = static_cast<int64_t>(section(kind).size());
    if (got != wanted)
      fail(ErrorCode::kStep, "step section %s of group %d has %lld words, needs %lld",
           kSectionNames[static_cast<size_t>(kind)], group_, static_cast<long long>(got),
           static_cast<long long>(wanted));
  }

  void require_range(StepSection kind, int64_t index, int64_t low, int64_t high) const {
    const int64_t value = section(kind)[index];
    if (value < low || value >= high) refuse(kind, index, "out of range", value);
  }

  // -Inf forbids a token; NaN and +Inf would poison the whole row.
  void require_bias(StepSection kind, int64_t index) const {
    const float value = std::bit_cast<float>(section(kind)[index]);
    if (std::isnan(value) || value == INFINITY)
      refuse(kind, index, "not a usable bias, bits", section(kind)[index]);
  }

  void parse_tokens() {
    step_.tokens = section(StepSection::kTokens);
    const int64_t count = step_.num_tokens();
    if (count > limits_.max_tokens)
      refuse(StepSection::kTokens, limits_.max_tokens, "more tokens than the program's maxTokens",
             count);
    for (int64_t i = 0; i < count; ++i)
      require_range(StepSection::kTokens, i, -limits_.num_slots, limits_.vocab_size);

    require_length(StepSection::kPositions, count);
    step_.positions = section(StepSection::kPositions);
    const int64_t max_positions = limits_.num_blocks > 0
                                      ? limits_.max_blocks_per_seq * limits_.block_size
                                      : int64_t{INT32_MAX};
    for (int64_t i = 0; i < count; ++i) require_range(StepSection::kPositions, i, 0, max_positions);
  }

  void parse_part_bounds() {
    Words bounds = section(StepSection::kPartBounds);
    if (bounds.empty() && step_.num_tokens() == 0) bounds = Words(kEmptyBounds).first(parts_ + 1);
    step_.part_bounds = bounds;
    if (!section(StepSection::kPartBounds).empty() || step_.num_tokens() > 0)
      require_length(StepSection::kPartBounds, parts_ + 1);
    for (int i = 0; i <= parts_; ++i)
      if (bounds[i] < (i == 0 ? 0 : bounds[i - 1]))
        refuse(StepSection::kPartBounds, i, "bounds must ascend from 0", bounds[i]);
    if (bounds[0] != 0) refuse(StepSection::kPartBounds, 0, "the first bound must be 0", bounds[0]);
    if (bounds[parts_] != step_.num_tokens())
      refuse(StepSection::kPartBounds, parts_, "the last bound must be the number of tokens",
             bounds[parts_]);
  }

  void parse_kv() {
    require_length(StepSection::kKvSlots, step_.num_tokens());
    step_.kv_slots = section(StepSection::kKvSlots);
    for (int64_t i = 0; i < step_.num_tokens(); ++i)
      require_range(StepSection::kKvSlots, i, -1, limits_.num_blocks * limits_.block_size);
  }

  void refuse_kv() const {
    for (const auto kind : {StepSection::kKvSlots, StepSection::kBlockTables,
                            StepSection::kBlockCopies, StepSection::kSwapOut, StepSection::kSwapIn})
      if (!section(kind).empty())
        refuse(kind, 0, "the program has no KV cache", static_cast<int64_t>(section(kind).size()));
  }

  void parse_sequences() {
    step_.seq_lens = section(StepSection::kSeqLens);
    step_.seq_starts = section(StepSection::kSeqStarts);
    const int64_t count = step_.num_seqs();
    if (count > limits_.max_seqs)
      refuse(StepSection::kSeqLens, limits_.max_seqs, "more sequences than the program's maxSeqs",
             count);
    if (count == 0 && step_.seq_starts.empty()) {
      if (limits_.num_blocks > 0 && step_.num_tokens() > 0)
        refuse(StepSection::kSeqLens, 0, "tokens without a sequence", step_.num_tokens());
      return;
    }
    require_length(StepSection::kSeqStarts, count + 1);
    const Words starts = step_.seq_starts;
    for (int64_t s = 0; s <= count; ++s)
      if (starts[s] < (s == 0 ? 0 : starts[s - 1]) || starts[s] > step_.num_tokens())
        refuse(StepSection::kSeqStarts, s, "starts must ascend within the tokens", starts[s]);
    if (starts[0] != 0) refuse(StepSection::kSeqStarts, 0, "the first start must be 0", starts[0]);
    if (starts[count] != step_.num_tokens())
      refuse(StepSection::kSeqStarts, count, "the last start must be the number of tokens",
             starts[count]);
    if (limits_.num_blocks > 0) parse_block_tables();
  }

  // Every row's position is inside its sequence, and the table has a block for every position.
  void parse_block_tables() {
    const int64_t count = step_.num_seqs();
    const Words tables = section(StepSection::kBlockTables);
    if (count == 0) return require_length(StepSection::kBlockTables, 0);
    const int64_t width = static_cast<int64_t>(tables.size()) / count;
    require_length(StepSection::kBlockTables, width * count);
    if (width > limits_.max_blocks_per_seq)
      refuse(StepSection::kBlockTables, 0, "tables wider than maxBlocksPerSeq", width);
    step_.block_tables = tables;
    step_.block_table_width = width;
    for (int64_t s = 0; s < count; ++s) {
      const int64_t length = step_.seq_lens[s];
      if (length < 0 || length > width * limits_.block_size)
        refuse(StepSection::kSeqLens, s, "the sequence's blocks do not hold its length", length);
      const int64_t used = (length + limits_.block_size - 1) / limits_.block_size;
      for (int64_t i = 0; i < width; ++i)
        require_range(StepSection::kBlockTables, s * width + i, i < used ? 0 : -1,
                      limits_.num_blocks);
      int64_t previous = -1;
      for (int64_t row = step_.seq_starts[s]; row < step_.seq_starts[s + 1]; ++row) {
        const int64_t position = step_.positions[row];
        if (position >= length)
          refuse(StepSection::kPositions, row, "beyond the sequence's length", position);
        if (step_.kv_slots[row] < 0) continue;  // padding
        if (position <= previous)
          refuse(StepSection::kPositions, row, "positions of a sequence must ascend", position);
        previous = position;
      }
    }
  }

  void parse_rows() {
    constexpr StepSection kind = StepSection::kRows;
    const Words words = section(kind);
    const auto count = static_cast<int64_t>(words.size()) / 4;
    require_length(kind, count * 4);
    if (count > limits_.max_rows) refuse(kind, 0, "more rows than the program's maxRows", count);
    // Four int32 words are exactly a StepRow.
    static_assert(sizeof(StepRow) == 16 && alignof(StepRow) == alignof(int32_t));
    step_.rows = {reinterpret_cast<const StepRow*>(words.data()), static_cast<size_t>(count)};
    std::unordered_set<int32_t> sampled_slots;
    int64_t logits_words = 0;
    for (int64_t i = 0; i < count; ++i) {
      const StepRow& row = step_.rows[i];
      require_range(kind, i * 4, 0, step_.num_tokens());
      require_range(kind, i * 4 + 1, -1, limits_.num_slots);
      require_range(kind, i * 4 + 2, -1, limits_.vocab_size);
      constexpr int32_t kKnown = kRowSample | kRowLogits | kRowLogprob | 0xff << kRowTopShift;
      if ((row.flags & ~kKnown) != 0 || (row.flags >> kRowTopShift) > kMaxTopLogprobs)
        refuse(kind, i * 4 + 3, "unknown flags or more than 20 top log-probabilities", row.flags);
      if ((row.flags & kRowSample) != 0) {
        if (row.slot < 0) refuse(kind, i * 4 + 1, "a sampled row needs a slot", row.slot);
        if (!sampled_slots.insert(row.slot).second)
          refuse(kind, i * 4 + 1, "two rows sample into one slot", row.slot);
      } else if ((row.flags & kRowLogprob) != 0 && row.target < 0) {
        refuse(kind, i * 4 + 2, "a log-probability needs a sampled or target token", row.target);
      }
      if ((row.flags & kRowLogits) != 0) logits_words += limits_.vocab_size + 1;
    }
    if (logits_words > kMaxResultWords)
      refuse(kind, 0, "the logits asked for exceed 1 GiB, ask for fewer rows; words", logits_words);
  }

  void parse_slot_params() {
    constexpr StepSection kind = StepSection::kSlotParams;
    const Words words = section(kind);
    const auto count = static_cast<int64_t>(words.size()) / kSlotParamWords;
    require_length(kind, count * kSlotParamWords);
    std::unordered_set<int32_t> slots;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t at = i * kSlotParamWords;
      require_range(kind, at, 0, limits_.num_slots);
      if (!slots.insert(words[at]).second)
        refuse(kind, at, "a slot is set twice in one step", words[at]);
      const auto require_float = [&](int64_t index, double low, double high) {
        const float value = std::bit_cast<float>(words[at + index]);
        if (!(value >= low && value <= high))
          refuse(kind, at + index, "a sampling parameter is out of range, bits", words[at + index]);
      };
      constexpr double kMax = 3e38;
      require_float(3, 0, kMax);                         // temperature
      require_range(kind, at + 4, 0, int64_t{1} << 31);  // top-k
      require_float(5, 0, 1);                            // top-p
      require_float(6, 0, 1);                            // min-p
      require_float(7, 1e-6, 1e6);                       // repetition penalty
      require_float(8, -kMax, kMax);                     // presence
      require_float(9, -kMax, kMax);                     // frequency
      require_range(kind, at + 10, 0, 1);
      require_range(kind, at + 11, 0, 1);
    }
    step_.slot_params = words;
  }

  // {slot, count, entries…} repeated; an entry of slotHistory is a token, of slotBias a token and
  // a float.
  void parse_slot_lists() {
    for (const auto kind : {StepSection::kSlotHistory, StepSection::kSlotBias}) {
      const int64_t entry_words = kind == StepSection::kSlotBias ? 2 : 1;
      const Words words = section(kind);
      const auto size = static_cast<int64_t>(words.size());
      for (int64_t at = 0; at < size;) {
        if (size - at < 2) refuse(kind, at, "cut entry, words left", size - at);
        require_range(kind, at, 0, limits_.num_slots);
        const int64_t count = words[at + 1];
        if (count < 0 || count > (size - at - 2) / entry_words)
          refuse(kind, at + 1, "count runs past the section", count);
        at += 2;
        for (int64_t i = 0; i < count; ++i, at += entry_words) {
          require_range(kind, at, 0, limits_.vocab_size);
          if (entry_words == 2) require_bias(kind, at + 1);
        }
      }
    }
    step_.slot_history = section(StepSection::kSlotHistory);
    step_.slot_bias = section(StepSection::kSlotBias);
  }

  void parse_block_copies() {
    constexpr StepSection kind = StepSection::kBlockCopies;
    const auto size = static_cast<int64_t>(section(kind).size());
    require_length(kind, size / 2 * 2);
    if (size / 2 > limits_.num_blocks) refuse(kind, 0, "more copies than blocks", size / 2);
    const Words words = section(kind);
    std::unordered_set<int32_t> destinations;
    for (int64_t i = 0; i < size; ++i) {
      require_range(kind, i, 0, limits_.num_blocks);
      if (i % 2 == 1 && !destinations.insert(words[i]).second)
        refuse(kind, i, "a block is the destination of two copies", words[i]);
    }
    for (int64_t i = 0; i < size; i += 2)
      if (destinations.contains(words[i]))
        refuse(kind, i, "a copied block is a destination too", words[i]);
    step_.block_copies = words;
  }

  // `target`: word of a run that names its destination.
  Words parse_swaps(StepSection kind, int64_t target) const {
    const Words words = section(kind);
    const auto runs = static_cast<int64_t>(words.size()) / 3;
    require_length(kind, runs * 3);
    std::unordered_set<int32_t> destinations;
    for (int64_t at = 0; at < runs * 3; at += 3) {
      require_range(kind, at, 0, limits_.num_blocks);
      require_range(kind, at + 1, 0, limits_.num_host_blocks);
      const int64_t most =
          std::min(limits_.num_blocks - words[at], limits_.num_host_blocks - words[at + 1]);
      require_range(kind, at + 2, 1, most + 1);
      for (int32_t i = 0; i < words[at + 2]; ++i)
        if (!destinations.insert(words[at + target] + i).second)
          refuse(kind, at + target, "a block is the destination of two runs", words[at + target]);
    }
    return words;
  }

  void parse_allowed_tokens() {
    constexpr StepSection kind = StepSection::kAllowedTokens;
    const Words words = section(kind);
    const auto size = static_cast<int64_t>(words.size());
    const int64_t whole = mask_words(limits_.vocab_size);
    for (int64_t at = 0; at < size;) {
      if (size - at < 2) refuse(kind, at, "cut entry, words left", size - at);
      require_range(kind, at, 0, limits_.num_slots);
      const int64_t count = words[at + 1];
      if (count != 0 && count != whole)
        refuse(kind, at + 1, "a mask has one bit for each token of the vocabulary, words", count);
      if (count > size - at - 2) refuse(kind, at + 1, "count runs past the section", count);
      at += 2 + count;
    }
    step_.allowed_tokens = words;
  }

  const Limits& limits_;
  const int parts_;
  const int group_;
  const Sections& sections_;
  GroupStep step_;
};

// One word of a step has one meaning.
void require_disjoint(std::vector<Section>& sections) {
  const auto overlaps = [](const Section& a, const Section& b) {
    return a.words.data() + a.words.size() > b.words.data();
  };
  std::sort(sections.begin(), sections.end(),
            [](const Section& a, const Section& b) { return a.words.data() < b.words.data(); });
  const auto found = std::adjacent_find(sections.begin(), sections.end(), overlaps);
  if (found == sections.end()) return;
  fail(ErrorCode::kStep, "step sections %s of group %d and %s of group %d overlap",
       kSectionNames[found[0].kind], found[0].group, kSectionNames[found[1].kind], found[1].group);
}

// The sections of every group, by the table behind the header.
std::vector<Sections> read_sections(Words step, int num_groups) {
  const int64_t num_sections = step[4];
  if (num_sections < 0 || num_sections > int64_t{num_groups} * kNumSectionKinds)
    fail(ErrorCode::kStep, "a step of %lld sections", static_cast<long long>(num_sections));
  const auto size = static_cast<int64_t>(step.size());
  const int64_t table_end = kStepHeaderWords + num_sections * kStepSectionWords;
  if (table_end > size) fail(ErrorCode::kStep, "the section table runs past the step");

  std::vector<Sections> groups(num_groups);
  std::vector<std::array<bool, kNumSectionKinds + 1>> present(num_groups);
  std::vector<Section> filled;
  for (int64_t i = 0; i < num_sections; ++i) {
    const Words entry = step.subspan(kStepHeaderWords + i * kStepSectionWords, kStepSectionWords);
    const int32_t kind = entry[0], group = entry[1];
    const int64_t offset = entry[2], length = entry[3];
    if (kind < 1 || kind > kNumSectionKinds)
      fail(ErrorCode::kStep, "unknown step section kind %d", kind);
    if (group < 0 || group >= num_groups)
      fail(ErrorCode::kStep, "step section %s names group %d of %d", kSectionNames[kind], group,
           num_groups);
    if (length < 0 || offset < table_end || offset > size - length)
      fail(ErrorCode::kStep, "step section %s of group %d lies outside the step",
           kSectionNames[kind], group);
    if (std::exchange(present[group][kind], true))
      fail(ErrorCode::kStep, "step section %s of group %d stands twice", kSectionNames[kind],
           group);
    groups[group][kind] = step.subspan(offset, length);
    if (length > 0) filled.push_back({kind, group, groups[group][kind]});
  }
  require_disjoint(filled);
  return groups;
}

}  // namespace

std::unique_ptr<Step> parse_step(const Program& program, std::span<const int32_t> words) {
  if (words.size() < kStepHeaderWords)
    fail(ErrorCode::kStep, "a step of %zu words has no header", words.size());
  if (words.size() > INT32_MAX) fail(ErrorCode::kStep, "a step of more than 2^31 words");
  if (words[0] != kStepVersion)
    fail(ErrorCode::kStep, "step version %d, this addon reads version %d", words[0], kStepVersion);

  auto step = std::make_unique<Step>();
  step->words.assign(words.begin(), words.end());
  const Words owned = step->words;
  step->id = owned[1];
  step->flags = owned[2];
  step->bucket = owned[3];
  const int32_t known_flags =
      program.limits.experts.tables > 0 ? kStepExpertCounts | kStepExpertChoices : 0;
  if ((step->flags & ~known_flags) != 0)
    fail(ErrorCode::kStep, "unknown step flags %#x", step->flags);

  const std::vector<Sections> groups = read_sections(owned, program.world / program.tp);
  int64_t choice_words = 0;
  for (size_t group = 0; group < groups.size(); ++group) {
    GroupParser parser(program, static_cast<int>(group), groups[group]);
    step->groups.push_back(parser.parse());
    step->groups.back().returns_expert_choices = (step->flags & kStepExpertChoices) != 0;
    choice_words += program.limits.experts.tables * step->groups.back().num_tokens() *
                    program.limits.experts.choices;
    if (group > 0) continue;
    step->expert_tables = parser.parse_expert_tables();
    step->expert_copies = parser.parse_expert_copies();
  }
  if ((step->flags & kStepExpertChoices) != 0 && choice_words > kMaxResultWords)
    fail(ErrorCode::kStep, "the choices of experts asked for exceed 1 GiB: %lld words",
         static_cast<long long>(choice_words));
  return step;
}

}  // namespace nanoweave
