// sample: a token per row of logits [R, V] that asks for one, into tokens [R] and the slot of its
// sequence; log-probabilities and the most likely tokens into the result. Whole rows of logits that
// were asked for are still in the op's input: the backend copies them from there.
//
// One block per row. Greedy: one pass over the row. Otherwise the weights exp((l − max) / T) of the
// penalised, biased and masked logits go to the workspace, and a handful of passes over them (in
// L2) find the cuts and the draw. Log-probabilities are of the logits as given. Stays in the rank:
// all ranks of a group hold the same logits and state, and draw the same token.
#include "cuda/rows.cuh"
#include "ops/sampling.cuh"

namespace nanoweave {

namespace {

constexpr float kGreedyTemperature = 1e-5f;

struct SampleArgs {
  const StepCounts* counts;
  const StepRow* rows;       // [R]
  const int32_t* positions;  // [T]
  const float* logits;       // [R, columns]
  int64_t columns;
  int32_t vocab;    // columns in use
  int32_t* tokens;  // [R]
  SlotStates slots;
  SampleResult result;
  float* weights;  // [blocks, vocab]
};

// What sampling sees of a slot.
struct SlotView {
  SlotParams params;
  const uint16_t* counts;
  const float* bias;
  const uint32_t* allowed;
  bool penalises;

  __device__ SlotView(const SlotStates& slots, int64_t slot)
      : params(slots.params[slot]),
        counts(slots.counts + slot * slots.vocab_size),
        bias(slots.bias + slot * slots.vocab_size),
        allowed(slots.allowed + slot * mask_words(slots.vocab_size)),
        penalises(params.repetition_penalty != 1 || params.presence_penalty != 0 ||
                  params.frequency_penalty != 0) {}

