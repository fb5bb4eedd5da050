#include "comm/launch_plan.h"

namespace nanoweave {

namespace {

constexpr const char* kFormNames[] = {"auto", "one_shot", "two_shot", "multicast", "nccl"};

}  // namespace

CollectiveForm collective_form(std::string_view name) {
  for (size_t i = 0; i < std::size(kFormNames); ++i)
    if (name == kFormNames[i]) return static_cast<CollectiveForm>(i);
  return CollectiveForm::kAuto;
}

const char* collective_form_name(CollectiveForm form) {
  return kFormNames[static_cast<size_t>(form)];
}

bool is_collective_form(std::string_view name) {
  return name == collective_form_name(collective_form(name));
}

}  // namespace nanoweave
