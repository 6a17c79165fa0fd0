// SPDX-License-Identifier: Apache-2.0
#include "csrc/comm/activity.h"

#include <algorithm>
#include <utility>

#include <spdlog/fmt/fmt.h>
#include <unistd.h>

namespace memphis {
namespace {

double seconds_of(Activity::Clock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

std::int64_t nanoseconds_of(Activity::Clock::time_point time) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(time.time_since_epoch()).count();
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
  std::string text = step > 0 ? fmt::format("step {}, ", step) : "";
  if (stage >= 0) {
    text += fmt::format("stage {}, ", stage);
  }
  if (micro_batch >= 0) {
    text += fmt::format("micro-batch {}, ", micro_batch);
  }
  text += phase.data();
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
  ranges_.begin(ProfilerRanges::Level::step, "step", step);
  const std::lock_guard lock(mutex_);
  place_.step = step;
}

void Activity::begin_micro_batch(std::int64_t index, std::int64_t stage) {
  if (index < 0) {
    ranges_.end(ProfilerRanges::Level::micro_batch);
  } else {
    ranges_.begin(ProfilerRanges::Level::micro_batch, "micro-batch", index);
  }
  const std::lock_guard lock(mutex_);
  place_.micro_batch = static_cast<std::int32_t>(index);
  place_.stage = static_cast<std::int32_t>(stage);
}

void Activity::enter(const char* phase, int layer) {
  const Clock::time_point now = Clock::now();
  end_phase(now);
  ranges_.begin(ProfilerRanges::Level::phase, phase, layer);
  phase_ = phase;
  phase_begin_ = now;
  phase_micro_batch_ = place_.micro_batch;
  if (gpu_spans_) {
    gpu_phase_ = gpu_spans_->begin({.kind = StreamSpans::Kind::phase,
                                    .track = "gpu",
                                    .name = phase,
                                    .detail = layer,
                                    .micro_batch = phase_micro_batch_},
                                   gpu_stream_);
  }
  const std::lock_guard lock(mutex_);
  copy_text(place_.phase, phase);
  place_.layer = layer;
}

void Activity::end_phase(Clock::time_point now) {
  if (trace_) {
    trace_->add({.track = "step",
                 .name = phase_,
                 .detail = place_.layer,
                 .micro_batch = phase_micro_batch_,
                 .begin = phase_begin_,
                 .end = now});
  }
  if (gpu_phase_) {
    gpu_spans_->end(*gpu_phase_, gpu_stream_);
  }
}

void Activity::set_collective(std::string_view axis, std::string_view name) {
  copy_text(place_.collective, name);
  copy_text(place_.axis, axis);
}

void Activity::stand(Stands where, const Call& call) {
  {
    const std::lock_guard lock(mutex_);
    set_collective(call.axis, call.name);
    place_.inside = 1;
    place_.missing[0] = '\0';
    place_.waits_for = -1;
    stands_in_ = call.group;
    if (call.peer >= 0) {
      name_missing(std::span(&call.peer, 1));
    }
  }
  progress();
  stands_ = where;
}

void Activity::stand_on_gpu(std::string_view axis, std::string_view name) {
  stand(Stands::on_gpu, {.axis = axis, .name = name});
}

void Activity::stand_no_more() {
  stands_ = Stands::nowhere;
  const std::lock_guard lock(mutex_);
  place_.inside = 0;
  stands_in_ = nullptr;
}

void Activity::note_enqueued(std::string_view axis, std::string_view name) {
  if (!gpu_spans_) {
    ran_untimed_ = true;
  }
  const std::lock_guard lock(mutex_);
  set_collective(axis, name);
  place_.inside = 0;
}

Activity::Waiting::Waiting(Activity& activity, const Call& call)
    : activity_(activity), call_(call) {
  activity.stand(Stands::on_host, call);
  activity.exposed_.begin(begin_);
}

Activity::Waiting::~Waiting() {
  activity_.stand_no_more();
  const Clock::time_point end = Clock::now();
  activity_.exposed_.end(end);
  if (call_.logged != CommunicationLog::kNotKept) {
    const Place place = activity_.place();
    activity_.log_->wait(call_.logged,
                         {.stage = place.stage, .micro_batch = place.micro_batch},
                         nanoseconds_of(begin_),
                         nanoseconds_of(end));
  }
  if (activity_.trace_) {
    activity_.trace_->add(
        {.track = "waiting", .name = call_.name, .detail = -1, .begin = begin_, .end = end});
  }
}

Activity::Transfer::Transfer(Activity& activity, const char* track, const Call& call)
    : activity_(activity), track_(track), call_(call) {
  activity.communication_.begin(begin_);
}

Activity::Transfer::~Transfer() {
  const Clock::time_point end = Clock::now();
  activity_.communication_.end(end);
  if (call_.logged != CommunicationLog::kNotKept) {
    activity_.log_->move(call_.logged, nanoseconds_of(begin_), nanoseconds_of(end));
  }
  if (activity_.trace_) {
    activity_.trace_->add(
        {.track = track_, .name = call_.name, .detail = -1, .begin = begin_, .end = end});
  }
}

void Activity::set_missing(const void* group, std::span<const int> ranks) {
  const std::lock_guard lock(mutex_);
  if (group == stands_in_) {
    name_missing(ranks);
  }
}

void Activity::name_missing(std::span<const int> ranks) {
  place_.waits_for = ranks.empty() ? -1 : ranks.front();
  copy_text(place_.missing, (ranks.size() == 1 ? "rank " : "ranks ") + list_ranks(ranks));
}

double Activity::standing_seconds(Stands where) const {
  constexpr Clock::rep kMostBetweenLooks = Clock::duration(std::chrono::seconds(2)).count();
  if (stands_ != where) {
    return 0;
  }
  // A look and what follows from it are one: several threads ask, and after a job was stopped all
  // at the same time. The second would see the first's look, and progress that is not yet right.
  const std::lock_guard lock(mutex_);
  const Clock::rep now = Clock::now().time_since_epoch().count();
  const Clock::rep look = std::exchange(last_look_, now);
  Clock::rep progress = last_progress_.load();
  const Clock::rep stopped = now - std::max(look, progress) - kMostBetweenLooks;
  // Progress that comes meanwhile is newer than what is put here.
  if (stopped > 0 && last_progress_.compare_exchange_strong(progress, progress + stopped)) {
    progress += stopped;
  }
  return std::max(0.0, seconds_of(Clock::duration(now - progress)));
}

double Activity::idle_seconds() const {
  return standing_seconds(Stands::on_host);
}

double Activity::idle_seconds_in(const void* group) const {
  {
    const std::lock_guard lock(mutex_);
    if (group != stands_in_) {
      return 0;
    }
  }
  return idle_seconds();
}

double Activity::gpu_seconds() const {
  return standing_seconds(Stands::on_gpu);
}

std::optional<Activity::Communication> Activity::take_communication() {
  take_gpu_spans();
  const Clock::time_point now = Clock::now();
  const Communication taken = {.seconds = seconds_of(communication_.take(now)),
                               .exposed_seconds = seconds_of(exposed_.take(now))};
  return ran_untimed_.exchange(false) ? std::nullopt : std::optional(taken);
}

void Activity::time_gpu(Stream stream) {
  gpu_stream_ = stream;
  gpu_spans_.emplace(stream);
}

void Activity::time_gpu_no_more() {
  gpu_phase_.reset();
  gpu_spans_.reset();
}

void Activity::take_gpu_spans() {
  if (!gpu_spans_) {
    return;
  }
  for (const StreamSpans::Taken& span : gpu_spans_->take()) {
    if (span.label.kind == StreamSpans::Kind::transfer) {
      communication_.add(span.begin, span.end);
    } else if (span.label.kind == StreamSpans::Kind::waiting) {
      exposed_.add(span.begin, span.end);
    }
    if (trace_) {
      trace_->add({.track = span.label.track,
                   .name = span.label.name,
                   .detail = span.label.detail,
                   .micro_batch = span.label.micro_batch,
                   .begin = span.begin,
                   .end = span.end});
    }
  }
}

void Activity::start_log(std::size_t max_records) {
  log_.emplace(max_records);
  logs_ = true;
}

const CommunicationLog& Activity::finish_log() {
  logs_ = false;
  return log_.value();
}

std::int64_t Activity::log_call(const Call& call,
                                CommunicationRecord::Role role,
                                std::size_t bytes) {
  if (!logs_) {
    return CommunicationLog::kNotKept;
  }
  CommunicationRecord record;
  copy_text(record.axis, call.axis);
  copy_text(record.name, call.name);
  record.role = role;
  record.peer = call.peer;
  record.bytes = static_cast<std::int64_t>(bytes);
  const Place now = place();
  record.step = now.step;
  record.started_in = {.stage = now.stage, .micro_batch = now.micro_batch};
  record.started = nanoseconds_of(Clock::now());
  return log_->start(record);
}

void Activity::start_trace() {
  trace_.emplace();
}

const Trace* Activity::finish_trace() {
  take_gpu_spans();
  return trace_ ? &*trace_ : nullptr;
}

}  // namespace memphis
