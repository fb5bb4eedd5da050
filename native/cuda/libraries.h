// NVIDIA's libraries that are used where they are found. Nothing here needs CUDA to build.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "core/shared_library.h"

namespace nanoweave {

// The CUDA version that kernels are built with: libraries made for it come first.
#if !defined(NANOWEAVE_CUDA_MAJOR)
#define NANOWEAVE_CUDA_MAJOR 13
#endif

LibrarySearch nccl_search();
LibrarySearch cublaslt_search();

// 2.30.7 from NCCL's 23007; 13.1.1 from cuBLASLt's 130101.
std::string nccl_version_text(int version);
std::string cublaslt_version_text(size_t version);

struct LibraryDescription {
  std::string name;
  std::string version;  // empty: not there
  std::string path;
  std::string missing;  // why not
};

// Opens each library, which takes a second where it is not in the page cache.
std::vector<LibraryDescription> describe_libraries();

}  // namespace nanoweave
