// SPDX-License-Identifier: Apache-2.0
#include "kernels/device/simt/sanitizer.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdint>
#include <cstdio>
#include <string_view>

// Weak: a program without the sanitizers has none of these.
extern "C" {
__attribute__((weak)) void __sanitizer_start_switch_fiber(void** own,
                                                          const void* bottom,
                                                          std::size_t bytes);
__attribute__((weak)) void __sanitizer_finish_switch_fiber(void* own,
                                                           const void** bottom,
                                                           std::size_t* bytes);
__attribute__((weak)) void __sanitizer_symbolize_pc(const void* pc,
                                                    const char* format,
                                                    char* out,
                                                    std::size_t out_bytes);
}

namespace memphis::kernels::simt {
namespace {

// The answers for each inlined function, one after the other, each with its final zero.
std::vector<std::string> symbolize(const void* pc, const char* format) {
  std::vector<std::string> answers;
  if (__sanitizer_symbolize_pc == nullptr) {
    return answers;
  }
  std::array<char, 16384> out{};
  __sanitizer_symbolize_pc(pc, format, out.data(), out.size());
  for (const char* text = out.data(); text < out.data() + out.size() && *text != '\0';) {
    answers.emplace_back(text);
    text += answers.back().size() + 1;
  }
  return answers;
}

// From the repository's root, which is where this file's own path begins.
std::string_view from_root(std::string_view path) {
  constexpr std::string_view kFile = __FILE__;
  constexpr std::string_view kFromRoot = "kernels/device/simt/sanitizer.cpp";
  constexpr std::string_view kRoot = kFile.substr(0, kFile.size() - kFromRoot.size());
  return path.substr(0, kRoot.size()) == kRoot ? path.substr(kRoot.size()) : path;
}

}  // namespace

void start_switch(void** own, const void* bottom, std::size_t bytes) {
  if (__sanitizer_start_switch_fiber != nullptr) {
    __sanitizer_start_switch_fiber(own, bottom, bytes);
  }
}

void finish_switch(void* own, const void** bottom, std::size_t* bytes) {
  if (__sanitizer_finish_switch_fiber != nullptr) {
    __sanitizer_finish_switch_fiber(own, bottom, bytes);
  }
}

std::vector<Place> places_of(const void* pc) {
  std::vector<Place> places;
  // A return address is the instruction after the call.
  const void* const call = reinterpret_cast<const void*>(reinterpret_cast<std::uintptr_t>(pc) - 1);
  for (const std::string& answer : symbolize(call, "%s\t%l\t%f")) {
    const std::size_t first = answer.find('\t');
    const std::size_t second = answer.find('\t', first + 1);
    if (second == std::string::npos) {
      continue;
    }
    Place place{.function = short_name(std::string_view(answer).substr(second + 1)),
                .file = std::string(from_root(std::string_view(answer).substr(0, first))),
                .line = 0};
    std::from_chars(answer.data() + first + 1, answer.data() + second, place.line);
    places.push_back(place);
  }
  if (places.empty()) {
    std::array<char, 64> text{};
    std::snprintf(text.data(), text.size(), "%p", call);
    places.push_back({.function = "?", .file = text.data(), .line = 0});
  }
  return places;
}

Place kernel_place(const void* pc, std::string_view except) {
  const std::vector<Place> places = places_of(pc);
  const auto found = std::find_if(places.begin(), places.end(), [&](const Place& place) {
    return !place.file.starts_with('/') && !place.file.starts_with(except);
  });
  return found == places.end() ? places.front() : *found;
}

// The parameters' "(" is the first outside of template arguments and after any
// "(anonymous namespace)".
std::string short_name(std::string_view function) {
  if (function.substr(0, 5) == "void ") {
    function.remove_prefix(5);  // instantiations carry their return type
  }
  int depth = 0;
  for (std::size_t i = 0; i < function.size(); ++i) {
    constexpr std::string_view kAnonymous = "(anonymous namespace)";
    if (function.substr(i, kAnonymous.size()) == kAnonymous) {
      i += kAnonymous.size() - 1;
      continue;
    }
    depth += function[i] == '<' ? 1 : function[i] == '>' ? -1 : 0;
    if (function[i] == '(' && depth == 0) {
      function = function.substr(0, i);
      break;
    }
  }
  std::string result(function);
  for (const std::string_view prefix :
       {"memphis::", "kernels::", "cuda::", "(anonymous namespace)::"}) {
    for (std::size_t at = result.find(prefix); at != std::string::npos; at = result.find(prefix)) {
      result.erase(at, prefix.size());
    }
  }
  return result;
}

}  // namespace memphis::kernels::simt
