#include "runtime/source_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "core/error.h"

namespace nanoweave {

SourceFile::SourceFile(const std::string& path, int64_t expected_bytes) : path_(path) {
  // O_NONBLOCK: opening a FIFO must not hang; it has no effect on regular files.
  fd_ = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd_ < 0)
    fail(ErrorCode::kIo, "cannot open weights file '%s': %s", path.c_str(), std::strerror(errno));
  struct stat status;
  const bool regular = fstat(fd_, &status) == 0 && S_ISREG(status.st_mode);
  if (!regular || status.st_size != expected_bytes) {
    close(fd_);
    if (!regular) fail(ErrorCode::kIo, "weights file '%s' is no regular file", path.c_str());
    fail(ErrorCode::kSafetensors,
         "weights file '%s' has %lld bytes, had %lld when its header was read; do not change it "
         "while it loads",
         path.c_str(), static_cast<long long>(status.st_size),
         static_cast<long long>(expected_bytes));
  }
}

SourceFile::~SourceFile() {
  if (fd_ >= 0) close(fd_);
}

SourceFile::SourceFile(SourceFile&& other) noexcept
    : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)) {}

void SourceFile::read(int64_t offset, int64_t bytes, std::byte* out) const {
  while (bytes > 0) {
    const ssize_t got = pread(fd_, out, static_cast<size_t>(bytes), offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0)
      fail(ErrorCode::kIo, "cannot read weights file '%s': %s", path_.c_str(),
           std::strerror(errno));
    if (got == 0)
      fail(ErrorCode::kSafetensors, "weights file '%s' became shorter while it was loaded",
           path_.c_str());
    offset += got;
    bytes -= got;
    out += got;
  }
}

}  // namespace nanoweave
