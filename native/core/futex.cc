#include "core/futex.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <ctime>

namespace nanoweave {

namespace {

void wait(const std::atomic<uint32_t>& word, uint32_t seen, const timespec* timeout) {
  static_assert(sizeof(word) == sizeof(uint32_t));
  syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, seen, timeout, nullptr, 0);
}

}  // namespace

void futex_wait(const std::atomic<uint32_t>& word, uint32_t seen) { wait(word, seen, nullptr); }

void futex_wait_for(const std::atomic<uint32_t>& word, uint32_t seen,
                    std::chrono::nanoseconds timeout) {
  if (timeout.count() <= 0) return;
  const timespec relative = {timeout.count() / 1'000'000'000, timeout.count() % 1'000'000'000};
  wait(word, seen, &relative);
}

void futex_wake(const std::atomic<uint32_t>& word, int count) {
  syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, count, nullptr, nullptr, 0);
}

}  // namespace nanoweave
