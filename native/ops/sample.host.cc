// sample: a token per row of logits [R, V] that asks for one, into tokens [R] and the slot; log-
// probabilities, the most likely tokens and whole rows of logits into the step's result.
// Log-probabilities are of the logits as given. For sampling they are then penalised (repetition on
// prompt and output; frequency and presence on the output), biased, cut down to the tokens that the
// slot allows, and divided by the temperature.
#include <algorithm>
#include <bit>
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

// Tokens that may not come get −∞, as do those beyond the mask: slots outlive programs, and it may
// be of a smaller vocabulary. Words of ones and of zeros, nearly all of a mask, cost one test.
void forbid(std::span<const uint32_t> allowed, std::span<float> logits) {
  constexpr size_t kBits = 32;
  constexpr float kForbidden = -std::numeric_limits<float>::infinity();
  for (size_t begin = 0; begin < logits.size(); begin += kBits) {
    const size_t index = begin / kBits;
    const uint32_t word = index < allowed.size() ? allowed[index] : 0;
    if (word == UINT32_MAX) continue;
    const auto tokens = logits.subspan(begin, std::min(kBits, logits.size() - begin));
    if (word == 0) {
      std::ranges::fill(tokens, kForbidden);
      continue;
    }
    for (size_t bit = 0; bit < tokens.size(); ++bit)
      if ((word >> bit & 1) == 0) tokens[bit] = kForbidden;
  }
}

// What one thread needs to sample a row of V logits.
struct ThreadScratch {
  static constexpr int64_t kRows = 4;  // of V words

  ThreadScratch(float* memory, int64_t vocab)
      : changed(memory, vocab),
        sampling{
            .weights = {memory + vocab, static_cast<size_t>(vocab)},
            .candidates = {reinterpret_cast<int32_t*>(memory + 2 * vocab),
                           static_cast<size_t>(vocab)},
            .edge = {reinterpret_cast<int32_t*>(memory + 3 * vocab), static_cast<size_t>(vocab)}} {}

  std::span<float> changed;  // penalised, biased and masked logits
  SampleScratch sampling;
};

int32_t sample_row(const VectorKernels& kernels, std::span<const float> logits,
                   const SlotState& slot, int32_t position, const ThreadScratch& scratch) {
  if (slot.has_penalties() || !slot.bias.empty() || !slot.allowed.empty()) {
    std::memcpy(scratch.changed.data(), logits.data(), logits.size_bytes());
    if (slot.has_penalties()) penalize(slot, scratch.changed);
    for (const auto& [token, bias] : slot.bias)
      if (token < static_cast<int32_t>(logits.size())) scratch.changed[token] += bias;
    if (!slot.allowed.empty()) forbid(slot.allowed, scratch.changed);
    logits = scratch.changed;
  }
  const SamplingParams params{.seed = slot.seed,
                              .position = static_cast<uint32_t>(position),
                              .temperature = slot.temperature,
                              .top_k = slot.top_k,
                              .top_p = slot.top_p,
                              .min_p = slot.min_p};
  return sample_token(kernels, logits, params, scratch.sampling);
}

int num_top_logprobs(const StepRow& row) { return row.flags >> kRowTopShift & 0xff; }

bool wants_log_total(const StepRow& row) {
  return (row.flags & kRowLogprob) != 0 || num_top_logprobs(row) > 0;
}

// Row `index` of the result; log_total is set when wants_log_total().
void report_row(const VectorKernels& kernels, std::span<const float> logits, const StepRow& row,
                int32_t index, int32_t sampled, double log_total, StepResult::Group& result) {
  result.sampled[index] = sampled;
  const int32_t token = row.target >= 0 ? row.target : sampled;
  if ((row.flags & kRowLogprob) != 0 && token >= 0)
    result.logprobs[index] = token < static_cast<int32_t>(logits.size())
                                 ? token_logprob(logits[token], log_total)
                                 : -std::numeric_limits<float>::infinity();
  if (num_top_logprobs(row) > 0) {
    const std::vector<TokenLogprob> best =
        top_logprobs(kernels, logits, num_top_logprobs(row), log_total);
    result.top_logprobs.push_back(index);
    result.top_logprobs.push_back(static_cast<int32_t>(best.size()));
    for (const TokenLogprob& entry : best) {
      result.top_logprobs.push_back(entry.token);
      result.top_logprobs.push_back(std::bit_cast<int32_t>(entry.logprob));
    }
  }
  if ((row.flags & kRowLogits) != 0) {
    const size_t at = result.logits.size();
    result.logits.resize(at + 1 + logits.size());
    result.logits[at] = index;
    std::memcpy(result.logits.data() + at + 1, logits.data(), logits.size_bytes());
  }
}

void run_sample(const HostRun& run, int64_t vocab) {
  const Tensor& logits = run.in[0];
  const std::span<const StepRow> rows = run.step.rows;
  const HostRank& rank = run.rank;
  const VectorKernels& kernels = vector_kernels(rank.isa);
  auto* tokens = reinterpret_cast<int32_t*>(run.out[0].data);
  const auto row_logits = [&](int64_t r) {
    return std::span<const float>(reinterpret_cast<const float*>(logits.row(r)), vocab);
  };

  const int64_t totals_bytes = (logits.rows * int64_t{sizeof(double)} + 63) / 64 * 64;
  const int64_t thread_floats = (ThreadScratch::kRows * vocab + 15) / 16 * 16;
  std::byte* memory = rank.scratch->get(totals_bytes + thread_floats * int64_t{sizeof(float)} *
                                                           rank.pool->num_threads());
  auto* log_totals = reinterpret_cast<double*>(memory);
  auto* scratch = reinterpret_cast<float*>(memory + totals_bytes);
  for_row_chunks(rank, logits.rows, vocab, [&](int64_t begin, int64_t end, int thread) {
    const ThreadScratch own(scratch + thread * thread_floats, vocab);
    for (int64_t r = begin; r < end; ++r) {
      const StepRow& row = rows[r];
      tokens[r] = (row.flags & kRowSample) != 0
                      ? sample_row(kernels, row_logits(r), (*rank.slots)[row.slot],
                                   run.step.positions[row.token_row], own)
                      : -1;
      if (rank.result != nullptr && wants_log_total(row))
        log_totals[r] = log_sum_exp(kernels, row_logits(r));
    }
  });
  for (int64_t r = 0; r < logits.rows; ++r)
    if (tokens[r] >= 0) rank.slots->record_sample(rows[r].slot, tokens[r]);

  if (rank.result == nullptr) return;
  StepResult::Group& result = rank.result->groups[rank.group()];
  result.sampled.assign(logits.rows, -1);
  result.logprobs.assign(logits.rows, std::numeric_limits<float>::quiet_NaN());
  for (int64_t r = 0; r < logits.rows; ++r)
    report_row(kernels, row_logits(r), rows[r], static_cast<int32_t>(r), tokens[r], log_totals[r],
               result);
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
  op.require(vocab <= op.program.limits.vocab_size, "vocab_size is %lld, the program's is %lld",
             static_cast<long long>(vocab), static_cast<long long>(op.program.limits.vocab_size));
  // A row's result has one place, and its slot takes one token per step.
  op.require(std::count_if(op.program.ops.begin(), op.program.ops.end(),
                           [&](const OpDesc& other) { return other.kind == op.op.kind; }) == 1,
             "a program samples once");
  op.require(op.op.part() < 0, "works on whole buffers, not on parts");

  return [vocab](const HostRun& run) { run_sample(run, vocab); };
}

}  // namespace nanoweave
