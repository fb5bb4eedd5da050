// moe_route: logits [T, E] → the k experts of each token and their weights, [T, k]; the contract is
// the host op's. A warp routes a row: scores in shared memory, then k rounds of the largest choice,
// in which only the lane that lost it looks again. Ties go to the lower index. Stays in the rank.
// Bytes per token: 4·E read, 8·k written.
#include <cfloat>

#include "cuda/rows.cuh"
#include "ops/experts.h"
#include "ops/routing.h"

namespace nanoweave {

namespace {

struct MoeRouteConfig {
  static constexpr int kWarps = 4;
  static constexpr int kThreads = kWarps * kWarpSize;
  static constexpr int kBlocksPerSm = 8;
  static_assert(kMaxChoices <= kWarpSize, "a lane holds a choice");
};

struct MoeRouteArgs {
  RowsRef rows;
  const float* logits;      // [T, experts]
  const float* bias;        // [experts] or null
  const int32_t* kv_slots;  // [T], −1: padding; null: the program has no KV cache
  int32_t* ids;             // [T, choices]
  float* weights;           // [T, choices]
  Score score;
  bool normalise, top2;
  float scale;
  int32_t experts, choices, groups, top_groups;
};

constexpr float kNoScore = -INFINITY;  // of what is never chosen

struct Candidate {
  float value;
  int32_t expert;
};
__device__ __forceinline__ bool precedes(const Candidate& a, const Candidate& b) {
  return a.value > b.value || (a.value == b.value && a.expert < b.expert);
}

// One row, by one warp. Lane l has the experts l, l + 32, …
class RouteRow {
 public:
  // `shared`: of the warp, experts · 2 + groups floats.
  __device__ RouteRow(const MoeRouteArgs& args, float* shared)
      : args_(args),
        scores_(shared),
        choice_(shared + args.experts),
        worth_(choice_ + args.experts) {}

  __device__ __forceinline__ void run(int64_t row) {
    score(args_.logits + row * args_.experts);
    if (args_.top_groups < args_.groups) keep_best_groups();
    choose();
    weigh();
    const int lane = lane_index();
    if (lane >= args_.choices) return;
    args_.ids[row * args_.choices + lane] = id_;
    args_.weights[row * args_.choices + lane] = weight_;
  }

 private:
  __device__ __forceinline__ void score(const float* logits) {
    float largest = kNoScore;
    for (int e = lane_index(); e < args_.experts; e += kWarpSize) {
      const float logit = logits[e];
      scores_[e] = logit != logit ? kNoScore : fminf(logit, FLT_MAX);
      largest = fmaxf(largest, scores_[e]);
    }
    if (args_.score == Score::kSoftmax) softmax(warp_max(largest));
    for (int e = lane_index(); e < args_.experts; e += kWarpSize) {
      if (args_.score == Score::kSigmoid && scores_[e] != kNoScore)
        scores_[e] = 1.0f / (1.0f + expf(-scores_[e]));
      const bool has_bias = args_.bias != nullptr && scores_[e] != kNoScore;
      const float choice = has_bias ? scores_[e] + args_.bias[e] : scores_[e];
      choice_[e] = choice != choice ? kNoScore : choice;  // NaN
    }
    __syncwarp();  // other lanes read the scores and choices
  }

  __device__ __forceinline__ void softmax(float largest) {
    if (largest == kNoScore) return;
    float total = 0;
    for (int e = lane_index(); e < args_.experts; e += kWarpSize)
      total += expf(scores_[e] - largest);
    total = warp_sum(total);
    for (int e = lane_index(); e < args_.experts; e += kWarpSize)
      if (scores_[e] != kNoScore) scores_[e] = expf(scores_[e] - largest) / total;
  }

  // Of the best expert, or the sum of the two best.
  __device__ __forceinline__ float group_worth(const float* choice, int size) const {
    float best = kNoScore, second = kNoScore;
    for (int e = 0; e < size; ++e) {
      second = fmaxf(second, fminf(best, choice[e]));
      best = fmaxf(best, choice[e]);
    }
    return args_.top2 && second != kNoScore ? best + second : best;
  }

  // Leaves only the experts of the best groups; of equals the first.
  __device__ __forceinline__ void keep_best_groups() {
    const int size = args_.experts / args_.groups;
    for (int g = lane_index(); g < args_.groups; g += kWarpSize)
      worth_[g] = group_worth(choice_ + g * size, size);
    __syncwarp();  // the groups' worth is there, and the choices may change
    for (int g = lane_index(); g < args_.groups; g += kWarpSize) {
      int better = 0;
      for (int other = 0; other < args_.groups; ++other)
        better += precedes({worth_[other], other}, {worth_[g], g}) ? 1 : 0;
      if (better < args_.top_groups) continue;
      for (int e = g * size; e < (g + 1) * size; ++e) choice_[e] = kNoScore;
    }
    __syncwarp();  // the groups are dropped
  }

  __device__ __forceinline__ Candidate best_of_lane() const {
    Candidate best{kNoScore, INT32_MAX};
    for (int e = lane_index(); e < args_.experts; e += kWarpSize)
      if (choice_[e] > best.value) best = {choice_[e], e};
    return best;
  }

