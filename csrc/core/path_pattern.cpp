// SPDX-License-Identifier: Apache-2.0
#include "csrc/core/path_pattern.h"

#include <algorithm>
#include <set>
#include <system_error>
#include <utility>
#include <vector>

#include <fnmatch.h>

#include "csrc/core/error.h"

namespace memphis {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kAnyDepth = "**";

bool is_hidden(const fs::path& path) {
  return path.filename().native().starts_with('.');
}

class Matcher {
 public:
  Matcher(const std::string& pattern, const std::function<bool(const fs::path&)>& visit)
      : visit_(visit) {
    const fs::path path(pattern);
    root_ = path.root_path();
    for (const fs::path& part : path.relative_path()) {
      // Two of them in a row are as one; the empty name behind a last slash means a directory.
      const bool repeated = part == kAnyDepth && !parts_.empty() && parts_.back() == kAnyDepth;
      if (!repeated && !part.empty()) {
        parts_.push_back(part.string());
      }
    }
    only_directories_ = pattern.ends_with('/');
    for (const std::string& part : parts_) {
      if (part != kAnyDepth && part.find(kAnyDepth) != std::string::npos) {
        throw DataError("'" + pattern + "' has ** in the name '" + part +
                        "' (it stands for directories, between slashes); write **/" +
                        part.substr(part.find(kAnyDepth) + 1) + " for files at any depth");
      }
    }
  }

  bool run() { return match(root_, 0); }

 private:
  // Everything below `directory` that the parts from `next` on match.
  bool match(const fs::path& directory, std::size_t next) {
    if (next == parts_.size()) {
      return directory.empty() || (only_directories_ && !is_directory(directory)) ||
             visit_(directory);
    }
    if (!directory.empty() && !is_directory(directory)) {
      return true;
    }
    const std::string& part = parts_[next];
    if (part == kAnyDepth) {
      return match_any_depth(directory, next);
    }
    if (!is_path_pattern(part) && part.find('\\') == std::string::npos) {
      const fs::path path = directory / part;
      std::error_code ignored;
      return !fs::exists(path, ignored) || match(path, next + 1);
    }
    for (const fs::path& entry : entries(directory)) {
      const bool fits = ::fnmatch(part.c_str(), entry.filename().c_str(), FNM_PERIOD) == 0;
      if (fits && !match(entry, next + 1)) {
        return false;
      }
    }
    return true;
  }

  bool match_any_depth(const fs::path& directory, std::size_t next) {
    std::error_code ignored;
    const fs::path canonical = fs::canonical(directory.empty() ? "." : directory, ignored);
    if (!entered_.emplace(next, canonical).second) {
      return true;
    }
    const bool last = next + 1 == parts_.size();
    if (!last && !match(directory, next + 1)) {
      return false;
    }
    for (const fs::path& entry : entries(directory)) {
      if (is_hidden(entry)) {
        continue;
      }
      if (is_directory(entry) ? !match_any_depth(entry, next) : last && !visit_(entry)) {
        return false;
      }
    }
    return true;
  }

  static bool is_directory(const fs::path& path) {
    std::error_code ignored;
    return fs::is_directory(path, ignored);
  }

  // Names alone where the pattern is relative, as the user wrote it.
  static std::vector<fs::path> entries(const fs::path& directory) {
    if (!directory.empty()) {
      return list_directory(directory);
    }
    std::vector<fs::path> names = list_directory(".");
    std::transform(names.begin(), names.end(), names.begin(), [](const fs::path& path) {
      return path.filename();
    });
    return names;
  }

  const std::function<bool(const fs::path&)>& visit_;
  fs::path root_;
  std::vector<std::string> parts_;
  bool only_directories_ = false;
  std::set<std::pair<std::size_t, fs::path>> entered_;  // by a `**`, which part, and where
};

}  // namespace

bool is_path_pattern(std::string_view text) {
  return text.find_first_of("*?[") != std::string_view::npos;
}

bool visit_matches(const std::string& pattern, const std::function<bool(const fs::path&)>& visit) {
  return Matcher(pattern, visit).run();
}

std::vector<fs::path> list_directory(const fs::path& directory) {
  std::vector<fs::path> entries;
  std::error_code error;
  for (fs::directory_iterator it(directory, error), end; !error && it != end; it.increment(error)) {
    entries.push_back(it->path());
  }
  if (error) {
    throw DataError("cannot list " + directory.string() + " (" + error.message() +
                    "); change its permissions, or name what is to be read beside it");
  }
  std::sort(entries.begin(), entries.end());
  return entries;
}

}  // namespace memphis
