// verify_program: arena bounds and hazards. Ops of one lane run in program order, so what an op is
// ordered after is, per lane, a prefix of that lane: three numbers (a vector clock) per op stand
// for the whole reachability relation, and of each lane's accesses to a buffer only the last
// matters.
#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "core/error.h"
#include "program/program.h"

namespace nanoweave {

namespace {

constexpr int kLanes = 3;
constexpr int kWhole = 4;  // index beside parts 0..3: accesses to all rows
// Far above any compiled model:
constexpr int64_t kMaxChecks = int64_t{1} << 28;
constexpr int64_t kMaxOverlaps = int64_t{1} << 20;  // pairs of buffers that share bytes

// Per lane, the last op (-1: none).
using Clock = std::array<int, kLanes>;
constexpr Clock kNever = {-1, -1, -1};

struct Accesses {
  Clock writes = kNever;
  Clock reads = kNever;
};

struct BufferState {
  std::array<Accesses, kWhole + 1> parts;  // by part, and whole
  Accesses any;                            // all of them together
};

struct Access {
  View view;
  bool write;
};

class Verifier {
 public:
  explicit Verifier(const Program& program)
      : program_(program), states_(program.buffers.size()), overlaps_(program.buffers.size()) {}

  void run() {
    check_bounds();
    find_overlaps();
    std::vector<Clock> clocks(program_.ops.size());
    Clock lane_last = kNever;
    for (int index = 0; index < static_cast<int>(program_.ops.size()); ++index) {
      const OpDesc& op = program_.ops[index];
      const int lane = static_cast<int>(op.lane);
      // What the op runs after: its lane's previous op, its waits, and what those ran after.
      Clock& clock = clocks[index];
      clock = lane_last[lane] >= 0 ? clocks[lane_last[lane]] : kNever;
      clock[lane] = lane_last[lane];
      for (const int wait : op.waits) {
        for (int l = 0; l < kLanes; ++l) clock[l] = std::max(clock[l], clocks[wait][l]);
        int& waited = clock[static_cast<int>(program_.ops[wait].lane)];
        waited = std::max(waited, wait);
      }
      const std::vector<Access> accesses = collect(op);
      for (const Access& access : accesses) check(index, clock, access);
      check_within(op, accesses);
      for (const Access& access : accesses) record(index, lane, access);
      lane_last[lane] = index;
    }
  }

 private:
  void check_bounds() const {
    for (const BufferDesc& buffer : program_.buffers) {
      if (buffer.space != Space::kArena) continue;
      if (buffer.offset + buffer.max_bytes() > program_.arena_bytes)
        fail(ErrorCode::kProgram, "buffer '%s' ends at byte %lld of an arena of %lld bytes",
             buffer.name.c_str(), static_cast<long long>(buffer.offset + buffer.max_bytes()),
             static_cast<long long>(program_.arena_bytes));
    }
  }

  bool overlap(int a, int b) const {
    const BufferDesc& x = program_.buffers[a];
    const BufferDesc& y = program_.buffers[b];
    return x.max_bytes() > 0 && y.max_bytes() > 0 && x.offset < y.offset + y.max_bytes() &&
           y.offset < x.offset + x.max_bytes();
  }

  [[noreturn]] static void refuse_overlaps() {
    fail(ErrorCode::kProgram, "too many overlapping buffers to verify; plan the memory apart");
  }

  void find_overlaps() {
    std::vector<int> arena;
    for (int i = 0; i < static_cast<int>(program_.buffers.size()); ++i)
      if (program_.buffers[i].space == Space::kArena && program_.buffers[i].max_bytes() > 0)
        arena.push_back(i);
    std::sort(arena.begin(), arena.end(), [&](int a, int b) {
      return program_.buffers[a].offset < program_.buffers[b].offset;
    });
    int64_t num_overlaps = 0;
    for (size_t i = 0; i < arena.size(); ++i) {
      const BufferDesc& buffer = program_.buffers[arena[i]];
      const int64_t end = buffer.offset + buffer.max_bytes();
      for (size_t j = i + 1; j < arena.size() && program_.buffers[arena[j]].offset < end; ++j) {
        if (++num_overlaps > kMaxOverlaps) refuse_overlaps();
        overlaps_[arena[i]].push_back(arena[j]);
        overlaps_[arena[j]].push_back(arena[i]);
      }
    }
  }

