// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstddef>
#include <mutex>
#include <string_view>
#include <vector>

namespace memphis {

// Spans of time on the tracks of one rank. Any thread may add.
//
// Room for `max_spans` is taken at once, so that a step allocates nothing; what comes later is
// counted and left out.
class Trace {
 public:
  using Clock = std::chrono::steady_clock;

  // `track` and `name` are literals, or outlive the trace. `detail` is a number that says more,
  // such as a layer's; -1: none.
  struct Span {
    const char* track;
    std::string_view name;
    int detail;
    int micro_batch = -1;  // -1: of none, or of all
    Clock::time_point begin;
    Clock::time_point end;
  };

  static constexpr std::size_t kMaxSpans = std::size_t{1} << 18U;

  explicit Trace(std::size_t max_spans = kMaxSpans) { spans_.reserve(max_spans); }

  void add(const Span& span) {
    const std::lock_guard lock(mutex_);
    if (spans_.size() < spans_.capacity()) {
      spans_.push_back(span);
    } else {
      ++num_left_out_;
    }
  }

  // Once nothing is added any more.
  const std::vector<Span>& spans() const { return spans_; }
  std::size_t num_left_out() const { return num_left_out_; }

 private:
  std::mutex mutex_;
  std::vector<Span> spans_;
  std::size_t num_left_out_ = 0;
};

}  // namespace memphis
