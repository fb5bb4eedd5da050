#include "runtime/cuda/device_state.h"

#include <algorithm>

namespace nanoweave {

namespace {

// Of one slot.
int64_t mask_bytes(int64_t vocab_size) {
  return mask_words(vocab_size) * int64_t{sizeof(uint32_t)};
}

}  // namespace

DeviceState::DeviceState(const CudaDevice& device, std::vector<int> ranks, int tp)
    : device_(device),
      ranks_(std::move(ranks)),
      tp_(tp),
      slots_(ranks_.size()),
      experts_(ranks_.size()) {
  use_device(device.ordinal);
  // A collective that starts late keeps all other devices waiting.
  for (int lane = 0; lane < kLanes; ++lane)
    lanes_[lane] = DeviceStream(lane == static_cast<int>(Lane::kNetwork));
  upload_ = DeviceStream(true);
}

void DeviceState::synchronize(std::chrono::milliseconds most) const {
  for (const DeviceStream& lane : lanes_) lane.synchronize(most);
  upload_.synchronize(most);
}

void DeviceState::use_cublaslt(const CublasLtLibrary* library) {
  if (library == nullptr || cublaslt_ != nullptr) return;
  use_device(device_.ordinal);
  cublaslt_ = std::make_unique<CublasLt>(*library);
}

bool DeviceState::grow_workspace(int lane, int64_t bytes) {
  if (bytes <= workspaces_[lane].bytes()) return false;
  use_device(device_.ordinal);
  DeviceMemory grown(device_.ordinal, bytes, "the workspace of a lane");
  fill_async(grown.data(), 0, std::min(bytes, kWorkspaceCounterBytes), main().get());
  main().synchronize();
  workspaces_[lane] = std::move(grown);
  return true;
}

bool DeviceState::grow_slots(int64_t num_slots, int64_t vocab_size) {
  const int64_t old_vocab = slots_.empty() ? 0 : slots_[0].states.vocab_size;
  if (num_slots <= num_slots_ && vocab_size <= old_vocab) return false;
  num_slots = std::max(num_slots, num_slots_);
  vocab_size = std::max(vocab_size, old_vocab);
  use_device(device_.ordinal);
  std::vector<SlotMemory> grown;  // all or none
  for (const SlotMemory& slots : slots_) {
    grown.push_back(make_slots(num_slots, vocab_size));
    copy_slots(slots, grown.back());
  }
  slots_ = std::move(grown);
  num_slots_ = num_slots;
  return true;
}

// Choices are those of one step, so that nothing is lost when the room for them grows.
bool DeviceState::grow_experts(const Limits& limits) {
  const ExpertLimits& experts = limits.experts;
  if (experts.tables == 0 || limits.max_tokens <= experts_[0].states.max_tokens) return false;
  use_device(device_.ordinal);
  const CudaStream stream = main().get();
  if (expert_table_memory_.data() == nullptr) make_expert_tables(experts);
  std::vector<ExpertMemory> grown(ranks_.size());  // all or none
  for (size_t local = 0; local < ranks_.size(); ++local) {
    ExpertStates& states = grown[local].states;
    states.tables = device_expert_tables();
    states.max_tokens = limits.max_tokens;
    if (ranks_[local] % tp_ != 0) continue;
    const int64_t words = experts.tables * limits.max_tokens * experts.choices;
    grown[local].chosen =
        DeviceMemory(device_.ordinal, words * int64_t{sizeof(int32_t)}, "choices of experts");
    fill_async(grown[local].chosen.data(), 0xff, grown[local].chosen.bytes(), stream);
    states.chosen = grown[local].chosen.as<int32_t>();
    const int64_t counts = experts.tables * experts.count;
    grown[local].counts =
        DeviceMemory(device_.ordinal, counts * int64_t{sizeof(ExpertCount)}, "counts of choices");
    const DeviceMemory& old = experts_[local].counts;
    if (old.data() == nullptr)
      fill_async(grown[local].counts.data(), 0, grown[local].counts.bytes(), stream);
    else
      copy_async(grown[local].counts.data(), old.data(), old.bytes(), stream);
    states.counts = grown[local].counts.as<ExpertCount>();
  }
  main().synchronize();
  experts_ = std::move(grown);
  return true;
}

void DeviceState::make_expert_tables(const ExpertLimits& limits) {
  ExpertTables tables(limits);
  const int64_t bytes = limits.count * kExpertWays * int64_t{sizeof(int32_t)};
  DeviceMemory memory(device_.ordinal, limits.tables * bytes, "expert tables");
  for (int64_t table = 0; table < limits.tables; ++table)
    copy_async(memory.data() + table * bytes, tables.slots(table).data(), bytes, main().get());
  main().synchronize();
  expert_tables_ = std::move(tables);
  expert_table_memory_ = std::move(memory);
}

DeviceState::SlotMemory DeviceState::make_slots(int64_t num_slots, int64_t vocab_size) {
  const int device = device_.ordinal;
  const int64_t entries = num_slots * vocab_size;
  SlotMemory made{
      .params = DeviceMemory(device, num_slots * int64_t{sizeof(SlotParams)}, "sampling slots"),
      .counts = DeviceMemory(device, entries * int64_t{sizeof(uint16_t)}, "token counts"),
      .bias = DeviceMemory(device, entries * int64_t{sizeof(float)}, "logit biases"),
      .allowed = DeviceMemory(device, num_slots * mask_bytes(vocab_size), "allowed tokens")};
  made.states = {.params = made.params.as<SlotParams>(),
                 .counts = made.counts.as<uint16_t>(),
                 .bias = made.bias.as<float>(),
                 .allowed = made.allowed.as<uint32_t>(),
                 .vocab_size = static_cast<int32_t>(vocab_size)};
  for (const DeviceMemory* memory : {&made.params, &made.counts, &made.bias, &made.allowed})
    fill_async(memory->data(), 0, memory->bytes(), main().get());
  main().synchronize();
  return made;
}

void DeviceState::copy_slots(const SlotMemory& from, const SlotMemory& to) {
  const auto row = [](const SlotMemory& slots, int64_t element) {
    return slots.states.vocab_size * element;
  };
  const CudaStream stream = main().get();
  copy_async(to.params.data(), from.params.data(), from.params.bytes(), stream);
  copy_rows_async(to.counts.data(), row(to, 2), from.counts.data(), row(from, 2), row(from, 2),
                  num_slots_, stream);
  copy_rows_async(to.bias.data(), row(to, 4), from.bias.data(), row(from, 4), row(from, 4),
                  num_slots_, stream);
  const int64_t from_mask = mask_bytes(from.states.vocab_size);
  copy_rows_async(to.allowed.data(), mask_bytes(to.states.vocab_size), from.allowed.data(),
                  from_mask, from_mask, num_slots_, stream);
  main().synchronize();
}

}  // namespace nanoweave
