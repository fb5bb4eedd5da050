// StepStage: a step's way to one device and back: its packed words on the host and on the device,
// the results of the ranks that report any, and the events around it. A device has one for each
// step in flight.
#pragma once

#include <vector>

#include "runtime/cuda/device_program.h"
#include "runtime/step_run.h"

namespace nanoweave {

class StepStage {
 public:
  explicit StepStage(DeviceState& state);

  // Room for every step of the program, but for slot lists beyond the usual: a running step never
  // takes memory, since CUDA could wait for a collective then. No step is running.
  void reserve(const DeviceProgram& program);

  // Enqueues the whole step: upload, load_step, ops, results back. Slot lists that do not fit
  // beside it go ahead in pieces, which are waited for.
  void start(DeviceProgram& program, const Step& step);
  bool done() const { return finished_.done(); }
  double elapsed() const { return elapsed_us(started_, finished_); }

  // Whether all of the step fits; if not, it may start only when the device is idle.
  bool fits(const DeviceProgram& program, const Step& step) const;

  // Of a finished step: the results of this device's ranks.
  void collect(const DeviceProgram& program, const Step& step, StepResult& result);

 private:
  struct Packed {
    int group;
    int64_t at;  // word
    PackedStep header;
  };

  void send_ahead(const DeviceProgram& program, const Step& step);
  void send_piece(const DeviceProgram& program, int group, const GroupStep& piece);
  void pack(const DeviceProgram& program, std::span<const GroupStep> groups);
  void load(const DeviceProgram& program, const Step& step);
  void move_experts(const DeviceProgram& program, const Step& step);
  void bring_results(const DeviceProgram& program, const Step& step);
  void bring_expert_counts(const DeviceProgram& program, const Step& step);
  void collect_experts(const DeviceProgram& program, size_t local_rank, const Step& step,
                       StepResult::Group& group);
  void collect_choices(const DeviceProgram& program, size_t local_rank, const GroupStep& step,
                       StepResult::Group& group);
  static void collect_top(const DeviceProgram& program, const GroupStep& step, const int32_t* words,
                          StepResult::Group& group);
  void collect_logits(const DeviceProgram& program, size_t local_rank, const GroupStep& step,
                      StepResult::Group& group);
  const Packed& packed_of(int group) const;

  DeviceState& state_;
  int64_t step_words_ = 0, list_words_ = 0;  // of a group: its step, and the lists beside it
  PinnedMemory host_words_;
  DeviceMemory device_words_;
  PinnedMemory results_;            // per reporting local rank, max_rows as its program has
  PinnedMemory bounce_;             // rows of logits and choices on their way
  PinnedMemory expert_tables_;      // [tables, experts, kExpertWays], those of the step
  PinnedMemory expert_counts_;      // [local rank, tables, experts]
  std::vector<Packed> packed_;      // groups of this device
  std::vector<StepCounts> counts_;  // by local rank
  DeviceEvent uploaded_, started_, finished_;
};

// Whether results must be fetched from memory that the next step overwrites: rows of logits, chosen
// experts.
bool holds_device(const Step& step);

}  // namespace nanoweave
