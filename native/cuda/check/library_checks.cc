// What goes wrong with NCCL's communicators: ranks that never become ready, versions that cannot do
// what is asked, errors that come later; and when heaps can be had behind a multicast address.
#include "cuda/check/library_checks.h"

#include <cstdlib>

#include "cuda/check/doubles.h"
#include "cuda/emulation/machine.h"
#include "cuda/multicast_heap.h"

namespace nanoweave::check {

namespace {

NcclOptions options_for(std::vector<int> devices, int tp) {
  return {.tp = tp,
          .devices = std::move(devices),
          .timeout = std::chrono::milliseconds(100),
          .max_blocks = 8,
          .set_device = [](int) {},
          .side_streams = {}};
}

// The error that `body` throws: code and rank; empty: none.
template <typename Body>
std::string error_of(const Body& body) {
  try {
    body();
  } catch (const EngineError& error) {
    return std::string(error_code_name(error.code)) + " rank " + std::to_string(error.rank);
  }
  return {};
}

struct Expectations {
  std::vector<std::string> wrong;
  void same(const char* what, const std::string& got, const std::string& want) {
    if (got != want)
      wrong.push_back(std::string(what) + ": got '" + got + "', expected '" + want + "'");
  }
  void contains(const char* what, const std::string& got, const char* part) {
    if (got.find(part) == std::string::npos)
      wrong.push_back(std::string(what) + ": '" + got + "' does not say '" + part + "'");
  }
};

void check_life(Expectations& expect, const NcclDouble& nccl) {
  {
    const NcclWorld world(nccl.library, options_for({0, 1, 0, 1}, 2));
  }
  expect.same("two groups", nccl.log(),
              "init rank 0 of 2\ninit rank 1 of 2\ninit rank 0 of 2\ninit rank 1 of 2\n"
              "finalize rank 0\nfinalize rank 1\nfinalize rank 0\nfinalize rank 1\n"
              "destroy rank 0\ndestroy rank 1\ndestroy rank 0\ndestroy rank 1\n");
}

void check_init_deadline(Expectations& expect, const NcclDouble& nccl) {
  nccl.fault("init", 1);
  expect.same("a rank that never gets ready",
              error_of([&] { NcclWorld(nccl.library, options_for({0, 1}, 2)); }),
              "ERR_RANK_TIMEOUT rank 1");
  nccl.fault("none", -1);
  expect.same("its peers", nccl.log(),
              "init rank 0 of 2\ninit rank 1 of 2\nabort rank 0\nabort rank 1\n");
}

void check_end_deadline(Expectations& expect, const NcclDouble& nccl) {
  {
    const NcclWorld world(nccl.library, options_for({0, 1}, 2));
    nccl.fault("finalize", 0);
  }
  nccl.fault("none", -1);
  expect.same("a rank that never ends", nccl.log(),
              "init rank 0 of 2\ninit rank 1 of 2\nfinalize rank 0\nfinalize rank 1\n"
              "abort rank 0\nabort rank 1\n");
}

void check_later_error(Expectations& expect, const NcclDouble& nccl) {
  NcclWorld world(nccl.library, options_for({0, 1}, 2));
  expect.same("before the error", error_of([&] { world.check(); }), "");
  nccl.fault("error now", 1);
  expect.same("the error", error_of([&] { world.check(); }), "ERR_RANK_FAULT rank 1");
  nccl.fault("none", -1);
  expect.same("after it", error_of([&] { world.check(); }), "");
  world.abort();  // again is no error
  expect.same("all ranks", nccl.log(),
              "init rank 0 of 2\ninit rank 1 of 2\nabort rank 0\nabort rank 1\n");
}

void check_refusals(Expectations& expect, const NcclDouble& nccl) {
  NcclLibrary old(nccl.library.library);
  old.version = 22705;
  const std::string shared = NcclWorld::refuse(old, options_for({0, 0}, 2));
  expect.contains("an old version", shared, "ranks 0 and 1 of a group share cuda:0");
  expect.contains("an old version", shared, "NCCL 2.27.5 cannot do");
  expect.same("apart", NcclWorld::refuse(old, options_for({0, 1, 0, 1}, 2)), "");
  unsetenv("NCCL_MULTI_RANK_GPU_ENABLE");
  expect.contains("not enabled", NcclWorld::refuse(nccl.library, options_for({0, 1, 1}, 3)),
                  "NCCL_MULTI_RANK_GPU_ENABLE=1");
  setenv("NCCL_MULTI_RANK_GPU_ENABLE", "1", 1);
  expect.same("enabled", NcclWorld::refuse(nccl.library, options_for({0, 0}, 2)), "");
}

void check_multicast_heap(Expectations& expect) {
  std::string why;
  const auto create = [&](std::vector<int> devices) {
    return MulticastHeap::create(devices, devices, 4096, why);
  };
  unsetenv("NANOWEAVE_EMULATION_MULTICAST");
  create({0, 1});
  expect.contains("two ranks", why, "gain nothing");
  create({0, 1, 0});
  expect.contains("a shared device", why, "several ranks share cuda:0");
  create({0, 1, 2});
  expect.contains("devices without", why, "have no multicast");
  setenv("NANOWEAVE_EMULATION_MULTICAST", "1", 1);
  const emulation::Machine& machine = emulation::Machine::instance();
  std::byte* address = nullptr;
  {
    const auto heap = create({0, 1, 2});
    expect.same("devices with it", why, "");
    if (heap == nullptr) return;
    address = heap->multicast();
    const auto range = machine.find_multicast(address + 4080, 16);
    if (!range || range->heaps.size() != 3 || range->heaps[2] != heap->heap(2))
      expect.wrong.push_back("the multicast address does not stand for the heaps");
    if (machine.find_multicast(address + 4081, 16))
      expect.wrong.push_back("the multicast range is too long");
  }
  if (machine.find_multicast(address, 16))
    expect.wrong.push_back("the multicast range outlives its heaps");
}

}  // namespace

std::vector<std::string> run_library_checks() {
  Expectations expect;
  const NcclDouble& nccl = nccl_double();
  nccl.log();
  check_life(expect, nccl);
  check_init_deadline(expect, nccl);
  check_end_deadline(expect, nccl);
  check_later_error(expect, nccl);
  check_refusals(expect, nccl);
  check_multicast_heap(expect);
  return expect.wrong;
}

}  // namespace nanoweave::check
