// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "csrc/core/dtype.h"
#include "csrc/plan/parameters.h"

namespace memphis {

// Finds NaN and infinities among tensors on their way from files into memory. A model with one of
// them computes NaN, or the most probable token of nothing, without an error.
class NonFinite {
 public:
  // `values` are elements `local` of this rank's part of a parameter, from the tensor of that name,
  // in host memory.
  void scan(const std::string& tensor,
            const LogicalParameter& parameter,
            const Range& local,
            DType dtype,
            const void* values);

  bool empty() const { return found_.empty(); }

  // "2 tensors with values that are not finite: model.norm.weight (1 of 32, first [3] = nan), ..."
  std::string describe() const;

 private:
  struct Finding {
    std::int64_t count = 0;
    std::int64_t first = 0;  // element of the whole tensor
    TensorSpec whole;
    double value = 0;
  };
  std::map<std::string, Finding> found_;
};

}  // namespace memphis
