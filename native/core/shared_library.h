// SharedLibrary: a library that is looked for at run time, so that the addon depends on none. Once
// opened it stays open until the process ends: vendors' libraries keep threads and exit handlers.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "core/error.h"

namespace nanoweave {

struct LibrarySearch {
  const char* name;                  // what a person calls it
  const char* environment;           // variable with the path of the library; set, it is final
  const char* install_hint;          // what to do where there is none
  std::vector<const char*> sonames;  // the preferred one first
  std::vector<const char*> wheel_folders;  // below a Python site-packages folder
};

class SharedLibrary {
 public:
  // The environment's path; else each soname where the loader looks; else in CUDA_HOME; else in the
  // Python environments. Nothing: `why` says what was tried and what to do.
  static std::optional<SharedLibrary> open(const LibrarySearch& search, std::string& why);

  const std::string& path() const { return path_; }

  // ERR_UNSUPPORTED_OPTION names library and symbol where the library has none of this name.
  template <typename Function>
  Function* function(const char* symbol) const {
    return reinterpret_cast<Function*>(address(symbol));
  }
  void* address_or_null(const char* symbol) const;

 private:
  SharedLibrary(void* handle, std::string name, std::string path)
      : handle_(handle), name_(std::move(name)), path_(std::move(path)) {}
  void* address(const char* symbol) const;

  void* handle_;
  std::string name_;
  std::string path_;
};

}  // namespace nanoweave
