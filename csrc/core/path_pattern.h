// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

// Patterns of paths as shells know them, with what glob(3) lacks: `**`.
namespace memphis {

// Whether it has a sign of a pattern: `*`, `?` or `[`.
bool is_path_pattern(std::string_view text);

// Calls visit(path) for every file, directory and whatever else there is that `pattern` matches, in
// the order of their names, until one returns false; returns whether none did.
//
//   *, ?, [...]  as fnmatch(3) has them, within one name
//   **           a whole name: any number of directories, none too; last, also the files in them
//
// Links are followed; a directory that leads to itself is entered once. A name that begins with a
// dot is matched only by a pattern that begins with one. A path may come twice, by several ways.
//
// DataError where a directory on the way cannot be listed, and for `**` as a part of a name, where
// shells differ in what it means.
bool visit_matches(const std::string& pattern,
                   const std::function<bool(const std::filesystem::path&)>& visit);

// What is in a directory, sorted by name. DataError if it cannot be listed.
std::vector<std::filesystem::path> list_directory(const std::filesystem::path& directory);

}  // namespace memphis
