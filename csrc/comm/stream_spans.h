// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "csrc/core/device.h"
#include "csrc/core/trace.h"

namespace memphis {

// When streams of a device passed what was put on them: spans between two events each, on the
// host's clock. One thread at a time calls.
//
// Room for a span is used again once it is taken, so that a step like the one before allocates
// nothing. Each costs two events with their times. Those are exact to 0.5 us, or to 1e-7 of the
// time since construction where that is more; lengths of spans are always to 0.5 us.
class StreamSpans {
 public:
  enum class Kind : std::uint8_t { phase, transfer, waiting };

  // `track` and `name` are literals, or outlive this. `detail` and `micro_batch` as in Trace::Span.
  struct Label {
    Kind kind;
    const char* track;
    std::string_view name;
    int detail = -1;
    int micro_batch = -1;
  };

  // Times count from `stream` as it is now, for which this waits.
  explicit StreamSpans(Stream stream);

  // A span of what is put on `stream` from here to end(), which is given the result. One that is
  // not ended is not told of.
  std::size_t begin(const Label& label, Stream stream);
  void end(std::size_t span, Stream stream);

  struct Taken {
    Label label;
    Trace::Clock::time_point begin;
    Trace::Clock::time_point end;
  };
  // Those that are over by now, each once, in the order in which they were begun.
  const std::vector<Taken>& take();

 private:
  struct Entry {
    explicit Entry(Device device) : begin(device), end(device) {}
    Label label{};
    Event begin;
    Event end;
    bool ended = false;
  };

  Trace::Clock::time_point time_of(const Event& event) const;

  Device device_;
  Event origin_;
  Trace::Clock::time_point origin_time_;  // on the host's clock
  std::vector<Entry> entries_;
  std::vector<std::size_t> free_;
  std::vector<std::size_t> begun_;  // in use, in order
  std::vector<Taken> taken_;
};

}  // namespace memphis
