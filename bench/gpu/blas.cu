#include "blas.h"

#include "cuda/libraries.h"

namespace probe {

namespace lt = nanoweave::cublaslt;

namespace {

constexpr size_t kWorkspaceBytes = size_t{64} << 20;
constexpr int kCandidates = 16;

}  // namespace

struct Blas::Library {
  explicit Library(const nanoweave::SharedLibrary& shared)
      : get_version(shared.function<lt::GetVersion>("cublasLtGetVersion")),
        desc_create(shared.function<lt::MatmulDescCreate>("cublasLtMatmulDescCreate")),
        desc_set(shared.function<lt::MatmulDescSetAttribute>("cublasLtMatmulDescSetAttribute")),
        layout_create(shared.function<lt::MatrixLayoutCreate>("cublasLtMatrixLayoutCreate")),
        preference_create(
            shared.function<lt::PreferenceCreate>("cublasLtMatmulPreferenceCreate")),
        preference_set(
            shared.function<lt::PreferenceSetAttribute>("cublasLtMatmulPreferenceSetAttribute")),
        heuristic(shared.function<lt::AlgoGetHeuristic>("cublasLtMatmulAlgoGetHeuristic")),
        matmul(shared.function<lt::Matmul>("cublasLtMatmul")) {
    if (shared.function<lt::Create>("cublasLtCreate")(&context) != lt::kSuccess)
      throw std::runtime_error("cublasLtCreate failed");
  }

  lt::GetVersion* get_version;
  lt::MatmulDescCreate* desc_create;
  lt::MatmulDescSetAttribute* desc_set;
  lt::MatrixLayoutCreate* layout_create;
  lt::PreferenceCreate* preference_create;
  lt::PreferenceSetAttribute* preference_set;
  lt::AlgoGetHeuristic* heuristic;
  lt::Matmul* matmul;
  lt::Context* context = nullptr;
};

std::unique_ptr<Blas> Blas::open(std::string& why) {
  const auto shared = nanoweave::SharedLibrary::open(nanoweave::cublaslt_search(), why);
  if (!shared) return nullptr;
  return std::unique_ptr<Blas>(new Blas(std::make_shared<Library>(*shared)));
}

Blas::Blas(std::shared_ptr<Library> library)
    : library_(std::move(library)),
      version_(nanoweave::cublaslt_version_text(library_->get_version())),
      workspace_(kWorkspaceBytes) {}

void Blas::check_blas(int status, const char* what) const {
  if (status != lt::kSuccess)
    throw std::runtime_error(std::string(what) + ": cuBLAS status " + std::to_string(status));
}

void Blas::plan(int m, int n, int k, const uint16_t* x, const uint16_t* w, uint16_t* y,
                cudaStream_t stream, int sms) {
  // Column-major: yᵀ [n, m] = w as [k, n] transposed · x as [k, m].
  check_blas(library_->desc_create(&desc_, lt::kComputeFloat32, lt::kFloat32), "desc");
  check_blas(library_->desc_set(desc_, lt::kTransA, &lt::kTransposed, sizeof lt::kTransposed),
             "transpose");
  if (sms > 0)
    check_blas(library_->desc_set(desc_, lt::kSmCountTarget, &sms, sizeof sms), "SM count");
  check_blas(library_->layout_create(&layout_w_, lt::kBfloat16, k, n, k), "layout");
  check_blas(library_->layout_create(&layout_x_, lt::kBfloat16, k, m, k), "layout");
  check_blas(library_->layout_create(&layout_y_, lt::kBfloat16, n, m, n), "layout");
  lt::MatmulPreference* preference = nullptr;
  check_blas(library_->preference_create(&preference), "preference");
  check_blas(library_->preference_set(preference, lt::kMaxWorkspaceBytes, &kWorkspaceBytes,
                                      sizeof kWorkspaceBytes),
             "workspace");
  lt::HeuristicResult results[kCandidates];
  int found = 0;
  check_blas(library_->heuristic(library_->context, desc_, layout_w_, layout_x_, layout_y_,
                                 layout_y_, preference, kCandidates, results, &found),
             "heuristic");
  double best = INFINITY;
  planned_ = false;
  for (int i = 0; i < found; ++i) {
    if (results[i].state != lt::kSuccess) continue;
    const lt::MatmulAlgo chosen = algo_;
    algo_ = results[i].algo;
    const double seconds = measure(stream, 5, [&] { run(x, w, y, stream); }).median_seconds;
    if (seconds >= best) {
      algo_ = chosen;
      continue;
    }
    best = seconds;
    planned_ = true;
  }
  if (!planned_) throw std::runtime_error("cuBLASLt has no algorithm for the product");
}

void Blas::run(const uint16_t* x, const uint16_t* w, uint16_t* y, cudaStream_t stream) {
  const float one = 1, zero = 0;
  check_blas(library_->matmul(library_->context, desc_, &one, w, layout_w_, x, layout_x_, &zero, y,
                              layout_y_, y, layout_y_, &algo_, workspace_.data(), kWorkspaceBytes,
                              stream),
             "matmul");
}

}  // namespace probe
