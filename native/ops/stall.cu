// stall: one rank is late by ms, or, with ms < 0, dead. Tests only. A late rank holds its stream. A
// dead one must not, since other ranks may share it: its epochs fall back instead, so that its
// flags never reach what its peers wait for, and they report it.
#include "cuda/comm.cuh"

namespace nanoweave {

namespace {

struct StallArgs {
  SignalPad* pad;
  const uint32_t* abort;
  int64_t nanoseconds;  // < 0: dead
};

constexpr uint32_t kFallBack = 1u << 30;

__global__ void __launch_bounds__(1) stall_kernel(const __grid_constant__ StallArgs args) {
  ptx::wait_for_previous_kernel();
  if (args.nanoseconds < 0) {
    for (auto& slot : args.pad->epochs)
      for (uint32_t& epoch : slot) epoch -= kFallBack;
    return;
  }
  const uint64_t start = ptx::global_timer_ns();
  const auto wanted = static_cast<uint64_t>(args.nanoseconds);
  while (ptx::global_timer_ns() - start < wanted)
    if (ptx::load_relaxed_system(args.abort) != 0) return;
}

}  // namespace

CudaKernel prepare_cuda_stall(const OpInstance& op, const CudaPlan&) {
  const int64_t rank = op.integer("rank");
  const int64_t ms = op.integer("ms");
  return {.launch =
              [=](const CudaLaunch& launch) {
                for (const CudaRank& local : launch.ranks)
                  if (local.rank == rank)
                    nanoweave::launch(stall_kernel, {.threads = 1}, launch.stream,
                                      StallArgs{.pad = launch.comm->pads[rank],
                                                .abort = launch.comm->abort,
                                                .nanoseconds = ms < 0 ? -1 : ms * 1'000'000});
              },
          .workspace_bytes = nullptr,
          .functions = {cuda_function(stall_kernel)}};
}

}  // namespace nanoweave
