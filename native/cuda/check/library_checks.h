#pragma once

#include <string>
#include <vector>

namespace nanoweave::check {

// What was not as expected, a sentence each.
std::vector<std::string> run_library_checks();

}  // namespace nanoweave::check
