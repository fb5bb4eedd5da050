#include "runtime/region.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>

#include "core/error.h"

namespace nanoweave {

Region::Region(int64_t bytes, bool huge_pages, const char* what) : bytes_(bytes) {
  if (bytes == 0) return;
  void* address = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (address == MAP_FAILED)
    fail(ErrorCode::kOutOfMemory, "cannot reserve %lld bytes for %s: %s",
         static_cast<long long>(bytes), what, std::strerror(errno));
  data_ = static_cast<std::byte*>(address);
  if (huge_pages) madvise(address, static_cast<size_t>(bytes), MADV_HUGEPAGE);  // a wish only
}

Region::~Region() {
  if (data_ != nullptr) munmap(data_, static_cast<size_t>(bytes_));
}

}  // namespace nanoweave
