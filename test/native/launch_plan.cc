// The launch plan, checked: every line printed is a failure. Built and run by launch-plan.test.ts.
#include "comm/launch_plan.h"

#include <cstdio>
#include <random>

using namespace nanoweave;

namespace {

int failures = 0;

void expect(bool condition, const char* what, int line) {
  if (condition) return;
  ++failures;
  std::printf("line %d: %s\n", line, what);
}
#define EXPECT(condition) expect(condition, #condition, __LINE__)

CollectiveShape bytes(int64_t count, int world, CollectiveForm form = CollectiveForm::kAuto) {
  return {.rows = count / 1024,
          .row_bytes = 1024,
          .blocks = 1 << 20,
          .world = world,
          .rows_known = true,
          .form = form};
}

GroupTraits linked(Link link) { return {.link = link, .max_local_ranks = 1, .sm_budget = 132}; }

// docs/kernels.md §2, line by line.
void check_priors() {
  GroupTraits nvlink = linked(Link::kNvlink);
  nvlink.nccl = true;
  const auto form = [&](int64_t count, int world) {
    return plan_launch(bytes(count, world), nvlink).form;
  };
  using enum CollectiveForm;
  EXPECT(form(16 * kMiB, 2) == kOneShot && form(17 * kMiB, 2) == kTwoShot);
  EXPECT(form(384 * kKiB, 4) == kOneShot && form(385 * kKiB, 4) == kTwoShot);
  EXPECT(form(128 * kKiB, 8) == kOneShot && form(129 * kKiB, 8) == kTwoShot);
  EXPECT(form(32 * kMiB, 8) == kTwoShot && form(33 * kMiB, 8) == kNccl);
  nvlink.multicast = true;
  EXPECT(form(64 * kMiB, 2) == kTwoShot);
  EXPECT(form(511 * kKiB, 4) == kTwoShot && form(512 * kKiB, 4) == kMulticast);
  EXPECT(form(511 * kKiB, 8) == kTwoShot && form(64 * kMiB, 8) == kMulticast);
  GroupTraits pcie = linked(Link::kPcie);
  EXPECT(plan_launch(bytes(32 * kKiB, 4), pcie).form == kOneShot);
  EXPECT(plan_launch(bytes(33 * kKiB, 4), pcie).form == kTwoShot);
  EXPECT(plan_launch(bytes(64 * kMiB, 4), pcie).form == kTwoShot);
}

void check_blocks() {
  using enum CollectiveForm;
  GroupTraits traits = linked(Link::kNvlink);
  traits.multicast = true;
  EXPECT(plan_launch(bytes(kMiB, 4, kOneShot), traits).blocks == 64);
  EXPECT(plan_launch(bytes(kMiB, 4, kTwoShot), traits).blocks == 64);
  EXPECT(plan_launch(bytes(kMiB, 4, kMulticast), traits).blocks == 16);
  traits.max_local_ranks = 4;
  EXPECT(plan_launch(bytes(kMiB, 4, kTwoShot), traits).blocks == 33);
  traits.few_blocks = true;
  EXPECT(plan_launch(bytes(kMiB, 4, kTwoShot), traits).blocks == 8);
  EXPECT(plan_launch(bytes(kMiB, 4, kMulticast), traits).blocks == 8);
  traits.sm_budget = 2;
  EXPECT(plan_launch(bytes(kMiB, 4, kTwoShot), traits).blocks == 1);
}

void check_residuals() {
  using enum CollectiveForm;
  const GroupTraits traits = linked(Link::kNvlink);
  EXPECT(plan_launch(bytes(kMiB, 4), traits).sharded_from == 32);
  EXPECT(plan_launch(bytes(kMiB, 4, kOneShot), traits).sharded_from == kNever);
  EXPECT(plan_launch(bytes(kMiB, 4, kTwoShot), traits).sharded_from == 0);
  EXPECT(plan_launch(bytes(kMiB, 1), traits).sharded_from == kNever);
}

void check_refusals() {
  using enum CollectiveForm;
  GroupTraits traits = linked(Link::kPcie);
  EXPECT(plan_launch(bytes(kMiB, 4, kMulticast), traits).refused != nullptr);
  EXPECT(plan_launch(bytes(kMiB, 4, kNccl), traits).refused != nullptr);
  traits.nccl = traits.multicast = true;
  EXPECT(plan_launch(bytes(kMiB, 4, kMulticast), traits).refused == nullptr);
  EXPECT(plan_launch(bytes(kMiB, 4, kNccl), traits).refused == nullptr);
  CollectiveShape part = bytes(64 * kMiB, 4, kNccl);
  part.rows_known = false;
  EXPECT(plan_launch(part, traits).refused != nullptr);
  part.form = kAuto;
  EXPECT(plan_launch(part, traits).form == kTwoShot);
  traits.deterministic = true;
  EXPECT(plan_launch(bytes(kMiB, 4, kMulticast), traits).refused != nullptr);
  EXPECT(plan_launch(bytes(kMiB, 4, kNccl), traits).refused != nullptr);
  traits.deterministic = false;
  traits.peer_access = false;
  EXPECT(plan_launch(bytes(1, 4), traits).form == kNccl);
  EXPECT(plan_launch(bytes(1, 4), traits).refused == nullptr);
  EXPECT(plan_launch(bytes(1, 4, kOneShot), traits).refused != nullptr);
  traits.nccl = false;
  EXPECT(plan_launch(bytes(1, 4), traits).refused != nullptr);
}

// What holds of every plan.
void check_random() {
  std::mt19937_64 random(1);
  const auto below = [&](int64_t limit) { return static_cast<int64_t>(random() % limit); };
  for (int i = 0; i < 200000; ++i) {
    const CollectiveShape shape{.rows = below(1 << (1 + below(16))),
                                .row_bytes = 16 * (1 + below(2048)),
                                .blocks = below(10000),
                                .world = static_cast<int>(1 + below(16)),
                                .rows_known = below(2) == 0};
    const GroupTraits traits{.link = static_cast<Link>(below(3)),
                             .multicast = below(2) == 0,
                             .nccl = below(2) == 0,
                             .deterministic = below(2) == 0,
                             .few_blocks = below(2) == 0,
                             .max_local_ranks = static_cast<int>(1 + below(16)),
                             .sm_budget = static_cast<int>(16 + below(140))};
    const LaunchPlan plan = plan_launch(shape, traits);
    EXPECT(plan.refused == nullptr && plan.form != CollectiveForm::kAuto);
    if (plan.form == CollectiveForm::kNccl) continue;
    EXPECT(plan.blocks >= 1 && plan.blocks <= kMaxCommBlocks);
    EXPECT(plan.blocks * traits.max_local_ranks <= traits.sm_budget);
    EXPECT(!traits.few_blocks || plan.blocks <= kFewBlocks);
    EXPECT(plan.form != CollectiveForm::kMulticast ||
           (traits.multicast && !traits.deterministic && plan.blocks <= kMulticastBlocks));
  }
}

void check_hash_and_names() {
  const LaunchPlan plan = plan_launch(bytes(kMiB, 4), linked(Link::kNvlink));
  const uint64_t hash = hash_launch_plan(kNoPlans, plan);
  EXPECT(hash == hash_launch_plan(kNoPlans, plan));
  LaunchPlan other = plan;
  other.blocks += 1;
  EXPECT(hash != hash_launch_plan(kNoPlans, other));
  other = plan;
  other.form = CollectiveForm::kNccl;
  EXPECT(hash != hash_launch_plan(kNoPlans, other));
  other = plan;
  other.sharded_from = kNever;
  EXPECT(hash != hash_launch_plan(kNoPlans, other));
  for (const char* name : {"auto", "one_shot", "two_shot", "multicast", "nccl"})
    EXPECT(is_collective_form(name) &&
           collective_form_name(collective_form(name)) == std::string_view(name));
  EXPECT(!is_collective_form("") && !is_collective_form("ring"));
}

// One function for host and device, so it can be worked out at compile time too.
static_assert(plan_launch({.rows = 1, .row_bytes = 16, .blocks = 1, .world = 2, .rows_known = true},
                          {})
                  .form == CollectiveForm::kOneShot);

}  // namespace

int main() {
  check_priors();
  check_blocks();
  check_residuals();
  check_refusals();
  check_random();
  check_hash_and_names();
  return failures == 0 ? 0 : 1;
}
