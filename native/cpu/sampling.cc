// Sampling without a sort of the vocabulary: weights w = exp((logit − largest) / temperature) are
// computed once; the cuts of top-k and top-p are found by selection among the few tokens that can
// pass them; the draw inverts the cumulative sum in token order.
#include "cpu/sampling.h"

#include <algorithm>
#include <bit>
#include <cfloat>
#include <cmath>
#include <limits>

#include "cpu/philox.h"

namespace nanoweave {
namespace {

constexpr float kGreedyTemperature = 1e-5f;
constexpr int64_t kChunk = 1024;
constexpr float kInfinity = std::numeric_limits<float>::infinity();
// Thresholds on weights tried in turn: a peaked row is settled by the first, a flat one by the
// last.
constexpr float kThresholds[] = {0x1p-5f, 0x1p-10f, 0x1p-16f, 0};

int64_t size_of(std::span<const float> row) { return static_cast<int64_t>(row.size()); }

// Heavier first, ties to the lower id: a total order, so selections are unique.
struct Precedes {
  const float* weights;
  bool operator()(int32_t a, int32_t b) const {
    return weights[a] > weights[b] || (weights[a] == weights[b] && a < b);
  }
};

double mass_of(const float* weights, std::span<const int32_t> tokens) {
  double mass = 0;
  for (const int32_t token : tokens) mass += weights[token];
  return mass;
}

// Weights in [0, 1] by their leading bits: sixteen bins to the octave, in ascending order.
constexpr int kBins = (0x3f800000 >> 19) + 1;

int bin_of(float weight) { return static_cast<int>(std::bit_cast<uint32_t>(weight) >> 19); }

// The heaviest bins of candidates, down to the one in which a running total (of tokens or of their
// weights) reaches its target.
template <typename Amount>
struct Boundary {
  int bin = 0;
  Amount above = 0;  // total of the bins above
};

template <typename Amount, typename AmountOf>
Boundary<Amount> find_boundary(const float* weights, std::span<const int32_t> candidates,
                               Amount target, const AmountOf& amount_of) {
  Amount amounts[kBins] = {};
  for (const int32_t token : candidates) amounts[bin_of(weights[token])] += amount_of(token);
  Boundary<Amount> boundary{.bin = kBins - 1};
  while (boundary.bin > 0 && boundary.above + amounts[boundary.bin] < target)
    boundary.above += amounts[boundary.bin--];
  return boundary;
}

// Candidates whose weight is in `bin`, in ascending order.
std::span<int32_t> in_bin(const float* weights, std::span<const int32_t> candidates, int bin,
                          std::span<int32_t> out) {
  size_t found = 0;
  for (const int32_t token : candidates) {  // no branch: see VectorKernels::select
    out[found] = token;
    found += bin_of(weights[token]) == bin ? 1 : 0;
  }
  return out.first(found);
}

// The k-th largest weight among at least k candidates.
float kth_weight(const float* weights, std::span<const int32_t> candidates, int64_t k,
                 std::span<int32_t> scratch) {
  const auto boundary =
      find_boundary<int64_t>(weights, candidates, k, [](int32_t) { return int64_t{1}; });
  const std::span<int32_t> edge = in_bin(weights, candidates, boundary.bin, scratch);
  const auto kth = edge.begin() + (k - boundary.above - 1);
  std::nth_element(edge.begin(), kth, edge.end(), Precedes{weights});
  return weights[*kth];
}

// The length of the shortest prefix of `tokens`, in order of precedence, whose weights reach
// `target`: quickselect on mass instead of rank. The prefix is moved to the front, its last token
// at its end.
size_t prefix_length(const float* weights, std::span<int32_t> tokens, double target) {
  size_t begin = 0;  // everything before is in the prefix
  size_t end = tokens.size();
  while (end - begin > 1) {
    const size_t middle = begin + (end - begin) / 2;
    std::nth_element(tokens.begin() + begin, tokens.begin() + middle, tokens.begin() + end,
                     Precedes{weights});
    const double mass = mass_of(weights, tokens.subspan(begin, middle - begin));
    if (mass >= target) {
      end = middle;
    } else {
      target -= mass;
      begin = middle;
    }
  }
  return begin + 1;
}

// Zeroes the weights that top-k excludes; returns the sum of the others.
double apply_top_k(const VectorKernels& kernels, std::span<float> weights, int64_t k,
                   const SampleScratch& scratch) {
  const int64_t count = size_of(weights);
  std::span<int32_t> candidates;
  for (const float threshold : kThresholds) {
    candidates = scratch.candidates.first(
        kernels.select(weights.data(), count, threshold, scratch.candidates.data()));
    if (static_cast<int64_t>(candidates.size()) >= k) break;
  }
  const float least = kth_weight(weights.data(), candidates, k, scratch.edge);
  kernels.clear_below(weights.data(), count, least);
  return kernels.sum(weights.data(), count);
}

// Zeroes the weights that top-p excludes. `total` is the sum of all weights.
void apply_top_p(const VectorKernels& kernels, std::span<float> weights, double total, float top_p,
                 const SampleScratch& scratch) {
  const int64_t count = size_of(weights);
  const double target = top_p * total;
  // Tokens below the threshold weigh less than total − target together, so top-p needs none.
  const auto threshold = static_cast<float>((total - target) / static_cast<double>(count));
  const std::span<int32_t> candidates = scratch.candidates.first(
      kernels.select(weights.data(), count, threshold, scratch.candidates.data()));
  const auto boundary = find_boundary<double>(weights.data(), candidates, target,
                                              [&](int32_t token) { return weights[token]; });
  const std::span<int32_t> edge = in_bin(weights.data(), candidates, boundary.bin, scratch.edge);
  // Near top_p 1 rounding may leave the sum of all candidates short of the target: all are needed.
  if (edge.empty()) return kernels.clear_below(weights.data(), count, threshold);
  const size_t length = prefix_length(weights.data(), edge, target - boundary.above);
  const float least = weights[edge[length - 1]];
  for (const int32_t token : edge.subspan(length)) weights[token] = 0;
  kernels.clear_below(weights.data(), count, least);
}

// The token at which the cumulative sum of weights passes `fraction` of the total.
int32_t invert(const VectorKernels& kernels, std::span<const float> weights, double fraction) {
  const int64_t count = size_of(weights);
  const auto chunk_sum = [&](int64_t begin) {
    return kernels.sum(weights.data() + begin, std::min(kChunk, count - begin));
  };
  double total = 0;
  for (int64_t begin = 0; begin < count; begin += kChunk) total += chunk_sum(begin);
  double target = fraction * total;
  int64_t begin = 0;
  for (; begin + kChunk < count; begin += kChunk) {
    const double sum = chunk_sum(begin);
    if (target < sum) break;
    target -= sum;
  }
  int32_t last = -1;
  for (int64_t i = begin; i < count; ++i) {
    if (weights[i] <= 0) continue;
    last = static_cast<int32_t>(i);
    if (target < weights[i]) return last;
    target -= weights[i];
  }
  // Rounding carried the target past the end: the last token that has any weight.
  for (int64_t i = begin; last < 0; --i)
    if (weights[i] > 0) last = static_cast<int32_t>(i);
  return last;
}

}  // namespace

int32_t argmax(const VectorKernels& kernels, std::span<const float> logits) {
  const float largest = kernels.max(logits.data(), size_of(logits));
  if (largest == -kInfinity) return 0;
  return static_cast<int32_t>(kernels.find(logits.data(), size_of(logits), largest));
}

int32_t sample_token(const VectorKernels& kernels, std::span<const float> logits,
                     const SamplingParams& params, const SampleScratch& scratch) {
  if (!(params.temperature >= kGreedyTemperature)) return argmax(kernels, logits);
  const int64_t count = size_of(logits);
  const float largest = std::min(kernels.max(logits.data(), count), FLT_MAX);
  if (largest == -kInfinity) return 0;
  const std::span<float> weights = scratch.weights;
  double total =
      kernels.exp_weights(logits.data(), count, largest, 1.0f / params.temperature, weights.data());
  if (params.top_k > 0 && params.top_k < count)
    total = apply_top_k(kernels, weights, params.top_k, scratch);
  if (params.top_p < 1) apply_top_p(kernels, weights, total, params.top_p, scratch);
  if (params.min_p > 0) kernels.clear_below(weights.data(), count, std::min(params.min_p, 1.0f));
  return invert(kernels, weights, philox_uniform(params.seed, params.position));
}

double log_sum_exp(const VectorKernels& kernels, std::span<const float> logits) {
  const float largest = std::min(kernels.max(logits.data(), size_of(logits)), FLT_MAX);
  if (largest == -kInfinity) return 0;
  return largest +
         std::log(kernels.exp_weights(logits.data(), size_of(logits), largest, 1.0f, nullptr));
}

float token_logprob(float logit, double log_total) {
  if (std::isnan(logit)) return -kInfinity;
  return static_cast<float>(std::min(logit, FLT_MAX) - log_total);
}

std::vector<TokenLogprob> top_logprobs(const VectorKernels& kernels, std::span<const float> logits,
                                       int count, double log_total) {
  struct Best {
    float logit;
    int32_t token;
  };
  const auto precedes = [](const Best& a, const Best& b) {
    return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
  };
  const auto wanted = std::min(static_cast<size_t>(count), logits.size());
  std::vector<Best> best;  // sorted by precedence
  best.reserve(wanted + 1);
  for (size_t begin = 0; begin < logits.size(); begin += kChunk) {
    const auto chunk = logits.subspan(begin, std::min<size_t>(kChunk, logits.size() - begin));
    // Later tokens lose ties, so a chunk matters only when it holds something greater.
    if (best.size() == wanted && kernels.max(chunk.data(), size_of(chunk)) <= best.back().logit)
      continue;
    for (size_t i = 0; i < chunk.size(); ++i) {
      const Best entry{std::isnan(chunk[i]) ? -kInfinity : chunk[i],
                       static_cast<int32_t>(begin + i)};
      if (best.size() == wanted && !precedes(entry, best.back())) continue;
      best.insert(std::upper_bound(best.begin(), best.end(), entry, precedes), entry);
      if (best.size() > wanted) best.pop_back();
    }
  }
  std::vector<TokenLogprob> result;
  result.reserve(best.size());
  for (const Best& entry : best)
    result.push_back({entry.token, token_logprob(entry.logit, log_total)});
  return result;
}

}  // namespace nanoweave
