// What happens on a device around the ops of a step, each a launch of its own outside any graph. In
// front of them, in this order: load_step() (every step), update_slots() (when slots change),
// copy_blocks() (for each KV buffer, when blocks are copied). Behind them: take_expert_counts()
// (when a step asks for them).
#pragma once

#include "cuda/op.h"

namespace nanoweave {

// Spreads a packed step (device memory, pack_step()) over the rank's DeviceStep. Tokens that stand
// for a slot become the slot's last token.
void load_step(CudaStream stream, const int32_t* packed, const DeviceStep& step,
               const SlotStates& slots, const PackedStep& header);

// Applies slot parameters, then history, bias and allowed tokens, as SlotTable::apply() does.
void update_slots(CudaStream stream, const int32_t* packed, const SlotStates& slots,
                  const PackedStep& header);

// Copies blocks of one KV buffer pair by pair, in order.
void copy_blocks(CudaStream stream, const int32_t* packed, const PackedStep& header, std::byte* kv,
                 int64_t block_bytes);

// Moves `count` counts of choices to `to`, which the device maps (at most INT32_MAX each), and
// begins anew.
void take_expert_counts(CudaStream stream, const ExpertStates& experts, int64_t count, int32_t* to);

// All kernels of this file, for the backend to load.
std::vector<CudaFunction> load_step_functions();

}  // namespace nanoweave
