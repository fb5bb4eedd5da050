// Sampling from one row of logits, and log-probabilities of it. NaN counts as −∞ and +∞ as the
// largest float; a row of −∞ alone yields token 0. Everything is a function of the row and its
// parameters, never of the batch.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cpu/vector_kernels.h"

namespace nanoweave {

struct SamplingParams {
  uint64_t seed = 0;
  uint32_t position = 0;  // of the token before the sampled one, in its sequence
  float temperature = 0;  // below 1e-5: greedy
  int32_t top_k = 0;      // ≤ 0: off. Ties with the k-th are kept
  float top_p = 1;        // ≥ 1: off. The fewest tokens whose probability reaches top_p
  float min_p = 0;        // ≤ 0: off. At least min_p times the largest probability
};

struct TokenLogprob {
  int32_t token;
  float logprob;
};

// The most likely token, ties to the lower id.
int32_t argmax(const VectorKernels& kernels, std::span<const float> logits);

// Memory for sample_token; each piece has the row's size.
struct SampleScratch {
  std::span<float> weights;
  std::span<int32_t> candidates;
  std::span<int32_t> edge;
};

// Draws a token: temperature, then top-k, then top-p on what top-k left, then min-p.
int32_t sample_token(const VectorKernels& kernels, std::span<const float> logits,
                     const SamplingParams& params, const SampleScratch& scratch);

// log Σ exp(logit); 0 for a row of −∞, whose log-probabilities are −∞.
double log_sum_exp(const VectorKernels& kernels, std::span<const float> logits);

// logit − log_total, of a logit as defined above.
float token_logprob(float logit, double log_total);

// The `count` most likely tokens, best first, ties to the lower id.
std::vector<TokenLogprob> top_logprobs(const VectorKernels& kernels, std::span<const float> logits,
                                       int count, double log_total);

}  // namespace nanoweave
