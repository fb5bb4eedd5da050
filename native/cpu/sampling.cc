// Sampling without a sort of the vocabulary: weights w = exp((logit − largest) / temperature) are
// computed once; the cuts of top-k and top-p are found by selection on the few tokens that can pass
// them; the draw inverts the cumulative sum in token order.
#include "cpu/sampling.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <functional>

#include "cpu/philox.h"

namespace nanoweave {
namespace {

constexpr float kGreedyTemperature = 1e-5f;
constexpr int64_t kChunk = 1024;

struct Candidate {
  float weight;
  int32_t token;
};

// Heavier first, ties to the lower id: a total order, so selections are unique.
bool precedes(const Candidate& a, const Candidate& b) {
  return a.weight > b.weight || (a.weight == b.weight && a.token < b.token);
}

// A token stays when its weight is above `weight`, or equal with an id up to `token`.
struct Cut {
  float weight = 0;
  int32_t token = INT32_MAX;

  bool keeps(float w, int64_t id) const { return w > weight || (w == weight && id <= token); }
};

std::vector<Candidate> at_least(std::span<const float> weights, float threshold) {
  std::vector<Candidate> found;
  for (size_t i = 0; i < weights.size(); ++i)
    if (weights[i] >= threshold) found.push_back({weights[i], static_cast<int32_t>(i)});
  return found;
}

// Thresholds tried in turn: a peaked row is settled by the first, a flat one by the last.
constexpr float kThresholds[] = {0x1p-5f, 0x1p-10f, 0x1p-16f, 0};

Cut top_k_cut(std::span<const float> weights, int64_t k) {
  for (const float threshold : kThresholds) {
    std::vector<Candidate> candidates = at_least(weights, threshold);
    if (static_cast<int64_t>(candidates.size()) < k) continue;
    std::nth_element(candidates.begin(), candidates.begin() + (k - 1), candidates.end(), precedes);
    return {candidates[k - 1].weight, INT32_MAX};
  }
  return {};
}

// The last token of the shortest prefix, in order of precedence, whose weights reach `target`:
// quickselect on mass instead of rank.
Cut prefix_cut(std::vector<Candidate>& candidates, double target) {
  size_t begin = 0;  // everything before is in the prefix
  size_t end = candidates.size();
  while (end - begin > 1) {
    const size_t middle = begin + (end - begin) / 2;
    std::nth_element(candidates.begin() + begin, candidates.begin() + middle,
                     candidates.begin() + end, precedes);
    double mass = 0;
    for (size_t i = begin; i < middle; ++i) mass += candidates[i].weight;
    if (mass >= target) {
      end = middle;
    } else {
      target -= mass;
      begin = middle;
    }
  }
  return {candidates[begin].weight, candidates[begin].token};
}

Cut top_p_cut(std::span<const float> weights, const Cut& within, float top_p) {
  double total = 0;
  for (size_t i = 0; i < weights.size(); ++i)
    if (within.keeps(weights[i], static_cast<int64_t>(i))) total += weights[i];
  const double target = top_p * total;
  for (const float threshold : kThresholds) {
    std::vector<Candidate> candidates = at_least(weights, std::max(threshold, within.weight));
    double mass = 0;
    for (const Candidate& candidate : candidates) mass += candidate.weight;
    const bool complete = threshold <= within.weight;
    if (!candidates.empty() && (mass >= target || complete)) return prefix_cut(candidates, target);
  }
  return within;
}

// The token at which the cumulative sum of weights passes `fraction` of the total.
int32_t invert(std::span<const float> weights, double fraction) {
  std::vector<double> sums;
  double total = 0;
  for (size_t begin = 0; begin < weights.size(); begin += kChunk) {
    double sum = 0;
    for (const float weight :
         weights.subspan(begin, std::min<size_t>(kChunk, weights.size() - begin)))
      sum += weight;
    sums.push_back(sum);
    total += sum;
  }
  double target = fraction * total;
  size_t chunk = 0;
  while (chunk + 1 < sums.size() && target >= sums[chunk]) target -= sums[chunk++];
  int32_t last = 0;
  for (size_t i = chunk * kChunk; i < weights.size(); ++i) {
    if (weights[i] <= 0) continue;
    last = static_cast<int32_t>(i);
    if (target < weights[i]) return last;
    target -= weights[i];
  }
  return last;  // rounding carried the target past the end
}

}  // namespace

int32_t argmax(const VectorKernels& kernels, std::span<const float> logits) {
  const auto count = static_cast<int64_t>(logits.size());
  const float largest = kernels.max(logits.data(), count);
  if (largest == -INFINITY) return 0;
  return static_cast<int32_t>(kernels.find(logits.data(), count, largest));
}

int32_t sample_token(const VectorKernels& kernels, std::span<const float> logits,
                     const SamplingParams& params, std::span<float> weights) {
  if (!(params.temperature >= kGreedyTemperature)) return argmax(kernels, logits);
  const auto count = static_cast<int64_t>(logits.size());
  const float largest = std::min(kernels.max(logits.data(), count), FLT_MAX);
  if (largest == -INFINITY) return 0;
  kernels.exp_weights(logits.data(), count, largest, 1.0f / params.temperature, weights.data());

  Cut cut;
  if (params.top_k > 0 && params.top_k < count) cut = top_k_cut(weights, params.top_k);
  if (params.top_p < 1) cut = top_p_cut(weights, cut, std::max(params.top_p, 0.0f));
  if (params.min_p > cut.weight) cut = {std::min(params.min_p, 1.0f), INT32_MAX};
  if (cut.weight > 0)
    for (int64_t i = 0; i < count; ++i)
      if (!cut.keeps(weights[i], i)) weights[i] = 0;
  return invert(weights, philox_uniform(params.seed, params.position));
}

double log_sum_exp(const VectorKernels& kernels, std::span<const float> logits) {
  const auto count = static_cast<int64_t>(logits.size());
  const float largest = std::min(kernels.max(logits.data(), count), FLT_MAX);
  if (largest == -INFINITY) return 0;  // log-probabilities of such a row are −∞
  return largest + std::log(kernels.exp_weights(logits.data(), count, largest, 1.0f, nullptr));
}

std::vector<TokenLogprob> top_logprobs(const VectorKernels& kernels, std::span<const float> logits,
                                       int count, double log_total) {
  std::vector<Candidate> best;  // sorted by precedence
  const auto wanted = std::min(static_cast<size_t>(count), logits.size());
  for (size_t begin = 0; begin < logits.size(); begin += kChunk) {
    const auto chunk = logits.subspan(begin, std::min<size_t>(kChunk, logits.size() - begin));
    const float largest = kernels.max(chunk.data(), static_cast<int64_t>(chunk.size()));
    if (best.size() == wanted && largest <= best.back().weight) continue;
    for (size_t i = 0; i < chunk.size(); ++i) {
      const float logit = std::isnan(chunk[i]) ? -INFINITY : chunk[i];
      const Candidate candidate{logit, static_cast<int32_t>(begin + i)};
      if (best.size() == wanted && !precedes(candidate, best.back())) continue;
      if (best.size() == wanted) best.pop_back();
      best.insert(std::upper_bound(best.begin(), best.end(), candidate, precedes), candidate);
    }
  }
  std::vector<TokenLogprob> result;
  for (const Candidate& candidate : best)
    result.push_back(
        {candidate.token, static_cast<float>(std::min(candidate.weight, FLT_MAX) - log_total)});
  return result;
}

}  // namespace nanoweave
