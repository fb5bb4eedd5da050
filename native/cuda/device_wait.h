// Waiting for a device from the host. No such wait is without an end: past it the devices of this
// process are given up, and from then on nothing that lies on them is freed, since CUDA would wait
// for what runs there.
#pragma once

#include <chrono>
#include <functional>

namespace nanoweave {

// What the host waits for beside a step takes milliseconds, and no collective runs meanwhile.
inline constexpr std::chrono::seconds kMostHostWait{60};

// Polls until done(). Past `most`: gives the devices up, and ERR_RANK_FAULT says what did not end.
void wait_for_device(const std::function<bool()>& done, std::chrono::milliseconds most,
                     const char* what);

// Any thread.
void give_up_devices();
bool devices_given_up();

}  // namespace nanoweave
