// Session: a Runtime whose calls wait for their result, and recorded folders to feed it with. The
// driver's only way to run programs; it stands where Node stands otherwise.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "runtime/runtime.h"

namespace nanoweave {

// Bytes for a buffer of a rank before the first step.
struct RecordedWrite {
  std::string buffer;
  bool in_program = true;  // else a KV cache
  int rank = 0;
  std::vector<uint8_t> bytes;
};

// A run recorded by scripts/record-run.ts or an op case by test/gpu/record-cases.ts:
// {config,manifest,program}.json, step-*.i32 (int32 words in the machine's byte order, in the order
// of their names), and where there are inputs writes.json with their bytes in writes.bin.
struct Recording {
  RuntimeConfig config;
  std::string manifest;
  std::string program;
  std::vector<RecordedWrite> writes;
  std::vector<std::vector<int32_t>> steps;
};

Recording read_recording(const std::string& folder);

class Session {
 public:
  explicit Session(const RuntimeConfig& config) : runtime_(config) {}

  void load_weights(const std::string& manifest);
  int load_program(const std::string& program);
  std::vector<int32_t> submit(int program, std::span<const int32_t> words);
  std::vector<uint8_t> read(int program, const std::string& buffer, int rank);
  void write(int program, const std::string& buffer, int rank, std::vector<uint8_t> bytes);
  void close();

  Runtime& runtime() { return runtime_; }

 private:
  Runtime runtime_;
};

// A step of one group: the sections in the order given, {kind, words}.
std::vector<int32_t> encode_step(
    int32_t id, const std::vector<std::pair<StepSection, std::vector<int32_t>>>& sections);
// Tokens 1, positions ascending, `parts` equal parts, nothing else.
std::vector<int32_t> plain_step(int32_t id, int num_tokens, int parts);

// FNV-1a of a result without its timings.
uint64_t result_checksum(std::span<const int32_t> words);

// Throws std::runtime_error with the message unless the condition holds.
void expect(bool condition, const char* format, ...) __attribute__((format(printf, 2, 3)));

}  // namespace nanoweave
