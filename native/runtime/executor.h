// LoadedProgram: a program bound to one CPU device, ready to run: kernels prepared, operands
// resolved to addresses of every rank. run_program() is the whole executor: the ops of one step on
// one rank, in program order (lanes only permit overlap; one thread per rank needs none).
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "ops/op.h"
#include "runtime/expert_copies.h"
#include "runtime/weight_store.h"

namespace nanoweave {

// Where an operand's rows come from in a step: a fixed number, or an entry of RowSpans.
inline constexpr int kFixedRows = -1;
inline constexpr int kAbsent = -2;

struct BoundOperand {
  std::byte* base = nullptr;  // row 0
  int64_t cols = 0;
  int64_t fixed_rows = 0;
  int64_t row_bytes = 0;
  DType dtype = DType::kF32;
  int rows = kAbsent;  // kAbsent, kFixedRows, or index of RowSpans
};

struct BoundOp {
  const HostKernel* kernel;
  const std::string* label;
  int tokens;     // index of RowSpans: token rows of the op's part
  int governing;  // index of RowSpans whose emptiness skips the op; kFixedRows: never
  int num_inputs;
  int num_outputs;
  size_t first_operand;  // inputs, then outputs
};

struct BoundRank {
  std::vector<BoundOp> ops;
  std::vector<BoundOperand> operands;
  std::vector<const StoredBuffer*> kv;  // KV buffers of the program
  ExpertWeights expert_weights;
};

struct LoadedProgram {
  Program program;
  std::vector<HostKernel> kernels;  // by op, shared by the ranks
  std::vector<BoundRank> ranks;     // [world]
};

// Prepares every op and resolves every operand; heaps[r] is rank r's symmetric heap. ERR_PROGRAM
// when an op refuses its operands or a weight was not loaded as the program describes it.
std::shared_ptr<const LoadedProgram> bind_program(Program program, const WeightStore& store,
                                                  const std::vector<std::byte*>& heaps);

// Where the running rank is, for error messages.
struct RunPosition {
  const std::string* op = nullptr;
};

// Rank thread. Applies swaps, block copies and slot changes, then runs the ops.
void run_program(const LoadedProgram& loaded, const Step& step, HostRank& rank,
                 RunPosition& position);

}  // namespace nanoweave
