// RootCause: which of several failures explains the others. A rank's own failure comes before a
// timeout of a peer that waited for it, a timeout before the echo of an abort; among equals the
// first counts. Thread-safe.
#pragma once

#include <exception>
#include <mutex>
#include <string>

#include "core/error.h"

namespace nanoweave {

class RootCause {
 public:
  // Takes the current exception, thrown on `rank` in `op` (empty: before the first) of `step`, and
  // returns its message.
  std::string report_current(int rank, const std::string& op, int step);

  // A failure that comes from outside the ranks (closing), or from a device.
  void report(const EngineError& error);

  std::exception_ptr get() const;  // null: nothing failed

 private:
  enum Severity { kNone, kEcho, kTimeout, kOwnFailure };
  void keep(const EngineError& error, Severity severity);

  mutable std::mutex mutex_;
  Severity severity_ = kNone;   // guarded by mutex_
  std::exception_ptr failure_;  // guarded by mutex_
};

}  // namespace nanoweave
