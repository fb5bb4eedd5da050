// nanoweave_driver: executes recorded programs and checks the native runtime without Node, so that
// sanitizers see all of it.
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>
#include <vector>

#include "driver/checks.h"

namespace {

constexpr const char* kUsage =
    "usage: nanoweave_driver run FOLDER [ITERATIONS]      execute a recorded run\n"
    "       nanoweave_driver cases FOLDER                 execute every recording below FOLDER\n"
    "       nanoweave_driver protocol                     pools, barriers and collectives\n"
    "       nanoweave_driver cycles [N]                   load and close, nothing may grow\n"
    "       nanoweave_driver fuzz FOLDER [N] [SEED]       mutated programs and steps\n";

int number(const std::vector<std::string>& args, size_t index, int fallback) {
  return index < args.size() ? std::atoi(args[index].c_str()) : fallback;
}

int run(const std::vector<std::string>& args) {
  const std::string command = args.empty() ? "" : args[0];
  if (command == "run" && args.size() >= 2) {
    nanoweave::run_recording(args[1], number(args, 2, 1));
  } else if (command == "cases" && args.size() >= 2) {
    nanoweave::run_cases(args[1]);
  } else if (command == "protocol") {
    nanoweave::check_pools();
    nanoweave::check_barriers();
    nanoweave::check_collectives();
  } else if (command == "cycles") {
    nanoweave::check_cycles(number(args, 1, 1000));
  } else if (command == "fuzz" && args.size() >= 2) {
    nanoweave::fuzz(args[1], number(args, 2, 2000), static_cast<uint32_t>(number(args, 3, 1)));
  } else {
    std::fputs(kUsage, stderr);
    return 2;
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run({argv + 1, argv + argc});
  } catch (const std::exception& error) {
    std::fprintf(stderr, "failed: %s\n", error.what());
    return 1;
  }
}