  // As penalize(), the bias and forbid() of sample.host.cc.
  __device__ float change(float logit, int token) const {
    if (params.has_mask != 0 && (allowed[token / 32] >> (token % 32) & 1) == 0) return -INFINITY;
    if (penalises && counts[token] != 0) {
      const int sampled = counts[token] & kCountMask;
      logit = logit > 0 ? logit / params.repetition_penalty : logit * params.repetition_penalty;
      if (sampled > 0)
        logit -= params.frequency_penalty * static_cast<float>(sampled) + params.presence_penalty;
    }
    return params.has_bias != 0 ? logit + bias[token] : logit;
  }
};

// Draws from the row with the slot's parameters.
__device__ int32_t sample_token(SamplingBlock& block, const SampleArgs& args, const float* logits,
                                const SlotView& slot, uint32_t position, float* weights) {
  const SlotParams& params = slot.params;
  const TokenValue best = block.first([&](int token) { return slot.change(logits[token], token); });
  if (best.value == -INFINITY) return 0;
  if (!(params.temperature >= kGreedyTemperature)) return best.token;

  const float largest = fminf(best.value, FLT_MAX);
  const float inverse = 1.0f / params.temperature;
  const Mass total = block.sum([&](int token) {
    const float logit = slot.change(logits[token], token);
    const float usable = logit == logit ? fminf(logit, FLT_MAX) : -INFINITY;
    const float weight = expf((usable - largest) * inverse);
    weights[token] = weight;
    return mass_of(weight);
  });
  __syncthreads();  // all weights are there

  Cut cut;
  Mass kept = total;
  Mass above = 0;
  if (params.top_k > 0 && params.top_k < args.vocab) {
    cut.weight = block.boundary(
        weights, [](float, int) { return Mass{1}; }, static_cast<Mass>(params.top_k), above);
    kept = block.sum([&](int token) {
      return cut.keeps(weights[token], token) ? mass_of(weights[token]) : Mass{0};
    });
  }
  if (params.top_p < 1) {
    const double exact = static_cast<double>(params.top_p) * static_cast<double>(kept);
    const Mass target = max(Mass{1}, static_cast<Mass>(ceil(exact)));
    const Cut before = cut;
    cut.weight = block.boundary(
        weights,
        [&](float weight, int token) {
          return before.keeps(weight, token) ? mass_of(weight) : Mass{0};
        },
        target, above);
    // Of equal weights only as many as it takes, the lower ids.
    const Mass each = mass_of(cut.weight);
    const Mass missing = target > above ? target - above : Mass{1};
    if (each > 0)
      cut.token = block.nth_token([&](int token) { return weights[token] == cut.weight; },
                                  (missing + each - 1) / each);
  }
  if (params.min_p > cut.weight) cut = {fminf(params.min_p, 1.0f), INT32_MAX};

  const auto amount_of = [&](int token) {
    return cut.keeps(weights[token], token) ? mass_of(weights[token]) : Mass{0};
  };
  const double fraction = philox_uniform_of(params.seed, position);
  const Mass reachable = block.sum(amount_of);
  const auto target = static_cast<Mass>(fraction * static_cast<double>(reachable));
  // Below one unit of mass per token the draw could find nothing: the best token has weight 1.
  return block.token_at(amount_of, min(target, reachable - 1));
}

// log Σ exp(logit); 0 for a row of −∞.
__device__ double log_sum_exp(SamplingBlock& block, const float* logits) {
  const float largest = fminf(block.first([&](int token) { return logits[token]; }).value, FLT_MAX);
  if (largest == -INFINITY) return 0;
  const Mass total = block.sum([&](int token) {
    const float logit = logits[token];
    const float usable = logit == logit ? fminf(logit, FLT_MAX) : -INFINITY;
    return mass_of(expf(usable - largest));
  });
  return static_cast<double>(largest) + log(static_cast<double>(total) / kMassUnit);
}

__device__ float token_logprob(float logit, double log_total) {
  if (logit != logit) return -INFINITY;
  return static_cast<float>(static_cast<double>(fminf(logit, FLT_MAX)) - log_total);
}

// Log-probabilities of the row as given, into the result.
__device__ void report_row(SamplingBlock& block, const SampleArgs& args, const float* logits,
                           const StepRow& row, int index, int32_t sampled) {
  const int top = row.flags >> kRowTopShift & 0xff;
  const int32_t token = row.target >= 0 ? row.target : sampled;
  const bool wants_logprob = (row.flags & kRowLogprob) != 0 && token >= 0;
  if (threadIdx.x == 0) {
    args.result.sampled[index] = sampled;
    if (!wants_logprob) args.result.logprobs[index] = NAN;
  }
  if (!wants_logprob && top == 0) return;
  const double log_total = log_sum_exp(block, logits);
  if (wants_logprob && threadIdx.x == 0)
    args.result.logprobs[index] =
        token < args.vocab ? token_logprob(logits[token], log_total) : -INFINITY;
  TokenValue best{INFINITY, -1};  // in front of every token
  for (int i = 0; i < min(top, args.vocab); ++i) {
    const TokenValue behind = best;
    best = block.first([&](int id) { return logits[id]; }, &behind);
    if (threadIdx.x != 0) continue;
    args.result.top_tokens[index * kMaxTopLogprobs + i] = best.token;
    args.result.top_logprobs[index * kMaxTopLogprobs + i] = token_logprob(best.value, log_total);
  }
}

__device__ void record_sample(const SlotStates& slots, int64_t slot, bool counted, int32_t token) {
  slots.params[slot].last_token = token;
  if (!counted) return;
  uint16_t& count = slots.counts[slot * slots.vocab_size + token];
  if ((count & kCountMask) != kCountMask) ++count;
}

__global__ void __launch_bounds__(SamplingConfig::kThreads)
    sample_kernel(const __grid_constant__ SampleArgs args) {
  SamplingBlock block(shared_memory<SamplingShared>(), args.vocab);
  ptx::wait_for_previous_kernel();
  ptx::allow_next_kernel();
  float* weights = args.weights + blockIdx.x * int64_t{args.vocab};
  const int rows = args.counts->num_rows;
  for (int index = blockIdx.x; index < rows; index += gridDim.x) {
    const StepRow row = args.rows[index];
    const float* logits = args.logits + index * args.columns;
    int32_t sampled = -1;
    if ((row.flags & kRowSample) != 0) {
      const SlotView slot(args.slots, row.slot);
      const auto position = static_cast<uint32_t>(args.positions[row.token_row]);
      sampled = sample_token(block, args, logits, slot, position, weights);
      __syncthreads();  // all have read the slot
      if (threadIdx.x == 0) record_sample(args.slots, row.slot, slot.penalises, sampled);
    }
    if (threadIdx.x == 0) args.tokens[index] = sampled;
    if (args.result.sampled != nullptr) report_row(block, args, logits, row, index, sampled);
  }
}

}  // namespace

CudaKernel prepare_cuda_sample(const OpInstance& op, const CudaPlan&) {
  const auto vocab = static_cast<int32_t>(op.integer("vocab_size"));
  const int64_t columns = op.input(0)->cols();
  op.require(vocab <= kMaxSampledVocab, "a vocabulary of %d tokens, at most %d on CUDA", vocab,
             static_cast<int>(kMaxSampledVocab));
  op.require(vocab <= op.program.limits.vocab_size, "vocab_size is above the program's limit");
  const auto blocks_of = [](const CudaDevice& device, const CudaBucket& bucket) {
    return std::clamp<int64_t>(bucket.rows, 1, device.sm_count);
  };
  CudaKernel kernel = per_rank(
      sample_kernel,
      [=](const CudaLaunch& launch) {
        return row_shape(launch, static_cast<unsigned>(blocks_of(launch.device, launch.bucket)),
                         SamplingConfig::kThreads, sizeof(SamplingShared));
      },
      [=](const CudaLaunch& launch, const CudaRank& rank, const CudaOperands& at) {
        return SampleArgs{
            .counts = rank.step.counts,
            .rows = rank.step.rows,
            .positions = rank.step.positions,
            .logits = reinterpret_cast<const float*>(at.in[0]),
            .columns = columns,
            .vocab = vocab,
            .tokens = reinterpret_cast<int32_t*>(at.out[0]),
            .slots = rank.slots,
            .result = rank.result,
            .weights = reinterpret_cast<float*>(launch.workspace + kWorkspaceCounterBytes)};
      },
      sizeof(SamplingShared));
  kernel.workspace_bytes = [=](const CudaDevice& device, const CudaBucket& bucket) {
    return kWorkspaceCounterBytes + blocks_of(device, bucket) * vocab * int64_t{sizeof(float)};
  };
  return kernel;
}

}  // namespace nanoweave
