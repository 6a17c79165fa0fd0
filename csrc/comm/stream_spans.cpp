// SPDX-License-Identifier: Apache-2.0
#include "csrc/comm/stream_spans.h"

#include <algorithm>
#include <chrono>
#include <utility>

namespace memphis {
namespace {

// A float of milliseconds is exact to 0.5 us up to 8 s, and to 0.03 us up to 1 s: those of an hour
// come to 0.1 ms even where all are rounded alike.
constexpr std::chrono::seconds kCountedFromOne{1};

Trace::Clock::duration duration_of(double seconds) {
  return std::chrono::round<Trace::Clock::duration>(std::chrono::duration<double>(seconds));
}

}  // namespace

StreamSpans::StreamSpans(Stream stream) : device_(stream.device) {
  auto origin = std::make_shared<Origin>(device_);
  origin->event.record(stream);
  origin->event.wait();
  origin->time = Trace::Clock::now();
  origin_ = std::move(origin);
}

std::size_t StreamSpans::begin(const Label& label, Stream stream) {
  if (std::exchange(next_is_due_, false)) {
    next_ = std::make_shared<Origin>(device_);
    next_->event.record(stream);
  }
  if (free_.empty()) {
    free_.push_back(entries_.size());
    entries_.emplace_back(device_);
  }
  const std::size_t span = free_.back();
  free_.pop_back();
  Entry& entry = entries_[span];
  entry.label = label;
  entry.stream = stream.handle;
  entry.ended = false;
  entry.origin = origin_;
  entry.begin.record(stream);
  begun_.push_back(span);
  return span;
}

void StreamSpans::end(std::size_t span, Stream stream) {
  Entry& entry = entries_[span];
  entry.end.record(stream);
  entry.ended = true;
}

Trace::Clock::duration StreamSpans::since_origin(const Entry& entry) const {
  return duration_of(entry.begin.seconds_since(entry.origin->event));
}

Trace::Clock::time_point& StreamSpans::told_of(const Entry& entry) {
  const std::string_view track = entry.label.track;
  const auto known = std::find_if(told_.begin(), told_.end(), [&](const Told& told) {
    return told.stream == entry.stream && told.track == track;
  });
  return known != told_.end()
             ? known->end
             : told_.emplace_back(Told{.track = track, .stream = entry.stream, .end = {}}).end;
}

void StreamSpans::count_from_next() {
  if (next_ == nullptr || !next_->event.is_done()) {
    return;
  }
  next_->time = origin_->time + duration_of(next_->event.seconds_since(origin_->event));
  origin_ = std::exchange(next_, nullptr);
}

const std::vector<StreamSpans::Taken>& StreamSpans::take() {
  taken_.clear();
  std::erase_if(begun_, [&](std::size_t span) {
    Entry& entry = entries_[span];
    if (!entry.ended || !entry.end.is_done()) {
      return false;
    }
    const Trace::Clock::duration since = since_origin(entry);
    const Trace::Clock::time_point counted = entry.origin->time + since;
    const Trace::Clock::duration length = duration_of(entry.end.seconds_since(entry.begin));
    Trace::Clock::time_point& told = told_of(entry);
    const Trace::Clock::time_point begin = std::max(counted, told);
    told = std::max(counted + length, begin);
    taken_.push_back({.label = entry.label, .begin = begin, .end = told});
    if (entry.origin == origin_ && next_ == nullptr && since > kCountedFromOne) {
      next_is_due_ = true;
    }
    entry.origin = nullptr;
    free_.push_back(span);
    return true;
  });
  count_from_next();
  return taken_;
}

}  // namespace memphis
