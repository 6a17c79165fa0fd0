// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace memphis {

// The sources and documents of the tree that this binary was built in (it lies in build/<preset>/):
// what a config without data.train trains on. Empty if the binary has left its tree.
std::vector<std::string> own_text_roots();

// Where machines of a name are looked for: below the current folder, and in that tree.
std::vector<std::filesystem::path> machine_folders();

}  // namespace memphis
