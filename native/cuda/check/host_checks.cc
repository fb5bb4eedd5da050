#include "cuda/check/host_checks.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <random>

#include "core/error.h"
#include "cuda/device_wait.h"
#include "cuda/slot_pieces.h"

namespace nanoweave::check {

namespace {

constexpr int kSlots = 5, kVocab = 90;

using Words = std::vector<int32_t>;

// What the lists leave in the slots.
struct Slots {
  std::map<int, Words> history, bias, allowed;  // by slot; bias: token and amount, in order
  std::map<int, bool> has_bias;

  void apply(const GroupStep& step) {
    for_lists(step.slot_history, 1, [&](int slot, std::span<const int32_t> entries) {
      history[slot].insert(history[slot].end(), entries.begin(), entries.end());
    });
    for_lists(step.slot_bias, 2, [&](int slot, std::span<const int32_t> entries) {
      bias[slot].insert(bias[slot].end(), entries.begin(), entries.end());
      has_bias[slot] = true;
    });
    for_lists(step.allowed_tokens, 1, [&](int slot, std::span<const int32_t> entries) {
      allowed[slot].assign(entries.begin(), entries.end());
    });
  }
  bool operator==(const Slots&) const = default;

 private:
  template <typename Body>
  static void for_lists(std::span<const int32_t> lists, size_t entry, const Body& body) {
    for (size_t at = 0; at < lists.size();) {
      const size_t words = static_cast<size_t>(lists[at + 1]) * entry;
      body(lists[at], lists.subspan(at + 2, words));
      at += 2 + words;
    }
  }
};

Words random_lists(std::mt19937& random, int entry, int most, bool masks) {
  Words lists;
  for (auto left = random() % 7; left > 0; --left) {
    const int count = masks ? (random() % 3 == 0 ? 0 : static_cast<int>(mask_words(kVocab)))
                            : static_cast<int>(random() % most);
    lists.push_back(static_cast<int32_t>(random() % kSlots));
    lists.push_back(count);
    for (int i = 0; i < count * entry; ++i)
      lists.push_back(static_cast<int32_t>(random() % kVocab));
  }
  return lists;
}

void check_slot_pieces(std::vector<std::string>& wrong) {
  std::mt19937 random(3);
  for (int round = 0; round < 2000; ++round) {
    const Words params(random() % 3 * kSlotParamWords),
        history = random_lists(random, 1, 40, false);
    const Words bias = random_lists(random, 2, 30, false),
                allowed = random_lists(random, 1, 0, true);
    GroupStep step;
    step.slot_params = params;
    step.slot_history = history;
    step.slot_bias = bias;
    step.allowed_tokens = allowed;
    const auto most = static_cast<int64_t>(mask_words(kVocab) + 2 + random() % 20);
    const SlotPieces pieces(step, most);
    Slots whole, parts;
    whole.apply(step);
    for (size_t i = 0; i < pieces.size(); ++i) {
      const GroupStep piece = pieces.piece(i);
      parts.apply(piece);
      if (slot_list_words(piece) > most || piece.slot_params.empty() != (i > 0 || params.empty()))
        wrong.push_back("slot pieces: a piece is too large, or sets slots out of turn");
    }
    if (!(whole == parts)) wrong.push_back("slot pieces: they do not add up to the lists");
    if (slot_list_words(without_slot_updates(step)) != 0)
      wrong.push_back("slot pieces: the rest still brings lists");
  }
  wrong.resize(std::min<size_t>(wrong.size(), 3));
}

void check_deadline(std::vector<std::string>& wrong) {
  using std::chrono::milliseconds;
  int polls = 0;
  wait_for_device([&] { return ++polls == 5; }, milliseconds(1000), "five polls");
  if (polls != 5 || devices_given_up()) wrong.push_back("a wait that ends: it gave up");
  try {
    wait_for_device([] { return false; }, milliseconds(20), "what never ends");
    wrong.push_back("a wait without an end returned");
  } catch (const EngineError& error) {
    if (error.code != ErrorCode::kRankFault || !devices_given_up())
      wrong.push_back(std::string("a wait without an end: ") + error.what());
  }
}

}  // namespace

std::vector<std::string> run_host_checks() {
  std::vector<std::string> wrong;
  check_slot_pieces(wrong);
  check_deadline(wrong);
  return wrong;
}

}  // namespace nanoweave::check
