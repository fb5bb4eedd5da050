// cuBLASLt: the library, opened at run time, and one device's handle with the algorithms it chose
// for the shapes it has seen.
#pragma once

#include <compare>
#include <deque>
#include <map>
#include <memory>
#include <string>

#include "core/shared_library.h"
#include "cuda/cublaslt_abi.h"
#include "cuda/op.h"

namespace nanoweave {

// Loaded once in a process and never unloaded.
struct CublasLtLibrary {
  // Null: `why` says what is missing and what to do.
  static const CublasLtLibrary* open(std::string& why);

  explicit CublasLtLibrary(SharedLibrary library);

  SharedLibrary library;
  cublaslt::Create* create;
  cublaslt::Destroy* destroy;
  cublaslt::MatmulDescCreate* matmul_desc_create;
  cublaslt::MatmulDescDestroy* matmul_desc_destroy;
  cublaslt::MatmulDescSetAttribute* matmul_desc_set_attribute;
  cublaslt::MatrixLayoutCreate* matrix_layout_create;
  cublaslt::MatrixLayoutDestroy* matrix_layout_destroy;
  cublaslt::PreferenceCreate* preference_create;
  cublaslt::PreferenceDestroy* preference_destroy;
  cublaslt::PreferenceSetAttribute* preference_set_attribute;
  cublaslt::AlgoGetHeuristic* algo_get_heuristic;
  cublaslt::Matmul* matmul;
};

// y [rows, n] = x [rows, k] · Wᵀ (+ bias of y's type), W [n, k]; float32 sums, no TF32.
struct CublasLtShape {
  int64_t rows, n, k;
  DType operands, result;
  bool has_bias;
  int32_t sm_target;                               // multiprocessors to plan for; 0: all
  uint32_t x_alignment, w_alignment, y_alignment;  // bytes
  int64_t workspace_bytes;                         // at most

  auto operator<=>(const CublasLtShape&) const = default;
};

struct CublasLtMatmul {
  CublasLtShape shape;
  const std::byte* x;
  const std::byte* w;
  const std::byte* bias;
  std::byte* y;
  std::byte* workspace;
};

// Device thread only.
class CublasLt {
 public:
  static constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;  // what Hopper's algorithms ask for

  // Of the current device.
  explicit CublasLt(const CublasLtLibrary& library);
  ~CublasLt();
  CublasLt(const CublasLt&) = delete;
  CublasLt& operator=(const CublasLt&) = delete;

  // Chooses the algorithm the first time it sees a shape. ERR_INTERNAL where there is none.
  void matmul(const CublasLtMatmul& call, CudaStream stream);
  int64_t shapes_planned() const { return planned_; }

 private:
  struct Plan;

  Plan& plan_for(const CublasLtShape& shape);
  std::unique_ptr<Plan> make_plan(const CublasLtShape& shape) const;

  const CublasLtLibrary& library_;
  cublaslt::Context* handle_ = nullptr;
  std::map<CublasLtShape, std::unique_ptr<Plan>> plans_;
  std::deque<CublasLtShape> oldest_;  // in the order they came
  int64_t planned_ = 0;
};

}  // namespace nanoweave
