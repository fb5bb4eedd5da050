// Op: one entry of native/ops/table.cc. An op declares its signature (compared with lib/ops at
// start-up), checks an instance of itself at load (prepare), and returns the kernel that runs it on
// the host. A kernel is shared by all ranks and keeps no state between steps.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "comm/host_comm.h"
#include "comm/launch_plan.h"
#include "core/error.h"
#include "core/tensor.h"
#include "cpu/isa.h"
#include "cpu/scratch.h"
#include "cpu/thread_pool.h"
#include "ops/expert_tables.h"
#include "ops/slot_table.h"
#include "program/program.h"
#include "program/step.h"

namespace nanoweave {

// One CPU rank, as ops see it.
struct HostRank {
  int rank = 0;
  int world = 1;
  int tp = 1;  // ranks of an attention group: [tp_first(), tp_first() + tp)
  CpuIsa isa = CpuIsa::kPortable;
  bool deterministic = false;
  ThreadPool* pool = nullptr;
  HostComm* comm = nullptr;
  Scratch* scratch = nullptr;
  SlotTable* slots = nullptr;
  ExpertTables* experts = nullptr;
  StepResult* result = nullptr;  // set on the first rank of each group, null on the others

  int group() const { return rank / tp; }
  int tp_first() const { return group() * tp; }
  int tp_rank() const { return rank % tp; }
};

// One run of one op on one rank. Operands are narrowed to the op's part: a [T, H] buffer of part 1
// has data at its first row and rows = that part's rows. kKv operands keep rows = blocks.
struct HostRun {
  HostRank& rank;
  const GroupStep& step;
  int step_id;
  const std::string& label;
  RowSpan tokens;              // token rows of this op's part, in the step
  std::span<const Tensor> in;  // by position; absent optional: data null
  std::span<const Tensor> out;

  // A barrier over the op's attention group.
  void group_barrier(int phase) const {
    rank.comm->barrier(rank.rank, rank.tp_first(), rank.tp, phase, label, step_id);
  }
  // The same tensor in another rank's heap (arena operands only).
  Tensor at_peer(const Tensor& tensor, int peer) const {
    Tensor other = tensor;
    other.data = rank.comm->at_peer(tensor.data, rank.rank, peer);
    return other;
  }
};

using HostKernel = std::function<void(const HostRun&)>;

// What prepare() sees: the op with its operands' descriptors.
struct OpInstance {
  const Program& program;
  const OpDesc& op;

  const BufferDesc* input(int index) const;  // null: absent
  const BufferDesc& output(int index) const;

  // Attributes; ERR_PROGRAM naming op and attribute when absent or of another type.
  double number(const char* name) const;
  double number_or(const char* name, double fallback) const;
  int64_t integer(const char* name) const;
  int64_t integer_or(const char* name, int64_t fallback) const;
  bool boolean_or(const char* name, bool fallback) const;
  std::string string_or(const char* name, const char* fallback) const;
  std::vector<double> numbers(const char* name) const;
  bool has(const char* name) const;

  // ERR_PROGRAM with the op's label unless the condition holds.
  void require(bool condition, const char* format, ...) const __attribute__((format(printf, 3, 4)));
  // The operand is a matrix [rows, cols]; cols < 0 accepts any.
  void require_matrix(const BufferDesc& buffer, Symbol rows, int64_t cols) const;
  void require_vector(const BufferDesc& buffer, int64_t size, DType dtype) const;
  void require_float(const BufferDesc& buffer) const;  // f32, bf16 or f16

  // An activation [T or R, cols] in the arena, f32, bf16 or f16; cols < 0 accepts any.
  void require_activation(const BufferDesc& buffer, int64_t cols) const;
  // Two activations have the same row symbol and dtype.
  void require_alike(const BufferDesc& a, const BufferDesc& b) const;
  // A constant [rows, cols] in the layout of matmul weights, or a f32 vector of `size`.
  void require_weight_matrix(const BufferDesc& buffer, int64_t rows, int64_t cols) const;
  void require_weight_vector(const BufferDesc* buffer, int64_t size) const;  // null is fine
  // A KV cache with this program's blocks: [blocks, 2, kv_heads, block_size, head_dim].
  void require_kv(const BufferDesc& buffer, int64_t kv_heads, int64_t head_dim) const;
  // A cache of latent vectors, of which keys and values are made: [blocks, 1, 1, block_size, dim].
  void require_latent_cache(const BufferDesc& buffer, int64_t dim) const;
  // Row-wise operands name the same part, so that their rows correspond; weights, KV and absent
  // inputs are left out.
  void require_same_part() const;
  // The attribute `form` of a collective.
  CollectiveForm collective_form() const;
  // Output `output` is the very view given as input `input`.
  void require_in_place(int input, int output) const;
  // Output `output` is written while input `input` is still read, here or by a peer.
  void require_distinct(int input, int output) const;
};

struct AttrDef {
  const char* name;
  const char* type;  // "number" "string" "boolean" "numbers", with a trailing "?" when optional
};

struct OpDef {
  const char* name;
  std::vector<const char*> inputs;  // trailing "?" marks an optional one
  std::vector<const char*> outputs;
  std::vector<AttrDef> attrs;
  bool collective = false;
  HostKernel (*prepare)(const OpInstance& instance);
  // Waits for ranks of other attention groups: runs even where its own group has no rows.
  bool across_groups = false;
};

// All ops, in the order of lib/ops/index.ts.
std::span<const OpDef> op_table();
const OpDef* find_op(std::string_view name);

// ERR_PROGRAM for an op that asks for what only CUDA has: a form or an implementation by name.
void refuse_cuda_only(const Program& program);

// Checks one op of a program against its signature (operands, attributes and their types), then
// its own contract, and returns its host kernel. ERR_PROGRAM names the op's label.
HostKernel prepare_host_op(const Program& program, const OpDesc& op);

}  // namespace nanoweave
