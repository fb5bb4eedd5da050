#include "cuda/emulation/doubles.h"

#include "cuda/double/streams.h"
#include "cuda/launch.h"

namespace nanoweave::emulation {

namespace {

struct RunArgs {
  doubles::Run run;
  void* call;
};

void run_kernel(RunArgs args) {
  uint64_t state = 0;
  while (!args.run(args.call, &state)) Machine::instance().yield();
}

void enqueue_call(void* stream, doubles::Run run, void* call) {
  launch(run_kernel, {.threads = 1}, static_cast<CudaStream>(stream),
         RunArgs{.run = run, .call = call});
}

}  // namespace

void join_double(const SharedLibrary& library) {
  library.function<void(doubles::Enqueue)>("nanoweave_double_streams")(enqueue_call);
}

}  // namespace nanoweave::emulation
