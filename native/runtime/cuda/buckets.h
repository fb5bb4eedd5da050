// Buckets: the sizes of decoding steps for which graphs are captured. A bucket shapes grids only:
// kernels take their sizes from the step, so a step may be smaller than its bucket.
#pragma once

#include <span>
#include <vector>

#include "cuda/op.h"

namespace nanoweave {

// 1, 2, 4, 8, … tokens up to one for each sequence, at most kMaxGraphTokens. Steps with more
// tokens, or with long runs of tokens of one sequence, are prefill: their kernels are long, a graph
// would save nothing, and they run eagerly.
inline constexpr int64_t kMaxGraphTokens = 512;
std::vector<CudaBucket> graph_buckets(const Program& program, const StepPlanConfig& config);

// Exactly what this step has, at most over its groups.
CudaBucket bucket_of(const Step& step, const StepPlanConfig& config);

// The largest step that the limits allow, of both kinds: workspace is sized for them.
std::vector<CudaBucket> largest_buckets(const Program& program);

// The first of `buckets` (ascending) that the step fits; −1: none.
int find_bucket(std::span<const CudaBucket> buckets, const CudaBucket& step);

}  // namespace nanoweave
