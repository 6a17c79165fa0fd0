// SPDX-License-Identifier: Apache-2.0
#include "csrc/cli/source_tree.h"

#include <algorithm>
#include <filesystem>

namespace memphis {

namespace fs = std::filesystem;

namespace {

fs::path own_root() {
  std::error_code ignored;
  const fs::path binary = fs::read_symlink("/proc/self/exe", ignored);
  return binary.parent_path().parent_path().parent_path();
}

}  // namespace

std::vector<std::string> own_text_roots() {
  std::error_code ignored;
  const fs::path root = own_root();
  std::vector<std::string> roots;
  if (!fs::exists(root / "csrc" / "core", ignored)) {
    return roots;
  }
  for (const char* name :
       {"README.md", "CMakeLists.txt", "cmake", "csrc", "kernels", "bench", "launch", "examples"}) {
    if (fs::exists(root / name, ignored)) {
      roots.push_back((root / name).string());
    }
  }
  // What fuzzers begin with is corpora of every kind, most of them broken.
  std::vector<std::string> tests;
  for (const auto& entry : fs::directory_iterator(root / "tests", ignored)) {
    if (entry.path().filename() != "fuzz") {
      tests.push_back(entry.path().string());
    }
  }
  std::sort(tests.begin(), tests.end());
  roots.insert(roots.end(), tests.begin(), tests.end());
  return roots;
}

std::vector<fs::path> machine_folders() {
  const fs::path folder = fs::path("configs") / "machines";
  return {folder, own_root() / folder};
}

}  // namespace memphis
