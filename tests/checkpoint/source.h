// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "csrc/checkpoint/safetensors.h"

namespace memphis::test {

// A source that owns its values and emits them in pieces of at most `piece` elements.
template <class T>
TensorSource source(std::string name,
                    std::vector<std::int64_t> shape,
                    std::vector<T> values,
                    std::size_t piece = 3) {
  return {
      .name = std::move(name),
      .dtype = dtype_of<T>(),
      .shape = std::move(shape),
      .emit =
          [values = std::move(values), piece](const ByteSink& sink) {
            const auto bytes = std::as_bytes(std::span(values));
            for (std::size_t i = 0; i < bytes.size(); i += piece * sizeof(T)) {
              sink(bytes.subspan(i, std::min(piece * sizeof(T), bytes.size() - i)));
            }
          },
  };
}

inline std::vector<float> ramp(std::size_t count, float first = 0) {
  std::vector<float> values(count);
  for (std::size_t i = 0; i < count; ++i) {
    values[i] = first + static_cast<float>(i);
  }
  return values;
}

}  // namespace memphis::test
