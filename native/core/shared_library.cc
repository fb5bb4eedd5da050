#include "core/shared_library.h"

#include <dlfcn.h>
#include <glob.h>
#include <link.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>

namespace nanoweave {

namespace {

namespace fs = std::filesystem;

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

std::vector<std::string> matches(const std::string& pattern) {
  glob_t found{};
  std::vector<std::string> paths;
  if (glob(pattern.c_str(), 0, nullptr, &found) == 0)
    paths.assign(found.gl_pathv, found.gl_pathv + found.gl_pathc);
  globfree(&found);
  std::reverse(paths.begin(), paths.end());  // the newest Python first
  return paths;
}

// Folders in which Python packages lie, the active environment's first.
std::vector<std::string> package_folders() {
  std::vector<std::string> roots;
  for (const char* name : {"VIRTUAL_ENV", "CONDA_PREFIX"})
    if (const std::string root = variable(name); !root.empty()) roots.push_back(root);
  if (const std::string home = variable("HOME"); !home.empty()) roots.push_back(home + "/.local");
  roots.insert(roots.end(), {"/usr/local", "/usr"});
  std::vector<std::string> folders;
  for (const std::string& root : roots)
    for (const char* packages : {"site-packages", "dist-packages"})
      for (std::string& folder : matches(root + "/lib/python3*/" + packages))
        folders.push_back(std::move(folder));
  return folders;
}

std::vector<std::string> candidates(const LibrarySearch& search) {
  std::vector<std::string> paths(search.sonames.begin(), search.sonames.end());
  std::vector<std::string> folders;
  for (const char* name : {"CUDA_HOME", "CUDA_PATH"})
    if (const std::string home = variable(name); !home.empty()) folders.push_back(home + "/lib64");
  folders.push_back("/usr/local/cuda/lib64");
  if (const std::string conda = variable("CONDA_PREFIX"); !conda.empty())
    folders.push_back(conda + "/lib");
  for (const std::string& packages : package_folders())
    for (const char* wheel : search.wheel_folders) folders.push_back(packages + "/" + wheel);
  for (const char* soname : search.sonames)
    for (const std::string& folder : folders)
      if (std::string path = folder + "/" + soname; fs::exists(path))
        paths.push_back(std::move(path));
  return paths;
}

void* open_now(const std::string& path) {
  dlerror();
  return dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
}

std::string opened_path(void* handle, const std::string& asked) {
  link_map* map = nullptr;
  const bool known = dlinfo(handle, RTLD_DI_LINKMAP, &map) == 0 && map->l_name[0] != '\0';
  return known ? map->l_name : asked;
}

}  // namespace

std::optional<SharedLibrary> SharedLibrary::open(const LibrarySearch& search, std::string& why) {
  if (const std::string path = variable(search.environment); !path.empty()) {
    if (void* handle = open_now(path))
      return SharedLibrary(handle, search.name, opened_path(handle, path));
    const char* error = dlerror();
    why = std::string(search.name) + " could not be opened: " + search.environment + " is " + path +
          " (" + (error == nullptr ? "no reason given" : error) + ")";
    return std::nullopt;
  }
  std::string broken;
  for (const std::string& path : candidates(search)) {
    if (void* handle = open_now(path))
      return SharedLibrary(handle, search.name, opened_path(handle, path));
    const char* error = dlerror();
    // A soname that the loader does not know is the ordinary case; a file that is there is not.
    if (path.find('/') != std::string::npos && error != nullptr) broken = error;
  }
  why = std::string(search.name) + " was not found: no " + search.sonames[0] +
        " on the loader's path, in CUDA_HOME or in a Python environment; " + search.install_hint +
        ", or set " + search.environment + " to its path";
  if (!broken.empty()) why += " (one is there but does not load: " + broken + ")";
  return std::nullopt;
}

void* SharedLibrary::address_or_null(const char* symbol) const { return dlsym(handle_, symbol); }

void* SharedLibrary::address(const char* symbol) const {
  void* address = address_or_null(symbol);
  if (address == nullptr)
    fail(ErrorCode::kUnsupportedOption, "%s (%s) has no function %s: it is too old", name_.c_str(),
         path_.c_str(), symbol);
  return address;
}

}  // namespace nanoweave
