// SPDX-License-Identifier: Apache-2.0
//
// What is said of a log of collectives and messages: made-up records, and beside them a count of
// every nanosecond.
#include "csrc/train/communication_report.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <random>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/comm/activity.h"

namespace memphis {
namespace {

using Record = CommunicationRecord;

Record record_of(const char* axis, const char* name, Record::Role role) {
  Record record;
  copy_text(record.axis, axis);
  copy_text(record.name, name);
  record.role = role;
  return record;
}

const CommunicationRow* find(const std::vector<CommunicationRow>& rows,
                             const std::string& name,
                             std::int64_t from_stage = -1) {
  for (const CommunicationRow& row : rows) {
    if (row.name == name && row.from_stage == from_stage) {
      return &row;
    }
  }
  return nullptr;
}

// Both ends of a message.
struct Message {
  Record sender;
  Record receiver;
};

Message message(const char* name, std::int64_t step, int from_stage, int to_stage, int micro) {
  const char* const axis = "pipeline_messages";
  Message ends{.sender = record_of(axis, name, Record::Role::sender),
               .receiver = record_of(axis, name, Record::Role::receiver)};
  ends.sender.peer = 1;
  ends.receiver.peer = 0;
  ends.sender.started_in = {.stage = from_stage, .micro_batch = micro};
  // Started in a stage and for a micro-batch that say nothing of what it is for.
  ends.receiver.started_in = {.stage = 77, .micro_batch = 0};
  ends.receiver.waited_in = {.stage = to_stage, .micro_batch = micro};
  for (Record* const end : {&ends.sender, &ends.receiver}) {
    end->step = step;
    end->bytes = 64;
  }
  return ends;
}

constexpr double kNano = 1e-9;

TEST(CommunicationReport, WaitingForWhatIsNotSentIsBubbleAndTheRestIsExposed) {
  Message ends = message("pipeline.gradient", 3, 1, 0, 2);
  ends.receiver.started = 100;
  ends.receiver.wait_begin = 400;
  ends.sender.started = 700;
  ends.receiver.ended = 950;
  ends.receiver.wait_end = 1000;
  const auto rows = rows_of_rank(0, {ends.sender}, {{.rank = 1, .record = ends.receiver}}, 1);
  ASSERT_EQ(rows.size(), 1U);
  EXPECT_EQ(rows[0].from_stage, 1);
  EXPECT_EQ(rows[0].to_stage, 0);
  EXPECT_NEAR(rows[0].under_way_seconds, 250 * kNano, 1e-15);
  EXPECT_NEAR(rows[0].bubble_seconds, 300 * kNano, 1e-15);
  EXPECT_NEAR(rows[0].exposed_seconds, 300 * kNano, 1e-15);
  EXPECT_EQ(rows[0].hidden(), 0);
}

TEST(CommunicationReport, AMessageWithoutAnotherEndIsNotTimed) {
  Message ends = message("pipeline.activation", 3, 0, 1, 2);
  ends.sender.started = 700;
  ends.receiver.started = 100;
  ends.receiver.ended = 950;
  ends.receiver.wait_end = 1000;
  ends.receiver.waited_in.micro_batch = 1;
  const auto rows = rows_of_rank(0, {ends.sender}, {{.rank = 1, .record = ends.receiver}}, 1);
  ASSERT_EQ(rows.size(), 1U);
  EXPECT_EQ(rows[0].calls, 1);
  EXPECT_EQ(rows[0].bytes, 64);
  EXPECT_FALSE(rows[0].timed);
}

// Nanosecond by nanosecond.
struct Counts {
  std::int64_t calls = 0;
  std::int64_t bytes = 0;
  std::int64_t under_way = 0;
  std::int64_t exposed = 0;
  std::int64_t bubble = 0;
};

class Seeds : public testing::TestWithParam<unsigned> {};
INSTANTIATE_TEST_SUITE_P(, Seeds, testing::Range(1U, 9U));

TEST_P(Seeds, FiguresAreThoseOfACountOfEveryNanosecond) {
  std::mt19937 random(GetParam());
  const auto draw = [&](std::int64_t least, std::int64_t most) {
    return std::uniform_int_distribution<std::int64_t>(least, most)(random);
  };
  constexpr std::int64_t kSteps = 3;
  std::map<std::pair<std::string, std::int64_t>, Counts> expected;
  std::vector<Record> own;
  std::vector<PeerRecord> received;
  for (std::int64_t step = 1; step <= kSteps; ++step) {
    for (int micro = 0; micro < 4; ++micro) {
      for (const auto& [name, from, to] : {std::tuple("pipeline.activation", 0, 1),
                                           std::tuple("pipeline.activation", 2, 3),
                                           std::tuple("pipeline.gradient", 2, 1)}) {
        Message ends = message(name, step, from, to, micro);
        ends.sender.started = draw(1, 400);
        ends.receiver.started = draw(1, 400);
        const std::int64_t ready = std::max(ends.sender.started, ends.receiver.started);
        ends.receiver.ended = ready + draw(0, 300);
        ends.receiver.wait_begin = ends.receiver.started + draw(0, 600);
        ends.receiver.wait_end =
            std::max(ends.receiver.wait_begin, ends.receiver.ended) + draw(0, 5);
        if (draw(0, 1) == 1) {
          ends.sender.wait_begin = ends.sender.started + draw(0, 300);
          ends.sender.wait_end = ends.sender.wait_begin + draw(0, 300);
        }
        Counts& counts = expected[{name, from}];
        ++counts.calls;
        counts.bytes += 64;
        for (std::int64_t t = 0; t < 3000; ++t) {
          counts.under_way += t >= ready && t < ends.receiver.ended ? 1 : 0;
          for (const Record* const end : {&ends.sender, &ends.receiver}) {
            const bool waits = t >= end->wait_begin && t < end->wait_end;
            counts.exposed += waits && t >= ready ? 1 : 0;
            counts.bubble += waits && t < ready ? 1 : 0;
          }
        }
        own.push_back(ends.sender);
        // This rank receives too, which is the senders' to report.
        own.push_back(ends.receiver);
        received.push_back({.rank = 1, .record = ends.receiver});
        // The same message of another pipeline.
        Record other = ends.receiver;
        other.peer = 2;
        other.ended += 10000;
        received.push_back({.rank = 3, .record = other});
      }
      Record reduction = record_of("data", "reduce", Record::Role::member);
      reduction.bytes = draw(1, 100);
      reduction.begun = draw(1, 100);
      reduction.ended = reduction.begun + draw(0, 100);
      reduction.wait_begin = draw(1, 100);
      reduction.wait_end = reduction.wait_begin + draw(0, 100);
      Counts& counts = expected[{"reduce", -1}];
      ++counts.calls;
      counts.bytes += reduction.bytes;
      for (std::int64_t t = 0; t < 3000; ++t) {
        counts.under_way += t >= reduction.begun && t < reduction.ended ? 1 : 0;
        counts.exposed += t >= reduction.wait_begin && t < reduction.wait_end ? 1 : 0;
      }
      own.push_back(reduction);
    }
  }
  std::shuffle(received.begin(), received.end(), random);
  const auto rows = rows_of_rank(0, own, received, kSteps);
  EXPECT_EQ(rows.size(), expected.size());
  for (const auto& [what, counts] : expected) {
    const CommunicationRow* const row = find(rows, what.first, what.second);
    ASSERT_NE(row, nullptr) << what.first;
    const auto a_step = [&](std::int64_t count) { return static_cast<double>(count) / kSteps; };
    EXPECT_TRUE(row->timed) << what.first;
    EXPECT_DOUBLE_EQ(row->calls, a_step(counts.calls)) << what.first;
    EXPECT_DOUBLE_EQ(row->bytes, a_step(counts.bytes)) << what.first;
    EXPECT_NEAR(row->under_way_seconds, a_step(counts.under_way) * kNano, 1e-14) << what.first;
    EXPECT_NEAR(row->exposed_seconds, a_step(counts.exposed) * kNano, 1e-14) << what.first;
    EXPECT_NEAR(row->bubble_seconds, a_step(counts.bubble) * kNano, 1e-14) << what.first;
  }
}

TEST(CommunicationReport, TimesAreTheMeanOfRanksThatCallAndCallsTheMost) {
  const CommunicationRow one{.axis = "data",
                             .name = "reduce",
                             .calls = 3,
                             .bytes = 100,
                             .under_way_seconds = 2,
                             .exposed_seconds = 1,
                             .worst_exposed_seconds = 1};
  CommunicationRow two = one;
  two.calls = 5;
  two.bytes = 300;
  two.under_way_seconds = 6;
  two.exposed_seconds = 3;
  two.worst_exposed_seconds = 3;
  const auto rows = merge_rows({{two}, {one}, {}});
  ASSERT_EQ(rows.size(), 1U);
  EXPECT_EQ(rows[0].calls, 5);
  EXPECT_EQ(rows[0].bytes, 300);
  EXPECT_EQ(rows[0].under_way_seconds, 4);
  EXPECT_EQ(rows[0].exposed_seconds, 2);
  EXPECT_EQ(rows[0].worst_exposed_seconds, 3);
  EXPECT_EQ(rows[0].hidden(), 0.5);
}

TEST(CommunicationReport, WhatOneRankDoesNotTimeIsNotTimed) {
  const CommunicationRow one{.axis = "data", .name = "reduce", .calls = 1};
  CommunicationRow two = one;
  two.timed = false;
  EXPECT_FALSE(merge_rows({{one}, {two}})[0].timed);
}

}  // namespace
}  // namespace memphis
