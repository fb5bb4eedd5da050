// How a double puts its work in order with kernels: the program that opens it says how to run
// something in a stream. `run` is called with `call` and a state that is zero at first, until it
// returns true; each execution of a captured stream gets a state of its own.
#pragma once

#include <cstdint>

namespace nanoweave::doubles {

using Run = bool (*)(void* call, uint64_t* state);
using Enqueue = void (*)(void* stream, Run run, void* call);

}  // namespace nanoweave::doubles

#define NANOWEAVE_DOUBLE_EXPORT extern "C" __attribute__((visibility("default")))
