// ThreadPool: the threads of one CPU rank. The rank's own worker calls parallel_for and takes part
// in it; the others spin within a step and park between steps (begin_step/end_step). No
// allocation, no lock on the path of a call.
#pragma once

#include <cstdint>
#include <memory>

namespace nanoweave {

class ThreadPool {
 public:
  // num_threads ≥ 1 counts the caller. `spin` false (more threads than cores): park at once.
  ThreadPool(int num_threads, bool spin);
  ~ThreadPool();

  int num_threads() const;

  void begin_step();  // wakes the helpers
  void end_step();    // lets them park

  // Calls body(index, thread) for every index in [0, count), dynamically handed out, and returns
  // when all are done. thread in [0, num_threads). `body` must not throw and must not call
  // parallel_for.
  template <typename Body>
  void parallel_for(int64_t count, const Body& body) {
    run(
        count,
        [](const void* context, int64_t index, int thread) noexcept {
          (*static_cast<const Body*>(context))(index, thread);
        },
        &body);
  }

 private:
  using Call = void (*)(const void* context, int64_t index, int thread);
  void run(int64_t count, Call call, const void* context);

  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace nanoweave
