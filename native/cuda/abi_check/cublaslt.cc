// Compiles only if cublaslt_abi.h agrees with the cublasLt.h that the compiler finds. Without one
// there is nothing to compare.
#include "cuda/cublaslt_abi.h"

#if __has_include(<cublasLt.h>)
#include <cublasLt.h>

#include "cuda/abi_check/same_abi.h"

namespace nanoweave::cublaslt {

static_assert(kSuccess == CUBLAS_STATUS_SUCCESS);
static_assert(int{kFloat32} == CUDA_R_32F && int{kFloat16} == CUDA_R_16F);
static_assert(int{kBfloat16} == CUDA_R_16BF && sizeof(DataType) == sizeof(cudaDataType));
static_assert(kComputeFloat32 == CUBLAS_COMPUTE_32F);
static_assert(kComputeFloat32 != CUBLAS_COMPUTE_32F_FAST_TF32);
static_assert(int{kTransA} == CUBLASLT_MATMUL_DESC_TRANSA);
static_assert(int{kEpilogue} == CUBLASLT_MATMUL_DESC_EPILOGUE);
static_assert(int{kBiasPointer} == CUBLASLT_MATMUL_DESC_BIAS_POINTER);
static_assert(int{kSmCountTarget} == CUBLASLT_MATMUL_DESC_SM_COUNT_TARGET);
static_assert(int{kBiasDataType} == CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE);
static_assert(kTransposed == CUBLAS_OP_T && kEpilogueBias == CUBLASLT_EPILOGUE_BIAS);
static_assert(int{kMaxWorkspaceBytes} == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES);
static_assert(int{kReductionSchemeMask} == CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK);
static_assert(int{kMinAlignmentA} == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES);
static_assert(int{kMinAlignmentB} == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES);
static_assert(int{kMinAlignmentC} == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES);
static_assert(int{kMinAlignmentD} == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES);
static_assert(kReductionInComputeType == CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE);
static_assert(sizeof(MatmulAlgo) == sizeof(cublasLtMatmulAlgo_t));
static_assert(sizeof(HeuristicResult) == sizeof(cublasLtMatmulHeuristicResult_t));
static_assert(offsetof(HeuristicResult, workspace_bytes) ==
              offsetof(cublasLtMatmulHeuristicResult_t, workspaceSize));
static_assert(offsetof(HeuristicResult, state) == offsetof(cublasLtMatmulHeuristicResult_t, state));
static_assert(offsetof(HeuristicResult, waves) ==
              offsetof(cublasLtMatmulHeuristicResult_t, wavesCount));

static_assert(SameAbi<GetVersion, decltype(cublasLtGetVersion)>::value);
static_assert(SameAbi<Create, decltype(cublasLtCreate)>::value);
static_assert(SameAbi<Destroy, decltype(cublasLtDestroy)>::value);
static_assert(SameAbi<MatmulDescCreate, decltype(cublasLtMatmulDescCreate)>::value);
static_assert(SameAbi<MatmulDescDestroy, decltype(cublasLtMatmulDescDestroy)>::value);
static_assert(SameAbi<MatmulDescSetAttribute, decltype(cublasLtMatmulDescSetAttribute)>::value);
static_assert(SameAbi<MatrixLayoutCreate, decltype(cublasLtMatrixLayoutCreate)>::value);
static_assert(SameAbi<MatrixLayoutDestroy, decltype(cublasLtMatrixLayoutDestroy)>::value);
static_assert(SameAbi<PreferenceCreate, decltype(cublasLtMatmulPreferenceCreate)>::value);
static_assert(SameAbi<PreferenceDestroy, decltype(cublasLtMatmulPreferenceDestroy)>::value);
static_assert(
    SameAbi<PreferenceSetAttribute, decltype(cublasLtMatmulPreferenceSetAttribute)>::value);
static_assert(SameAbi<AlgoGetHeuristic, decltype(cublasLtMatmulAlgoGetHeuristic)>::value);
static_assert(SameAbi<Matmul, decltype(cublasLtMatmul)>::value);

}  // namespace nanoweave::cublaslt
#endif
