// SPDX-License-Identifier: Apache-2.0
//
// replay FOLDER: gives each file of the folder to the target that this is linked with, as libFuzzer would,
// and then parts of it: what is cut short is the least that a reader meets.
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

#include "csrc/core/file.h"
#include "tests/fuzz/fuzz.h"

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: %s FOLDER...\n", argv[0]);
    return 2;
  }
  std::vector<std::filesystem::path> paths;
  for (int i = 1; i < argc; ++i) {
    for (const auto& entry : std::filesystem::directory_iterator(argv[i])) {
      if (entry.is_regular_file()) {
        paths.push_back(entry.path());
      }
    }
  }
  std::sort(paths.begin(), paths.end());
  std::size_t count = 0;
  for (const std::filesystem::path& path : paths) {
    const std::string bytes = memphis::read_text(path);
    const auto* const data = reinterpret_cast<const std::uint8_t*>(bytes.data());
    constexpr std::size_t kParts = 23;
    for (std::size_t part = 0; part <= kParts; ++part) {
      // In memory of its own, so that a sanitizer sees its end.
      const std::vector<std::uint8_t> copy(data, data + bytes.size() * part / kParts);
      LLVMFuzzerTestOneInput(copy.data(), copy.size());
      ++count;
    }
  }
  std::printf("%zu files, %zu inputs\n", paths.size(), count);
  return paths.empty() ? 1 : 0;
}
