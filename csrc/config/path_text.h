// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "csrc/config/yaml_tree.h"

// What a path of a config means, since no shell stands between the file and the program: a leading
// `~` or `~NAME` is a home folder, `$NAME` and `${NAME}` are the values of environment variables,
// `$$` is a dollar sign, and a dollar before anything else stands for itself.
namespace memphis {

// The path that `node`, a scalar, spells. ConfigError, with the key `path`, for a variable that is
// not set or empty, a user who is not there, and what only a shell can do.
std::string expand_path(const YamlNode& node, const std::string& path);

// The dollars alone: of a path that was expanded when its config was resolved.
std::string unescape_path(const std::string& text);

// The text that both read as `value`.
std::string escape_path(const std::string& value);

}  // namespace memphis
