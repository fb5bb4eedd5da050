// Program: the native mirror of lib/program/types.ts. Parsed from JSON and verified at load
// (verify_program): bounds, op signatures, and that every pair of conflicting byte ranges is
// ordered by lane order and waits. Never re-plans: TypeScript decides offsets and waits.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "core/json.h"

namespace nanoweave {

enum class Space : uint8_t { kArena, kWeight, kKv };
enum class Layout : uint8_t { kPlain, kMatmul };
enum class Lane : uint8_t { kCompute, kMemory, kNetwork };
enum class Symbol : uint8_t { kNone, kTokens, kRows, kSeqs };

struct Dim {
  Symbol symbol = Symbol::kNone;
  int64_t size = 0;  // the number, or the symbol's maximum
};

struct BufferDesc {
  std::string name;
  Space space = Space::kArena;
  DType dtype = DType::kF32;
  Layout layout = Layout::kPlain;
  std::vector<Dim> shape;
  int64_t offset = -1;  // arena buffers: bytes from the start of the heap

  // Seen as a matrix: rows() is the first dimension, cols() the product of the others; a vector
  // is [1, n] unless its one dimension is a symbol.
  int64_t max_rows() const;
  int64_t cols() const;
  Symbol row_symbol() const;
  int64_t max_bytes() const;
};

struct View {
  int buffer = -1;  // -1: optional input absent
  int part = -1;    // -1: the whole buffer
  bool up_to = false;
};

struct OpDesc {
  std::string kind;
  std::string label;
  Lane lane = Lane::kCompute;
  std::vector<View> inputs;
  std::vector<View> outputs;
  Json attrs;
  std::vector<int> waits;

  // The part this op works on (-1: all rows): the part of its first output, else input, that has
  // one.
  int part() const;
};

// Routed experts whose places a step may change: `tables` layers (0: none) of `count` experts in
// `slots` slots, the same number for each of the `positions` that the experts are spread over.
struct ExpertLimits {
  int64_t tables = 0;
  int64_t count = 0;
  int64_t slots = 0;
  int64_t positions = 1;
  int64_t choices = 0;  // of a token

  bool operator==(const ExpertLimits&) const = default;
};

struct Limits {
  int64_t max_tokens = 0;
  int64_t max_rows = 0;
  int64_t max_seqs = 0;
  int64_t num_blocks = 0;
  int64_t block_size = 0;
  int64_t max_blocks_per_seq = 0;
  int64_t vocab_size = 0;
  int64_t num_slots = 0;
  int64_t num_host_blocks = 0;  // KV blocks on the host that steps may copy to and from
  ExpertLimits experts;
};

struct Program {
  std::string name;
  int world = 1;
  int tp = 1;
  int parts = 1;
  Limits limits;
  std::vector<BufferDesc> buffers;
  std::vector<OpDesc> ops;
  int64_t arena_bytes = 0;
  // Of a device, what collectives may hold while other lanes compute; 0: the backend decides.
  double network_share = 0;
};

// Parses and checks structure (sizes, ranges, unknown names); ERR_PROGRAM says where.
Program parse_program(std::string_view json);

// Checks that buffers lie in the arena and that every two accesses to overlapping arena bytes, one
// of them a write, are ordered by lane order and waits (program/verify.cc); ≤ 20,000 ops.
void verify_program(const Program& program);

}  // namespace nanoweave
