// SPDX-License-Identifier: Apache-2.0
#include "csrc/checkpoint/non_finite.h"

#include <cmath>
#include <type_traits>
#include <vector>

#include <spdlog/fmt/fmt.h>
#include <spdlog/fmt/ranges.h>

#include "csrc/checkpoint/tensor_names.h"

namespace memphis {
namespace {

struct Count {
  std::int64_t count = 0;
  std::int64_t first = 0;
  double value = 0;
};

template <class T>
Count count_non_finite(const T* values, std::int64_t count) {
  using Wide = std::conditional_t<std::is_same_v<T, bf16>, float, T>;
  Count result;
  for (std::int64_t i = 0; i < count; ++i) {
    const auto value = static_cast<Wide>(values[i]);
    if (!std::isfinite(value)) [[unlikely]] {
      if (result.count == 0) {
        result.first = i;
        result.value = static_cast<double>(value);
      }
      ++result.count;
    }
  }
  return result;
}

Count count_non_finite(const void* values, std::int64_t count, DType dtype) {
  switch (dtype) {
    case DType::f64:
      return count_non_finite(static_cast<const double*>(values), count);
    case DType::f32:
      return count_non_finite(static_cast<const float*>(values), count);
    case DType::bf16:
      return count_non_finite(static_cast<const bf16*>(values), count);
    default:
      return {};
  }
}

// "[2, 5]" of an element counted row by row.
std::string index_text(std::int64_t element, const TensorSpec& whole) {
  std::vector<std::int64_t> index(static_cast<std::size_t>(whole.num_dims));
  for (std::size_t i = index.size(); i-- > 0;) {
    index[i] = element % whole.dims[i];
    element /= whole.dims[i];
  }
  return fmt::format("[{}]", fmt::join(index, ", "));
}

}  // namespace

void NonFinite::scan(const std::string& tensor,
                     const LogicalParameter& parameter,
                     const Range& local,
                     DType dtype,
                     const void* values) {
  const Count counted = count_non_finite(values, local.count, dtype);
  const auto known = found_.find(tensor);
  if (counted.count == 0 && known == found_.end()) {
    return;
  }
  Finding& finding = found_[tensor];
  finding.whole = parameter.whole;
  finding.count += counted.count;
  if (counted.count > 0) {
    const Range first{.begin = local.begin + counted.first, .count = 1};
    for_each_run(parameter, first, [&](std::int64_t whole, std::int64_t, std::int64_t) {
      if (known == found_.end() || whole < finding.first) {
        finding.first = whole;
        finding.value = counted.value;
      }
    });
  }
}

std::string NonFinite::describe() const {
  constexpr std::size_t kMaxInDetail = 16;
  std::vector<std::string> parts;
  std::vector<std::string> others;
  for (const auto& [tensor, finding] : found_) {
    if (parts.size() == kMaxInDetail) {
      others.push_back(tensor);
      continue;
    }
    parts.push_back(fmt::format("{} ({} of {}, first {} = {})",
                                tensor,
                                finding.count,
                                finding.whole.num_elements(),
                                index_text(finding.first, finding.whole),
                                finding.value));
  }
  if (!others.empty()) {
    parts.push_back(list_names(others));
  }
  return fmt::format("{} tensor{} with values that are not finite: {}",
                     found_.size(),
                     found_.size() == 1 ? "" : "s",
                     fmt::join(parts, ", "));
}

}  // namespace memphis
