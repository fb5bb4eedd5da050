// A double of cuBLASLt for machines without GPUs: the functions of cublaslt_abi.h over host memory,
// run in the order of the streams. It computes with float32 sums, fills the workspace it was given
// with garbage, and writes down every plan and every matmul:
//
//   nanoweave_double_streams(enqueue)   how to run something in a stream; needed before any matmul
//   nanoweave_double_log()              the calls since the last time, a line each
#include <cstring>
#include <memory>
#include <mutex>
#include <sstream>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "cuda/cublaslt_abi.h"
#include "cuda/double/streams.h"

namespace nanoweave::cublaslt {

struct Context {};

struct MatmulDesc {
  int32_t trans_a = 0;
  uint32_t epilogue = 1;
  const void* bias = nullptr;
  int32_t sm_target = 0;
  int32_t bias_type = -1;
};

struct MatrixLayout {
  DataType type;
  uint64_t rows, cols;
  int64_t leading_dimension;
};

struct MatmulPreference {
  uint64_t workspace_bytes = 0;
  uint32_t reduction_mask = 7;
  uint32_t alignments[4] = {256, 256, 256, 256};
};

}  // namespace nanoweave::cublaslt

namespace nanoweave::doubles {

using namespace cublaslt;

namespace {

constexpr int kInvalidValue = 7;     // CUBLAS_STATUS_INVALID_VALUE
constexpr int kNotSupported = 15;    // CUBLAS_STATUS_NOT_SUPPORTED
constexpr uint64_t kOurAlgo = 4711;  // an algorithm that a heuristic of ours chose
constexpr uint64_t kWorkspaceUsed = 4096;

struct Call {
  MatmulDesc desc;
  MatrixLayout a_layout, b_layout, d_layout;
  const void *a, *b;
  void *d, *workspace;
};

std::mutex mutex;  // guards all below
Enqueue enqueue = nullptr;
std::string log_text, log_taken;
std::vector<std::unique_ptr<Call>> calls_kept;  // captured streams run them again

float load(const void* from, int type, uint64_t i) {
  if (type == kFloat32) return static_cast<const float*>(from)[i];
  if (type == kBfloat16) return to_float(static_cast<const bf16*>(from)[i]);
  return to_float(static_cast<const f16*>(from)[i]);
}

void store(void* to, int type, uint64_t i, float value) {
  if (type == kFloat32)
    static_cast<float*>(to)[i] = value;
  else if (type == kBfloat16)
    static_cast<bf16*>(to)[i] = to_bf16(value);
  else
    static_cast<f16*>(to)[i] = to_f16(value);
}

// D [rows, cols] = Aᵀ · B + bias by row of D; column-major.
bool multiply(void* pointer, uint64_t*) {
  const auto& call = *static_cast<const Call*>(pointer);
  std::memset(call.workspace, 0xab, kWorkspaceUsed);
  const uint64_t depth = call.a_layout.rows;
  for (uint64_t column = 0; column < call.d_layout.cols; ++column)
    for (uint64_t row = 0; row < call.d_layout.rows; ++row) {
      const uint64_t a = row * static_cast<uint64_t>(call.a_layout.leading_dimension);
      const uint64_t b = column * static_cast<uint64_t>(call.b_layout.leading_dimension);
      float sum = 0;
      for (uint64_t k = 0; k < depth; ++k)
        sum += load(call.a, call.a_layout.type, a + k) * load(call.b, call.b_layout.type, b + k);
      if (call.desc.epilogue == kEpilogueBias)
        sum += load(call.desc.bias, call.desc.bias_type, row);
      store(call.d, call.d_layout.type,
            column * static_cast<uint64_t>(call.d_layout.leading_dimension) + row, sum);
    }
  return true;
}

bool is_aligned(const void* pointer, uint32_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

std::string describe(const MatmulDesc& desc, const MatrixLayout& a, const MatrixLayout& d) {
  std::ostringstream text;
  text << d.cols << "x" << d.rows << "x" << a.rows << " type " << a.type << " to " << d.type;
  if (desc.epilogue == kEpilogueBias) text << " bias";
  if (desc.sm_target > 0) text << " sms " << desc.sm_target;
  return text.str();
}

}  // namespace

}  // namespace nanoweave::doubles

using namespace nanoweave;
using namespace nanoweave::cublaslt;
using namespace nanoweave::doubles;

NANOWEAVE_DOUBLE_EXPORT void nanoweave_double_streams(Enqueue given) {
  const std::lock_guard lock(mutex);
  enqueue = given;
}

NANOWEAVE_DOUBLE_EXPORT const char* nanoweave_double_log() {
  const std::lock_guard lock(mutex);
  log_taken = std::move(log_text);
  log_text.clear();
  return log_taken.c_str();
}

NANOWEAVE_DOUBLE_EXPORT size_t cublasLtGetVersion() { return 130101; }

NANOWEAVE_DOUBLE_EXPORT int cublasLtCreate(Context** handle) {
  *handle = new Context;
  return kSuccess;
}
NANOWEAVE_DOUBLE_EXPORT int cublasLtDestroy(Context* handle) {
  delete handle;
  return kSuccess;
}

NANOWEAVE_DOUBLE_EXPORT int cublasLtMatmulDescCreate(MatmulDesc** desc, int compute_type,
                                                     DataType scale_type) {
  if (compute_type != kComputeFloat32 || scale_type != kFloat32) return kInvalidValue;
  *desc = new MatmulDesc;
  return kSuccess;
}
NANOWEAVE_DOUBLE_EXPORT int cublasLtMatmulDescDestroy(MatmulDesc* desc) {
  delete desc;
  return kSuccess;
}
NANOWEAVE_DOUBLE_EXPORT int cublasLtMatmulDescSetAttribute(MatmulDesc* desc,
                                                           MatmulDescAttribute attribute,
                                                           const void* value, size_t bytes) {
  const auto put = [&](auto& member) {
    if (bytes != sizeof member) return kInvalidValue;
    std::memcpy(&member, value, bytes);
    return kSuccess;
  };
  switch (attribute) {
    case kTransA:
      return put(desc->trans_a);
    case kEpilogue:
      return put(desc->epilogue);
    case kBiasPointer:
      return put(desc->bias);
    case kSmCountTarget:
      return put(desc->sm_target);
    case kBiasDataType:
      return put(desc->bias_type);
  }
  return kInvalidValue;
}

NANOWEAVE_DOUBLE_EXPORT int cublasLtMatrixLayoutCreate(MatrixLayout** layout, DataType type,
                                                       uint64_t rows, uint64_t cols,
                                                       int64_t leading_dimension) {
  if (leading_dimension < static_cast<int64_t>(rows)) return kInvalidValue;
  *layout = new MatrixLayout{type, rows, cols, leading_dimension};
  return kSuccess;
}
NANOWEAVE_DOUBLE_EXPORT int cublasLtMatrixLayoutDestroy(MatrixLayout* layout) {
  delete layout;
  return kSuccess;
}

NANOWEAVE_DOUBLE_EXPORT int cublasLtMatmulPreferenceCreate(MatmulPreference** preference) {
  *preference = new MatmulPreference;
  return kSuccess;
}
NANOWEAVE_DOUBLE_EXPORT int cublasLtMatmulPreferenceDestroy(MatmulPreference* preference) {
  delete preference;
  return kSuccess;
}
NANOWEAVE_DOUBLE_EXPORT int cublasLtMatmulPreferenceSetAttribute(MatmulPreference* preference,
                                                                 PreferenceAttribute attribute,
                                                                 const void* value, size_t bytes) {
  if (bytes != (attribute == kMaxWorkspaceBytes ? 8 : 4)) return kInvalidValue;
  if (attribute == kMaxWorkspaceBytes)
    std::memcpy(&preference->workspace_bytes, value, bytes);
  else if (attribute == kReductionSchemeMask)
    std::memcpy(&preference->reduction_mask, value, bytes);
  else
    std::memcpy(&preference->alignments[attribute - kMinAlignmentA], value, bytes);
  return kSuccess;
}

NANOWEAVE_DOUBLE_EXPORT int cublasLtMatmulAlgoGetHeuristic(Context*, MatmulDesc* desc,
                                                           MatrixLayout* a, MatrixLayout* b,
                                                           MatrixLayout* c, MatrixLayout* d,
                                                           MatmulPreference* preference, int wanted,
                                                           HeuristicResult* results, int* found) {
  const std::lock_guard lock(mutex);
  const bool shapes_fit = a->rows == b->rows && a->cols == d->rows && b->cols == d->cols &&
                          c->rows == d->rows && c->cols == d->cols;
  const bool is_asked_well = wanted == 1 && desc->trans_a == kTransposed &&
                             preference->reduction_mask == kReductionInComputeType &&
                             preference->workspace_bytes >= kWorkspaceUsed;
  const bool bias_fits =
      desc->epilogue != kEpilogueBias || desc->bias_type == static_cast<int32_t>(d->type);
  if (!shapes_fit || !is_asked_well || !bias_fits) return kInvalidValue;
  if (a->type != b->type || (d->type != a->type && d->type != kFloat32)) return kNotSupported;
  results[0] = {};
  results[0].algo.data[0] = kOurAlgo;
  for (int i = 0; i < 4; ++i) results[0].algo.data[1 + i] = preference->alignments[i];
  results[0].workspace_bytes = kWorkspaceUsed;
  *found = 1;
  log_text += "plan " + describe(*desc, *a, *d) + "\n";
  return kSuccess;
}

NANOWEAVE_DOUBLE_EXPORT int cublasLtMatmul(Context*, MatmulDesc* desc, const void* alpha,
                                           const void* a, MatrixLayout* a_layout, const void* b,
                                           MatrixLayout* b_layout, const void* beta, const void* c,
                                           MatrixLayout*, void* d, MatrixLayout* d_layout,
                                           const MatmulAlgo* algo, void* workspace,
                                           size_t workspace_bytes, void* stream) {
  const std::lock_guard lock(mutex);
  if (*static_cast<const float*>(alpha) != 1 || *static_cast<const float*>(beta) != 0)
    return kInvalidValue;
  if (algo->data[0] != kOurAlgo || workspace_bytes < kWorkspaceUsed || !is_aligned(workspace, 16))
    return kInvalidValue;
  const void* operands[] = {a, b, c, d};
  for (int i = 0; i < 4; ++i)
    if (!is_aligned(operands[i], static_cast<uint32_t>(algo->data[1 + i]))) return kInvalidValue;
  calls_kept.push_back(
      std::make_unique<Call>(Call{*desc, *a_layout, *b_layout, *d_layout, a, b, d, workspace}));
  log_text += "matmul " + describe(*desc, *a_layout, *d_layout) + "\n";
  enqueue(stream, multiply, calls_kept.back().get());
  return kSuccess;
}
