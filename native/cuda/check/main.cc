// nanoweave_cuda_emulation [--filter TEXT] [--seeds N] [--list] [--times]: runs the CUDA kernels on
// the CPU against the host ops and prints a table; --times, how long each case takes. Exit code 0:
// all agree; 1: some do not.
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>

#include "cuda/check/doubles.h"
#include "cuda/check/host_checks.h"
#include "cuda/check/library_checks.h"
#include "cuda/check/op_case.h"

namespace {

constexpr int kRunsBetweenSigns = 50;  // of life, on stderr

char running[256];

// An access past the end of an operand or of shared memory hits a guard page.
void report_crash(int signal) {
  const char text[] = "\naccess outside of memory in: ";
  (void)!write(STDOUT_FILENO, text, sizeof text - 1);
  (void)!write(STDOUT_FILENO, running, std::strlen(running));
  (void)!write(STDOUT_FILENO, "\n", 1);
  std::signal(signal, SIG_DFL);
  std::raise(signal);
}

struct Options {
  const char* filter = "";
  int seeds = 2;
  bool list = false;
  bool times = false;
};

Options parse_options(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    if (arg == "--list") {
      options.list = true;
    } else if (arg == "--times") {
      options.times = true;
    } else if (arg == "--filter" && i + 1 < argc) {
      options.filter = argv[++i];
    } else if (arg == "--seeds" && i + 1 < argc) {
      options.seeds = std::max(1, std::atoi(argv[++i]));
    } else {
      std::fprintf(stderr, "usage: %s [--filter TEXT] [--seeds N] [--list] [--times]\n", argv[0]);
      std::exit(2);
    }
  }
  return options;
}

}  // namespace

int main(int argc, char** argv) {
  using namespace nanoweave::check;
  const Options options = parse_options(argc, argv);
#if !defined(__SANITIZE_ADDRESS__)
  std::signal(SIGSEGV, report_crash);
  std::signal(SIGBUS, report_crash);
#endif
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  use_doubles();
  int failed = 0;
  for (const std::string& wrong : run_library_checks()) {
    ++failed;
    std::printf("WRONG %s\n", wrong.c_str());
  }
  Cases cases;
  add_row_cases(cases);
  add_attention_cases(cases);
  add_latent_cases(cases);
  add_matmul_cases(cases);
  add_collective_cases(cases);
  add_sample_cases(cases);
  add_expert_cases(cases);

  struct Row {
    int cases = 0, wrong = 0;
    double error = 0, seconds = 0;
  };
  std::map<std::string, Row> table;
  int runs = 0;
  const auto begin = std::chrono::steady_clock::now();
  for (const OpCase& op_case : cases) {
    const std::string label = op_case.program.ops.back().kind + " " + op_case.name;
    if (label.find(options.filter) == std::string::npos) continue;
    if (options.list) {
      std::printf("%s\n", label.c_str());
      continue;
    }
    Row& row = table[op_case.program.ops.back().kind];
    for (int seed = 1; seed <= options.seeds; ++seed) {
      std::snprintf(running, sizeof running, "%s, seed %d", label.c_str(), seed);
      const auto start = std::chrono::steady_clock::now();
      const CaseResult result = run_case(op_case, static_cast<uint64_t>(seed));
      const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
      row.seconds += took.count();
      if (options.times) std::printf("%8.2f s  %s, seed %d\n", took.count(), label.c_str(), seed);
      ++row.cases;
      if (++runs % kRunsBetweenSigns == 0)
        std::fprintf(
            stderr, "%d runs, now %s, %.0f s\n", runs, label.c_str(),
            std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
      row.error = std::max(row.error, result.error);
      if (result.ok) continue;
      ++row.wrong;
      ++failed;
      std::printf("WRONG %s, seed %d: %s\n", label.c_str(), seed, result.message.c_str());
    }
  }
  if (options.list) return 0;
  for (const std::string& wrong : run_host_checks()) {
    ++failed;
    std::printf("WRONG %s\n", wrong.c_str());
  }
  std::printf("%-22s %8s %8s %14s %8s\n", "op (emulated)", "runs", "wrong", "largest error", "s");
  for (const auto& [kind, row] : table)
    std::printf("%-22s %8d %8d %14.2e %8.1f\n", kind.c_str(), row.cases, row.wrong, row.error,
                row.seconds);
  if (table.empty()) std::printf("no case matches '%s'\n", options.filter);
  return failed == 0 && !table.empty() ? 0 : 1;
}
