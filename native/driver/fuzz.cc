// Mutation fuzzing of what crosses the border: program text, manifest text and step words. A mutant
// is either refused with a code that fits, or it is valid and must load or run without harm.
#include <cstdio>
#include <random>

#include "driver/checks.h"
#include "driver/session.h"

namespace nanoweave {

namespace {

class Mutator {
 public:
  explicit Mutator(uint32_t seed) : random_(seed) {}

  size_t below(size_t bound) {
    return std::uniform_int_distribution<size_t>(0, bound == 0 ? 0 : bound - 1)(random_);
  }

  int64_t number() {
    constexpr int64_t kInteresting[] = {-1,
                                        0,
                                        1,
                                        2,
                                        3,
                                        4,
                                        5,
                                        15,
                                        16,
                                        17,
                                        31,
                                        32,
                                        63,
                                        64,
                                        65,
                                        127,
                                        128,
                                        129,
                                        255,
                                        256,
                                        65535,
                                        65536,
                                        1 << 20,
                                        INT32_MAX,
                                        INT32_MIN,
                                        int64_t{1} << 32,
                                        int64_t{1} << 53};
    return below(2) == 0 ? kInteresting[below(std::size(kInteresting))]
                         : static_cast<int64_t>(below(600)) - 20;
  }

  // Replaces a number, or damages a few bytes.
  std::string mutate_text(std::string text) {
    for (size_t count = 1 + below(3); count > 0; --count) {
      const size_t at = below(text.size());
      if (below(8) == 0) {
        text[at] = static_cast<char>(below(256));
        continue;
      }
      const size_t begin = text.find_first_of("0123456789", at);
      if (begin == std::string::npos) continue;
      const size_t end = text.find_first_not_of("0123456789", begin);
      text.replace(begin, end - begin, std::to_string(number()));
    }
    return text;
  }

  // A section begins where another one does, or a few words off.
  void move_section(std::vector<int32_t>& words) {
    if (words.size() < kStepHeaderWords || words[4] <= 0) return;
    const auto offset_of = [&](size_t section) {
      return kStepHeaderWords + section * kStepSectionWords + 2;
    };
    const auto sections = static_cast<size_t>(words[4]);
    const size_t from = offset_of(below(sections)), to = offset_of(below(sections));
    if (std::max(from, to) >= words.size()) return;
    words[to] = static_cast<int32_t>(int64_t{words[from]} + static_cast<int64_t>(below(5)) - 2);
  }

  std::vector<int32_t> mutate_words(std::vector<int32_t> words) {
    for (size_t count = 1 + below(3); count > 0; --count) {
      switch (below(8)) {
        case 0:
          words.resize(below(words.size() + 1));
          if (words.empty()) return words;
          break;
        case 1:
          words.push_back(static_cast<int32_t>(number()));
          break;
        case 2:
          words[below(words.size())] = static_cast<int32_t>(random_());
          break;
        case 3:
          move_section(words);
          break;
        default:
          words[below(words.size())] = static_cast<int32_t>(number());
      }
    }
    return words;
  }

 private:
  std::mt19937 random_;
};

// What a manifest that does not fit its files or this machine may be refused with.
bool is_load_error(ErrorCode code) {
  return code == ErrorCode::kProgram || code == ErrorCode::kSafetensors || code == ErrorCode::kIo ||
         code == ErrorCode::kOutOfMemory;
}

}  // namespace

void fuzz(const std::string& folder, int mutations, uint32_t seed) {
  const Recording recording = read_recording(folder);
  Mutator mutator(seed);
  RuntimeConfig config = recording.config;
  config.threads_per_rank = 1;
  std::unique_ptr<Session> session;
  int original = -1;
  const auto restart = [&] {
    if (session) session->close();
    session = std::make_unique<Session>(config);
    session->load_weights(recording.manifest);
    original = session->load_program(recording.program);
  };
  restart();

  int refused_programs = 0, refused_steps = 0, refused_manifests = 0, runs = 0;
  const auto try_step = [&](int program, const std::vector<int32_t>& words) {
    try {
      session->submit(program, words);
      ++runs;
    } catch (const EngineError& error) {
      // A mutant may be sound in shape and wrong in what it computes: ops that look up rows by
      // computed numbers find that out while they run, and the runtime has failed.
      const bool ran_a_mutant = program != original && error.code == ErrorCode::kProgram;
      expect(error.code == ErrorCode::kStep || ran_a_mutant, "a mutated step gave %s: %s",
             error_code_name(error.code), error.what());
      ++refused_steps;
      if (ran_a_mutant) restart();
    }
  };
  for (int i = 0; i < mutations; ++i) {
    const std::vector<int32_t>& step = recording.steps[mutator.below(recording.steps.size())];
    try_step(original, mutator.mutate_words(step));
    try {
      const int program = session->load_program(mutator.mutate_text(recording.program));
      try_step(program, step);
    } catch (const EngineError& error) {
      expect(error.code == ErrorCode::kProgram, "a mutated program gave %s: %s",
             error_code_name(error.code), error.what());
      ++refused_programs;
    }
    if (i % 4 == 0) {
      Session other(config);
      try {
        other.load_weights(mutator.mutate_text(recording.manifest));
      } catch (const EngineError& error) {
        expect(is_load_error(error.code), "a mutated manifest gave %s: %s",
               error_code_name(error.code), error.what());
        ++refused_manifests;
      }
    }
    if (i % 500 == 499) restart();  // programs stay loaded as long as their runtime
  }
  std::printf(
      "fuzz: %d mutations, seed %u: %d programs, %d steps, %d manifests refused, %d steps ran\n",
      mutations, seed, refused_programs, refused_steps, refused_manifests, runs);
}

}  // namespace nanoweave
