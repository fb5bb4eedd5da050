#include "cuda/cublaslt.h"

#include "cuda/libraries.h"

#if defined(NANOWEAVE_EMULATION)
#include "cuda/emulation/doubles.h"
#endif

namespace nanoweave {

namespace {

// Prefill steps come in any number of rows: more shapes than this and the oldest is forgotten.
constexpr size_t kMaxPlans = 512;

cublaslt::DataType data_type(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return cublaslt::kFloat32;
    case DType::kBf16:
      return cublaslt::kBfloat16;
    default:
      CHECK(dtype == DType::kF16);
      return cublaslt::kFloat16;
  }
}

void require(int status, const char* what) {
  if (status != cublaslt::kSuccess)
    fail(ErrorCode::kInternal, "cuBLASLt: %s failed with status %d", what, status);
}

}  // namespace

// Never destroyed: runtimes that end with the process still call it.
const CublasLtLibrary* CublasLtLibrary::open(std::string& why) {
  static auto& reason = *new std::string;
  static const CublasLtLibrary* const opened = []() -> const CublasLtLibrary* {
    try {
      std::optional<SharedLibrary> library = SharedLibrary::open(cublaslt_search(), reason);
      if (library) return new CublasLtLibrary(std::move(*library));
    } catch (const EngineError& error) {  // a function is missing
      reason = error.what();
    }
    return nullptr;
  }();
  why = reason;
  return opened;
}

CublasLtLibrary::CublasLtLibrary(SharedLibrary opened) : library(std::move(opened)) {
#if defined(NANOWEAVE_EMULATION)
  emulation::join_double(library);
#endif
  const auto bind = [this]<typename Function>(Function*& function, const char* symbol) {
    function = library.function<Function>(symbol);
  };
  bind(create, "cublasLtCreate");
  bind(destroy, "cublasLtDestroy");
  bind(matmul_desc_create, "cublasLtMatmulDescCreate");
  bind(matmul_desc_destroy, "cublasLtMatmulDescDestroy");
  bind(matmul_desc_set_attribute, "cublasLtMatmulDescSetAttribute");
  bind(matrix_layout_create, "cublasLtMatrixLayoutCreate");
  bind(matrix_layout_destroy, "cublasLtMatrixLayoutDestroy");
  bind(preference_create, "cublasLtMatmulPreferenceCreate");
  bind(preference_destroy, "cublasLtMatmulPreferenceDestroy");
  bind(preference_set_attribute, "cublasLtMatmulPreferenceSetAttribute");
  bind(algo_get_heuristic, "cublasLtMatmulAlgoGetHeuristic");
  bind(matmul, "cublasLtMatmul");
}

// ---- Plans --------------------------------------------------------------------------------------

// A row-major [rows, columns] matrix is a column-major [columns, rows] one: D [n, rows] = Wᵀ · X,
// with W stored as [k, n] and X as [k, rows].
struct CublasLt::Plan {
  explicit Plan(const CublasLtLibrary& library) : library(library) {}
  ~Plan() {
    for (cublaslt::MatrixLayout* layout : {w, x, y})
      if (layout != nullptr) library.matrix_layout_destroy(layout);
    if (preference != nullptr) library.preference_destroy(preference);
    if (desc != nullptr) library.matmul_desc_destroy(desc);
  }

  template <typename T>
  void set(cublaslt::MatmulDescAttribute attribute, const T& value) const {
    require(library.matmul_desc_set_attribute(desc, attribute, &value, sizeof value),
            "setting an attribute of a matmul");
  }
  template <typename T>
  void prefer(cublaslt::PreferenceAttribute attribute, const T& value) const {
    require(library.preference_set_attribute(preference, attribute, &value, sizeof value),
            "setting a preference");
  }

  const CublasLtLibrary& library;
  cublaslt::MatmulDesc* desc = nullptr;
  cublaslt::MatmulPreference* preference = nullptr;
  cublaslt::MatrixLayout *w = nullptr, *x = nullptr, *y = nullptr;
  cublaslt::MatmulAlgo algo{};
};

