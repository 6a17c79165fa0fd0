// SPDX-License-Identifier: Apache-2.0
#include "csrc/comm/stream_spans.h"

#include <chrono>

namespace memphis {
namespace {

Trace::Clock::duration duration_of(double seconds) {
  return std::chrono::duration_cast<Trace::Clock::duration>(std::chrono::duration<double>(seconds));
}

}  // namespace

StreamSpans::StreamSpans(Stream stream) : device_(stream.device), origin_(stream.device) {
  origin_.record(stream);
  origin_.wait();
  origin_time_ = Trace::Clock::now();
}

std::size_t StreamSpans::begin(const Label& label, Stream stream) {
  if (free_.empty()) {
    free_.push_back(entries_.size());
    entries_.emplace_back(device_);
  }
  const std::size_t span = free_.back();
  free_.pop_back();
  Entry& entry = entries_[span];
  entry.label = label;
  entry.ended = false;
  entry.begin.record(stream);
  begun_.push_back(span);
  return span;
}

void StreamSpans::end(std::size_t span, Stream stream) {
  Entry& entry = entries_[span];
  entry.end.record(stream);
  entry.ended = true;
}

Trace::Clock::time_point StreamSpans::time_of(const Event& event) const {
  return origin_time_ + duration_of(event.seconds_since(origin_));
}

const std::vector<StreamSpans::Taken>& StreamSpans::take() {
  taken_.clear();
  std::erase_if(begun_, [&](std::size_t span) {
    const Entry& entry = entries_[span];
    if (!entry.ended || !entry.end.is_done()) {
      return false;
    }
    const Trace::Clock::time_point begin = time_of(entry.begin);
    const Trace::Clock::duration length = duration_of(entry.end.seconds_since(entry.begin));
    taken_.push_back({.label = entry.label, .begin = begin, .end = begin + length});
    free_.push_back(span);
    return true;
  });
  return taken_;
}

}  // namespace memphis
