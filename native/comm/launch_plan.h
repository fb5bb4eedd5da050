// The launch plan of a collective: which form it takes, on how many blocks, and how a residual is
// kept. A pure function of what every rank of the group knows at load, so that all of them choose
// alike; hash_launch_plan() lets devices compare what they chose. The limits are starting points
// from published measurements on Hopper (docs/kernels.md §2).
#pragma once

#include <string_view>

#include "comm/protocol.h"
#include "core/dtype.h"

namespace nanoweave {

enum class CollectiveForm : uint8_t {
  kAuto,
  kOneShot,    // every rank does everything
  kTwoShot,    // a rank does its share and stores it to all
  kMulticast,  // as two shots, through the switch
  kNccl,
};

// As the attribute `form` of collectives spells them; anything else is kAuto.
CollectiveForm collective_form(std::string_view name);
const char* collective_form_name(CollectiveForm form);
bool is_collective_form(std::string_view name);

inline constexpr int32_t kMaxCommBlocks = 64;    // of one rank's share of a collective
inline constexpr int32_t kMulticastBlocks = 16;  // saturate the links
inline constexpr int32_t kFewBlocks = 8;

enum class Link : uint8_t { kSameDevice, kPcie, kNvlink };

// What the ranks of a group have between them, the same on all of them.
struct GroupTraits {
  Link link = Link::kSameDevice;  // the slowest between any two
  bool peer_access = true;        // they map each other's heaps
  bool multicast = false;         // one address stands for all their heaps
  bool nccl = false;              // they have communicators
  bool deterministic = false;     // sums in rank order only
  bool few_blocks = false;        // another lane computes meanwhile
  int32_t few = kFewBlocks;       // of a rank, then
  int max_local_ranks = 1;        // of the device that holds most of them
  int sm_budget = 1;              // multiprocessors a device gives the collective
};

struct CollectiveShape {
  int64_t rows;       // most the bucket has
  int64_t row_bytes;  // of what is moved
  int64_t blocks;     // that the rows keep busy in one shot
  int world;          // of the group
  bool rows_known;    // by the host at every launch, or the op takes all rows of its bucket
  CollectiveForm form = CollectiveForm::kAuto;  // asked for
};

struct LaunchPlan {
  CollectiveForm form;
  int32_t blocks;        // of one rank; NCCL: most it may use, 0: as it likes
  int64_t sharded_from;  // rows from which a residual is sharded
  const char* refused;   // why the form asked for cannot be had; null: it can
};

// Sums of fewer than `two_shot_from` bytes per rank take one shot.
struct FormLimits {
  Link link;
  int max_world;
  int64_t two_shot_from, multicast_from, nccl_from;
};

inline constexpr int64_t kKiB = 1024, kMiB = 1024 * kKiB;
inline constexpr FormLimits kFormLimits[] = {
    // One device: what counts is memory traffic, W² times the bytes in one shot, 2·W in two.
    {Link::kSameDevice, 16, 64 * kKiB + 1, kNever, kNever},
    {Link::kNvlink, 2, 16 * kMiB + 1, kNever, kNever},
    {Link::kNvlink, 4, 384 * kKiB + 1, 512 * kKiB, 32 * kMiB + 1},
    {Link::kNvlink, 16, 128 * kKiB + 1, 512 * kKiB, 32 * kMiB + 1},
    {Link::kPcie, 16, 32 * kKiB + 1, kNever, 32 * kMiB + 1},
};

constexpr const char* refuse_form(CollectiveForm form, const GroupTraits& traits, bool rows_known) {
  switch (form) {
    case CollectiveForm::kMulticast:
      if (traits.deterministic) return "a switch does not sum in rank order: not deterministic";
      return traits.multicast ? nullptr : "the ranks have no multicast heap";
    case CollectiveForm::kNccl:
      if (traits.deterministic) return "NCCL does not sum in rank order: not deterministic";
      if (!traits.nccl) return "NCCL is not loaded";
      return rows_known ? nullptr : "a part of a captured step has no size that NCCL could be told";
    case CollectiveForm::kAuto:
    case CollectiveForm::kOneShot:
    case CollectiveForm::kTwoShot:
      break;
  }
  return traits.peer_access ? nullptr : "the devices cannot map each other's memory";
}

constexpr CollectiveForm choose_form(const CollectiveShape& shape, const GroupTraits& traits) {
  const auto is_possible = [&](CollectiveForm form) {
    return refuse_form(form, traits, shape.rows_known) == nullptr;
  };
  if (!traits.peer_access) return CollectiveForm::kNccl;
  const int64_t bytes = shape.rows * shape.row_bytes;
  for (const FormLimits& limits : kFormLimits) {
    if (limits.link != traits.link || shape.world > limits.max_world) continue;
    if (bytes >= limits.multicast_from && is_possible(CollectiveForm::kMulticast))
      return CollectiveForm::kMulticast;
    if (bytes >= limits.nccl_from && is_possible(CollectiveForm::kNccl))
      return CollectiveForm::kNccl;
    return bytes >= limits.two_shot_from ? CollectiveForm::kTwoShot : CollectiveForm::kOneShot;
  }
  return CollectiveForm::kTwoShot;
}

// All blocks of a device's ranks must run at once.
constexpr int32_t plan_blocks(CollectiveForm form, int64_t wanted, const GroupTraits& traits) {
  if (form == CollectiveForm::kNccl) return traits.few_blocks ? traits.few : 0;
  int64_t blocks = form == CollectiveForm::kMulticast ? kMulticastBlocks : kMaxCommBlocks;
  if (traits.few_blocks && traits.few < blocks) blocks = traits.few;
  const int64_t room = traits.sm_budget / traits.max_local_ranks;
  if (room < blocks) blocks = room;
  if (wanted < blocks) blocks = wanted;
  return blocks < 1 ? 1 : static_cast<int32_t>(blocks);
}

// A residual follows the form asked for. NCCL moves the rows of the bucket where the host does not
// know a step's own, and then all ranks keep all rows.
constexpr int64_t plan_sharding(CollectiveForm asked, int world) {
  if (asked == CollectiveForm::kOneShot) return kNever;
  return asked == CollectiveForm::kTwoShot ? 0 : residual_sharded_from(world);
}

constexpr LaunchPlan plan_launch(const CollectiveShape& shape, const GroupTraits& traits) {
  const CollectiveForm form =
      shape.form == CollectiveForm::kAuto ? choose_form(shape, traits) : shape.form;
  return {.form = form,
          .blocks = plan_blocks(form, shape.blocks, traits),
          .sharded_from = plan_sharding(shape.form, shape.world),
          .refused = refuse_form(form, traits, shape.rows_known)};
}

// FNV-1a (Fowler, Noll, Vo) over the plan, from the hash of the plans before it.
inline constexpr uint64_t kNoPlans = 0xcbf29ce484222325u;
constexpr uint64_t hash_launch_plan(uint64_t hash, const LaunchPlan& plan) {
  const uint64_t words[] = {static_cast<uint64_t>(plan.form), static_cast<uint64_t>(plan.blocks),
                            static_cast<uint64_t>(plan.sharded_from)};
  for (const uint64_t word : words)
    for (int byte = 0; byte < 8; ++byte)
      hash = (hash ^ (word >> (8 * byte) & 0xff)) * 0x100000001b3u;
  return hash;
}

}  // namespace nanoweave
