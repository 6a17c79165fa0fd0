// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "csrc/core/device.h"

namespace memphis::kernels {

// All calls of one op. What an op calls is counted where it is called, and not in the op that calls.
struct OpTotals {
  std::string_view op;
  std::int64_t calls = 0;
  double seconds = 0;
  double bytes = 0;  // of its operands, each once
  double flops = 0;  // of its products
};

// While one exists, the ops that its thread calls on its stream are timed, by the clock on a CPU and
// between events on a GPU. One at a time; an op without one costs a test of a pointer more.
class OpProfile {
 public:
  // Of at most so many calls: nothing is allocated while they run. Those after it are left out.
  OpProfile(Stream stream, std::size_t max_calls);
  ~OpProfile();
  OpProfile(const OpProfile&) = delete;
  OpProfile& operator=(const OpProfile&) = delete;

  // Of all calls so far that have ended, most seconds first. Waits for the stream.
  std::vector<OpTotals> totals() const;
  std::int64_t num_left_out() const { return num_left_out_; }
  // Of the time from the first call's begin to the last one's end, that in which none of them is at
  // work: launches that come late, copies, what the host or another rank is waited for. Waits for the
  // stream.
  double seconds_between() const;

  // Of this thread; null where there is none. For OpCheck alone, as are the next four.
  static OpProfile* active();
  static constexpr std::size_t kLeftOut = ~std::size_t{0};
  std::size_t begin(std::string_view op, Stream stream);
  void add_bytes(std::size_t call, double bytes);
  void add_flops(std::size_t call, double flops);
  void end(std::size_t call);

 private:
  struct Call {
    std::string_view op;
    std::size_t caller;  // kLeftOut: no op
    double bytes;
    double flops;
    bool ended;
  };

  Stream stream_;
  std::size_t max_calls_;
  std::vector<Call> calls_;
  std::vector<Event> events_;  // two a call
  std::size_t innermost_ = kLeftOut;
  std::int64_t num_left_out_ = 0;
};

}  // namespace memphis::kernels
