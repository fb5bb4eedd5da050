// encode_result: the result of a step as one Int32Array in the step's own envelope.
#include <cstring>

#include "core/error.h"
#include "program/step.h"

namespace nanoweave {

std::vector<int32_t> encode_result(const Step& step, const StepResult& result) {
  struct Section {
    ResultSection kind;
    int32_t group;
    std::span<const int32_t> words;
  };
  const int32_t timings[2] = {result.queue_us, result.run_us};
  std::vector<Section> sections;
  for (size_t g = 0; g < result.groups.size(); ++g) {
    const StepResult::Group& group = result.groups[g];
    const auto index = static_cast<int32_t>(g);
    // Floats seen as words: only their bytes are copied, below.
    const std::span<const int32_t> logprobs(reinterpret_cast<const int32_t*>(group.logprobs.data()),
                                            group.logprobs.size());
    sections.push_back({ResultSection::kSampled, index, group.sampled});
    sections.push_back({ResultSection::kLogprobs, index, logprobs});
    if (!group.top_logprobs.empty())
      sections.push_back({ResultSection::kTopLogprobs, index, group.top_logprobs});
    if (!group.expert_counts.empty())
      sections.push_back({ResultSection::kExpertCounts, index, group.expert_counts});
    if (!group.expert_choices.empty())
      sections.push_back({ResultSection::kExpertChoices, index, group.expert_choices});
    if (!group.logits.empty()) sections.push_back({ResultSection::kLogits, index, group.logits});
  }
  sections.push_back({ResultSection::kTimings, 0, timings});

  size_t total = kStepHeaderWords + sections.size() * kStepSectionWords;
  size_t offset = total;
  for (const Section& section : sections) total += section.words.size();
  if (total > INT32_MAX) fail(ErrorCode::kInternal, "a result of %zu words", total);

  std::vector<int32_t> words;
  words.reserve(total);
  words = {kStepVersion, step.id, 0, step.bucket, static_cast<int32_t>(sections.size())};
  for (const Section& section : sections) {
    words.push_back(static_cast<int32_t>(section.kind));
    words.push_back(section.group);
    words.push_back(static_cast<int32_t>(offset));
    words.push_back(static_cast<int32_t>(section.words.size()));
    offset += section.words.size();
  }
  for (const Section& section : sections) {
    if (section.words.empty()) continue;
    const size_t at = words.size();
    words.resize(at + section.words.size());
    std::memcpy(words.data() + at, section.words.data(), section.words.size_bytes());
  }
  return words;
}

}  // namespace nanoweave
