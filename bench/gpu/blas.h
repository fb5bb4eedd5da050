// A bf16 matrix product by cuBLASLt, opened at run time: y [m, n] = x [m, k] · w [n, k]ᵀ.
#pragma once

#include <memory>
#include <string>

#include "cuda/cublaslt_abi.h"
#include "probe.h"

namespace probe {

class Blas {
 public:
  // Null with the reason in `why` where there is no cuBLASLt.
  static std::unique_ptr<Blas> open(std::string& why);
  const std::string& version() const { return version_; }

  // Picks the fastest of the heuristics' answers; `sms` > 0 plans for so many multiprocessors.
  void plan(int m, int n, int k, const uint16_t* x, const uint16_t* w, uint16_t* y,
            cudaStream_t stream, int sms = 0);
  void run(const uint16_t* x, const uint16_t* w, uint16_t* y, cudaStream_t stream);

 private:
  struct Library;
  explicit Blas(std::shared_ptr<Library> library);

  void check_blas(int status, const char* what) const;

  std::shared_ptr<Library> library_;
  std::string version_;
  DeviceArray<uint8_t> workspace_;
  // Of the last plan; descriptors live as long as the process.
  nanoweave::cublaslt::MatmulDesc* desc_ = nullptr;
  nanoweave::cublaslt::MatrixLayout* layout_x_ = nullptr;
  nanoweave::cublaslt::MatrixLayout* layout_w_ = nullptr;
  nanoweave::cublaslt::MatrixLayout* layout_y_ = nullptr;
  nanoweave::cublaslt::MatmulAlgo algo_{};
  bool planned_ = false;
};

}  // namespace probe
