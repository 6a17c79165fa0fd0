// SPDX-License-Identifier: Apache-2.0
#include "csrc/checkpoint/tensor_names.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <map>
#include <set>
#include <utility>

#include <spdlog/fmt/fmt.h>
#include <spdlog/fmt/ranges.h>

#include "csrc/checkpoint/json.h"
#include "csrc/core/error.h"

namespace memphis {
namespace {

// Up to so many names are written out: somebody looks for one of them with grep.
constexpr std::size_t kMaxNamesInFull = 64;

bool is_digit(char c) {
  return std::isdigit(static_cast<unsigned char>(c)) != 0;
}

// A name, or several that differ in numbers alone: text, number, text, number, ..., text.
struct FoldedName {
  std::vector<std::string> texts;
  std::vector<Range> numbers;

  std::string text() const {
    std::string result = texts.front();
    for (std::size_t i = 0; i < numbers.size(); ++i) {
      const auto& [begin, count] = numbers[i];
      result += count == 1 ? fmt::format("{}", begin)
                           : fmt::format("{{{}..{}}}", begin, begin + count - 1);
      result += texts[i + 1];
    }
    return result;
  }
};

// A run of digits that would not come back as it was, "007" or one of twenty digits, is text.
FoldedName parse_name(const std::string& name) {
  FoldedName folded;
  folded.texts.emplace_back();
  for (std::size_t i = 0; i < name.size();) {
    std::size_t end = i;
    while (end < name.size() && is_digit(name[end])) {
      ++end;
    }
    std::int64_t number = 0;
    const bool plain =
        end > i && (name[i] != '0' || end == i + 1) &&
        std::from_chars(name.data() + i, name.data() + end, number).ec == std::errc();
    if (plain) {
      folded.numbers.push_back({.begin = number, .count = 1});
      folded.texts.emplace_back();
    } else {
      end = std::max(end, i + 1);
      folded.texts.back().append(name, i, end - i);
    }
    i = end;
  }
  return folded;
}

// Joins names that are equal but for number `position`, where that of one follows the other's.
std::vector<FoldedName> fold_position(const std::vector<FoldedName>& names, std::size_t position) {
  const auto key_of = [&](const FoldedName& name) {
    std::vector<std::pair<std::int64_t, std::int64_t>> others;
    for (std::size_t i = 0; i < name.numbers.size(); ++i) {
      others.emplace_back(i == position ? 0 : name.numbers[i].begin,
                          i == position ? 0 : name.numbers[i].count);
    }
    return std::pair(name.texts, others);
  };
  std::map<decltype(key_of(names.front())), std::vector<Range>> groups;
  for (const FoldedName& name : names) {
    if (position < name.numbers.size()) {
      groups[key_of(name)].push_back(name.numbers[position]);
    }
  }
  for (auto& [key, numbers] : groups) {
    std::sort(numbers.begin(), numbers.end(), [](const Range& a, const Range& b) {
      return a.begin < b.begin;
    });
    std::vector<Range> joined;
    for (const Range& number : numbers) {
      if (!joined.empty() && joined.back().begin + joined.back().count == number.begin) {
        joined.back().count += number.count;
      } else {
        joined.push_back(number);
      }
    }
    numbers = std::move(joined);
  }
  std::vector<FoldedName> result;
  for (const FoldedName& name : names) {
    if (position >= name.numbers.size()) {
      result.push_back(name);
      continue;
    }
    std::vector<Range>& numbers = groups[key_of(name)];
    for (const Range& number : numbers) {
      result.push_back(name);
      result.back().numbers[position] = number;
    }
    numbers.clear();  // written where the first of them stood
  }
  return result;
}

std::string_view plural(std::size_t count) {
  return count == 1 ? "" : "s";
}

}  // namespace

TensorDifference compare_tensors(const std::vector<NamedShape>& planned,
                                 const std::vector<NamedShape>& stored,
                                 const std::vector<NamedShape>& optional) {
  std::map<std::string_view, const NamedShape*> places;
  for (const std::vector<NamedShape>* known : {&planned, &optional}) {
    for (const NamedShape& tensor : *known) {
      places.emplace(tensor.name, &tensor);
    }
  }
  TensorDifference difference;
  std::set<std::string_view> found;
  for (const NamedShape& tensor : stored) {
    const auto place = places.find(tensor.name);
    if (place == places.end()) {
      difference.extra.push_back(tensor.name);
      continue;
    }
    found.insert(tensor.name);
    if (!tensor.shape.empty() && tensor.shape != place->second->shape) {
      difference.other_shape.push_back(fmt::format("{} has shape [{}], not [{}]",
                                                   tensor.name,
                                                   fmt::join(tensor.shape, ", "),
                                                   fmt::join(place->second->shape, ", ")));
    }
  }
  for (const NamedShape& tensor : planned) {
    if (!found.contains(tensor.name)) {
      difference.missing.push_back(tensor.name);
    }
  }
  return difference;
}

std::string describe(const TensorDifference& difference) {
  std::vector<std::string> parts;
  const auto& [extra, missing, other_shape] = difference;
  if (!extra.empty()) {
    parts.push_back(fmt::format("holds {} tensor{} that the config has no place for: {}",
                                extra.size(),
                                plural(extra.size()),
                                list_names(extra)));
  }
  if (!missing.empty()) {
    parts.push_back(fmt::format("lacks {} tensor{} that the config asks for: {}",
                                missing.size(),
                                plural(missing.size()),
                                list_names(missing)));
  }
  if (!other_shape.empty()) {
    parts.push_back(fmt::format("holds {} tensor{} of another shape than the config's: {}",
                                other_shape.size(),
                                plural(other_shape.size()),
                                list_names(other_shape)));
  }
  return fmt::format("{}", fmt::join(parts, "; it "));
}

void require_same_tensors(const std::filesystem::path& place,
                          const TensorDifference& difference,
                          std::string_view advice) {
  if (!difference.empty()) {
    throw CheckpointError(
        fmt::format("{} {} (weights and config are of two models, or a part of the weights did not "
                    "arrive); {}",
                    place.string(),
                    describe(difference),
                    advice));
  }
}

std::vector<NamedShape> planned_weights(const ParameterPlan& plan) {
  std::vector<NamedShape> result;
  for (const LogicalParameter& parameter : plan.logical) {
    const auto* dims = parameter.whole.dims.data();
    result.push_back({parameter.name, {dims, dims + parameter.whole.num_dims}});
  }
  return result;
}

std::string list_names(const std::vector<std::string>& names) {
  std::vector<std::string> shown;
  for (const std::string& name : names.size() > kMaxNamesInFull ? fold_names(names) : names) {
    shown.push_back(printable(name));
  }
  return fmt::format("{}", fmt::join(shown, ", "));
}

std::vector<std::string> fold_names(const std::vector<std::string>& names) {
  std::vector<FoldedName> folded;
  std::size_t num_positions = 0;
  for (const std::string& name : names) {
    folded.push_back(parse_name(name));
    num_positions = std::max(num_positions, folded.back().numbers.size());
  }
  // The last number first: experts of a layer become one, then layers that have all of them.
  for (std::size_t position = num_positions; position-- > 0;) {
    folded = fold_position(folded, position);
  }
  std::vector<std::string> result;
  for (const FoldedName& name : folded) {
    result.push_back(name.text());
  }
  return result;
}

}  // namespace memphis
