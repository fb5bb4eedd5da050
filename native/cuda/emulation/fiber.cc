// Stack switching: a few instructions on x86-64 (the callee-saved registers of the System V ABI),
// ucontext elsewhere.
#include "cuda/emulation/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <new>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace nanoweave::emulation {

namespace {

constexpr size_t kStackBytes = 128 << 10;

#if defined(__SANITIZE_ADDRESS__)
void before_switch(void** save, const void* bottom, size_t size) {
  __sanitizer_start_switch_fiber(save, bottom, size);
}
void after_switch(void* saved, const void** bottom, size_t* size) {
  __sanitizer_finish_switch_fiber(saved, bottom, size);
}
void forget_frames(std::byte* stack) { __asan_unpoison_memory_region(stack, kStackBytes); }
#else
void before_switch(void**, const void*, size_t) {}
void after_switch(void*, const void**, size_t*) {}
void forget_frames(std::byte*) {}
#endif

FiberPool* running_pool = nullptr;

}  // namespace

struct FiberPool::Impl {
  Fiber scheduler;
  const void* scheduler_bottom = nullptr;
  size_t scheduler_size = 0;
  Fiber* running = nullptr;
  std::vector<std::unique_ptr<Fiber>> all;
  std::vector<Fiber*> free;
};

void enter_fiber();

#if defined(__x86_64__)

extern "C" void nanoweave_switch_stack(void** save, void* load);
asm(R"(
.text
.globl nanoweave_switch_stack
.hidden nanoweave_switch_stack
.type nanoweave_switch_stack, @function
nanoweave_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size nanoweave_switch_stack, .-nanoweave_switch_stack
)");

namespace {
void switch_stack(Fiber& from, Fiber& to) {
  nanoweave_switch_stack(&from.stack_pointer, to.stack_pointer);
}
// The stack as if enter_fiber() had been called from nowhere: six registers and its address, such
// that the stack pointer is 8 modulo 16 on entry.
void prepare_stack(Fiber& fiber) {
  auto* top = reinterpret_cast<void**>(fiber.stack + kStackBytes);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(&enter_fiber);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  fiber.stack_pointer = top;
}
void dispose(Fiber&) {}
}  // namespace

#else

namespace {
ucontext_t& context(Fiber& fiber) {
  if (fiber.stack_pointer == nullptr) fiber.stack_pointer = new ucontext_t;
  return *static_cast<ucontext_t*>(fiber.stack_pointer);
}
void switch_stack(Fiber& from, Fiber& to) { swapcontext(&context(from), &context(to)); }
void prepare_stack(Fiber& fiber) {
  ucontext_t& made = context(fiber);
  getcontext(&made);
  made.uc_stack.ss_sp = fiber.stack;
  made.uc_stack.ss_size = kStackBytes;
  made.uc_link = nullptr;
  makecontext(&made, &enter_fiber, 0);
}
void dispose(Fiber& fiber) { delete static_cast<ucontext_t*>(fiber.stack_pointer); }
}  // namespace

#endif

void enter_fiber() {
  FiberPool::Impl& impl = *running_pool->impl_;
  after_switch(nullptr, &impl.scheduler_bottom, &impl.scheduler_size);
  impl.running->entry(impl.running->argument);
  std::abort();  // the entry ends in finish()
}

FiberPool::FiberPool() : impl_(std::make_unique<Impl>()) {}

FiberPool::~FiberPool() {
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  for (const auto& fiber : impl_->all) {
    munmap(fiber->stack - page, kStackBytes + page);
    dispose(*fiber);
  }
  dispose(impl_->scheduler);
}

Fiber* FiberPool::create(Entry entry, void* argument) {
  if (impl_->free.empty()) {
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    void* memory = mmap(nullptr, kStackBytes + page, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    mprotect(memory, page, PROT_NONE);
    impl_->all.push_back(std::make_unique<Fiber>());
    impl_->all.back()->stack = static_cast<std::byte*>(memory) + page;
    impl_->free.push_back(impl_->all.back().get());
  }
  Fiber* fiber = impl_->free.back();
  impl_->free.pop_back();
  forget_frames(fiber->stack);
  fiber->fake_stack = nullptr;
  prepare_stack(*fiber);
  fiber->entry = entry;
  fiber->argument = argument;
  return fiber;
}

void FiberPool::release(Fiber* fiber) { impl_->free.push_back(fiber); }

void FiberPool::resume(Fiber* fiber) {
  impl_->running = fiber;
  running_pool = this;
  before_switch(&impl_->scheduler.fake_stack, fiber->stack, kStackBytes);
  switch_stack(impl_->scheduler, *fiber);
  after_switch(impl_->scheduler.fake_stack, nullptr, nullptr);
  impl_->running = nullptr;
}

void FiberPool::suspend() {
  Fiber* self = impl_->running;
  before_switch(&self->fake_stack, impl_->scheduler_bottom, impl_->scheduler_size);
  switch_stack(*self, impl_->scheduler);
  after_switch(self->fake_stack, &impl_->scheduler_bottom, &impl_->scheduler_size);
}

void FiberPool::finish() {
  Fiber* self = impl_->running;
  before_switch(nullptr, impl_->scheduler_bottom, impl_->scheduler_size);
  switch_stack(*self, impl_->scheduler);
  std::abort();  // a finished fiber is never resumed
}

}  // namespace nanoweave::emulation
