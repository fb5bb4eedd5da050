// moe_route: logits [T, E] → the k experts of each token and their weights, [T, k]. Float32. NaN
// counts as −∞ and +∞ as the largest float; what has −∞ is never chosen: its place holds id −1 and
// weight 0, as all places of padding rows (KV slot −1) do. Ties go to the lower index.
#include <cfloat>
#include <cmath>
#include <limits>

#include "ops/experts.h"
#include "ops/routing.h"
#include "ops/rows.h"

namespace nanoweave {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();

int64_t largest_of(const float* values, int64_t count) {
  int64_t best = 0;
  for (int64_t i = 1; i < count; ++i)
    if (values[i] > values[best]) best = i;
  return best;
}

// Row of logits → scores, in place; what must not be chosen becomes −∞.
void score_row(const Routing& routing, float* row) {
  const int64_t n = routing.experts;
  for (int64_t e = 0; e < n; ++e) row[e] = std::isnan(row[e]) ? kNever : std::min(row[e], FLT_MAX);
  if (routing.score == Score::kSoftmaxChosen) return;
  if (routing.score == Score::kSigmoid) {
    for (int64_t e = 0; e < n; ++e)
      if (row[e] != kNever) row[e] = 1.0f / (1.0f + std::exp(-row[e]));
    return;
  }
  const float largest = row[largest_of(row, n)];
  if (largest == kNever) return;
  float total = 0;
  for (int64_t e = 0; e < n; ++e) total += std::exp(row[e] - largest);
  for (int64_t e = 0; e < n; ++e)
    if (row[e] != kNever) row[e] = std::exp(row[e] - largest) / total;
}

float group_worth(const Routing& routing, const float* choice) {
  const int64_t size = routing.group_size();
  const int64_t best = largest_of(choice, size);
  if (!routing.top2) return choice[best];
  float second = kNever;
  for (int64_t e = 0; e < size; ++e)
    if (e != best) second = std::max(second, choice[e]);
  return choice[best] == kNever ? kNever : second == kNever ? choice[best] : choice[best] + second;
}

// Leaves only the experts of the best groups; `worth` has room for all groups.
void keep_best_groups(const Routing& routing, float* choice, float* worth) {
  const int64_t size = routing.group_size();
  for (int64_t g = 0; g < routing.groups; ++g) worth[g] = group_worth(routing, choice + g * size);
  for (int64_t dropped = routing.groups - routing.top_groups; dropped > 0; --dropped) {
    // The worst one; of equals the last, so that ties keep the lower index.
    int64_t worst = -1;
    for (int64_t g = 0; g < routing.groups; ++g)
      if (!std::isnan(worth[g]) && (worst < 0 || worth[g] <= worth[worst])) worst = g;
    worth[worst] = NAN;
    std::fill(choice + worst * size, choice + (worst + 1) * size, kNever);
  }
}

// The chosen experts' scores → weights; −∞ stands for no expert.
void weigh(const Routing& routing, const int32_t* ids, float* weights) {
  const int64_t k = routing.choices;
  if (routing.score == Score::kSoftmaxChosen) {
    const float largest = weights[largest_of(weights, k)];
    for (int64_t j = 0; j < k; ++j) weights[j] = ids[j] < 0 ? 0.0f : std::exp(weights[j] - largest);
  }
  float total = 0;
  for (int64_t j = 0; j < k; ++j) total += ids[j] < 0 ? 0.0f : weights[j];
  const bool divide = routing.normalise || routing.score == Score::kSoftmaxChosen;
  if (routing.score == Score::kSigmoid) total += 1e-20f;
  for (int64_t j = 0; j < k; ++j) {
    if (ids[j] < 0) {
      weights[j] = 0;
      continue;
    }
    if (divide && total > 0) weights[j] /= total;
    weights[j] *= routing.scale;
  }
}

// `row` holds the logits; `choice` and `worth` are scratch of E floats each.
void route_row(const Routing& routing, const float* bias, float* row, float* choice, float* worth,
               int32_t* ids, float* weights) {
  score_row(routing, row);
  for (int64_t e = 0; e < routing.experts; ++e) {
    choice[e] = bias == nullptr || row[e] == kNever ? row[e] : row[e] + bias[e];
    if (std::isnan(choice[e])) choice[e] = kNever;
  }
  if (routing.top_groups < routing.groups) keep_best_groups(routing, choice, worth);
  for (int64_t j = 0; j < routing.choices; ++j) {
    const int64_t best = largest_of(choice, routing.experts);
    const bool none = choice[best] == kNever;
    ids[j] = none ? -1 : static_cast<int32_t>(best);
    weights[j] = none ? kNever : row[best];
    choice[best] = kNever;
  }
  weigh(routing, ids, weights);
}

}  // namespace

HostKernel prepare_moe_route(const OpInstance& op) {
  const Routing routing = read_routing(op);
  return [routing](const HostRun& run) {
    const Tensor& logits = run.in[0];
    const std::span<const int32_t> slots = run.step.kv_slots;
    const int64_t n = routing.experts, k = routing.choices;
    const ThreadFloats scratch(run.rank, 3 * n);
    for_row_chunks(run.rank, logits.rows, n * (k + 4), [&](int64_t begin, int64_t end, int thread) {
      float* row = scratch.of(thread);
      for (int64_t r = begin; r < end; ++r) {
        int32_t* ids = mutable_ints(run.out[0]) + r * k;
        auto* weights = reinterpret_cast<float*>(run.out[1].row(r));
        if (!slots.empty() && slots[run.tokens.begin + r] < 0) {
          std::fill(ids, ids + k, -1);
          std::fill(weights, weights + k, 0.0f);
          continue;
        }
        std::copy_n(floats(logits) + r * n, n, row);
        route_row(routing, floats(run.in[1]), row, row + n, row + 2 * n, ids, weights);
      }
    });
  };
}

}  // namespace nanoweave