  __device__ __forceinline__ void choose() {
    Candidate mine = best_of_lane();
    id_ = -1;
    weight_ = kNoScore;
    for (int j = 0; j < args_.choices; ++j) {
      Candidate best = mine;
#pragma unroll
      for (int bit = kWarpSize / 2; bit > 0; bit /= 2) {
        const Candidate other{__shfl_xor_sync(kFullWarp, best.value, bit),
                              __shfl_xor_sync(kFullWarp, best.expert, bit)};
        if (precedes(other, best)) best = other;
      }
      if (best.value == kNoScore) return;
      if (lane_index() == j) {
        id_ = best.expert;
        weight_ = scores_[best.expert];
      }
      if (best.expert % kWarpSize != lane_index()) continue;
      choice_[best.expert] = kNoScore;
      mine = best_of_lane();
    }
  }

  // The chosen experts' scores → weights, a lane each; summed in the order of the choices.
  __device__ __forceinline__ void weigh() {
    const bool chosen = id_ >= 0;
    if (args_.score == Score::kSoftmaxChosen) {
      const float largest = warp_max(weight_);
      weight_ = chosen ? expf(weight_ - largest) : 0;
    }
    if (!chosen) weight_ = 0;
    float total = 0;
    for (int j = 0; j < args_.choices; ++j) total += __shfl_sync(kFullWarp, weight_, j);
    if (args_.score == Score::kSigmoid) total += 1e-20f;
    if (!chosen) return;
    const bool divide = args_.normalise || args_.score == Score::kSoftmaxChosen;
    if (divide && total > 0) weight_ /= total;
    weight_ *= args_.scale;
  }

  const MoeRouteArgs& args_;
  float* scores_;  // [experts]
  float* choice_;  // [experts] what decides; −∞: out
  float* worth_;   // [groups]
  int32_t id_ = -1;
  float weight_ = 0;
};

__global__ void __launch_bounds__(MoeRouteConfig::kThreads)
    moe_route_kernel(const __grid_constant__ MoeRouteArgs args) {
  const int floats = 2 * args.experts + args.groups;
  float* shared =
      &shared_memory<float>(sizeof(float) * MoeRouteConfig::kWarps * static_cast<size_t>(floats));
  ptx::wait_for_previous_kernel();
  ptx::allow_next_kernel();
  const RowRange rows = rows_of(args.rows);
  const int stride = static_cast<int>(gridDim.x) * MoeRouteConfig::kWarps;
  RouteRow route(args, shared + warp_index() * floats);
  for (int r = static_cast<int>(blockIdx.x) * MoeRouteConfig::kWarps + warp_index(); r < rows.count;
       r += stride) {
    const int64_t row = rows.begin + int64_t{r};
    if (args.kv_slots == nullptr || args.kv_slots[row] >= 0) {
      route.run(row);
    } else if (lane_index() < args.choices) {
      args.ids[row * args.choices + lane_index()] = -1;
      args.weights[row * args.choices + lane_index()] = 0;
    }
    __syncwarp();  // the next row's scores overwrite this one's
  }
}

}  // namespace

CudaKernel prepare_cuda_moe_route(const OpInstance& op, const CudaPlan&) {
  const Routing routing = read_routing(op);
  const int32_t which = which_rows(op.output(0), op.op.part());
  const bool has_kv = op.program.limits.num_blocks > 0;
  const auto shared_bytes = static_cast<int64_t>(sizeof(float)) * MoeRouteConfig::kWarps *
                            (2 * routing.experts + routing.groups);
  return per_rank(
      moe_route_kernel,
      [=](const CudaLaunch& launch) {
        const int64_t rows = most_rows(launch.bucket, which);
        const int64_t blocks = (rows + MoeRouteConfig::kWarps - 1) / MoeRouteConfig::kWarps;
        return row_shape(launch, blocks_for(launch, blocks, MoeRouteConfig::kBlocksPerSm),
                         MoeRouteConfig::kThreads, static_cast<size_t>(shared_bytes));
      },
      [=](const CudaLaunch&, const CudaRank& rank, const CudaOperands& at) {
        return MoeRouteArgs{.rows = {rank.step.counts, which},
                            .logits = reinterpret_cast<const float*>(at.in[0]),
                            .bias = reinterpret_cast<const float*>(at.in[1]),
                            .kv_slots = has_kv ? rank.step.kv_slots : nullptr,
                            .ids = reinterpret_cast<int32_t*>(at.out[0]),
                            .weights = reinterpret_cast<float*>(at.out[1]),
                            .score = routing.score,
                            .normalise = routing.normalise,
                            .top2 = routing.top2,
                            .scale = routing.scale,
                            .experts = static_cast<int32_t>(routing.experts),
                            .choices = static_cast<int32_t>(routing.choices),
                            .groups = static_cast<int32_t>(routing.groups),
                            .top_groups = static_cast<int32_t>(routing.top_groups)};
      },
      shared_bytes);
}

}  // namespace nanoweave
