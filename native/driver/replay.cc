// Replay of recorded runs, and load/close cycles.
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "driver/checks.h"
#include "driver/session.h"

namespace nanoweave {

namespace {

constexpr bool kSanitized =
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    true;
#else
    false;
#endif

struct Usage {
  int64_t threads;
  int64_t mappings;
  int64_t resident_bytes;
};

Usage current_usage() {
  Usage usage{};
  for ([[maybe_unused]] const auto& task : std::filesystem::directory_iterator("/proc/self/task"))
    ++usage.threads;
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) ++usage.mappings;
  std::ifstream statm("/proc/self/statm");
  int64_t total_pages = 0, resident_pages = 0;
  statm >> total_pages >> resident_pages;
  usage.resident_bytes = resident_pages * 4096;
  return usage;
}

constexpr const char* kCopyProgram = R"({
  "version": 1, "name": "copy", "world": 2, "tp": 2, "parts": 1, "arenaBytes": 32768,
  "limits": {"maxTokens": 16, "maxRows": 0, "maxSeqs": 0, "numBlocks": 0, "blockSize": 0,
             "maxBlocksPerSeq": 0, "vocabSize": 8, "numSlots": 0},
  "buffers": [
    {"name": "x", "space": "arena", "dtype": "f32", "shape": ["T", 256], "offset": 0},
    {"name": "y", "space": "arena", "dtype": "f32", "shape": ["T", 256], "offset": 16384}],
  "ops": [{"kind": "all_reduce", "label": "sum", "lane": "network", "inputs": [{"buffer": 0}],
           "outputs": [{"buffer": 1}], "attrs": {}, "waits": []}]})";

}  // namespace

void run_recording(const std::string& folder, int iterations) {
  const Recording recording = read_recording(folder);
  std::vector<uint64_t> first;
  for (int iteration = 0; iteration < iterations; ++iteration) {
    Session session(recording.config);
    session.load_weights(recording.manifest);
    const int program = session.load_program(recording.program);
    for (const RecordedWrite& write : recording.writes)
      session.write(write.in_program ? program : -1, write.buffer, write.rank, write.bytes);
    for (size_t i = 0; i < recording.steps.size(); ++i) {
      const uint64_t checksum = result_checksum(session.submit(program, recording.steps[i]));
      if (iteration == 0) {
        first.push_back(checksum);
        std::printf("step %zu: %016llx\n", i, static_cast<unsigned long long>(checksum));
      }
      expect(checksum == first[i], "iteration %d, step %zu: the result differs from the first run",
             iteration, i);
    }
    // Every other time without close(): the destructor must do as well.
    if (iteration % 2 == 0) session.close();
  }
  std::printf("run: %d iterations of %zu steps\n", iterations, recording.steps.size());
}

void run_cases(const std::string& folder) {
  std::vector<std::filesystem::path> cases;
  for (const auto& entry : std::filesystem::directory_iterator(folder))
    if (entry.is_directory()) cases.push_back(entry.path());
  std::sort(cases.begin(), cases.end());
  expect(!cases.empty(), "%s holds no recorded cases", folder.c_str());
  for (const std::filesystem::path& path : cases) {
    std::printf("%s\n", path.filename().c_str());
    std::fflush(stdout);  // a checker's report comes after the name of its case
    run_recording(path.string(), 1);
  }
  std::printf("cases: %zu ran\n", cases.size());
}

void check_cycles(int cycles) {
  const int warm_up = cycles / 10;
  Usage before{};
  for (int cycle = 0; cycle < cycles; ++cycle) {
    if (cycle == warm_up) before = current_usage();
    Session session({.devices = {"cpu", "cpu"},
                     .tp = 2,
                     .heap_bytes = 1 << 20,
                     .threads_per_rank = 2,
                     .wait_timeout_ms = 60000});
    const int program = session.load_program(kCopyProgram);
    session.submit(program, plain_step(cycle, 16, 1));
    if (cycle % 2 == 0) session.close();
  }
  const Usage after = current_usage();
  const int64_t growth = after.resident_bytes - before.resident_bytes;
  std::printf("cycles: %d, threads %lld -> %lld, mappings %lld -> %lld, resident %+lld KiB\n",
              cycles, static_cast<long long>(before.threads), static_cast<long long>(after.threads),
              static_cast<long long>(before.mappings), static_cast<long long>(after.mappings),
              static_cast<long long>(growth / 1024));
  expect(after.threads == before.threads, "threads were left behind");
  constexpr int64_t kSlack = 16;  // allocator arenas of threads come and go
  expect(kSanitized || after.mappings <= before.mappings + kSlack, "mappings were left behind");
  // Sanitizers keep freed memory on purpose; the leak check at exit stands in for this one.
  expect(kSanitized || growth < 4 << 20, "resident memory grew by %lld bytes",
         static_cast<long long>(growth));
}

}  // namespace nanoweave
