// The part of cuBLASLt's binary interface that is used, declared here so that no header is needed
// to build; cuda/abi_check/cublaslt.cc compares it with the real cublasLt.h. Matrices are
// column-major.
#pragma once

#include <cstddef>
#include <cstdint>

namespace nanoweave::cublaslt {

struct Context;           // cublasLtHandle_t points to one
struct MatmulDesc;        // cublasLtMatmulDescOpaque_t
struct MatrixLayout;      // cublasLtMatrixLayoutOpaque_t
struct MatmulPreference;  // cublasLtMatmulPreferenceOpaque_t

inline constexpr int kSuccess = 0;  // cublasStatus_t

enum DataType : int { kFloat32 = 0, kFloat16 = 2, kBfloat16 = 14 };  // cudaDataType

// Float32 multiply and accumulate; TF32 only in a compute type of its own, which is not used.
inline constexpr int kComputeFloat32 = 68;

enum MatmulDescAttribute : int {
  kTransA = 3,
  kEpilogue = 7,
  kBiasPointer = 8,
  kSmCountTarget = 15,
  kBiasDataType = 26,
};
inline constexpr int32_t kTransposed = 1;     // CUBLAS_OP_T
inline constexpr uint32_t kEpilogueBias = 4;  // a value per row of D is added

enum PreferenceAttribute : int {
  kMaxWorkspaceBytes = 1,
  kReductionSchemeMask = 3,
  kMinAlignmentA = 5,
  kMinAlignmentB = 6,
  kMinAlignmentC = 7,
  kMinAlignmentD = 8,
};
// Sums split over k meet in float32; the schemes that meet in the output round on the way.
inline constexpr uint32_t kReductionInComputeType = 2;

struct MatmulAlgo {
  uint64_t data[8];
};

struct HeuristicResult {
  MatmulAlgo algo;
  size_t workspace_bytes;
  int state;  // cublasStatus_t
  float waves;
  int reserved[4];
};

using GetVersion = size_t();
using Create = int(Context** handle);
using Destroy = int(Context* handle);
using MatmulDescCreate = int(MatmulDesc** desc, int compute_type, DataType scale_type);
using MatmulDescDestroy = int(MatmulDesc* desc);
using MatmulDescSetAttribute = int(MatmulDesc* desc, MatmulDescAttribute attribute,
                                   const void* value, size_t bytes);
using MatrixLayoutCreate = int(MatrixLayout** layout, DataType type, uint64_t rows, uint64_t cols,
                               int64_t leading_dimension);
using MatrixLayoutDestroy = int(MatrixLayout* layout);
using PreferenceCreate = int(MatmulPreference** preference);
using PreferenceDestroy = int(MatmulPreference* preference);
using PreferenceSetAttribute = int(MatmulPreference* preference, PreferenceAttribute attribute,
                                   const void* value, size_t bytes);
using AlgoGetHeuristic = int(Context* handle, MatmulDesc* desc, MatrixLayout* a, MatrixLayout* b,
                             MatrixLayout* c, MatrixLayout* d, MatmulPreference* preference,
                             int wanted, HeuristicResult* results, int* found);
// The stream is a cudaStream_t.
using Matmul = int(Context* handle, MatmulDesc* desc, const void* alpha, const void* a,
                   MatrixLayout* a_layout, const void* b, MatrixLayout* b_layout, const void* beta,
                   const void* c, MatrixLayout* c_layout, void* d, MatrixLayout* d_layout,
                   const MatmulAlgo* algo, void* workspace, size_t workspace_bytes, void* stream);

}  // namespace nanoweave::cublaslt
