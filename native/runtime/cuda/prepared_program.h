// PreparedProgram: what the devices of a backend share of a program: its kernels, the plan of its
// lanes, the buckets its graphs are captured for.
#pragma once

#include <vector>

#include "cuda/op.h"
#include "runtime/cuda/buckets.h"
#include "runtime/cuda/lane_plan.h"

namespace nanoweave {

struct PreparedProgram {
  Program program;
  CudaPlan plan;
  std::vector<CudaKernel> kernels;  // by op
  LanePlan lanes;
  bool has_overlapped_matmuls = false;  // ops that use the network lane beside their own
  std::vector<CudaBucket> buckets;      // ascending; empty without graphs
  int sample_op = -1;                   // −1: the program does not sample
  int sample_vocab = 0;                 // tokens it chooses from
  int fault_base = 0;                   // faults name op fault_base + index
};

// Index of an op in a fault record: unique over the programs of a backend.
inline constexpr int kFaultOps = 1 << 15;

// `plan` without `step`, which comes from the program. ERR_PROGRAM when an op refuses its operands,
// is not there on CUDA, or overwrites the logits that a step may ask for.
PreparedProgram prepare_program(Program program, int id, CudaPlan plan, bool graphs);

// The logits the program samples from; null: it does not sample.
const BufferDesc* logits_of(const PreparedProgram& prepared);

}  // namespace nanoweave
