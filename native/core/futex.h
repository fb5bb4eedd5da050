// The futex calls behind every wait of the rank threads: sleep while a word has a value, wake
// sleepers. Private to the process.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

namespace nanoweave {

// Returns when woken, when `word` no longer equals `seen`, at the timeout, or spuriously.
void futex_wait(const std::atomic<uint32_t>& word, uint32_t seen);
void futex_wait_for(const std::atomic<uint32_t>& word, uint32_t seen,
                    std::chrono::nanoseconds timeout);

void futex_wake(const std::atomic<uint32_t>& word, int count);
inline constexpr int kWakeAll = INT32_MAX;

// Tells the core that this is a spin loop.
inline void spin_pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#endif
}

}  // namespace nanoweave
