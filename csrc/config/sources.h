// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <initializer_list>
#include <map>
#include <string>
#include <string_view>

namespace memphis {

// Where the values of a config were given, for error texts.
struct Sources {
  std::string name;  // of the file
  // "model.d_model" or "data.train[0]" to its place: "tiny.yaml:3:5" or "argument '...'"
  std::map<std::string, std::string, std::less<>> places;

  bool has(std::string_view path) const { return places.contains(path); }

  // The place of the first of `paths` that was given; the file where all are defaults.
  const std::string& place(std::initializer_list<std::string_view> paths) const {
    for (const std::string_view path : paths) {
      if (const auto found = places.find(path); found != places.end()) {
        return found->second;
      }
    }
    return name;
  }
};

}  // namespace memphis
