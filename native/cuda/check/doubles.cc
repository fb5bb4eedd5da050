#include "cuda/check/doubles.h"

#include <cstdlib>
#include <filesystem>

#include "cuda/launch.h"

namespace nanoweave::check {

namespace {

template <typename Library>
const Library& open() {
  std::string why;
  const Library* library = Library::open(why);
  if (library == nullptr) fail(ErrorCode::kInternal, "%s", why.c_str());
  return *library;
}

}  // namespace

void use_doubles() {
  const std::filesystem::path folder =
      std::filesystem::read_symlink("/proc/self/exe").parent_path();
  setenv("NANOWEAVE_NCCL", (folder / "libnanoweave_nccl_double.so").c_str(), 0);
  setenv("NANOWEAVE_CUBLASLT", (folder / "libnanoweave_cublaslt_double.so").c_str(), 0);
  setenv("NCCL_MULTI_RANK_GPU_ENABLE", "1", 1);
}

const NcclDouble& nccl_double() {
  static const NcclLibrary& library = open<NcclLibrary>();
  static const NcclDouble opened{
      .library = library,
      .fault = library.library.function<void(const char*, int)>("nanoweave_double_fault"),
      .log = library.library.function<const char*()>("nanoweave_double_log")};
  return opened;
}

const CublasLtDouble& cublaslt_double() {
  static const CublasLtLibrary& library = open<CublasLtLibrary>();
  static const CublasLtDouble opened{
      .library = library, .log = library.library.function<const char*()>("nanoweave_double_log")};
  return opened;
}

// ---- Side streams -------------------------------------------------------------------------------

void EmulatedSideStreams::set_kernel(Flag* flag) { flag->set = true; }

void EmulatedSideStreams::wait_kernel(Flag* flag) {
  while (!flag->set && !*flag->given_up) emulation::Machine::instance().yield();
}

void EmulatedSideStreams::order(CudaStream before, CudaStream after) {
  Flag* flag = flags_.emplace_back(std::make_unique<Flag>()).get();
  flag->given_up = &given_up_;
  launch(set_kernel, {.threads = 1}, before, flag);
  launch(wait_kernel, {.threads = 1}, after, flag);
}

SideStreams EmulatedSideStreams::make() {
  const auto side = [this](CudaStream lane, int index) {
    auto& stream = streams_[{lane, index}];
    if (stream == nullptr) stream = std::make_unique<emulation::Stream>();
    return stream.get();
  };
  return {.fork =
              [this, side](CudaStream lane, int index) {
                order(lane, side(lane, index));
                return side(lane, index);
              },
          .join = [this, side](CudaStream lane, int index) { order(side(lane, index), lane); }};
}

}  // namespace nanoweave::check
