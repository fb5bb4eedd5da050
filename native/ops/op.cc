// OpInstance: what an op's prepare() asks of its operands and attributes, and the check of an op
// against its declared signature. Everything here throws ERR_PROGRAM with the label of the op.
#include "ops/op.h"

#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstring>

namespace nanoweave {
namespace {

const Json& attribute(const OpDesc& op, const char* name) {
  const Json* value = op.attrs.find(name);
  if (value == nullptr)
    fail(ErrorCode::kProgram, "op %s (%s): attribute %s is missing", op.label.c_str(),
         op.kind.c_str(), name);
  return *value;
}

[[noreturn]] void wrong_type(const OpDesc& op, const char* name, const char* expected) {
  fail(ErrorCode::kProgram, "op %s (%s): attribute %s must be %s", op.label.c_str(),
       op.kind.c_str(), name, expected);
}

double as_number(const OpDesc& op, const char* name, const Json& value) {
  if (value.kind() != Json::Kind::kNumber || !std::isfinite(value.as_number()))
    wrong_type(op, name, "a finite number");
  return value.as_number();
}

int64_t as_integer(const OpDesc& op, const char* name, const Json& value) {
  const double number = as_number(op, name, value);
  if (number != std::floor(number) || std::abs(number) > 0x1p53) wrong_type(op, name, "an integer");
  return static_cast<int64_t>(number);
}

bool is_optional(const char* declared) {
  const size_t length = std::strlen(declared);
  return length > 0 && declared[length - 1] == '?';
}

bool matches_type(const Json& value, std::string_view type) {
  if (type == "number") return value.kind() == Json::Kind::kNumber;
  if (type == "string") return value.kind() == Json::Kind::kString;
  if (type == "boolean") return value.kind() == Json::Kind::kBool;
  if (value.kind() != Json::Kind::kArray) return false;
  for (const Json& item : value.items())
    if (item.kind() != Json::Kind::kNumber) return false;
  return true;
}

void check_attributes(const OpInstance& instance, const OpDef& def) {
  const OpDesc& op = instance.op;
  instance.require(op.attrs.kind() == Json::Kind::kObject, "attrs must be an object");
  for (const AttrDef& attr : def.attrs) {
    std::string_view type = attr.type;
    const bool optional = is_optional(attr.type);
    if (optional) type.remove_suffix(1);
    const Json* value = op.attrs.find(attr.name);
    instance.require(value != nullptr || optional, "attribute %s is missing", attr.name);
    instance.require(value == nullptr || matches_type(*value, type),
                     "attribute %s must be of type %s", attr.name, attr.type);
  }
  for (const auto& [name, value] : op.attrs.members()) {
    bool known = false;
    for (const AttrDef& attr : def.attrs) known = known || name == attr.name;
    instance.require(known, "there is no attribute %s", name.c_str());
  }
}

void check_operands(const OpInstance& instance, const OpDef& def) {
  const OpDesc& op = instance.op;
  const Program& program = instance.program;
  const auto num_buffers = static_cast<int>(program.buffers.size());
  instance.require(op.inputs.size() == def.inputs.size(), "takes %zu inputs, %zu are given",
                   def.inputs.size(), op.inputs.size());
  instance.require(op.outputs.size() == def.outputs.size(), "gives %zu outputs, %zu are named",
                   def.outputs.size(), op.outputs.size());
  const auto check_view = [&](const View& view, const char* name) {
    instance.require(view.buffer < num_buffers, "%s names buffer %d of %d", name, view.buffer,
                     num_buffers);
    instance.require(view.part >= -1 && view.part < program.parts, "%s names part %d of %d", name,
                     view.part, program.parts);
    instance.require(!view.up_to || view.part >= 0, "%s is upTo without a part", name);
    const BufferDesc& buffer = program.buffers[view.buffer];
    instance.require(view.part < 0 || buffer.space == Space::kKv ||
                         (!buffer.shape.empty() && buffer.shape[0].symbol == Symbol::kTokens),
                     "%s: buffer %s has no token rows to take a part of", name,
                     buffer.name.c_str());
  };
  for (size_t i = 0; i < def.inputs.size(); ++i) {
    const View& view = op.inputs[i];
    instance.require(view.buffer >= 0 || is_optional(def.inputs[i]), "input %s is missing",
                     def.inputs[i]);
    if (view.buffer >= 0) check_view(view, def.inputs[i]);
  }
  for (size_t i = 0; i < def.outputs.size(); ++i) {
    instance.require(op.outputs[i].buffer >= 0, "output %s is missing", def.outputs[i]);
    check_view(op.outputs[i], def.outputs[i]);
    const BufferDesc& buffer = program.buffers[op.outputs[i].buffer];
    instance.require(buffer.space != Space::kWeight, "output %s is the weight %s", def.outputs[i],
                     buffer.name.c_str());
  }
}

}  // namespace

const BufferDesc* OpInstance::input(int index) const {
  const View& view = op.inputs[index];
  return view.buffer < 0 ? nullptr : &program.buffers[view.buffer];
}

const BufferDesc& OpInstance::output(int index) const {
  return program.buffers[op.outputs[index].buffer];
}

double OpInstance::number(const char* name) const {
  return as_number(op, name, attribute(op, name));
}

double OpInstance::number_or(const char* name, double fallback) const {
  return has(name) ? number(name) : fallback;
}

int64_t OpInstance::integer(const char* name) const {
  return as_integer(op, name, attribute(op, name));
}

int64_t OpInstance::integer_or(const char* name, int64_t fallback) const {
  return has(name) ? integer(name) : fallback;
}

bool OpInstance::boolean_or(const char* name, bool fallback) const {
  const Json* value = op.attrs.find(name);
  if (value == nullptr) return fallback;
  if (value->kind() != Json::Kind::kBool) wrong_type(op, name, "a boolean");
  return value->as_bool();
}

std::string OpInstance::string_or(const char* name, const char* fallback) const {
  const Json* value = op.attrs.find(name);
  if (value == nullptr) return fallback;
  if (value->kind() != Json::Kind::kString) wrong_type(op, name, "a string");
  return value->as_string();
}

std::vector<double> OpInstance::numbers(const char* name) const {
  const Json& value = attribute(op, name);
  if (value.kind() != Json::Kind::kArray) wrong_type(op, name, "an array of numbers");
  std::vector<double> result;
  result.reserve(value.items().size());
  for (const Json& item : value.items()) result.push_back(as_number(op, name, item));
  return result;
}

bool OpInstance::has(const char* name) const { return op.attrs.find(name) != nullptr; }

void OpInstance::require(bool condition, const char* format, ...) const {
  if (condition) return;
  char message[512];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  fail(ErrorCode::kProgram, "op %s (%s): %s", op.label.c_str(), op.kind.c_str(), message);
}

void OpInstance::require_matrix(const BufferDesc& buffer, Symbol rows, int64_t cols) const {
  require(buffer.shape.size() == 2, "buffer %s must be a matrix, it has %zu dimensions",
          buffer.name.c_str(), buffer.shape.size());
  require(buffer.shape[0].symbol == rows, "buffer %s has rows of another symbol",
          buffer.name.c_str());
  require(buffer.shape[1].symbol == Symbol::kNone && buffer.shape[1].size > 0,
          "buffer %s must have a fixed number of columns", buffer.name.c_str());
  require(cols < 0 || buffer.shape[1].size == cols, "buffer %s has %lld columns, %lld are expected",
          buffer.name.c_str(), static_cast<long long>(buffer.shape[1].size),
          static_cast<long long>(cols));
}

void OpInstance::require_vector(const BufferDesc& buffer, int64_t size, DType dtype) const {
  require(buffer.shape.size() == 1 && buffer.shape[0].symbol == Symbol::kNone,
          "buffer %s must be a vector of fixed size", buffer.name.c_str());
  require(buffer.shape[0].size == size, "buffer %s has %lld elements, %lld are expected",
          buffer.name.c_str(), static_cast<long long>(buffer.shape[0].size),
          static_cast<long long>(size));
  require(buffer.dtype == dtype, "buffer %s is %s, %s is expected", buffer.name.c_str(),
          dtype_name(buffer.dtype), dtype_name(dtype));
}

void OpInstance::require_float(const BufferDesc& buffer) const {
  require(
      buffer.dtype == DType::kF32 || buffer.dtype == DType::kBf16 || buffer.dtype == DType::kF16,
      "buffer %s is %s, f32, bf16 or f16 is expected", buffer.name.c_str(),
      dtype_name(buffer.dtype));
}

void OpInstance::require_activation(const BufferDesc& buffer, int64_t cols) const {
  require(buffer.space == Space::kArena, "buffer %s must be in the arena", buffer.name.c_str());
  require(!buffer.shape.empty() && (buffer.shape[0].symbol == Symbol::kTokens ||
                                    buffer.shape[0].symbol == Symbol::kRows),
          "buffer %s must have T or R rows", buffer.name.c_str());
  require_matrix(buffer, buffer.shape[0].symbol, cols);
  require_float(buffer);
}

void OpInstance::require_alike(const BufferDesc& a, const BufferDesc& b) const {
  require(a.shape[0].symbol == b.shape[0].symbol, "buffers %s and %s have rows of other symbols",
          a.name.c_str(), b.name.c_str());
  require(a.dtype == b.dtype, "buffer %s is %s, but %s is %s", a.name.c_str(), dtype_name(a.dtype),
          b.name.c_str(), dtype_name(b.dtype));
}

void OpInstance::require_weight_matrix(const BufferDesc& buffer, int64_t rows, int64_t cols) const {
  require(buffer.space == Space::kWeight && buffer.layout == Layout::kMatmul,
          "buffer %s must be a weight in the matmul layout", buffer.name.c_str());
  require_float(buffer);
  require_matrix(buffer, Symbol::kNone, cols);
  require(buffer.shape[0].size > 0 && (rows < 0 || buffer.shape[0].size == rows),
          "buffer %s has %lld rows, %lld are expected", buffer.name.c_str(),
          static_cast<long long>(buffer.shape[0].size), static_cast<long long>(rows));
}

void OpInstance::require_weight_vector(const BufferDesc* buffer, int64_t size) const {
  if (buffer == nullptr) return;
  require(buffer->space == Space::kWeight && buffer->layout == Layout::kPlain,
          "buffer %s must be a plain weight", buffer->name.c_str());
  require_vector(*buffer, size, DType::kF32);
}

namespace {

void require_cache(const OpInstance& op, const BufferDesc& buffer, int64_t planes, int64_t kv_heads,
                   int64_t head_dim) {
  const Limits& limits = op.program.limits;
  op.require(buffer.space == Space::kKv, "buffer %s must be a KV cache", buffer.name.c_str());
  op.require_float(buffer);
  op.require(limits.num_blocks > 0 && limits.block_size > 0 && limits.max_blocks_per_seq > 0,
             "the program has a KV cache but its limits name no blocks");
  const int64_t expected[5] = {limits.num_blocks, planes, kv_heads, limits.block_size, head_dim};
  bool same = buffer.shape.size() == 5;
  for (size_t i = 0; same && i < 5; ++i)
    same = buffer.shape[i].symbol == Symbol::kNone && buffer.shape[i].size == expected[i];
  op.require(same, "buffer %s must have the shape [%lld, %lld, %lld, %lld, %lld]",
             buffer.name.c_str(), static_cast<long long>(expected[0]),
             static_cast<long long>(planes), static_cast<long long>(kv_heads),
             static_cast<long long>(expected[3]), static_cast<long long>(head_dim));
}

}  // namespace

void OpInstance::require_kv(const BufferDesc& buffer, int64_t kv_heads, int64_t head_dim) const {
  require_cache(*this, buffer, 2, kv_heads, head_dim);
}

void OpInstance::require_latent_cache(const BufferDesc& buffer, int64_t dim) const {
  require_cache(*this, buffer, 1, 1, dim);
}

void OpInstance::require_same_part() const {
  const int part = op.part();
  const auto check = [&](const View& view) {
    if (view.buffer < 0) return;
    const BufferDesc& buffer = program.buffers[view.buffer];
    if (buffer.space == Space::kWeight) return;
    require(view.part == part, "buffer %s is taken in part %d, the op works on part %d",
            buffer.name.c_str(), view.part, part);
    require(!view.up_to || buffer.space == Space::kKv, "buffer %s cannot be read upTo a part",
            buffer.name.c_str());
  };
  for (const View& view : op.inputs) check(view);
  for (const View& view : op.outputs) check(view);
}

CollectiveForm OpInstance::collective_form() const {
  const std::string form = string_or("form", "auto");
  require(is_collective_form(form),
          "form is '%s', not 'auto', 'one_shot', 'two_shot', 'multicast' or 'nccl'", form.c_str());
  return nanoweave::collective_form(form);
}

void OpInstance::require_in_place(int input, int output) const {
  const View& in = op.inputs[input];
  const View& out = op.outputs[output];
  require(in.buffer == out.buffer && in.part == out.part,
          "buffer %s is updated in place: input and output must be the same view",
          program.buffers[out.buffer].name.c_str());
}

void OpInstance::require_distinct(int input, int output) const {
  require(op.inputs[input].buffer != op.outputs[output].buffer,
          "buffer %s cannot be both input and output",
          program.buffers[op.outputs[output].buffer].name.c_str());
}

const OpDef* find_op(std::string_view name) {
  for (const OpDef& def : op_table())
    if (name == def.name) return &def;
  return nullptr;
}

void refuse_cuda_only(const Program& program) {
  for (const OpDesc& op : program.ops) {
    const OpInstance instance{.program = program, .op = op};
    const std::string form = instance.string_or("form", "auto");
    instance.require(form != "multicast" && form != "nccl",
                     "form '%s' is for CUDA; on the CPU 'auto', 'one_shot' or 'two_shot'",
                     form.c_str());
    const std::string implementation = instance.string_or("implementation", "auto");
    instance.require(implementation != "cublaslt",
                     "implementation 'cublaslt' is for CUDA; on the CPU 'auto' or 'own'");
  }
}

HostKernel prepare_host_op(const Program& program, const OpDesc& op) {
  const OpInstance instance{.program = program, .op = op};
  const OpDef* def = find_op(op.kind);
  instance.require(def != nullptr, "there is no op of this kind");
  check_operands(instance, *def);
  check_attributes(instance, *def);
  return def->prepare(instance);
}

}  // namespace nanoweave
