// Which memory a step copies where when it moves experts between slots: the same on all backends.
#pragma once

#include <functional>
#include <vector>

#include "program/program.h"
#include "program/step.h"
#include "runtime/stored_buffer.h"

namespace nanoweave {

// The weights that each expert table governs, by table.
using ExpertWeights = std::vector<std::vector<const StoredBuffer*>>;

// `find`: the stored buffer of a weight of the program.
ExpertWeights find_expert_weights(
    const Program& program, const std::function<const StoredBuffer&(const BufferDesc&)>& find);

// Calls copy(to, from, bytes) for the weights of experts that come to `rank`, from the rank at the
// same place of the source's position. Sources stay as they are in the step; and as every program
// with expert tables has a barrier of all ranks in each step (moe_dispatch), a source is there when
// the ops of the step in front have ended, and stays until those of this one have begun on `rank`.
void for_each_expert_copy(
    const Program& program, const ExpertWeights& weights, const Step& step, int rank,
    const std::function<void(std::byte* to, const std::byte* from, int64_t bytes)>& copy);

}  // namespace nanoweave