std::unique_ptr<CublasLt::Plan> CublasLt::make_plan(const CublasLtShape& shape) const {
  auto plan = std::make_unique<Plan>(library_);
  const auto layout = [&](cublaslt::MatrixLayout*& made, DType dtype, int64_t rows, int64_t cols) {
    require(library_.matrix_layout_create(&made, data_type(dtype), static_cast<uint64_t>(rows),
                                          static_cast<uint64_t>(cols), rows),
            "describing a matrix");
  };
  layout(plan->w, shape.operands, shape.k, shape.n);
  layout(plan->x, shape.operands, shape.k, shape.rows);
  layout(plan->y, shape.result, shape.n, shape.rows);
  require(library_.matmul_desc_create(&plan->desc, cublaslt::kComputeFloat32, cublaslt::kFloat32),
          "describing a matmul");
  plan->set(cublaslt::kTransA, cublaslt::kTransposed);
  if (shape.sm_target > 0) plan->set(cublaslt::kSmCountTarget, shape.sm_target);
  if (shape.has_bias) {
    plan->set(cublaslt::kEpilogue, cublaslt::kEpilogueBias);
    plan->set(cublaslt::kBiasDataType, static_cast<int32_t>(data_type(shape.result)));
  }
  require(library_.preference_create(&plan->preference), "making a preference");
  plan->prefer(cublaslt::kMaxWorkspaceBytes, static_cast<uint64_t>(shape.workspace_bytes));
  plan->prefer(cublaslt::kReductionSchemeMask, cublaslt::kReductionInComputeType);
  plan->prefer(cublaslt::kMinAlignmentA, shape.w_alignment);
  plan->prefer(cublaslt::kMinAlignmentB, shape.x_alignment);
  plan->prefer(cublaslt::kMinAlignmentC, shape.y_alignment);
  plan->prefer(cublaslt::kMinAlignmentD, shape.y_alignment);
  cublaslt::HeuristicResult result{};
  int found = 0;
  const int status = library_.algo_get_heuristic(handle_, plan->desc, plan->w, plan->x, plan->y,
                                                 plan->y, plan->preference, 1, &result, &found);
  if (status != cublaslt::kSuccess || found == 0 || result.state != cublaslt::kSuccess)
    fail(ErrorCode::kInternal,
         "cuBLASLt has no algorithm for %lld x %lld x %lld (%s to %s, status %d): use "
         "implementation 'own'",
         static_cast<long long>(shape.rows), static_cast<long long>(shape.n),
         static_cast<long long>(shape.k), dtype_name(shape.operands), dtype_name(shape.result),
         status);
  plan->algo = result.algo;
  return plan;
}

CublasLt::Plan& CublasLt::plan_for(const CublasLtShape& shape) {
  const auto found = plans_.find(shape);
  if (found != plans_.end()) return *found->second;
  if (plans_.size() >= kMaxPlans) {
    plans_.erase(oldest_.front());
    oldest_.pop_front();
  }
  Plan& plan = *plans_.emplace(shape, make_plan(shape)).first->second;
  oldest_.push_back(shape);
  ++planned_;
  return plan;
}

CublasLt::CublasLt(const CublasLtLibrary& library) : library_(library) {
  require(library_.create(&handle_), "making a handle");
}

CublasLt::~CublasLt() {
  plans_.clear();
  library_.destroy(handle_);
}

void CublasLt::matmul(const CublasLtMatmul& call, CudaStream stream) {
  const Plan& plan = plan_for(call.shape);
  if (call.shape.has_bias) plan.set(cublaslt::kBiasPointer, call.bias);
  const float one = 1, zero = 0;
  require(library_.matmul(handle_, plan.desc, &one, call.w, plan.w, call.x, plan.x, &zero, call.y,
                          plan.y, call.y, plan.y, &plan.algo, call.workspace,
                          static_cast<size_t>(call.shape.workspace_bytes), stream),
          "a matmul");
}

}  // namespace nanoweave
