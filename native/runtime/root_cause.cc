#include "runtime/root_cause.h"

#include <new>

#include "comm/host_comm.h"

namespace nanoweave {

std::string RootCause::report_current(int rank, const std::string& op, int step) {
  const auto place = [&](EngineError error) {
    if (error.rank < 0) error.rank = rank;
    if (error.op.empty()) error.op = op;
    if (error.step < 0) error.step = step;
    return error;
  };
  const std::string where = "rank " + std::to_string(rank) + ", op '" + op + "': ";
  try {
    throw;
  } catch (const AbortedError& error) {
    keep(place(error), kEcho);
    return error.what();
  } catch (const EngineError& error) {
    keep(place(error), error.code == ErrorCode::kRankTimeout ? kTimeout : kOwnFailure);
    return error.what();
  } catch (const std::bad_alloc&) {
    keep(place(EngineError(ErrorCode::kOutOfMemory, where + "out of memory")), kOwnFailure);
    return "out of memory";
  } catch (const std::exception& error) {
    keep(place(EngineError(ErrorCode::kRankFault, where + error.what())), kOwnFailure);
    return error.what();
  }
}

void RootCause::report(const EngineError& error) {
  keep(error, error.code == ErrorCode::kRankTimeout ? kTimeout : kOwnFailure);
}

void RootCause::keep(const EngineError& error, Severity severity) {
  const std::lock_guard lock(mutex_);
  if (severity <= severity_) return;
  severity_ = severity;
  failure_ = std::make_exception_ptr(error);
}

std::exception_ptr RootCause::get() const {
  const std::lock_guard lock(mutex_);
  return failure_;
}

}  // namespace nanoweave
