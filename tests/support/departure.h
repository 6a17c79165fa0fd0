// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tests/support/layout_run.h"

// Where a layout's first step departs from that of one rank: the results of the forward pass in the
// order in which its ops run, then the gradients in that of the backward pass.
namespace memphis::test {

// A result of the forward pass in logical form, however it was cut: a row is a token of the step,
// or one of a token's choices of an expert.
struct OpResult {
  std::string name;  // "layer 1 attention_out"
  std::int64_t num_columns = 0;
  std::int64_t rows_each = 1;     // of a token
  std::vector<double> low, high;  // over the ranks that have an element; NaN where none has
};

struct FirstStep {
  std::int64_t sequence_length = 0;
  std::vector<OpResult> ops;
  std::vector<std::string> parameters;  // in the order of the backward pass
  Tensors gradients;
};

// The first step of a layout in f64. The results of its ops are those of each rank's last
// micro-batch.
FirstStep first_step(const Layout& layout, Ranks ranks);

// "first departs: ...": the op, the place and the values; then the parameters whose gradients
// depart.
std::string describe_departure(const FirstStep& one_rank, const FirstStep& actual);

}  // namespace memphis::test
