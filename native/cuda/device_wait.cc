#include "cuda/device_wait.h"

#include <atomic>
#include <thread>

#include "core/error.h"
#include "core/futex.h"

namespace nanoweave {

namespace {

constexpr int kBusyPolls = 200;  // most waits are for a small copy
constexpr auto kPollInterval = std::chrono::microseconds(20);

std::atomic<bool> given_up{false};

}  // namespace

void wait_for_device(const std::function<bool()>& done, std::chrono::milliseconds most,
                     const char* what) {
  const auto deadline = std::chrono::steady_clock::now() + most;
  for (int polls = 0; !done(); ++polls) {
    if (polls < kBusyPolls) {
      spin_pause();
      continue;
    }
    if (std::chrono::steady_clock::now() >= deadline) {
      give_up_devices();
      fail(ErrorCode::kRankFault,
           "%s did not end within %lld ms: a GPU has stopped answering; restart the process", what,
           static_cast<long long>(most.count()));
    }
    std::this_thread::sleep_for(kPollInterval);
  }
}

void give_up_devices() { given_up.store(true, std::memory_order_release); }

bool devices_given_up() { return given_up.load(std::memory_order_acquire); }

}  // namespace nanoweave
