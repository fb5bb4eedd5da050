// The doubles of NCCL and cuBLASLt (cuda/double), opened like the real libraries and joined to the
// emulated streams.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cuda/cublaslt.h"
#include "cuda/emulation/machine.h"
#include "cuda/nccl.h"

namespace nanoweave::check {

// Points NANOWEAVE_NCCL and NANOWEAVE_CUBLASLT at the libraries beside this program, where they are
// not set. Before any thread is started.
void use_doubles();

struct NcclDouble {
  const NcclLibrary& library;
  void (*fault)(const char* what, int rank);
  const char* (*log)();
};
const NcclDouble& nccl_double();

struct CublasLtDouble {
  const CublasLtLibrary& library;
  const char* (*log)();
};
const CublasLtDouble& cublaslt_double();

// Side streams in the emulation. When a device is given up, what waits for it goes on.
class EmulatedSideStreams {
 public:
  SideStreams make();
  void give_up() { given_up_ = true; }

 private:
  struct Flag {
    std::atomic<bool> set{false};
    const std::atomic<bool>* given_up;
  };
  static void set_kernel(Flag* flag);
  static void wait_kernel(Flag* flag);
  void order(CudaStream before, CudaStream after);

  std::map<std::pair<CudaStream, int>, std::unique_ptr<emulation::Stream>> streams_;
  std::vector<std::unique_ptr<Flag>> flags_;
  std::atomic<bool> given_up_{false};
};

}  // namespace nanoweave::check
