// Cases of sample: every parameter alone and together, ties, rows without a finite logit, penalties
// that build up over several samples, log-probabilities, several ranks.
#include <bit>
#include <cmath>

#include "cuda/check/op_case.h"

namespace nanoweave::check {

namespace {

struct Slot {
  uint64_t seed = 0x123456789abcdefull;
  float temperature = 0;
  int32_t top_k = 0;
  float top_p = 1, min_p = 0;
  float repetition = 1, presence = 0, frequency = 0;
};

void set_slot(CaseStep& step, int32_t index, const Slot& slot) {
  const auto bits = [](float value) { return std::bit_cast<int32_t>(value); };
  const auto low = static_cast<int32_t>(static_cast<uint32_t>(slot.seed + index));
  const auto high = static_cast<int32_t>(static_cast<uint32_t>(slot.seed >> 32));
  step.slot_params.insert(
      step.slot_params.end(),
      {index, low, high, bits(slot.temperature), slot.top_k, bits(slot.top_p), bits(slot.min_p),
       bits(slot.repetition), bits(slot.presence), bits(slot.frequency), 0, 0});
}

// Four rows sample into four slots with the same parameters; a fifth does not sample.
OpCase sample_case(const std::string& name, int64_t vocab, const Slot& slot,
                   Fill fill = Fill::kRandom, float scale = 6, int tp = 1) {
  OpCase c(name + ", " + std::to_string(vocab) + " tokens", "sample", tp);
  c.program.limits.vocab_size = vocab;
  View logits = c.arena("logits", DType::kF32, Symbol::kRows, vocab + 5, fill, scale);
  c.buffers[logits.buffer].same_on_all_ranks = true;
  c.in(logits);
  c.out(c.arena("tokens", DType::kI32, Symbol::kRows, 1, Fill::kPoison));
  c.buffers.back().desc.shape.resize(1);
  c.attrs("{\"vocab_size\": " + std::to_string(vocab) + "}");
  CaseStep& step = c.steps[0];
  step.add_tokens(9, vocab);
  for (int32_t i = 0; i < 4; ++i) {
    set_slot(step, i, slot);
    const int32_t flags = kRowSample | (i % 2 == 0 ? kRowLogprob : 0) | (i << kRowTopShift);
    step.rows.insert(step.rows.end(), {2 * i + 1, i, -1, flags});
  }
  const auto target = static_cast<int32_t>(vocab / 2);
  step.rows.insert(step.rows.end(), {0, -1, target, kRowLogprob | 20 << kRowTopShift});
  step.rows.insert(step.rows.end(), {3, -1, -1, 0});
  c.tolerance = Tolerance::kExact;
  return c;
}

// Slot 0: every third token; 1: the last token alone; 2: none; 3: a mask that is taken back.
void allow_some(CaseStep& step, int64_t vocab) {
  const auto count = static_cast<int32_t>(mask_words(vocab));
  const auto add = [&](int32_t slot, const auto& allows) {
    step.allowed_tokens.insert(step.allowed_tokens.end(), {slot, count});
    for (int32_t word = 0; word < count; ++word) {
      uint32_t bits = 0;
      for (int32_t bit = 0; bit < 32; ++bit)
        if (allows(word * 32 + bit)) bits |= 1u << bit;
      step.allowed_tokens.push_back(static_cast<int32_t>(bits));
    }
  };
  add(0, [](int64_t token) { return token % 3 == 0; });
  add(1, [&](int64_t token) { return token == vocab - 1; });
  add(2, [](int64_t) { return false; });
  add(3, [](int64_t token) { return token == 0; });
  step.allowed_tokens.insert(step.allowed_tokens.end(), {3, 0});
}

}  // namespace

void add_sample_cases(Cases& cases) {
  cases.push_back(sample_case("all cuts", 5003, {.temperature = 2, .top_k = 900, .top_p = 0.8f}));
  for (const int64_t vocab : {1, 7, 1000}) {
    cases.push_back(sample_case("greedy", vocab, {}));
    cases.push_back(sample_case("greedy, ties", vocab, {}, Fill::kIntegers));
    cases.push_back(sample_case("no logit", vocab, {.temperature = 1}, Fill::kPoison));
    for (const Fill fill : {Fill::kRandom, Fill::kIntegers}) {
      const std::string ties = fill == Fill::kIntegers ? ", ties" : "";
      for (const float temperature : {0.3f, 1.0f, 8.0f}) {
        const std::string name = "T " + std::to_string(temperature).substr(0, 3) + ties;
        const auto add = [&](const char* what, Slot slot) {
          slot.temperature = temperature;
          cases.push_back(sample_case(name + what, vocab, slot, fill));
        };
        add("", {});
        add(", top-k", {.top_k = 5});
        add(", top-k 1", {.top_k = 1});
        add(", top-p", {.top_p = 0.7f});
        add(", top-p 0", {.top_p = 0});
        add(", min-p", {.min_p = 0.2f});
        add(", all cuts", {.top_k = 40, .top_p = 0.9f, .min_p = 0.05f});
      }
    }
  }
  for (const int64_t vocab : {1, 31, 32, 33, 5003})
    for (const Slot& slot : {Slot{}, Slot{.temperature = 1}, Slot{.temperature = 1, .top_k = 3},
                             Slot{.temperature = 2, .top_p = 0.8f, .repetition = 1.2f}}) {
      OpCase c = sample_case("allowed tokens", vocab, slot);
      allow_some(c.steps[0], vocab);
      const auto bits = [](float value) { return std::bit_cast<int32_t>(value); };
      // Sums of finite biases stay finite, and lift no token past the mask.
      c.steps[0].slot_bias = {1, 2, 0, bits(3e38f), 0, bits(3e38f)};
      cases.push_back(std::move(c));
    }
  // Penalties and bias, several samples in a row.
  for (const int tp : {1, 2}) {
    const Slot slots[] = {{.repetition = 1.3f},
                          {.presence = 1.5f, .frequency = 0.7f},
                          {.temperature = 0.8f, .top_k = 9, .repetition = 0.8f, .presence = -1}};
    for (const Slot& slot : slots) {
      OpCase c =
          sample_case("penalties, tp " + std::to_string(tp), 300, slot, Fill::kRandom, 2, tp);
      c.repeats = 4;
      c.steps[0].slot_history = {0, 3, 5, 17, 5, 2, 2, 299, 0};
      const auto bits = [](float value) { return std::bit_cast<int32_t>(value); };
      c.steps[0].slot_bias = {1, 3,          4, bits(3), 9,   bits(-INFINITY),
                              4, bits(1.5f), 3, 1,       250, bits(100)};
      cases.push_back(std::move(c));
    }
  }
}

}  // namespace nanoweave::check