  std::vector<Access> collect(const OpDesc& op) const {
    std::vector<Access> accesses;
    const auto add = [&](const View& view, bool write) {
      if (view.buffer >= 0 && program_.buffers[view.buffer].space != Space::kWeight)
        accesses.push_back({view, write});
    };
    for (const View& view : op.inputs) add(view, false);
    for (const View& view : op.outputs) add(view, true);
    return accesses;
  }

  void require_ordered(int index, const Clock& clock, const Clock& earlier, int buffer, int other) {
    checks_ += kLanes;
    for (int lane = 0; lane < kLanes; ++lane) {
      if (earlier[lane] <= clock[lane]) continue;
      fail(ErrorCode::kProgram,
           "op '%s' and op '%s' both use bytes of '%s'%s%s, one writes, and neither waits for the "
           "other",
           program_.ops[earlier[lane]].label.c_str(), program_.ops[index].label.c_str(),
           program_.buffers[buffer].name.c_str(), buffer == other ? "" : " and ",
           buffer == other ? "" : program_.buffers[other].name.c_str());
    }
    if (checks_ > kMaxChecks) refuse_overlaps();
  }

  void check(int index, const Clock& clock, const Access& access) {
    const int buffer = access.view.buffer;
    const BufferState& state = states_[buffer];
    const bool is_kv = program_.buffers[buffer].space == Space::kKv;
    const auto check_part = [&](const Accesses& earlier) {
      require_ordered(index, clock, earlier.writes, buffer, buffer);
      if (access.write) require_ordered(index, clock, earlier.reads, buffer, buffer);
    };
    // KV slots are append-only and disjoint: only reads after writes are hazards.
    if (is_kv && access.write) return;
    if (access.view.part < 0) {
      check_part(state.any);
    } else {
      check_part(state.parts[kWhole]);
      for (int part = access.view.up_to ? 0 : access.view.part; part <= access.view.part; ++part)
        check_part(state.parts[part]);
    }
    for (const int other : overlaps_[buffer]) {
      require_ordered(index, clock, states_[other].any.writes, buffer, other);
      if (access.write) require_ordered(index, clock, states_[other].any.reads, buffer, other);
    }
  }

  // An op may update a buffer in place, but its operands must not otherwise share bytes.
  void check_within(const OpDesc& op, const std::vector<Access>& accesses) const {
    for (size_t i = 0; i < accesses.size(); ++i) {
      for (size_t j = 0; j < i; ++j) {
        const int a = accesses[i].view.buffer, b = accesses[j].view.buffer;
        const bool both_write = accesses[i].write && accesses[j].write;
        if (!accesses[i].write && !accesses[j].write) continue;
        if (program_.buffers[a].space != Space::kArena ||
            program_.buffers[b].space != Space::kArena)
          continue;
        if (a == b ? both_write : overlap(a, b))
          fail(ErrorCode::kProgram, "operands '%s' and '%s' of op '%s' share bytes it writes",
               program_.buffers[a].name.c_str(), program_.buffers[b].name.c_str(),
               op.label.c_str());
      }
    }
  }

  void record(int index, int lane, const Access& access) {
    BufferState& state = states_[access.view.buffer];
    const auto mark = [&](Accesses& accesses) {
      (access.write ? accesses.writes : accesses.reads)[lane] = index;
    };
    mark(state.any);
    if (access.view.part < 0) {
      mark(state.parts[kWhole]);
      return;
    }
    for (int part = access.view.up_to ? 0 : access.view.part; part <= access.view.part; ++part)
      mark(state.parts[part]);
  }

  const Program& program_;
  std::vector<BufferState> states_;         // by buffer
  std::vector<std::vector<int>> overlaps_;  // by buffer: the others it shares bytes with
  int64_t checks_ = 0;
};

}  // namespace

void verify_program(const Program& program) { Verifier(program).run(); }

}  // namespace nanoweave
