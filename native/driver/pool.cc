// Checks of ThreadPool: every index runs exactly once on a valid thread, and plain memory written
// by the helpers is visible to the caller when parallel_for returns, and the other way round.
#include <cstdio>
#include <thread>

#include "cpu/thread_pool.h"
#include "driver/checks.h"
#include "driver/session.h"

namespace nanoweave {

namespace {

void check(int num_threads, bool spin, int rounds) {
  ThreadPool pool(num_threads, spin);
  for (int round = 0; round < rounds; ++round) {
    pool.begin_step();
    for (const int64_t count : {0, 1, 2, 3, 7, 64, 1000}) {
      std::vector<int> runs(count, round);  // the caller's writes, read by the helpers
      std::vector<int> threads(count, -1);
      pool.parallel_for(count, [&](int64_t index, int thread) {
        runs[index] += 1;
        threads[index] = thread;
      });
      for (int64_t i = 0; i < count; ++i)
        expect(runs[i] == round + 1 && threads[i] >= 0 && threads[i] < num_threads,
               "%d threads, index %lld of %lld ran %d times", num_threads,
               static_cast<long long>(i), static_cast<long long>(count), runs[i] - round);
    }
    pool.end_step();
    if (round % 16 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));  // they park
  }
}

}  // namespace

void check_pools() {
  for (const int num_threads : {1, 2, 3, 8})
    for (const bool spin : {false, true}) check(num_threads, spin, 100);
  for (int i = 0; i < 200; ++i) ThreadPool unused(4, i % 2 == 0);
  std::printf("pools: 1..8 threads, spinning and parking\n");
}

}  // namespace nanoweave
