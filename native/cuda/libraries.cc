#include "cuda/libraries.h"

#include <utility>

#include "cuda/cublaslt_abi.h"
#include "cuda/nccl_abi.h"

namespace nanoweave {

LibrarySearch nccl_search() {
  return {.name = "NCCL",
          .environment = "NANOWEAVE_NCCL",
          .install_hint = "install it (libnccl2, or pip install nvidia-nccl-cu13)",
          .sonames = {"libnccl.so.2"},
          .wheel_folders = {"nvidia/nccl/lib"}};
}

LibrarySearch cublaslt_search() {
  LibrarySearch search{.name = "cuBLASLt",
                       .environment = "NANOWEAVE_CUBLASLT",
                       .install_hint = "install it (CUDA toolkit, or pip install nvidia-cublas)",
                       .sonames = {"libcublasLt.so.13", "libcublasLt.so.12"},
                       .wheel_folders = {"nvidia/cu13/lib", "nvidia/cublas/lib"}};
  if constexpr (NANOWEAVE_CUDA_MAJOR == 12) {
    std::swap(search.sonames[0], search.sonames[1]);
    std::swap(search.wheel_folders[0], search.wheel_folders[1]);
  }
  return search;
}

std::string nccl_version_text(int version) {
  return std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." +
         std::to_string(version % 100);
}

std::string cublaslt_version_text(size_t version) {
  // 12 and 13: major·10000 + minor·100 + patch.
  return nccl_version_text(static_cast<int>(version));
}

namespace {

template <typename VersionOf>
LibraryDescription describe(const LibrarySearch& search, const VersionOf& version_of) {
  LibraryDescription description{.name = search.name, .version = {}, .path = {}, .missing = {}};
  const std::optional<SharedLibrary> library = SharedLibrary::open(search, description.missing);
  if (!library) return description;
  description.path = library->path();
  try {
    description.version = version_of(*library);
  } catch (const EngineError& error) {
    description.missing = error.what();
  }
  return description;
}

}  // namespace

std::vector<LibraryDescription> describe_libraries() {
  return {describe(nccl_search(),
                   [](const SharedLibrary& library) {
                     int version = 0;
                     library.function<nccl::GetVersion>("ncclGetVersion")(&version);
                     return nccl_version_text(version);
                   }),
          describe(cublaslt_search(), [](const SharedLibrary& library) {
            return cublaslt_version_text(
                library.function<cublaslt::GetVersion>("cublasLtGetVersion")());
          })};
}

}  // namespace nanoweave
