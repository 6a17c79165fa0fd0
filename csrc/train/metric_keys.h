// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
#include <string>
#include <string_view>

// What the keys of metrics.jsonl mean, for whoever reads it.
namespace memphis {

struct MetricKey {
  std::string_view
      line;  // start, step, routing, gpus, validation, sample or end: an object is of one of these kinds
  std::string_view key;
  std::string_view unit;  // empty: a bare number
  std::string_view meaning;
};

// In the order in which they stand in a line.
std::span<const MetricKey> metric_keys();

// For a terminal.
std::string describe_metrics();

// The same as docs/metrics.md.
std::string metrics_reference();

}  // namespace memphis
