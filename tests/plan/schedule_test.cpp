// SPDX-License-Identifier: Apache-2.0
#include "csrc/plan/schedule.h"

#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/core/error.h"

namespace memphis {
namespace {

constexpr ScheduleKind kKinds[] = {
    ScheduleKind::one_f_one_b, ScheduleKind::interleaved, ScheduleKind::zb_h1, ScheduleKind::zbv};

// "F0 F1 B0 ...", with the chunk before the micro-batch where a rank has several: "F1.0"; those of
// a pair with a plus between them.
std::string letters(const PipelineShape& shape, std::int64_t rank) {
  std::string result;
  bool in_pair = false;
  for (const Action& action : make_actions(shape, rank)) {
    const char* const kinds = "FBIW";
    result += result.empty() ? "" : in_pair ? "+" : " ";
    in_pair = action.with_next;
    result += kinds[static_cast<int>(action.kind)];
    if (shape.num_chunks > 1) {
      result += std::to_string(action.chunk) + ".";
    }
    result += std::to_string(action.micro_batch);
  }
  return result;
}

TEST(Schedule, OfOneRankTakesTurns) {
  EXPECT_EQ(letters({.num_micro_batches = 3}, 0), "F0 B0 F1 B1 F2 B2");
  EXPECT_EQ(letters({.kind = ScheduleKind::interleaved, .num_micro_batches = 2}, 0), "F0 B0 F1 B1");
  EXPECT_EQ(letters({.kind = ScheduleKind::zb_h1, .num_micro_batches = 2}, 0), "F0 B0 F1 B1");
}

// The lists of three ranks, and four or five micro-batches, written out by hand from the papers.
TEST(Schedule, IsThatOfThePaper) {
  const PipelineShape one{.num_ranks = 3, .num_micro_batches = 4};
  EXPECT_EQ(letters(one, 0), "F0 F1 F2 B0 F3 B1 B2 B3");
  EXPECT_EQ(letters(one, 1), "F0 F1 B0 F2 B1 F3 B2 B3");
  EXPECT_EQ(letters(one, 2), "F0 B0 F1 B1 F2 B2 F3 B3");

  const PipelineShape zero{.kind = ScheduleKind::zb_h1, .num_ranks = 3, .num_micro_batches = 4};
  EXPECT_EQ(letters(zero, 0), "F0 F1 F2 B0 F3 B1 B2 B3");
  EXPECT_EQ(letters(zero, 1), "F0 F1 I0 F2 I1 W0 F3 I2 W1 I3 W2 W3");
  EXPECT_EQ(letters(zero, 2), "F0 I0 F1 I1 F2 I2 W0 F3 I3 W1 W2 W3");

  const PipelineShape loop{
      .kind = ScheduleKind::interleaved, .num_ranks = 2, .num_chunks = 2, .num_micro_batches = 4};
  EXPECT_EQ(letters(loop, 0),
            "F0.0 F0.1 F1.0 F1.1 F0.2 B1.0 F0.3 B1.1 F1.2 B0.0 F1.3 B0.1 B1.2 B1.3 B0.2 B0.3");
  EXPECT_EQ(letters(loop, 1),
            "F0.0 F0.1 F1.0 B1.0 F1.1 B1.1 F0.2 B0.0 F0.3 B0.1 F1.2 B1.2 F1.3 B1.3 B0.2 B0.3");

  const PipelineShape v{
      .kind = ScheduleKind::zbv, .num_ranks = 2, .num_chunks = 2, .num_micro_batches = 3};
  EXPECT_EQ(letters(v, 0),
            "F0.0 F0.1 F0.2 F1.0 I1.0 W1.0 F1.1 I1.1 W1.1 B0.0 F1.2 I1.2 W1.2 B0.1 B0.2");
  EXPECT_EQ(letters(v, 1),
            "F0.0 F1.0 F0.1 F1.1 I1.0 W1.0 F0.2 I0.0 W0.0 F1.2 I1.1 W1.1 I0.1 I1.2 I0.2 W0.1 W1.2 "
            "W0.2");
}

// By hand. One more forward pass than ranks behind take for a pair, there and back.
TEST(Schedule, PairsPassesThatDoNotNeedEachOther) {
  EXPECT_EQ(letters({.num_micro_batches = 3, .paired = true}, 0), "F0 F1+B0 F2+B1 B2");
  EXPECT_EQ(letters({.num_micro_batches = 1, .paired = true}, 0), "F0 B0");
  const PipelineShape one{.num_ranks = 3, .num_micro_batches = 6, .paired = true};
  EXPECT_EQ(letters(one, 0), "F0 F1 F2 F3 F4 F5+B0 B1 B2 B3 B4 B5");
  EXPECT_EQ(letters(one, 1), "F0 F1 F2 F3+B0 F4+B1 F5+B2 B3 B4 B5");
  EXPECT_EQ(letters(one, 2), "F0 F1+B0 F2+B1 F3+B2 F4+B3 F5+B4 B5");
  const PipelineShape zero{
      .kind = ScheduleKind::zb_h1, .num_ranks = 2, .num_micro_batches = 4, .paired = true};
  EXPECT_EQ(letters(zero, 0), "F0 F1 F2 F3+B0 B1 B2 B3");
  EXPECT_EQ(letters(zero, 1), "F0 F1+I0 F2+I1 W0 F3+I2 W1 I3 W2 W3");
  const PipelineShape loop{.kind = ScheduleKind::interleaved,
                           .num_ranks = 2,
                           .num_chunks = 2,
                           .num_micro_batches = 4,
                           .paired = true};
  EXPECT_EQ(letters(loop, 0),
            "F0.0 F0.1 F1.0 F1.1 F0.2 F0.3+B1.0 F1.2+B1.1 F1.3+B0.0 B0.1 B1.2 B1.3 B0.2 B0.3");
  EXPECT_EQ(letters(loop, 1),
            "F0.0 F0.1 F1.0 F1.1+B1.0 F0.2+B1.1 F0.3+B0.0 F1.2+B0.1 F1.3+B1.2 B1.3 B0.2 B0.3");
  PipelineShape validation = loop;
  validation.forward_only = true;
  EXPECT_EQ(letters(validation, 1), "F0.0 F0.1 F1.0 F1.1 F0.2 F0.3 F1.2 F1.3");
}

// As many groups as there can be of at least so many micro-batches, the larger ones first.
TEST(Schedule, CutsMicroBatchesIntoGroupsOfNearlyEqualSize) {
  PipelineShape shape{.kind = ScheduleKind::interleaved,
                      .num_ranks = 1,
                      .num_chunks = 2,
                      .num_micro_batches = 5,
                      .group = 3,
                      .forward_only = true};
  EXPECT_EQ(letters(shape, 0), "F0.0 F0.1 F0.2 F0.3 F0.4 F1.0 F1.1 F1.2 F1.3 F1.4");
  shape.group = 2;
  EXPECT_EQ(letters(shape, 0), "F0.0 F0.1 F0.2 F1.0 F1.1 F1.2 F0.3 F0.4 F1.3 F1.4");
  shape.group = 9;
  EXPECT_EQ(letters(shape, 0), "F0.0 F0.1 F0.2 F0.3 F0.4 F1.0 F1.1 F1.2 F1.3 F1.4");
  shape.group = 0;
  EXPECT_EQ(letters(shape, 0), "F0.0 F1.0 F0.1 F1.1 F0.2 F1.2 F0.3 F1.3 F0.4 F1.4");
}

TEST(Schedule, OfValidationHasForwardPassesAlone) {
  EXPECT_EQ(letters({.num_ranks = 3, .num_micro_batches = 3, .forward_only = true}, 0), "F0 F1 F2");
  EXPECT_EQ(letters({.kind = ScheduleKind::zbv,
                     .num_ranks = 2,
                     .num_chunks = 2,
                     .num_micro_batches = 2,
                     .forward_only = true},
                    1),
            "F0.0 F1.0 F0.1 F1.1");
}

TEST(Schedule, PlacesStagesInALoopOrInAV) {
  const auto ranks = [](StagePlacement placement, std::int64_t num_ranks, std::int64_t num_stages) {
    std::string result;
    for (std::int64_t stage = 0; stage < num_stages; ++stage) {
      const StagePlace place = place_of(placement, num_ranks, stage);
      EXPECT_EQ(stage_of(placement, num_ranks, place), stage);
      EXPECT_EQ(place.chunk, stage / num_ranks);
      result += std::to_string(place.rank);
    }
    return result;
  };
  EXPECT_EQ(ranks(StagePlacement::loop, 4, 12), "012301230123");
  EXPECT_EQ(ranks(StagePlacement::v, 4, 8), "01233210");
  EXPECT_EQ(ranks(StagePlacement::loop, 1, 3), "000");
  EXPECT_EQ(ranks(StagePlacement::v, 1, 2), "00");
  EXPECT_EQ(PipelineShape{.kind = ScheduleKind::zbv}.place_of(1).chunk, 1);
}

TEST(Schedule, IsNamedAsTheUserWritesIt) {
  for (const ScheduleKind kind : kKinds) {
    EXPECT_EQ(rule_of(kind).kind, kind);
    EXPECT_EQ(name_of(kind), rule_of(kind).name);
  }
  EXPECT_EQ(name_of(ScheduleKind::zb_h1), "zb-h1");
}

TEST(Schedule, HasTheShapeThatTheConfigSays) {
  EXPECT_EQ(pipeline_shape({}, 3), (PipelineShape{.num_micro_batches = 3}));
  EXPECT_EQ(pipeline_shape({.pipeline = 4, .schedule = ScheduleKind::interleaved, .chunks = 3}, 8),
            (PipelineShape{.kind = ScheduleKind::interleaved,
                           .num_ranks = 4,
                           .num_chunks = 3,
                           .num_micro_batches = 8}));
  EXPECT_EQ(pipeline_shape({.pipeline = 2, .schedule = ScheduleKind::zbv}, 1).num_chunks, 2);
}

TEST(Schedule, ActionsSayWhatTheyAre) {
  EXPECT_EQ(describe({.kind = ActionKind::forward, .chunk = 0, .stage = 2, .micro_batch = 5}),
            "forward of micro-batch 5 in stage 2, chunk 0");
  EXPECT_EQ(
      describe({.kind = ActionKind::backward_weights, .chunk = 1, .stage = 9, .micro_batch = 0}),
      "backward of weights of micro-batch 0 in stage 9, chunk 1");
}

std::string refusal(const PipelineShape& shape) {
  try {
    make_actions(shape, 0);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "";
}

TEST(Schedule, RefusesWhatCannotWork) {
  EXPECT_EQ(refusal({.num_chunks = 2}),
            "schedule 1f1b cannot have 2 chunks a rank (a rank holds one run of layers, and its "
            "warm-up is counted for one); use 1 chunk, or schedule interleaved");
  EXPECT_EQ(refusal({.kind = ScheduleKind::zbv}),
            "schedule zbv cannot have 1 chunk a rank (the stages go down the ranks once and up "
            "again once); use 2 chunks, or schedule zb-h1");
  EXPECT_EQ(refusal({.kind = ScheduleKind::zbv, .num_chunks = 3}),
            "schedule zbv cannot have 3 chunks a rank (the stages go down the ranks once and up "
            "again once); use 2 chunks, or schedule interleaved");
  EXPECT_EQ(refusal({.num_micro_batches = 0}),
            "schedule 1f1b cannot have 0 micro-batches a step (they are what the ranks pass on); "
            "use 1 or more");
  EXPECT_EQ(refusal({.kind = ScheduleKind::zbv, .num_chunks = 2, .paired = true}),
            "schedule zbv has no pairs of passes (where its V turns, a backward pass follows the "
            "forward pass of the same micro-batch); use interleaved");
  EXPECT_NE(refusal({.kind = ScheduleKind::zb_h1, .num_chunks = 2}), "");
  EXPECT_NE(refusal({.num_ranks = 0}), "");
  EXPECT_NE(refusal({.kind = ScheduleKind::interleaved, .num_chunks = 0}), "");
  EXPECT_NE(refusal({.num_ranks = std::int64_t{1} << 40}), "");
  EXPECT_NE(refusal({.kind = ScheduleKind::interleaved,
                     .num_ranks = std::int64_t{1} << 20,
                     .num_chunks = std::int64_t{1} << 20}),
            "");
  EXPECT_NE(refusal({.kind = ScheduleKind::interleaved, .group = -1}), "");
  EXPECT_NE(refusal({.group = 4}), "");
  const PipelineShape small{.kind = ScheduleKind::interleaved,
                            .num_ranks = 4,
                            .num_chunks = 2,
                            .num_micro_batches = 9,
                            .group = 3};
  EXPECT_EQ(refusal(small),
            "groups of 3 are too small for 4 pipeline ranks (the first micro-batch of a group has "
            "not gone round when the next chunk has its turn, and ranks could wait for each other "
            "forever); use 4 or more");
  EXPECT_THROW(make_actions({.num_ranks = 2}, 2), ContractError);
  EXPECT_THROW(make_actions({.num_ranks = 2}, -1), ContractError);
}

}  // namespace
}  // namespace memphis
