#pragma once

#include <string>
#include <vector>

namespace nanoweave::check {

// What the backend does on the host alone: slot lists in pieces, waits with a deadline. What went
// wrong, a line each. Last of all checks: afterwards this process has given its devices up.
std::vector<std::string> run_host_checks();

}  // namespace nanoweave::check
