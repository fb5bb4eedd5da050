// The checks of the native driver. Each prints what it did and throws when something is wrong; the
// sanitizer builds run all of them.
#pragma once

#include <cstdint>
#include <string>

namespace nanoweave {

// Loads a recorded run, executes its steps and closes, `iterations` times; results must repeat.
void run_recording(const std::string& folder, int iterations);

// Runs every recorded case below a folder once, in one process.
void run_cases(const std::string& folder);

// Loads and closes a small runtime `cycles` times: threads, mappings and (without a sanitizer)
// resident memory must not grow.
void check_cycles(int cycles);

// Barriers over 1..8 threads: visibility, delayed and dead ranks, wrap-around of the epochs.
void check_barriers();

// Thread pools of 1..8 threads: every index once, visible on both sides.
void check_pools();

// all_reduce_rms_norm through whole runtimes of 1..8 ranks against a float64 reference, and a dead
// rank's root cause.
void check_collectives();

// Random mutations of a recorded program, its steps and its manifest: each is refused with a code
// that fits, or runs.
void fuzz(const std::string& folder, int mutations, uint32_t seed);

}  // namespace nanoweave
