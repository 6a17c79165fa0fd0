// SPDX-License-Identifier: Apache-2.0
#include "csrc/comm/activity.h"

#include <algorithm>

#include <spdlog/fmt/fmt.h>
#include <unistd.h>

namespace memphis {
namespace {

double seconds_of(Activity::Clock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

}  // namespace

std::string host_name() {
  char name[256] = {};
  ::gethostname(name, sizeof(name) - 1);
  return name;
}

std::string list_ranks(std::span<const int> ranks) {
  constexpr std::size_t kShown = 8;
  std::string list;
  for (std::size_t i = 0; i < ranks.size(); ++i) {
    if (i == kShown) {
      return list + fmt::format(" and {} more", ranks.size() - kShown);
    }
    const char* separator = i == 0 ? "" : i + 1 == ranks.size() ? " and " : ", ";
    list += separator + std::to_string(ranks[i]);
  }
  return list;
}

std::string Activity::Place::describe() const {
  std::string text = step > 0 ? fmt::format("step {}, {}", step, phase.data()) : phase.data();
  if (layer >= 0) {
    text += fmt::format(" of layer {}", layer);
  }
  if (collective[0] != '\0') {
    text += fmt::format(
        ", {} {} of the {} group", inside != 0 ? "in" : "after", collective.data(), axis.data());
  }
  return text;
}

Activity::Activity(int rank, int size) : rank_(rank), size_(size) {
  copy_text(place_.phase, phase_);
}

void Activity::set_limits(const HangLimits& limits) {
  const std::lock_guard lock(mutex_);
  limits_ = limits;
}

HangLimits Activity::limits() const {
  const std::lock_guard lock(mutex_);
  return limits_;
}

std::string Activity::describe() const {
  return fmt::format("rank {} of {} on {}, {}", rank_, size_, host_name(), place().describe());
}

Activity::Place Activity::place() const {
  const std::lock_guard lock(mutex_);
  return place_;
}

void Activity::begin_step(std::int64_t step) {
  const std::lock_guard lock(mutex_);
  place_.step = step;
}

void Activity::enter(const char* phase, int layer) {
  const Clock::time_point now = Clock::now();
  end_phase(now);
  phase_ = phase;
  phase_begin_ = now;
  const std::lock_guard lock(mutex_);
  copy_text(place_.phase, phase);
  place_.layer = layer;
}

void Activity::end_phase(Clock::time_point now) {
  if (trace_) {
    trace_->add({.track = "step",
                 .name = phase_,
                 .detail = place_.layer,
                 .begin = phase_begin_,
                 .end = now});
  }
}

Activity::Waiting::Waiting(Activity& activity, std::string_view axis, std::string_view name)
    : activity_(activity), name_(name) {
  {
    const std::lock_guard lock(activity.mutex_);
    copy_text(activity.place_.collective, name);
    copy_text(activity.place_.axis, axis);
    activity.place_.inside = 1;
    activity.place_.missing[0] = '\0';
    activity.place_.waits_for = -1;
  }
  activity.progress();
  activity.waiting_ = true;
}

Activity::Waiting::~Waiting() {
  activity_.waiting_ = false;
  const Clock::time_point end = Clock::now();
  activity_.exposed_ += (end - begin_).count();
  if (activity_.trace_) {
    activity_.trace_->add(
        {.track = "waiting", .name = name_, .detail = -1, .begin = begin_, .end = end});
  }
  const std::lock_guard lock(activity_.mutex_);
  activity_.place_.inside = 0;
}

Activity::Transfer::Transfer(Activity& activity, const char* track, std::string_view name)
    : activity_(activity), track_(track), name_(name) {}

Activity::Transfer::~Transfer() {
  const Clock::time_point end = Clock::now();
  activity_.communication_ += (end - begin_).count();
  if (activity_.trace_) {
    activity_.trace_->add(
        {.track = track_, .name = name_, .detail = -1, .begin = begin_, .end = end});
  }
}

void Activity::set_missing(std::span<const int> ranks) {
  const std::lock_guard lock(mutex_);
  place_.waits_for = ranks.empty() ? -1 : ranks.front();
  copy_text(place_.missing, (ranks.size() == 1 ? "rank " : "ranks ") + list_ranks(ranks));
}

double Activity::idle_seconds() const {
  const Clock::time_point last{Clock::duration(last_progress_.load())};
  return waiting_ ? std::max(0.0, seconds_of(Clock::now() - last)) : 0.0;
}

Activity::Communication Activity::take_communication() {
  return {.seconds = seconds_of(Clock::duration(communication_.exchange(0))),
          .exposed_seconds = seconds_of(Clock::duration(exposed_.exchange(0)))};
}

void Activity::start_trace() {
  trace_.emplace();
}

}  // namespace memphis
