// Fibers: the stacks on which the emulation runs the threads of a kernel. One operating-system
// thread runs them all; a fiber runs until it calls suspend(). Stacks end in a guard page.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

namespace nanoweave::emulation {

class FiberPool;

struct Fiber {
  using Entry = void (*)(void* argument);
  Entry entry = nullptr;
  void* argument = nullptr;
  void* stack_pointer = nullptr;  // of the suspended fiber
  std::byte* stack = nullptr;     // lowest byte
  void* fake_stack = nullptr;     // AddressSanitizer's, while suspended
};

class FiberPool {
 public:
  using Entry = Fiber::Entry;

  FiberPool();
  ~FiberPool();
  FiberPool(const FiberPool&) = delete;
  FiberPool& operator=(const FiberPool&) = delete;

  // A fiber that will call entry(argument); entry must end in finish().
  Fiber* create(Entry entry, void* argument);
  // Returns the stack of a fiber that has finished or will never be resumed.
  void release(Fiber* fiber);

  // Scheduler: runs `fiber` until it suspends or finishes.
  void resume(Fiber* fiber);
  // Running fiber: back to the scheduler.
  void suspend();
  [[noreturn]] void finish();

 private:
  friend void enter_fiber();

  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace nanoweave::emulation
