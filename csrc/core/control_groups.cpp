// SPDX-License-Identifier: Apache-2.0
#include "csrc/core/control_groups.h"

#include <algorithm>
#include <charconv>
#include <fstream>
#include <initializer_list>
#include <sstream>
#include <string_view>
#include <vector>

#include <sys/stat.h>

namespace memphis {
namespace {

namespace fs = std::filesystem;

// One mounted hierarchy and where this process is in it.
struct Hierarchy {
  bool second_version = false;
  std::string controllers;  // of the first version: ",memory,"
  fs::path root;            // of the mount, in the hierarchy
  fs::path mount;           // in the file system
  fs::path group;           // of the process, in the hierarchy
};

std::string read_file(const fs::path& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

// Whole numbers only: "max" is none, and so is what is missing.
std::optional<std::int64_t> parse(std::string_view text) {
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end == text.data()) {
    return std::nullopt;
  }
  return value;
}

std::optional<std::int64_t> read_number(const fs::path& path) {
  return parse(read_file(path));
}

// "36 25 0:31 /docker/1f /sys/fs/cgroup/memory ro,nosuid - cgroup cgroup rw,memory"
std::vector<Hierarchy> mounted(const fs::path& root) {
  std::vector<Hierarchy> found;
  std::istringstream lines(read_file(root / "proc/self/mountinfo"));
  for (std::string line; std::getline(lines, line);) {
    const std::size_t separator = line.find(" - ");
    if (separator == std::string::npos) {
      continue;
    }
    std::istringstream before(line.substr(0, separator));
    std::istringstream after(line.substr(separator + 3));
    std::string skipped;
    std::string root_of_mount;
    std::string mount;
    std::string type;
    std::string source;
    std::string options;
    before >> skipped >> skipped >> skipped >> root_of_mount >> mount;
    after >> type >> source >> options;
    if (type == "cgroup" || type == "cgroup2") {
      found.push_back({.second_version = type == "cgroup2",
                       .controllers = "," + options + ",",
                       .root = root_of_mount,
                       .mount = root / fs::path(mount).relative_path(),
                       .group = {}});
    }
  }
  return found;
}

// Sets the groups of `hierarchies`: "0::/user.slice/run" and "5:cpu,cpuacct:/job".
void place(std::vector<Hierarchy>& hierarchies, const fs::path& root) {
  std::istringstream lines(read_file(root / "proc/self/cgroup"));
  for (std::string line; std::getline(lines, line);) {
    const std::size_t first = line.find(':');
    const std::size_t second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) {
      continue;
    }
    std::istringstream names(line.substr(first + 1, second - first - 1));
    std::vector<std::string> controllers;
    for (std::string name; std::getline(names, name, ',');) {
      controllers.push_back("," + name + ",");
    }
    for (Hierarchy& hierarchy : hierarchies) {
      const bool fits = controllers.empty() ? hierarchy.second_version
                                            : !hierarchy.second_version &&
                                                  hierarchy.controllers.find(controllers.front()) !=
                                                      std::string::npos;
      if (fits) {
        hierarchy.group = line.substr(second + 1);
      }
    }
  }
}

// The folders of the process's group and of those around it, innermost first. A container may not
// see its own path, but its mount's root is then its group.
std::vector<fs::path> folders_of(const Hierarchy& hierarchy) {
  fs::path inner = hierarchy.group.lexically_relative(hierarchy.root);
  if (inner.empty() || *inner.begin() == "..") {
    inner = ".";
  }
  std::vector<fs::path> folders;
  for (; !inner.empty() && inner != "."; inner = inner.parent_path()) {
    folders.push_back(hierarchy.mount / inner);
  }
  folders.push_back(hierarchy.mount);
  return folders;
}

// What `names` of memory.stat add up to: caches of files, which give way.
std::int64_t cached_bytes(const fs::path& folder, std::initializer_list<std::string_view> names) {
  std::istringstream lines(read_file(folder / "memory.stat"));
  std::int64_t sum = 0;
  std::string name;
  std::int64_t value = 0;
  while (lines >> name >> value) {
    sum += std::find(names.begin(), names.end(), name) != names.end() ? value : 0;
  }
  return sum;
}

void look_at_memory(const fs::path& folder, bool second_version, ControlGroupLimits& limits) {
  constexpr std::int64_t kUnlimited = std::int64_t{1} << 60U;  // version 1 says "none" by a number
  const auto consider = [&](const char* file, const char* usage, std::int64_t cached) {
    const std::optional<std::int64_t> limit = read_number(folder / file);
    if (!limit || *limit >= kUnlimited) {
      return;
    }
    const std::int64_t used = read_number(folder / usage).value_or(0) - cached;
    const auto free = static_cast<std::size_t>(
        std::max<std::int64_t>(*limit - std::max<std::int64_t>(used, 0), 0));
    if (limits.memory && limits.memory->free_bytes <= free) {
      return;
    }
    struct stat status {};
    ::stat(folder.c_str(), &status);
    limits.memory = {.limit_bytes = static_cast<std::size_t>(*limit),
                     .free_bytes = free,
                     .file = (folder / file).string(),
                     .group = status.st_ino};
  };
  if (second_version) {
    const std::int64_t cached =
        cached_bytes(folder, {"active_file", "inactive_file", "slab_reclaimable"});
    consider("memory.max", "memory.current", cached);
    consider("memory.high", "memory.current", cached);  // beyond which it crawls
  } else {
    consider("memory.limit_in_bytes",
             "memory.usage_in_bytes",
             cached_bytes(folder, {"total_active_file", "total_inactive_file"}));
  }
}

void look_at_cores(const fs::path& folder, bool second_version, ControlGroupLimits& limits) {
  std::optional<std::int64_t> quota;
  std::optional<std::int64_t> period;
  if (second_version) {
    std::istringstream text(read_file(folder / "cpu.max"));  // "max 100000", "150000 100000"
    std::string first;
    std::string second;
    text >> first >> second;
    quota = parse(first);
    period = parse(second);
  } else {
    quota = read_number(folder / "cpu.cfs_quota_us");
    period = read_number(folder / "cpu.cfs_period_us");
  }
  if (quota && period && *quota > 0 && *period > 0) {
    const double cores = static_cast<double>(*quota) / static_cast<double>(*period);
    limits.cores = std::min(limits.cores.value_or(cores), cores);
  }
}

}  // namespace

ControlGroupLimits read_control_group_limits(const fs::path& root) {
  std::vector<Hierarchy> hierarchies = mounted(root);
  place(hierarchies, root);
  ControlGroupLimits limits;
  for (const Hierarchy& hierarchy : hierarchies) {
    for (const fs::path& folder : folders_of(hierarchy)) {
      look_at_memory(folder, hierarchy.second_version, limits);
      look_at_cores(folder, hierarchy.second_version, limits);
    }
  }
  return limits;
}

}  // namespace memphis
