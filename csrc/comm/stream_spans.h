// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "csrc/core/device.h"
#include "csrc/core/trace.h"

namespace memphis {

// When streams of a device passed what was put on them: spans between two events each, on the
// host's clock. One thread at a time calls.
//
// Room for a span is used again once it is taken, so that a step like the one before allocates
// nothing. Each costs two events with their times. A device counts from one event to another in a
// float, exact to 1e-7 of what lies between them, and so from a new one as soon as a second has
// gone by. What lies some steps apart is exact to 0.5 us, what lies an hour apart to 0.1 ms, what
// lies on two sides of a pause to 1e-7 of that; lengths of spans are always to 0.5 us. Spans that lie
// one behind another on a stream never overlap: one that those roundings would have begin before the
// end of the one in front of it begins there.
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
  // From which the device counts.
  struct Origin {
    explicit Origin(Device device) : event(device) {}
    Event event;
    Trace::Clock::time_point time;  // on the host's clock, known once it is passed
  };
  struct Entry {
    explicit Entry(Device device) : begin(device), end(device) {}
    Label label{};
    void* stream = nullptr;  // its handle
    Event begin;
    Event end;
    bool ended = false;
    // One that was passed before the span was put on a stream, and so before its begin.
    std::shared_ptr<const Origin> origin;
  };

  // Up to where the spans of a track are told of that are of one stream.
  struct Told {
    std::string_view track;
    void* stream;
    Trace::Clock::time_point end;
  };

  Trace::Clock::duration since_origin(const Entry& entry) const;
  Trace::Clock::time_point& told_of(const Entry& entry);
  void count_from_next();

  Device device_;
  std::shared_ptr<const Origin> origin_;
  std::shared_ptr<Origin> next_;  // on its way; null while none is needed
  bool next_is_due_ = false;      // it is recorded when a span next begins
  std::vector<Entry> entries_;
  std::vector<std::size_t> free_;
  std::vector<std::size_t> begun_;  // in use, in order
  std::vector<Told> told_;
  std::vector<Taken> taken_;
};

}  // namespace memphis
