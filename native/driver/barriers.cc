// Protocol checks of HostComm: plain memory is written before a barrier and read by all peers after
// it, so that ThreadSanitizer proves the ordering and the values prove the epochs.
#include <cstdio>
#include <functional>
#include <random>
#include <thread>

#include "comm/host_comm.h"
#include "driver/checks.h"
#include "driver/session.h"

namespace nanoweave {

namespace {

using std::chrono::milliseconds;

constexpr int kMaxWorld = 8;
const std::string kLabel = "check";

void on_threads(int world, const std::function<void(int rank)>& body) {
  std::vector<std::exception_ptr> failures(world);
  std::vector<std::jthread> threads;
  for (int rank = 0; rank < world; ++rank)
    threads.emplace_back([&, rank] {
      try {
        body(rank);
      } catch (...) {
        failures[rank] = std::current_exception();
      }
    });
  threads.clear();  // joins
  for (const std::exception_ptr& failure : failures)
    if (failure) std::rethrow_exception(failure);
}

HostComm make_comm(int world, milliseconds timeout, bool oversubscribed) {
  return HostComm(std::vector<std::byte*>(world, nullptr), 0, timeout, oversubscribed);
}

// `late`: that rank sleeps now and then before it arrives; -1: none.
void check_visibility(int world, uint32_t first_epoch, bool oversubscribed, int rounds, int late) {
  HostComm comm = make_comm(world, milliseconds(60000), oversubscribed);
  comm.start_epochs_at(first_epoch);
  std::vector<int64_t> values(world);  // [rank], written by its rank between barriers
  on_threads(world, [&](int rank) {
    for (int round = 0; round < rounds; ++round) {
      if (rank == late && round % 16 == 0) std::this_thread::sleep_for(milliseconds(2));
      values[rank] = int64_t{round} * world + rank;
      comm.barrier(rank, 0, world, 0, kLabel, round);
      for (int peer = 0; peer < world; ++peer)
        expect(values[peer] == int64_t{round} * world + peer,
               "world %d, round %d: rank %d sees an old value of rank %d", world, round, rank,
               peer);
      comm.barrier(rank, 0, world, 1, kLabel, round);
    }
  });
}

// Groups that meet among themselves different numbers of times still meet as a world.
void check_groups() {
  constexpr int kWorld = 6, kGroup = 2, kRounds = 50;
  HostComm comm = make_comm(kWorld, milliseconds(60000), true);
  std::vector<int> values(kWorld);
  on_threads(kWorld, [&](int rank) {
    const int group = rank / kGroup;
    for (int round = 1; round <= kRounds; ++round) {
      for (int i = 0; i < group * 3; ++i)
        comm.barrier(rank, group * kGroup, kGroup, 0, kLabel, round);
      values[rank] = round;
      comm.barrier(rank, 0, kWorld, 0, kLabel, round);
      for (const int value : values) expect(value == round, "a group ran past the world's barrier");
      comm.barrier(rank, 0, kWorld, 1, kLabel, round);
    }
  });
}

void check_dead_rank(int world, int dead, bool oversubscribed) {
  constexpr milliseconds kTimeout(80);
  HostComm comm = make_comm(world, kTimeout, oversubscribed);
  std::atomic<int> timeouts{0}, echoes{0};
  const auto start = std::chrono::steady_clock::now();
  on_threads(world, [&](int rank) {
    if (rank == dead) {
      expect(comm.sleep_unless_aborted(milliseconds(30000)), "the dead rank was never told");
      return;
    }
    try {
      comm.barrier(rank, 0, world, 0, kLabel, 7);
      expect(false, "a barrier ended without rank %d", dead);
    } catch (const AbortedError& error) {
      ++echoes;
    } catch (const EngineError& error) {
      expect(error.code == ErrorCode::kRankTimeout && error.rank == dead && error.op == kLabel &&
                 error.step == 7,
             "the timeout does not name rank %d", dead);
      ++timeouts;
    }
  });
  const auto elapsed = std::chrono::steady_clock::now() - start;
  expect(elapsed >= kTimeout, "the barrier gave up before its deadline");
  expect(timeouts == 1 && echoes == world - 2, "%d timeouts, %d echoes of %d ranks",
         timeouts.load(), echoes.load(), world);
  expect(comm.fault_record().peer == dead, "the fault record names rank %d",
         comm.fault_record().peer);
  try {
    comm.barrier(0, 0, world, 0, kLabel, 8);
    expect(false, "a poisoned communicator still works");
  } catch (const EngineError&) {
  }
}

}  // namespace

void check_barriers() {
  constexpr uint32_t kBeforeWrap = 0xffffffff - 100;  // wraps in the middle of the rounds
  for (int world = 1; world <= kMaxWorld; ++world) {
    for (const bool oversubscribed : {false, true}) {
      check_visibility(world, 0, oversubscribed, 200, -1);
      check_visibility(world, kBeforeWrap, oversubscribed, 200, -1);
      check_visibility(world, 0x7fffffff - 100, oversubscribed, 200, world - 1);
    }
  }
  check_groups();
  for (const int world : {2, 3, 8})
    for (const bool oversubscribed : {false, true})
      check_dead_rank(world, world / 2, oversubscribed);
  std::printf("barriers: worlds 1..%d, late and dead ranks, wrap-around\n", kMaxWorld);
}

}  // namespace nanoweave
