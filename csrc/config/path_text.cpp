// SPDX-License-Identifier: Apache-2.0
#include "csrc/config/path_text.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <string_view>

#include <pwd.h>
#include <unistd.h>

#include "csrc/config/scalar.h"

namespace memphis {
namespace {

bool starts_name(char c) {
  return std::isalpha(static_cast<unsigned char>(c)) != 0 || c == '_';
}
bool continues_name(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_';
}

// The home folder that a path begins with, and the length of what names it.
std::string home_of(const YamlNode& node, const std::string& path, std::string_view user) {
  if (user.empty()) {
    if (const char* home = std::getenv("HOME"); home != nullptr && *home != '\0') {
      return home;
    }
  }
  const passwd* entry =
      user.empty() ? ::getpwuid(::getuid()) : ::getpwnam(std::string(user).c_str());
  if (entry == nullptr || entry->pw_dir == nullptr || *entry->pw_dir == '\0') {
    std::string why = "~ is the home folder, and HOME is not set";
    if (!user.empty()) {
      why = "there is no user ";
      why.append(user).append(", whose home folder ~").append(user).append(" would be");
    }
    refuse(node, path, why, "write the path out, or ./~ for a name that begins so");
  }
  return entry->pw_dir;
}

std::string value_of(const YamlNode& node, const std::string& path, const std::string& name) {
  const char* value = std::getenv(name.c_str());
  if (value == nullptr || *value == '\0') {
    refuse(node,
           path,
           "the environment variable " + name + (value == nullptr ? " is not set" : " is empty"),
           "export it, write the path out, or $$ for a dollar sign");
  }
  return value;
}

}  // namespace

std::string expand_path(const YamlNode& node, const std::string& path) {
  std::string_view text = node.text;
  std::string expanded;
  if (text.starts_with('~')) {
    const std::size_t end = std::min(text.find('/'), text.size());
    expanded = home_of(node, path, text.substr(1, end - 1));
    text.remove_prefix(end);
  }
  while (!text.empty()) {
    const std::size_t dollar = std::min(text.find('$'), text.size());
    expanded += text.substr(0, dollar);
    text.remove_prefix(dollar);
    if (text.size() < 2) {
      expanded += text;
      break;
    }
    const char next = text[1];
    if (next == '$') {
      expanded += '$';
      text.remove_prefix(2);
    } else if (next == '{' || starts_name(next)) {
      const bool braces = next == '{';
      text.remove_prefix(braces ? 2 : 1);
      const auto after = std::find_if_not(text.begin(), text.end(), continues_name);
      const std::string name(text.begin(), after);
      text.remove_prefix(name.size());
      if (braces && (name.empty() || !starts_name(name[0]) || !text.starts_with('}'))) {
        refuse(node,
               path,
               "between ${ and } stands the name of an environment variable, and no more",
               "write ${NAME}, or $$ for a dollar sign");
      }
      text.remove_prefix(braces ? 1 : 0);
      expanded += value_of(node, path, name);
    } else if (next == '(') {
      refuse(node,
             path,
             "$( runs a command, which a shell does and a config does not",
             "write the path out, or $$ for a dollar sign");
    } else {
      expanded += '$';
      text.remove_prefix(1);
    }
  }
  return expanded;
}

std::string unescape_path(const std::string& text) {
  std::string value;
  for (std::size_t i = 0; i < text.size(); ++i) {
    value += text[i];
    i += text[i] == '$' && i + 1 < text.size() && text[i + 1] == '$' ? 1 : 0;
  }
  return value;
}

std::string escape_path(const std::string& value) {
  std::string text;
  for (const char c : value) {
    text.append(c == '$' ? 2 : 1, c);
  }
  return text;
}

}  // namespace memphis
