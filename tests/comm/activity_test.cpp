// SPDX-License-Identifier: Apache-2.0
//
// What a rank tells of itself: of work on streams, which runs behind its own thread, too.
#include "csrc/comm/activity.h"

#include <chrono>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/comm/stream_spans.h"
#include "csrc/core/device.h"
#include "tests/support/on_devices.h"

namespace memphis {
namespace {

constexpr std::chrono::milliseconds kShort{5};

class Streams : public test::OnDevices {};

INSTANTIATE_TEST_SUITE_P(,
                         Streams,
                         testing::Values(Device::cpu, Device::cuda),
                         test::name_of_device);

const Trace::Span* find(const Trace& trace, std::string_view track, std::string_view name) {
  for (const Trace::Span& span : trace.spans()) {
    if (span.track == track && span.name == name) {
      return &span;
    }
  }
  return nullptr;
}

TEST_P(Streams, ASpanIsTakenOnceItIsOver) {
  const OwnedStream stream(GetParam());
  const OwnedStream other(GetParam());
  const auto before = Trace::Clock::now();
  StreamSpans spans(stream.view());
  const std::size_t outer =
      spans.begin({.kind = StreamSpans::Kind::phase, .track = "work", .name = "outer", .detail = 3},
                  stream.view());
  const std::size_t inner = spans.begin(
      {.kind = StreamSpans::Kind::transfer, .track = "group", .name = "inner"}, other.view());
  std::this_thread::sleep_for(kShort);
  spans.end(inner, other.view());
  synchronize(other.view());
  const std::vector<StreamSpans::Taken> first = spans.take();
  spans.end(outer, stream.view());
  synchronize(stream.view());
  const std::vector<StreamSpans::Taken> second = spans.take();
  const auto after = Trace::Clock::now();

  ASSERT_EQ(first.size(), 1U);
  EXPECT_EQ(first[0].label.name, "inner");
  EXPECT_EQ(first[0].label.kind, StreamSpans::Kind::transfer);
  ASSERT_EQ(second.size(), 1U);
  EXPECT_EQ(second[0].label.name, "outer");
  EXPECT_EQ(second[0].label.detail, 3);
  EXPECT_GE(first[0].end - first[0].begin, kShort);
  EXPECT_TRUE(spans.take().empty());
  // Both clocks count alike, to what the device's resolves.
  constexpr std::chrono::milliseconds kResolution{1};
  EXPECT_LE(before, second[0].begin + kResolution);
  EXPECT_LE(second[0].begin, first[0].begin + kResolution);
  EXPECT_LE(first[0].end, second[0].end + kResolution);
  EXPECT_LE(second[0].end, after + kResolution);
}

TEST_P(Streams, RoomOfSpansIsUsedAgain) {
  const OwnedStream stream(GetParam());
  StreamSpans spans(stream.view());
  for (int step = 0; step < 100; ++step) {
    for (const char* name : {"first", "second"}) {
      const std::size_t span = spans.begin(
          {.kind = StreamSpans::Kind::phase, .track = "work", .name = name}, stream.view());
      EXPECT_LT(span, 2U);
      spans.end(span, stream.view());
    }
    synchronize(stream.view());
    const std::vector<StreamSpans::Taken>& taken = spans.take();
    ASSERT_EQ(taken.size(), 2U);
    EXPECT_EQ(taken[0].label.name, "first");
    EXPECT_EQ(taken[1].label.name, "second");
    EXPECT_LE(taken[0].begin, taken[1].begin);
  }
}

TEST_P(Streams, TheTraceShowsPhasesWhereTheStreamPassesThem) {
  const OwnedStream stream(GetParam());
  Activity activity;
  activity.start_trace();
  activity.time_gpu(stream.view());
  activity.begin_step(1);
  activity.enter("forward", 0);
  std::this_thread::sleep_for(kShort);
  activity.enter("backward", 0);
  activity.enter("end");
  synchronize(stream.view());
  const Trace* const trace = activity.finish_trace();
  ASSERT_NE(trace, nullptr);
  const Trace::Span* const forward = find(*trace, "gpu", "forward");
  const Trace::Span* const backward = find(*trace, "gpu", "backward");
  ASSERT_NE(forward, nullptr);
  ASSERT_NE(backward, nullptr);
  EXPECT_EQ(forward->detail, 0);
  EXPECT_GE(forward->end - forward->begin, kShort);
  EXPECT_LE(forward->begin, backward->begin);
  EXPECT_EQ(find(*trace, "gpu", "end"), nullptr);  // which is not over
  ASSERT_NE(find(*trace, "step", "forward"), nullptr);
}

TEST_P(Streams, CommunicationOnAStreamCountsAsHiddenButForWhatWaitsForIt) {
  const OwnedStream compute(GetParam());
  const OwnedStream transfers(GetParam());
  Activity activity;
  activity.time_gpu(compute.view());
  StreamSpans& spans = *activity.gpu_spans();
  const std::size_t transfer = spans.begin(
      {.kind = StreamSpans::Kind::transfer, .track = "group", .name = "x"}, transfers.view());
  std::this_thread::sleep_for(kShort);  // work that hides it
  const std::size_t wait = spans.begin(
      {.kind = StreamSpans::Kind::waiting, .track = "gpu waiting", .name = "x"}, compute.view());
  std::this_thread::sleep_for(kShort);
  // In this order, so that the transfer is the longer one wherever this thread is held up.
  spans.end(wait, compute.view());
  spans.end(transfer, transfers.view());
  synchronize(transfers.view());
  synchronize(compute.view());
  const auto communication = activity.take_communication();
  ASSERT_TRUE(communication.has_value());
  const double least = std::chrono::duration<double>(kShort).count();
  EXPECT_GE(communication->exposed_seconds, least);
  EXPECT_GE(communication->seconds, communication->exposed_seconds + 0.9 * least);
  EXPECT_EQ(activity.take_communication()->seconds, 0);
}

CoveredTime::Clock::time_point at(CoveredTime::Clock::time_point origin, int seconds) {
  return origin + std::chrono::seconds(seconds);
}

TEST(CoveredTime, CountsWhatOverlapsOnce) {
  CoveredTime time;
  const auto start = CoveredTime::Clock::now();
  time.begin(at(start, 1));
  time.begin(at(start, 2));
  time.end(at(start, 3));
  time.end(at(start, 5));
  time.add(at(start, 4), at(start, 6));
  time.add(at(start, 8), at(start, 9));
  EXPECT_EQ(time.take(at(start, 10)), std::chrono::seconds(6));
  EXPECT_EQ(time.take(at(start, 20)), std::chrono::seconds(0));
}

TEST(CoveredTime, WhatGoesOnCountsOnBothSidesOfACallAndIsNeverMoreThanTheTime) {
  CoveredTime time;
  const auto start = CoveredTime::Clock::now();
  time.take(start);
  time.begin(at(start, 1));
  EXPECT_EQ(time.take(at(start, 4)), std::chrono::seconds(3));
  EXPECT_EQ(time.take(at(start, 6)), std::chrono::seconds(2));
  time.end(at(start, 7));
  time.add(at(start, 2), at(start, 8));  // told of late: what lies before is over
  time.add(at(start, 8), at(start, 30));
  EXPECT_EQ(time.take(at(start, 9)), std::chrono::seconds(3));
}

TEST(Activity, TransfersAtOneTimeCountOnce) {
  Activity activity;
  activity.take_communication();
  const auto begin = Activity::Clock::now();
  {
    const Activity::Call call{.axis = "a", .name = "gather"};
    const Activity::Transfer gather(activity, "a", call);
    const Activity::Transfer reduce(activity, "b", {.axis = "b", .name = "reduce"});
    const Activity::Waiting waiting(activity, call);
    std::this_thread::sleep_for(kShort);
  }
  const auto taken = activity.take_communication();
  const double elapsed = std::chrono::duration<double>(Activity::Clock::now() - begin).count();
  ASSERT_TRUE(taken.has_value());
  EXPECT_GE(taken->seconds, std::chrono::duration<double>(kShort).count());
  EXPECT_LE(taken->seconds, elapsed);
  EXPECT_LE(taken->exposed_seconds, taken->seconds);
}

TEST(Activity, CommunicationThatNobodyTimesIsNotTakenForNone) {
  Activity activity;
  EXPECT_TRUE(activity.take_communication().has_value());
  activity.note_enqueued("data_context", "step.losses");
  EXPECT_FALSE(activity.take_communication().has_value());
  EXPECT_TRUE(activity.take_communication().has_value());
}

// Nobody looks while a process is stopped: of the time between two looks two seconds count.
TEST(Activity, TimeThatAProcessIsStoppedForIsNotTimeThatItStands) {
  Activity activity;
  const Activity::Waiting waiting(activity, {.axis = "data", .name = "step.losses"});
  const double before = activity.idle_seconds();
  std::this_thread::sleep_for(std::chrono::seconds(3));
  const double after = activity.idle_seconds();
  constexpr double kRounding = 1e-6;
  EXPECT_LE(after, before + 2 + kRounding);
  EXPECT_GE(after, 2.0) << "and these do";
}

TEST(Activity, ALogKeepsTheCallsOfItsTime) {
  Activity activity;
  const Activity::Call call{.axis = "pipeline_gradients", .name = "pipeline.gradient", .peer = 3};
  const auto log = [&] { return activity.log_call(call, CommunicationRecord::Role::receiver, 64); };
  EXPECT_EQ(log(), CommunicationLog::kNotKept) << "before its time";
  activity.begin_step(21);
  activity.begin_micro_batch(0, 1);
  activity.start_log(2);
  Activity::Call kept = call;
  kept.logged = log();
  EXPECT_NE(kept.logged, CommunicationLog::kNotKept);
  activity.begin_micro_batch(2, 5);
  {
    const Activity::Waiting waiting(activity, kept);
    const Activity::Transfer transfer(activity, "gradients", kept);
  }
  EXPECT_NE(log(), CommunicationLog::kNotKept);
  EXPECT_EQ(log(), CommunicationLog::kNotKept) << "there is no room";
  const CommunicationLog& calls = activity.finish_log();
  EXPECT_EQ(log(), CommunicationLog::kNotKept) << "after its time";
  EXPECT_EQ(calls.num_left_out(), 1U);
  const std::vector<CommunicationRecord> records = calls.records();
  ASSERT_EQ(records.size(), 2U);
  const CommunicationRecord& record = records[0];
  EXPECT_EQ(std::string_view(record.axis.data()), "pipeline_gradients");
  EXPECT_EQ(std::string_view(record.name.data()), "pipeline.gradient");
  EXPECT_EQ(record.role, CommunicationRecord::Role::receiver);
  EXPECT_EQ(record.peer, 3);
  EXPECT_EQ(record.step, 21);
  EXPECT_EQ(record.bytes, 64);
  EXPECT_EQ(record.started_in.stage, 1);
  EXPECT_EQ(record.started_in.micro_batch, 0);
  EXPECT_EQ(record.waited_in.stage, 5);
  EXPECT_EQ(record.waited_in.micro_batch, 2);
  EXPECT_LE(record.started, record.wait_begin);
  EXPECT_LE(record.wait_begin, record.begun);
  EXPECT_LE(record.begun, record.ended);
  EXPECT_LE(record.ended, record.wait_end);
  EXPECT_EQ(records[1].wait_end, 0) << "which nobody waited for";
}

TEST(Activity, NamesWhoIsMissingInTheGroupThatItStandsIn) {
  Activity activity;
  const int own = 0;  // identities
  const int other = 0;
  const std::vector<int> missing = {5, 6};
  {
    const Activity::Waiting waiting(activity, {.axis = "a", .name = "gather", .group = &own});
    EXPECT_EQ(std::string_view(activity.place().missing.data()), "");
    activity.set_missing(&other, missing);
    EXPECT_EQ(std::string_view(activity.place().missing.data()), "")
        << "a receive of another group that was started early";
    activity.set_missing(&own, missing);
    EXPECT_EQ(std::string_view(activity.place().missing.data()), "ranks 5 and 6");
    EXPECT_EQ(activity.place().waits_for, 5);
  }
  const Activity::Waiting waiting(activity,
                                  {.axis = "a", .name = "gather", .group = &own, .peer = 7});
  EXPECT_EQ(std::string_view(activity.place().missing.data()), "rank 7");
  EXPECT_EQ(activity.place().waits_for, 7);
}

TEST(Activity, TellsWhichMicroBatchItIs) {
  Activity activity;
  activity.begin_step(21);
  activity.begin_micro_batch(2);
  activity.enter("backward", 3);
  EXPECT_EQ(activity.place().describe(), "step 21, micro-batch 2, backward of layer 3");
  activity.begin_micro_batch(-1);
  activity.enter("optimizer");
  EXPECT_EQ(activity.place().describe(), "step 21, optimizer");
}

TEST(Activity, TellsWhereTheGpuStandsAndForHowLong) {
  Activity activity(2, 4);
  activity.begin_step(21);
  activity.enter("backward", 3);
  activity.note_enqueued("expert_ranks", "moe.dispatch");
  EXPECT_EQ(activity.place().describe(),
            "step 21, backward of layer 3, after moe.dispatch of the expert_ranks group");
  EXPECT_EQ(activity.gpu_seconds(), 0);

  activity.stand_on_gpu("expert_ranks", "moe.combine");
  std::this_thread::sleep_for(kShort);
  EXPECT_EQ(activity.place().describe(),
            "step 21, backward of layer 3, in moe.combine of the expert_ranks group");
  EXPECT_GE(activity.gpu_seconds(), std::chrono::duration<double>(kShort).count());
  EXPECT_EQ(activity.idle_seconds(), 0);  // something may well move

  activity.stand_no_more();
  EXPECT_EQ(activity.gpu_seconds(), 0);
  EXPECT_EQ(activity.place().describe(),
            "step 21, backward of layer 3, after moe.combine of the expert_ranks group");
}

}  // namespace
}  // namespace memphis
