// OpCase: one op on random data, run by the host op and by the emulated CUDA kernel on equal copies
// of everything, and compared byte by byte: outputs within a tolerance class, all else unchanged.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "cuda/op.h"

namespace nanoweave::check {

// docs/style.md. kExact: bits. kClose: relative error of the whole output below 1e-5 (f32) or 4e-3
// (16-bit operands), and no element further off than a hundred times that of the largest.
enum class Tolerance { kExact, kClose };

enum class Fill {
  kPoison,    // 0xff: must be written before it is read
  kRandom,    // uniform in ±scale
  kIntegers,  // −8..8: sums of them are exact in every dtype
};

struct CaseBuffer {
  BufferDesc desc;
  Fill fill = Fill::kRandom;
  float scale = 1;
  bool same_on_all_ranks = false;
  bool same_in_group = false;
  // In place of `fill`: writes `count` elements of a rank's buffer.
  std::function<void(std::byte* to, int64_t count, int rank, std::mt19937_64& random)> values = {};
};

// Sections of one group's step, as lib/engine/step.ts sends them.
struct CaseStep {
  std::vector<int32_t> part_bounds, tokens, positions, kv_slots, seq_starts, seq_lens, block_tables,
      rows, slot_params, slot_history, slot_bias, block_copies, allowed_tokens;

  // A sequence of `rows` rows whose last position is context − 1; blocks are handed out in an
  // order that is not sorted. `padding` rows follow with slot −1.
  void add_sequence(const Limits& limits, int64_t rows, int64_t context, int64_t padding = 0);
  // Rows without KV, positions 0, 1, …
  void add_tokens(int64_t count, int64_t vocab_size);

 private:
  int64_t blocks_used_ = 0;
};

struct OpCase {
  std::string name;
  Program program;  // one op; arena offsets are filled in
  std::vector<CaseBuffer> buffers;
  std::vector<CaseStep> steps;  // by group
  std::vector<int> devices;     // by rank; empty: all on one
  std::vector<double> late_us;  // by device: it starts that much later
  std::vector<bool> dead;       // by device: it never starts
  CudaDevice device{.ordinal = 0, .arch = 90, .sm_count = 4, .max_shared_bytes = 227 << 10};
  bool deterministic = false;
  bool multicast = false;
  bool nccl = false;                         // launches bring communicators of the double
  bool cublaslt = false;                     // launches bring a handle of the double
  bool counts_known = false;                 // launches bring the step's sizes
  std::optional<std::string> expects_calls;  // of the doubles, a line each
  std::string expects_error;                 // part of the message with which it is refused
  std::string host_attrs;                    // of the host op, where they differ; JSON
  int sm_budget = 4;
  int repeats = 1;  // launches of the op, all compared at the end
  Tolerance tolerance = Tolerance::kClose;
  bool compare = true;         // false: outputs are not looked at
  bool expects_fault = false;  // a rank must report a fault; outputs are not looked at
  int lost_boxes = 0;          // every so many boxes of the copy engine do not come
  uint32_t first_epoch = 0;
  uint64_t timeout_ns = 1'000'000'000;

  OpCase(std::string case_name, std::string kind, int tp = 1, int world = 0);

  // Buffers; the return value is a view for in() and out().
  View arena(const char* buffer, DType dtype, Symbol rows, int64_t cols, Fill fill = Fill::kRandom,
             float scale = 1);
  // [rows, cols] of fixed size in the arena, and [experts + 1] offsets.
  View fixed(const char* buffer, DType dtype, int64_t rows, int64_t cols, Fill fill = Fill::kRandom,
             float scale = 1);
  View offsets(const char* buffer, int64_t experts);
  View vector_weight(const char* buffer, int64_t size, float scale = 1);
  View matrix_weight(const char* buffer, DType dtype, int64_t rows, int64_t cols, float scale = 1);
  View kv_cache(DType dtype, int64_t kv_heads, int64_t head_dim);
  View latent_cache(DType dtype, int64_t dim);
  void in(View view) { program.ops.back().inputs.push_back(view); }
  void absent() { program.ops.back().inputs.push_back({}); }
  void out(View view) { program.ops.back().outputs.push_back(view); }
  void attrs(const std::string& json);
  // The functions above name operands of the last op.
  void next_op(const char* kind);

  // The copy engine breaks: every `count`th of its boxes does not come, and the rank must say so.
  void lose_boxes(int count);

  // All ops take part `part` of `parts`; bounds are those of the step.
  void use_part(int part, int parts);

 private:
  View add_buffer(CaseBuffer buffer);
  View cache(DType dtype, int64_t planes, int64_t heads, int64_t dim);
};

struct CaseResult {
  bool ok = false;
  std::string message;  // why not
  double error = 0;     // relative, the largest of the outputs
};

// Runs the case once with this seed: random data, and the order in which threads run.
CaseResult run_case(const OpCase& op_case, uint64_t seed);

// A check: a name and a function that adds cases.
using Cases = std::vector<OpCase>;
void add_row_cases(Cases& cases);
void add_attention_cases(Cases& cases);
void add_latent_cases(Cases& cases);
void add_matmul_cases(Cases& cases);
void add_collective_cases(Cases& cases);
void add_sample_cases(Cases& cases);
void add_expert_cases(Cases& cases);

}  // namespace nanoweave::check
