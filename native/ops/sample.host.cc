// sample: a token per row of logits [R, V] that asks for one, into tokens [R] and the slot; log-
// probabilities, the most likely tokens and whole rows of logits into the step's result.
// Log-probabilities are of the logits as given. For sampling they are then penalised (repetition on
// prompt and output; frequency and presence on the output), biased, and divided by the temperature.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "cpu/sampling.h"
#include "ops/op.h"
#include "ops/rows.h"

namespace nanoweave {
namespace {

void penalize(const SlotState& slot, std::span<float> logits) {
  const auto size = static_cast<int32_t>(logits.size());
  const auto repeat = [&](int32_t token) {
    float& logit = logits[token];
    logit = logit > 0 ? logit / slot.repetition_penalty : logit * slot.repetition_penalty;
  };
  if (slot.repetition_penalty != 1) {
    for (const auto& [token, count] : slot.prompt_counts)
      if (token < size) repeat(token);
    for (const auto& [token, count] : slot.output_counts)
      if (token < size && !slot.prompt_counts.contains(token)) repeat(token);
  }
  for (const auto& [token, count] : slot.output_counts)
    if (token < size)
      logits[token] -= slot.frequency_penalty * static_cast<float>(count) + slot.presence_penalty;
}

// `scratch` holds two rows.
int32_t sample_row(const VectorKernels& kernels, std::span<const float> logits,
                   const SlotState& slot, int32_t position, float* scratch) {
  const std::span<float> changed(scratch, logits.size());
  if (slot.has_penalties() || !slot.bias.empty()) {
    std::memcpy(changed.data(), logits.data(), logits.size_bytes());
    if (slot.has_penalties()) penalize(slot, changed);
    for (const auto& [token, bias] : slot.bias)
      if (token < static_cast<int32_t>(changed.size())) changed[token] += bias;
    logits = changed;
  }
  const SamplingParams params{.seed = slot.seed,
                              .position = static_cast<uint32_t>(position),
                              .temperature = slot.temperature,
                              .top_k = slot.top_k,
                              .top_p = slot.top_p,
                              .min_p = slot.min_p};
  return sample_token(kernels, logits, params, {scratch + logits.size(), logits.size()});
}

void report_row(const VectorKernels& kernels, std::span<const float> logits, const StepRow& row,
                int32_t index, int32_t sampled, StepResult::Group& result) {
  result.sampled[index] = sampled;
  const int top = row.flags >> kRowTopShift & 0xff;
  const int32_t token = row.target >= 0 ? row.target : sampled;
  const bool wants_logprob = (row.flags & kRowLogprob) != 0 && token >= 0;
  if (wants_logprob || top > 0) {
    const double log_total = log_sum_exp(kernels, logits);
    if (wants_logprob) {
      const float logit = token < static_cast<int32_t>(logits.size()) ? logits[token] : NAN;
      result.logprobs[index] =
          std::isnan(logit)
              ? -std::numeric_limits<float>::infinity()
              : static_cast<float>(std::min(logit, std::numeric_limits<float>::max()) - log_total);
    }
    if (top > 0) {
      const std::vector<TokenLogprob> best = top_logprobs(kernels, logits, top, log_total);
      result.top_logprobs.push_back(index);
      result.top_logprobs.push_back(static_cast<int32_t>(best.size()));
      for (const TokenLogprob& entry : best) {
        result.top_logprobs.push_back(entry.token);
        result.top_logprobs.push_back(std::bit_cast<int32_t>(entry.logprob));
      }
    }
  }
  if ((row.flags & kRowLogits) != 0) {
    const size_t at = result.logits.size();
    result.logits.resize(at + 1 + logits.size());
    result.logits[at] = index;
    std::memcpy(result.logits.data() + at + 1, logits.data(), logits.size_bytes());
  }
}

}  // namespace

HostKernel prepare_sample(const OpInstance& op) {
  const BufferDesc& logits = *op.input(0);
  const BufferDesc& tokens = op.output(0);
  const int64_t vocab = op.integer("vocab_size");
  op.require_activation(logits, -1);
  op.require(logits.shape[0].symbol == Symbol::kRows && logits.dtype == DType::kF32,
             "buffer %s must be [R, V] f32", logits.name.c_str());
  op.require(vocab > 0 && vocab <= logits.cols(), "vocab_size is %lld, buffer %s has %lld columns",
             static_cast<long long>(vocab), logits.name.c_str(),
             static_cast<long long>(logits.cols()));
  op.require(tokens.space == Space::kArena && tokens.dtype == DType::kI32 &&
                 tokens.shape.size() == 1 && tokens.shape[0].symbol == Symbol::kRows,
             "buffer %s must be [R] i32 in the arena", tokens.name.c_str());
  op.require(op.op.part() < 0, "works on whole buffers, not on parts");

  return [vocab](const HostRun& run) {
    const Tensor& logits = run.in[0];
    const std::span<const StepRow> rows = run.step.rows;
    const VectorKernels& kernels = vector_kernels(run.rank.isa);
    SlotTable& slots = *run.rank.slots;
    auto* tokens = reinterpret_cast<int32_t*>(run.out[0].data);
    const auto row_logits = [&](int64_t r) {
      return std::span<const float>(reinterpret_cast<const float*>(logits.row(r)), vocab);
    };
    const ThreadFloats scratch(run.rank, 2 * vocab);
    for_row_chunks(run.rank, logits.rows, vocab, [&](int64_t begin, int64_t end, int thread) {
      for (int64_t r = begin; r < end; ++r) {
        const StepRow& row = rows[r];
        const bool samples = (row.flags & kRowSample) != 0 && row.slot >= 0;
        tokens[r] = samples ? sample_row(kernels, row_logits(r), slots[row.slot],
                                         run.step.positions[row.token_row], scratch.of(thread))
                            : -1;
      }
    });
    for (int64_t r = 0; r < logits.rows; ++r)
      if (tokens[r] >= 0) slots.record_sample(rows[r].slot, tokens[r]);

    if (run.rank.result == nullptr) return;
    StepResult::Group& result = run.rank.result->groups[run.rank.group()];
    result.sampled.assign(logits.rows, -1);
    result.logprobs.assign(logits.rows, std::numeric_limits<float>::quiet_NaN());
    for (int64_t r = 0; r < logits.rows; ++r)
      report_row(kernels, row_logits(r), rows[r], static_cast<int32_t>(r), tokens[r], result);
  };
}

}  // namespace nanoweave
