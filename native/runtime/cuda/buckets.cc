#include "runtime/cuda/buckets.h"

#include <algorithm>

namespace nanoweave {

namespace {

// Whether every run of one sequence's rows inside a part is short enough for the decode list.
bool is_decode_only(const GroupStep& step, const StepPlanConfig& config) {
  for (int64_t s = 0; s < step.num_seqs(); ++s) {
    const int32_t begin = step.seq_starts[s], end = step.seq_starts[s + 1];
    if (end - begin > config.decode_rows) return false;
  }
  return true;
}

}  // namespace

std::vector<CudaBucket> graph_buckets(const Program& program, const StepPlanConfig& config) {
  const Limits& limits = program.limits;
  const int64_t most = std::min({limits.max_tokens, limits.max_seqs, kMaxGraphTokens});
  std::vector<CudaBucket> buckets;
  for (int64_t tokens = 1; most > 0; tokens *= 2) {
    const int64_t size = std::min(tokens, most);
    buckets.push_back({.tokens = size,
                       .part_tokens = (size + program.parts - 1) / program.parts,
                       .rows = std::min(size, limits.max_rows),
                       .seqs = size,
                       .decode_only = config.decode_rows > 0});
    if (size == most) break;
  }
  return buckets;
}

CudaBucket bucket_of(const Step& step, const StepPlanConfig& config) {
  CudaBucket bucket{.decode_only = config.decode_rows > 0};
  for (const GroupStep& group : step.groups) {
    bucket.tokens = std::max(bucket.tokens, group.num_tokens());
    for (size_t part = 0; part + 1 < group.part_bounds.size(); ++part)
      bucket.part_tokens = std::max<int64_t>(bucket.part_tokens,
                                             group.part_bounds[part + 1] - group.part_bounds[part]);
    bucket.rows = std::max(bucket.rows, static_cast<int64_t>(group.rows.size()));
    bucket.seqs = std::max(bucket.seqs, group.num_seqs());
    bucket.decode_only = bucket.decode_only && is_decode_only(group, config);
  }
  return bucket;
}

std::vector<CudaBucket> largest_buckets(const Program& program) {
  const Limits& limits = program.limits;
  CudaBucket largest{.tokens = limits.max_tokens,
                     .part_tokens = limits.max_tokens,
                     .rows = limits.max_rows,
                     .seqs = limits.max_seqs,
                     .decode_only = false};
  CudaBucket decode = largest;
  decode.decode_only = true;
  return {largest, decode};
}

int find_bucket(std::span<const CudaBucket> buckets, const CudaBucket& step) {
  for (size_t i = 0; i < buckets.size(); ++i) {
    const CudaBucket& bucket = buckets[i];
    if (step.tokens <= bucket.tokens && step.part_tokens <= bucket.part_tokens &&
        step.rows <= bucket.rows && step.seqs <= bucket.seqs &&
        (step.decode_only || !bucket.decode_only))
      return static_cast<int>(i);
  }
  return -1;
}

}  // namespace nanoweave
