// SourceFile: a weights file opened for reading by byte range. Ranges are read with pread into a
// bounded buffer and never mapped: a file that is cut or replaced while it loads gives an error,
// where a mapping would give SIGBUS, and its pages never count as ours.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace nanoweave {

class SourceFile {
 public:
  // ERR_IO when it cannot be opened or is no regular file; ERR_SAFETENSORS when its size differs
  // from the one seen when its header was read.
  SourceFile(const std::string& path, int64_t expected_bytes);
  ~SourceFile();
  SourceFile(SourceFile&& other) noexcept;
  SourceFile& operator=(SourceFile&&) = delete;

  // Fills `out`; ERR_SAFETENSORS when the file has become shorter. Any thread.
  void read(int64_t offset, int64_t bytes, std::byte* out) const;

 private:
  std::string path_;
  int fd_ = -1;
};

}  // namespace nanoweave
