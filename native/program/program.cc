// Parsing of program JSON: structure, ranges and references. Everything later code indexes with
// (buffers, parts, dimensions) is in range afterwards, and no size computation overflows.
#include "program/program.h"

#include <algorithm>
#include <string>
#include <unordered_set>

#include "core/error.h"

namespace nanoweave {

namespace {

constexpr int kMaxWorld = 64;
constexpr int kMaxParts = 4;
constexpr size_t kMaxBuffers = 16384;
constexpr size_t kMaxOps = 20000;
constexpr size_t kMaxOperands = 16;  // inputs, and outputs, of one op
constexpr size_t kMaxDims = 8;
constexpr int64_t kMaxBytes = int64_t{1} << 44;  // of one buffer or one arena
constexpr int64_t kMaxDim = INT32_MAX;           // ops keep sizes as int32
constexpr int64_t kArenaAlignment = 64;

int64_t parse_range(const Json& json, const char* what, int64_t low, int64_t high) {
  const int64_t value = json.as_int();
  if (value < low || value > high)
    fail(ErrorCode::kProgram, "%s is %lld, must be %lld..%lld", what, static_cast<long long>(value),
         static_cast<long long>(low), static_cast<long long>(high));
  return value;
}

template <typename T>
T parse_name(const Json& json, const char* what,
             std::initializer_list<std::pair<const char*, T>> names) {
  const std::string& text = json.as_string();
  for (const auto& [name, value] : names)
    if (text == name) return value;
  fail(ErrorCode::kProgram, "unknown %s '%.64s'", what, text.c_str());
}

ExpertLimits parse_expert_limits(const Json& json) {
  const auto get = [&](const char* name, int64_t low, int64_t high) {
    return parse_range(json.at(name), name, low, high);
  };
  constexpr int64_t kMost = 1024;  // experts, slots, and layers
  ExpertLimits limits;
  limits.tables = get("tables", 1, kMost);
  limits.count = get("count", 1, kMost);
  limits.positions = get("positions", 1, kMaxWorld);
  limits.slots = get("slots", limits.count, kMost);
  limits.choices = get("choices", 1, limits.count);
  const int64_t homes = (limits.count + limits.positions - 1) / limits.positions;
  if (limits.slots % limits.positions != 0 || limits.slots / limits.positions < homes)
    fail(ErrorCode::kProgram, "%lld experts do not fit %lld slots of %lld positions",
         static_cast<long long>(limits.count), static_cast<long long>(limits.slots),
         static_cast<long long>(limits.positions));
  return limits;
}

Limits parse_limits(const Json& json) {
  const auto get = [&](const char* name, int64_t low, int64_t high) {
    return parse_range(json.at(name), name, low, high);
  };
  Limits limits;
  limits.max_tokens = get("maxTokens", 1, 1 << 22);
  limits.max_rows = get("maxRows", 0, 1 << 22);
  limits.max_seqs = get("maxSeqs", 0, 1 << 22);
  limits.num_blocks = get("numBlocks", 0, 1 << 30);
  limits.block_size = get("blockSize", 0, 1 << 16);
  limits.max_blocks_per_seq = get("maxBlocksPerSeq", 0, 1 << 30);
  limits.vocab_size = get("vocabSize", 0, 1 << 30);
  limits.num_slots = get("numSlots", 0, 1 << 16);
  if (const Json* host = json.find("numHostBlocks"))
    limits.num_host_blocks = parse_range(*host, "numHostBlocks", 0, 1 << 30);
  if (const Json* experts = json.find("experts")) limits.experts = parse_expert_limits(*experts);
  if (limits.num_host_blocks > 0 && limits.num_blocks == 0)
    fail(ErrorCode::kProgram, "numHostBlocks without a KV cache");
  if (limits.num_blocks > 0 && limits.block_size == 0)
    fail(ErrorCode::kProgram, "numBlocks is %lld but blockSize is 0",
         static_cast<long long>(limits.num_blocks));
  // KV slots and positions are int32 words of a step.
  if (limits.num_blocks * limits.block_size > INT32_MAX ||
      limits.max_blocks_per_seq * limits.block_size > INT32_MAX)
    fail(ErrorCode::kProgram, "the KV cache has more than 2^31 - 1 slots");
  return limits;
}

Dim parse_dim(const Json& json, const Limits& limits, bool first) {
  if (json.kind() != Json::Kind::kString)
    return {Symbol::kNone, parse_range(json, "a dimension", 1, kMaxDim)};
  const auto symbol = parse_name<Symbol>(
      json, "dimension", {{"T", Symbol::kTokens}, {"R", Symbol::kRows}, {"S", Symbol::kSeqs}});
  if (!first) fail(ErrorCode::kProgram, "a symbol may only be the first dimension");
  const int64_t size = symbol == Symbol::kTokens ? limits.max_tokens
                       : symbol == Symbol::kRows ? limits.max_rows
                                                 : limits.max_seqs;
  return {symbol, size};
}

void check_bytes(const BufferDesc& buffer) {
  __int128 bytes = dtype_bytes(buffer.dtype);
  for (const Dim& dim : buffer.shape) {
    bytes *= std::max<int64_t>(dim.size, 1);  // an empty dimension must not hide the others
    if (bytes > kMaxBytes)
      fail(ErrorCode::kProgram, "buffer '%s' is larger than 2^44 bytes", buffer.name.c_str());
  }
}

void check_kv(const BufferDesc& buffer, const Limits& limits) {
  const auto& shape = buffer.shape;
  if (shape.size() != 5 || shape[0].size != limits.num_blocks ||
      (shape[1].size != 1 && shape[1].size != 2) || shape[3].size != limits.block_size ||
      limits.num_blocks == 0)
    fail(ErrorCode::kProgram,
         "KV buffer '%s' must have shape [numBlocks, 1 or 2, kvHeads, blockSize, headDim] of the "
         "limits",
         buffer.name.c_str());
}

BufferDesc parse_buffer(const Json& json, const Limits& limits) {
  BufferDesc buffer;
  buffer.name = json.at("name").as_string();
  buffer.space =
      parse_name<Space>(json.at("space"), "space",
                        {{"arena", Space::kArena}, {"weight", Space::kWeight}, {"kv", Space::kKv}});
  buffer.dtype = parse_dtype(json.at("dtype").as_string());
  if (const Json* layout = json.find("layout"))
    buffer.layout = parse_name<Layout>(*layout, "layout",
                                       {{"plain", Layout::kPlain}, {"matmul", Layout::kMatmul}});
  const auto& dims = json.at("shape").items();
  if (dims.empty() || dims.size() > kMaxDims)
    fail(ErrorCode::kProgram, "buffer '%s' has %zu dimensions, must be 1..%zu", buffer.name.c_str(),
         dims.size(), kMaxDims);
  for (const Json& dim : dims) buffer.shape.push_back(parse_dim(dim, limits, buffer.shape.empty()));
  check_bytes(buffer);

  if (buffer.space != Space::kArena && buffer.row_symbol() != Symbol::kNone)
    fail(ErrorCode::kProgram, "buffer '%s' is not in the arena and cannot have a symbolic size",
         buffer.name.c_str());
  if (buffer.space != Space::kWeight && buffer.layout != Layout::kPlain)
    fail(ErrorCode::kProgram, "buffer '%s' is no weight and cannot have layout matmul",
         buffer.name.c_str());
  if (buffer.layout == Layout::kMatmul && buffer.shape.size() != 2)
    fail(ErrorCode::kProgram, "buffer '%s' has layout matmul and must be a matrix",
         buffer.name.c_str());
  if (buffer.space == Space::kKv) check_kv(buffer, limits);
  if (buffer.space == Space::kArena) {
    buffer.offset = parse_range(json.at("offset"), "offset", 0, kMaxBytes);
    if (buffer.offset % kArenaAlignment != 0)
      fail(ErrorCode::kProgram, "buffer '%s' is not 64-byte aligned", buffer.name.c_str());
  }
  return buffer;
}

View parse_view(const Json& json, const Program& program) {
  View view;
  view.buffer = static_cast<int>(parse_range(json.at("buffer"), "a view's buffer", 0,
                                             static_cast<int64_t>(program.buffers.size()) - 1));
  if (const Json* part = json.find("part"))
    view.part = static_cast<int>(parse_range(*part, "a view's part", 0, program.parts - 1));
  if (const Json* up_to = json.find("upTo")) view.up_to = up_to->as_bool();
  if (view.up_to && view.part < 0) fail(ErrorCode::kProgram, "a view with upTo needs a part");
  const BufferDesc& buffer = program.buffers[view.buffer];
  if (view.part >= 0 && buffer.space != Space::kKv && buffer.row_symbol() != Symbol::kTokens)
    fail(ErrorCode::kProgram, "buffer '%s' has no token rows and cannot be seen in parts",
         buffer.name.c_str());
  return view;
}

// All token-row operands of an op must have the same rows: the op's part, or the whole step.
void check_parts(const Program& program, const OpDesc& op) {
  const int part = op.part();
  const auto check = [&](const View& view) {
    if (view.buffer < 0) return;
    const BufferDesc& buffer = program.buffers[view.buffer];
    const bool has_rows = buffer.row_symbol() == Symbol::kTokens;
    if ((has_rows || view.part >= 0) && view.part != part)
      fail(ErrorCode::kProgram, "op '%s' works on part %d but sees part %d of '%s'",
           op.label.c_str(), part, view.part, buffer.name.c_str());
  };
  for (const View& view : op.inputs) check(view);
  for (const View& view : op.outputs) {
    check(view);
    if (program.buffers[view.buffer].space == Space::kWeight)
      fail(ErrorCode::kProgram, "op '%s' writes weight '%s'", op.label.c_str(),
           program.buffers[view.buffer].name.c_str());
    if (view.up_to) fail(ErrorCode::kProgram, "op '%s' writes with upTo", op.label.c_str());
  }
}

OpDesc parse_op(const Json& json, const Program& program, int index) {
  OpDesc op;
  op.kind = json.at("kind").as_string();
  op.label = json.at("label").as_string();
  op.lane = parse_name<Lane>(
      json.at("lane"), "lane",
      {{"compute", Lane::kCompute}, {"memory", Lane::kMemory}, {"network", Lane::kNetwork}});
  const auto& inputs = json.at("inputs").items();
  const auto& outputs = json.at("outputs").items();
  if (inputs.size() > kMaxOperands || outputs.size() > kMaxOperands)
    fail(ErrorCode::kProgram, "op '%s' has more than %zu operands", op.label.c_str(), kMaxOperands);
  for (const Json& view : inputs)
    op.inputs.push_back(view.is_null() ? View{} : parse_view(view, program));
  for (const Json& view : outputs) op.outputs.push_back(parse_view(view, program));
  op.attrs = json.at("attrs");
  op.attrs.members();  // must be an object
  int previous = -1;
  for (const Json& wait : json.at("waits").items()) {
    const auto target = static_cast<int>(parse_range(wait, "a wait", previous + 1, index - 1));
    op.waits.push_back(target);
    previous = target;
  }
  check_parts(program, op);
  return op;
}

}  // namespace

int64_t BufferDesc::max_rows() const {
  if (shape.size() == 1 && shape[0].symbol == Symbol::kNone) return 1;
  return shape[0].size;
}

int64_t BufferDesc::cols() const {
  if (shape.size() == 1) return shape[0].symbol == Symbol::kNone ? shape[0].size : 1;
  int64_t product = 1;
  for (size_t i = 1; i < shape.size(); ++i) product *= shape[i].size;
  return product;
}

Symbol BufferDesc::row_symbol() const { return shape[0].symbol; }

int64_t BufferDesc::max_bytes() const { return max_rows() * cols() * dtype_bytes(dtype); }

int OpDesc::part() const {
  for (const View& view : outputs)
    if (view.part >= 0) return view.part;
  for (const View& view : inputs)
    if (view.part >= 0) return view.part;
  return -1;
}

Program parse_program(std::string_view text) {
  const Json json = Json::parse(text);
  parse_range(json.at("version"), "the program's version", 1, 1);
  Program program;
  program.name = json.at("name").as_string();
  program.world = static_cast<int>(parse_range(json.at("world"), "world", 1, kMaxWorld));
  program.tp = static_cast<int>(parse_range(json.at("tp"), "tp", 1, program.world));
  if (program.world % program.tp != 0)
    fail(ErrorCode::kProgram, "tp %d does not divide world %d", program.tp, program.world);
  program.parts = static_cast<int>(parse_range(json.at("parts"), "parts", 1, kMaxParts));
  program.limits = parse_limits(json.at("limits"));
  if (const int64_t positions = program.limits.experts.positions;
      positions > 0 && program.world % positions != 0)
    fail(ErrorCode::kProgram, "%lld positions of experts do not divide world %d",
         static_cast<long long>(positions), program.world);
  program.arena_bytes = parse_range(json.at("arenaBytes"), "arenaBytes", 0, kMaxBytes);
  if (const Json* share = json.find("networkShare")) {
    program.network_share = share->as_number();
    if (!(program.network_share > 0 && program.network_share < 1))
      fail(ErrorCode::kProgram, "networkShare is %g, between 0 and 1 (exclusive) works",
           program.network_share);
  }

  const auto& buffers = json.at("buffers").items();
  if (buffers.size() > kMaxBuffers) fail(ErrorCode::kProgram, "more than %zu buffers", kMaxBuffers);
  std::unordered_set<std::string> names;
  for (const Json& buffer : buffers) {
    program.buffers.push_back(parse_buffer(buffer, program.limits));
    if (!names.insert(program.buffers.back().name).second)
      fail(ErrorCode::kProgram, "two buffers are called '%s'", program.buffers.back().name.c_str());
  }

  const auto& ops = json.at("ops").items();
  if (ops.size() > kMaxOps) fail(ErrorCode::kProgram, "more than %zu ops", kMaxOps);
  std::unordered_set<std::string> labels;
  for (const Json& op : ops) {
    program.ops.push_back(parse_op(op, program, static_cast<int>(program.ops.size())));
    if (!labels.insert(program.ops.back().label).second)
      fail(ErrorCode::kProgram, "two ops are labelled '%s'", program.ops.back().label.c_str());
  }
  return program;
}

}  // namespace nanoweave
