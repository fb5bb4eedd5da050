#include "driver/session.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <future>
#include <sstream>
#include <stdexcept>

#include "core/json.h"

namespace nanoweave {

namespace {

std::string read_text(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot open " + path.string());
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

// Waits for a call that settles with a value and an exception.
template <typename Value, typename Call>
Value wait(const Call& call) {
  std::promise<Value> promise;
  call([&promise](Value value, std::exception_ptr failure) {
    if (failure)
      promise.set_exception(failure);
    else
      promise.set_value(std::move(value));
  });
  return promise.get_future().get();
}

template <typename Call>
void wait_void(const Call& call) {
  wait<bool>([&](auto settle) {
    call([settle](std::exception_ptr failure) { settle(true, std::move(failure)); });
  });
}

RuntimeConfig parse_config(const std::string& text) {
  const Json json = Json::parse(text);
  RuntimeConfig config;
  for (const Json& rank : json.at("ranks").items())
    config.devices.push_back(rank.at("device").as_string());
  config.tp = static_cast<int>(json.at("tp").as_int());
  config.heap_bytes = json.at("heapBytes").as_int();
  config.threads_per_rank = static_cast<int>(json.at("threadsPerRank").as_int());
  config.wait_timeout_ms = static_cast<int>(json.at("waitTimeoutMs").as_int());
  config.deterministic = json.at("deterministic").as_bool();
  config.cpu_isa = json.at("cpuIsa").as_string();
  return config;
}

std::vector<RecordedWrite> read_writes(const std::filesystem::path& folder) {
  std::vector<RecordedWrite> writes;
  if (!std::filesystem::exists(folder / "writes.json")) return writes;
  const Json json = Json::parse(read_text(folder / "writes.json"));
  const std::string bytes = read_text(folder / "writes.bin");
  size_t offset = 0;
  for (const Json& item : json.items()) {
    const auto count = static_cast<size_t>(item.at("bytes").as_int());
    expect(count <= bytes.size() - offset, "writes.bin ends early");
    writes.push_back({.buffer = item.at("buffer").as_string(),
                      .in_program = item.at("inProgram").as_bool(),
                      .rank = static_cast<int>(item.at("rank").as_int()),
                      .bytes = {bytes.begin() + static_cast<ptrdiff_t>(offset),
                                bytes.begin() + static_cast<ptrdiff_t>(offset + count)}});
    offset += count;
  }
  return writes;
}

}  // namespace

Recording read_recording(const std::string& folder) {
  const std::filesystem::path path(folder);
  Recording recording{.config = parse_config(read_text(path / "config.json")),
                      .manifest = read_text(path / "manifest.json"),
                      .program = read_text(path / "program.json"),
                      .writes = read_writes(path),
                      .steps = {}};
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(path))
    if (entry.path().extension() == ".i32") files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  for (const auto& file : files) {
    const std::string bytes = read_text(file);
    std::vector<int32_t> words(bytes.size() / sizeof(int32_t));
    std::memcpy(words.data(), bytes.data(), words.size() * sizeof(int32_t));
    recording.steps.push_back(std::move(words));
  }
  expect(!recording.steps.empty(), "%s holds no step-*.i32", folder.c_str());
  return recording;
}

void Session::load_weights(const std::string& manifest) {
  wait_void([&](auto settle) { runtime_.load_weights(manifest, {}, settle); });
}

int Session::load_program(const std::string& program) {
  return wait<int>([&](auto settle) { runtime_.load_program(program, settle); });
}

std::vector<int32_t> Session::submit(int program, std::span<const int32_t> words) {
  return wait<std::vector<int32_t>>([&](auto settle) { runtime_.submit(program, words, settle); });
}

std::vector<uint8_t> Session::read(int program, const std::string& buffer, int rank) {
  return wait<std::vector<uint8_t>>(
      [&](auto settle) { runtime_.read(program, buffer, rank, settle); });
}

void Session::write(int program, const std::string& buffer, int rank, std::vector<uint8_t> bytes) {
  wait_void([&](auto settle) { runtime_.write(program, buffer, rank, std::move(bytes), settle); });
}

void Session::close() {
  wait_void([&](auto settle) { runtime_.close(settle); });
}

std::vector<int32_t> encode_step(
    int32_t id, const std::vector<std::pair<StepSection, std::vector<int32_t>>>& sections) {
  const auto count = static_cast<int32_t>(sections.size());
  std::vector<int32_t> words = {kStepVersion, id, 0, 0, count};
  int32_t offset = kStepHeaderWords + count * kStepSectionWords;
  for (const auto& [kind, body] : sections) {
    const auto length = static_cast<int32_t>(body.size());
    words.insert(words.end(), {static_cast<int32_t>(kind), 0, offset, length});
    offset += length;
  }
  for (const auto& [kind, body] : sections) words.insert(words.end(), body.begin(), body.end());
  return words;
}

std::vector<int32_t> plain_step(int32_t id, int num_tokens, int parts) {
  const int per_part = (num_tokens + parts - 1) / parts;
  std::vector<int32_t> bounds, tokens(num_tokens, 1), positions;
  for (int part = 0; part <= parts; ++part) bounds.push_back(std::min(num_tokens, part * per_part));
  for (int i = 0; i < num_tokens; ++i) positions.push_back(i);
  return encode_step(id, {{StepSection::kPartBounds, bounds},
                          {StepSection::kTokens, tokens},
                          {StepSection::kPositions, positions}});
}

uint64_t result_checksum(std::span<const int32_t> words) {
  uint64_t hash = 0xcbf29ce484222325;
  const auto mix = [&](int32_t word) {
    hash = (hash ^ static_cast<uint32_t>(word)) * 0x100000001b3;
  };
  for (int32_t i = 0; i < words[4]; ++i) {
    const auto entry = words.subspan(kStepHeaderWords + i * kStepSectionWords, kStepSectionWords);
    if (entry[0] == static_cast<int32_t>(ResultSection::kTimings)) continue;
    mix(entry[0]);
    mix(entry[1]);
    for (const int32_t word : words.subspan(entry[2], entry[3])) mix(word);
  }
  return hash;
}

void expect(bool condition, const char* format, ...) {
  if (condition) return;
  char message[512];
  va_list args;
  va_start(args, format);
  std::vsnprintf(message, sizeof message, format, args);
  va_end(args);
  throw std::runtime_error(message);
}

}  // namespace nanoweave
