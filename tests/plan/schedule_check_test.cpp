// SPDX-License-Identifier: Apache-2.0
#include "csrc/plan/schedule_check.h"

#include <algorithm>
#include <functional>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/core/error.h"
#include "csrc/plan/schedule_simulation.h"

namespace memphis {
namespace {

using Lists = std::vector<std::vector<Action>>;

// Every kind that runs with so many chunks.
std::vector<ScheduleKind> kinds_of(std::int64_t num_chunks) {
  std::vector<ScheduleKind> result = {ScheduleKind::interleaved};
  if (num_chunks == 1) {
    result.push_back(ScheduleKind::one_f_one_b);
    result.push_back(ScheduleKind::zb_h1);
  }
  if (num_chunks == 2) {
    result.push_back(ScheduleKind::zbv);
  }
  return result;
}

Lists lists_of(const PipelineShape& shape) {
  Lists result;
  for (std::int64_t rank = 0; rank < shape.num_ranks; ++rank) {
    result.push_back(make_actions(shape, rank));
  }
  return result;
}

// The proof: everything is there once and in order, both sides of each queue count alike, and no
// rank waits forever.
TEST(ScheduleCheck, EveryScheduleRuns) {
  for (std::int64_t p = 1; p <= 16; ++p) {
    for (std::int64_t v = 1; v <= 4; ++v) {
      for (std::int64_t m = 1; m <= 64; ++m) {
        for (const ScheduleKind kind : kinds_of(v)) {
          const PipelineShape shape{
              .kind = kind, .num_ranks = p, .num_chunks = v, .num_micro_batches = m};
          ASSERT_NO_THROW(make_schedule(shape))
              << name_of(kind) << " " << p << " " << v << " " << m;
        }
      }
    }
  }
}

// With passes in pairs too, of which each has its inputs before either begins.
TEST(ScheduleCheck, EveryScheduleOfPairsRuns) {
  for (std::int64_t p = 1; p <= 8; ++p) {
    for (std::int64_t v = 1; v <= 4; ++v) {
      for (std::int64_t m = 1; m <= 4 * p + 3; ++m) {
        for (const ScheduleKind kind : kinds_of(v)) {
          PipelineShape shape{.kind = kind,
                              .num_ranks = p,
                              .num_chunks = v,
                              .num_micro_batches = m,
                              .paired = true};
          const auto where = [&] {
            return std::string(name_of(kind)) + " " + std::to_string(p) + " " + std::to_string(v) +
                   " " + std::to_string(m) + ", group " + std::to_string(shape.group);
          };
          if (kind == ScheduleKind::zbv) {
            EXPECT_THROW(make_schedule(shape), ConfigError);
            continue;
          }
          ASSERT_NO_THROW(make_schedule(shape)) << where();
          for (shape.group = p; kind == ScheduleKind::interleaved && shape.group <= m + 1;
               shape.group += 2) {
            ASSERT_NO_THROW(make_schedule(shape)) << where();
          }
        }
      }
    }
  }
}

// A pair takes as long as its two passes. Neighbours do theirs at one time: if each waited for the
// other's, the steps between the first and the last pair would take twice as long.
TEST(ScheduleCheck, PairsKeepEveryRankAtWork) {
  for (const std::int64_t v : {1, 2}) {
    for (const ScheduleKind kind : kinds_of(v)) {
      for (std::int64_t p = 2; p <= 8 && kind != ScheduleKind::zbv; ++p) {
        const std::int64_t m = 8 * p;
        const PipelineSchedule schedule = make_schedule({.kind = kind,
                                                         .num_ranks = p,
                                                         .num_chunks = v,
                                                         .num_micro_batches = m,
                                                         .paired = true});
        const PipelineSimulation even = simulate(
            schedule,
            {.stages = std::vector<StageCost>(static_cast<std::size_t>(p * v)), .message = {}});
        // Of three passes, F, I and W, in each of a rank's chunks; a pair is on its way through all
        // ranks and back before the last ones can begin.
        const auto work = static_cast<double>(3 * m * v);
        const auto there_and_back = static_cast<double>(2 * 3 * (p - 1));
        EXPECT_LE(even.makespan, work + there_and_back) << name_of(kind) << " " << p << " " << v;
      }
    }
  }
}

TEST(ScheduleCheck, LargerGroupsAndValidationRun) {
  for (std::int64_t p = 1; p <= 6; ++p) {
    for (std::int64_t v = 1; v <= 3; ++v) {
      for (std::int64_t m = 1; m <= 4 * p + 1; ++m) {
        for (const ScheduleKind kind : kinds_of(v)) {
          PipelineShape shape{
              .kind = kind, .num_ranks = p, .num_chunks = v, .num_micro_batches = m};
          const auto where = [&] {
            return std::string(name_of(kind)) + " " + std::to_string(p) + " " + std::to_string(v) +
                   " " + std::to_string(m) + ", group " + std::to_string(shape.group);
          };
          shape.forward_only = true;
          ASSERT_NO_THROW(make_schedule(shape)) << where();
          shape.forward_only = false;
          for (shape.group = p; kind == ScheduleKind::interleaved && shape.group <= m + 1;
               ++shape.group) {
            ASSERT_NO_THROW(make_schedule(shape)) << where();
          }
        }
      }
    }
  }
}

// Runs the lists as ranks would, by what each action needs and nothing else. In the fewest words.
bool runs(const PipelineShape& shape, const Lists& lists) {
  std::set<std::tuple<int, std::int32_t, std::int32_t>> done;  // pass, stage, micro-batch
  std::vector<std::size_t> next(lists.size(), 0);
  const auto has = [&](int pass, std::int32_t stage, std::int32_t micro_batch) {
    return stage < 0 || stage >= shape.num_stages() || done.count({pass, stage, micro_batch}) > 0;
  };
  for (bool moved = true; moved;) {
    moved = false;
    for (std::size_t rank = 0; rank < lists.size(); ++rank) {
      while (next[rank] < lists[rank].size()) {
        const auto [kind, chunk, stage, micro_batch, with_next] = lists[rank][next[rank]];
        const bool can = kind == ActionKind::forward ? has(0, stage - 1, micro_batch)
                         : makes_input_gradient(kind)
                             ? has(0, stage, micro_batch) && has(1, stage + 1, micro_batch)
                             : has(1, stage, micro_batch);
        if (!can) {
          break;
        }
        if (kind == ActionKind::forward) {
          done.insert({0, stage, micro_batch});
        }
        if (makes_input_gradient(kind)) {
          done.insert({1, stage, micro_batch});
        }
        if (makes_weight_gradient(kind)) {
          done.insert({2, stage, micro_batch});
        }
        ++next[rank];
        moved = true;
      }
    }
  }
  const std::int64_t passes = shape.forward_only ? 1 : 3;
  return static_cast<std::int64_t>(done.size()) ==
         passes * shape.num_stages() * shape.num_micro_batches;
}

// Two neighbours of a list change places: the check says no wherever ranks cannot run it, and where
// it says yes they can. What it refuses beyond that is out of order.
TEST(ScheduleCheck, AgreesWithRanksThatRun) {
  int refused = 0;
  for (const ScheduleKind kind : {ScheduleKind::one_f_one_b,
                                  ScheduleKind::interleaved,
                                  ScheduleKind::zb_h1,
                                  ScheduleKind::zbv}) {
    const bool loops = kind == ScheduleKind::interleaved || kind == ScheduleKind::zbv;
    const PipelineShape shape{
        .kind = kind, .num_ranks = 3, .num_chunks = loops ? 2 : 1, .num_micro_batches = 5};
    Lists lists = lists_of(shape);
    ASSERT_TRUE(runs(shape, lists));
    for (std::vector<Action>& list : lists) {
      for (std::size_t i = 0; i + 1 < list.size(); ++i) {
        std::swap(list[i], list[i + 1]);
        bool accepted = true;
        try {
          add_messages(shape, lists);
        } catch (const ContractError&) {
          accepted = false;
          ++refused;
        }
        if (accepted) {
          EXPECT_TRUE(runs(shape, lists)) << describe(list[i]) << " in place " << i;
        }
        std::swap(list[i], list[i + 1]);
      }
    }
  }
  EXPECT_GT(refused, 50);
}

// What the error says of lists into which `plant` puts a fault.
std::string refusal(const PipelineShape& shape, const std::function<void(Lists&)>& plant) {
  Lists lists = lists_of(shape);
  plant(lists);
  try {
    add_messages(shape, lists);
  } catch (const ContractError& error) {
    return error.what();
  }
  return "";
}

// Both actions are named.
#define EXPECT_NAMES(text, first, second)                    \
  do {                                                       \
    const std::string said = (text);                         \
    EXPECT_NE(said.find(first), std::string::npos) << said;  \
    EXPECT_NE(said.find(second), std::string::npos) << said; \
  } while (false)

constexpr PipelineShape kThree{.num_ranks = 3, .num_micro_batches = 4};

TEST(ScheduleCheck, RefusesALoop) {
  // Rank 0 wants the gradient of micro-batch 0 before it makes the activation of 1, for which rank
  // 1 waits before it is done with 0.
  EXPECT_NAMES(
      refusal(kThree,
              [](Lists& lists) {
                std::rotate(lists[0].begin() + 1, lists[0].begin() + 3, lists[0].begin() + 4);
              }),
      "receive of gradient 0 from rank 1 to rank 0, for backward of micro-batch 0 in stage "
      "0, chunk 0 (rank 0, step 2) waits for send of gradient 0 from rank 1 to rank 0, made "
      "by backward of micro-batch 0 in stage 1, chunk 0 (rank 1",
      "receive of activation 1 from rank 0 to rank 1, for forward of micro-batch 1 in stage "
      "1, chunk 0 (rank 1, step 3) waits for send of activation 1 from rank 0 to rank 1, "
      "made by forward of micro-batch 1 in stage 0, chunk 0 (rank 0");
}

TEST(ScheduleCheck, RefusesWhatIsThereTwiceOrNotAtAll) {
  EXPECT_NAMES(refusal(kThree, [](Lists& lists) { lists[1].push_back(lists[1][0]); }),
               "forward of micro-batch 0 in stage 1, chunk 0 (rank 1, action 8) comes again after",
               "forward of micro-batch 0 in stage 1, chunk 0 (rank 1, action 0)");
  EXPECT_NAMES(refusal(kThree, [](Lists& lists) { lists[2].pop_back(); }),
               "stage 2 has no gradient of inputs of micro-batch 3",
               "on rank 2");
  EXPECT_NAMES(refusal(kThree, [](Lists& lists) { lists[2][0].stage = 1; }),
               "forward of micro-batch 0 in stage 1, chunk 0 (rank 2, action 0)",
               "is of no stage of its rank");
  EXPECT_NAMES(refusal(kThree, [](Lists& lists) { lists[2][0].micro_batch = 4; }),
               "micro-batch 4",
               "there are 4 micro-batches");
  EXPECT_NAMES(refusal(kThree, [](Lists& lists) { lists.pop_back(); }), "3 ranks have 2 lists", "");
  PipelineShape forward = kThree;
  forward.forward_only = true;
  EXPECT_NAMES(
      refusal(forward,
              [](Lists& lists) { lists[0].push_back({.kind = ActionKind::backward_weights}); }),
      "backward of weights of micro-batch 0 in stage 0, chunk 0 (rank 0, action 4)",
      "is no forward pass");
}

// A stage sums over micro-batches in one order, so that all schedules have the same bits.
TEST(ScheduleCheck, RefusesAnotherOrderOfMicroBatches) {
  const PipelineShape zero{.kind = ScheduleKind::zb_h1, .num_ranks = 3, .num_micro_batches = 4};
  EXPECT_NAMES(refusal(zero, [](Lists& lists) { std::swap(lists[2].back(), lists[2].end()[-2]); }),
               "backward of weights of micro-batch 3 in stage 2, chunk 0 (rank 2, action 10) comes "
               "before",
               "backward of weights of micro-batch 2 in stage 2, chunk 0 (rank 2, action 11)");
  EXPECT_NAMES(refusal(kThree, [](Lists& lists) { std::swap(lists[0][0], lists[0][1]); }),
               "forward of micro-batch 1 in stage 0, chunk 0 (rank 0, action 0) comes before",
               "forward of micro-batch 0 in stage 0, chunk 0 (rank 0, action 1)");
  // B adds to the same sums as W.
  EXPECT_NAMES(
      refusal(zero,
              [](Lists& lists) {
                for (Action& action : lists[2]) {
                  if (action.kind == ActionKind::backward_inputs && action.micro_batch == 3) {
                    action.kind = ActionKind::backward;
                  }
                }
                lists[2].pop_back();
              }),
      "backward of micro-batch 3 in stage 2, chunk 0 (rank 2, action 8) comes before",
      "backward of weights of micro-batch 1 in stage 2, chunk 0 (rank 2, action 9)");
}

TEST(ScheduleCheck, RefusesAPassBeforeWhatItNeeds) {
  EXPECT_NAMES(refusal(kThree, [](Lists& lists) { std::swap(lists[2][0], lists[2][1]); }),
               "backward of micro-batch 0 in stage 2, chunk 0 (rank 2, action 0) comes before the "
               "forward pass of the same micro-batch",
               "forward of micro-batch 0 in stage 2, chunk 0 (rank 2, action 1)");
  // A neighbouring stage of the same rank, at the turn of the V.
  const PipelineShape v{
      .kind = ScheduleKind::zbv, .num_ranks = 2, .num_chunks = 2, .num_micro_batches = 3};
  EXPECT_NAMES(
      refusal(v, [](Lists& lists) { std::swap(lists[1][0], lists[1][1]); }),
      "forward of micro-batch 0 in stage 2, chunk 1 (rank 1, action 0) comes before what it "
      "needs",
      "forward of micro-batch 0 in stage 1, chunk 0 (rank 1, action 1)");
}

// A fault in the messages or slots of a schedule whose lists are right.
std::string refusal(const PipelineShape& shape,
                    const std::function<void(PipelineSchedule&)>& plant) {
  PipelineSchedule schedule = make_schedule(shape);
  plant(schedule);
  try {
    check_schedule(schedule);
  } catch (const ContractError& error) {
    return error.what();
  }
  return "";
}

using Steps = std::vector<ScheduleStep>;

TEST(ScheduleCheck, RefusesMessagesThatDoNotMatch) {
  // Rank 0: F0, its send, F1, its send, ...
  EXPECT_NAMES(refusal(kThree,
                       [](PipelineSchedule& schedule) {
                         Steps& steps = schedule.ranks[0];
                         std::swap(steps[1], steps[3]);
                       }),
               "forward of micro-batch 0 in stage 0, chunk 0 (rank 0, step 0) has no send",
               "rank 1");
  EXPECT_NAMES(refusal(kThree,
                       [](PipelineSchedule& schedule) {
                         Steps& steps = schedule.ranks[0];
                         std::swap(steps[1].sequence, steps[3].sequence);
                       }),
               "send of activation 1 from rank 0 to rank 1, made by forward of micro-batch 0",
               "is number 0 on its side");
  EXPECT_NAMES(refusal(kThree,
                       [](PipelineSchedule& schedule) {
                         schedule.ranks[0].erase(schedule.ranks[0].begin() + 1);
                       }),
               "forward of micro-batch 0 in stage 0, chunk 0 (rank 0, step 0) has no send",
               "rank 1");
  EXPECT_NAMES(refusal(kThree,
                       [](PipelineSchedule& schedule) {
                         schedule.ranks[1].erase(schedule.ranks[1].begin());
                       }),
               "forward of micro-batch 0 in stage 1, chunk 0 (rank 1, step 0) has no receive",
               "rank 0");
  EXPECT_NAMES(refusal(kThree,
                       [](PipelineSchedule& schedule) {
                         Steps& steps = schedule.ranks[0];
                         steps.insert(steps.begin() + 2, steps[1]);
                       }),
               "send of activation 0 from rank 0 to rank 1, made by forward of micro-batch 0 in "
               "stage 0, chunk 0 (rank 0, step 2) stands not right after its action, but after",
               "send of activation 0 from rank 0 to rank 1, made by forward of micro-batch 0 in "
               "stage 0, chunk 0 (rank 0, step 1)");
  EXPECT_NAMES(refusal(kThree, [](PipelineSchedule& schedule) { schedule.ranks[0][1].queue = 9; }),
               "forward of micro-batch 0 in stage 0, chunk 0 (rank 0, step 1) is of queue 9",
               "there are 4");
  EXPECT_NAMES(
      refusal(kThree, [](PipelineSchedule& schedule) { schedule.queues[0].num_messages = 3; }),
      "planned for 3 messages",
      "4 sends and 4 receives");
  EXPECT_NAMES(
      refusal(kThree,
              [](PipelineSchedule& schedule) { schedule.queues[0].kind = MessageKind::gradient; }),
      "does not serve",
      "forward of micro-batch 0 in stage 0, chunk 0 (rank 0, step 0)");
}

// Two boundaries in one queue, and the receiver wants its messages in another order than the sender
// makes them.
TEST(ScheduleCheck, RefusesTwoStagesInOneQueueThatDoNotAgree) {
  const PipelineShape loop{
      .kind = ScheduleKind::interleaved, .num_ranks = 2, .num_chunks = 2, .num_micro_batches = 4};
  EXPECT_NAMES(
      refusal(loop,
              [](Lists& lists) {
                // The receiver takes the second chunk's first micro-batch before the first
                // chunk's second.
                std::swap(lists[1][1], lists[1][2]);
              }),
      "send of activation 1 from rank 0 to rank 1, made by forward of micro-batch 1 in "
      "stage 0, chunk 0 (rank 0, step 3)",
      "receive of activation 1 from rank 0 to rank 1, for forward of micro-batch 0 in stage "
      "3, chunk 1 (rank 1, step 3)");
  // The same micro-batch for another stage.
  const PipelineShape single{.kind = ScheduleKind::interleaved, .num_ranks = 2, .num_chunks = 2};
  EXPECT_NAMES(
      refusal(single, [](Lists& lists) { std::swap(lists[1][0], lists[1][1]); }),
      "send of activation 0 from rank 0 to rank 1, made by forward of micro-batch 0 in "
      "stage 0, chunk 0 (rank 0, step 1)",
      "receive of activation 0 from rank 0 to rank 1, for forward of micro-batch 0 in stage "
      "3, chunk 1 (rank 1, step 0)");
}

TEST(ScheduleCheck, RefusesTooFewSlots) {
  const PipelineShape v{
      .kind = ScheduleKind::zbv, .num_ranks = 3, .num_chunks = 2, .num_micro_batches = 7};
  EXPECT_NAMES(
      refusal(v, [](PipelineSchedule& schedule) { --schedule.slots[0].held; }),
      "forward of micro-batch 5 in stage 0, chunk 0 (rank 0, step 25) finds none of 5 slots for "
      "activations free",
      "the gradient of weights of micro-batch 0 in stage 0");
  EXPECT_NAMES(refusal(v, [](PipelineSchedule& schedule) { schedule.slots.pop_back(); }),
               "5 chunks have slots",
               "of 6");
  for (std::int64_t p = 1; p <= 4; ++p) {
    for (std::int64_t chunks = 1; chunks <= 3; ++chunks) {
      for (const ScheduleKind kind : kinds_of(chunks)) {
        const PipelineShape shape{
            .kind = kind, .num_ranks = p, .num_chunks = chunks, .num_micro_batches = 6};
        const PipelineSchedule right = make_schedule(shape);
        for (std::size_t i = 0; i < right.slots.size(); ++i) {
          for (const auto what : {&ChunkSlots::held,
                                  &ChunkSlots::pending_weights,
                                  &ChunkSlots::activations,
                                  &ChunkSlots::gradients}) {
            PipelineSchedule wrong = right;
            if (--(wrong.slots[i].*what) >= 0) {
              EXPECT_THROW(check_schedule(wrong), ContractError) << name_of(kind) << p << i;
            }
          }
        }
      }
    }
  }
}

// A ring that is too small for what one rank makes before the other uses it.
TEST(ScheduleCheck, RefusesARingInWhichRanksWaitForEachOther) {
  const PipelineShape loop{.kind = ScheduleKind::interleaved,
                           .num_ranks = 2,
                           .num_chunks = 2,
                           .num_micro_batches = 8,
                           .group = 4};
  EXPECT_NAMES(refusal(loop,
                       [](PipelineSchedule& schedule) {
                         for (MessageQueue& queue : schedule.queues) {
                           queue.slots = 1;
                         }
                       }),
               "waits for a slot, of 1, that is free after",
               "ranks wait in a circle");
}

TEST(ScheduleCheck, RefusesPairsThatNeedEachOther) {
  const PipelineShape shape{.num_ranks = 2, .num_micro_batches = 4, .paired = true};
  // The last rank: F0 F1+B0 F2+B1 ...
  EXPECT_NAMES(refusal(shape,
                       [](Lists& lists) {
                         lists[1][0].with_next = true;
                         lists[1][1].with_next = false;
                         std::swap(lists[1][1], lists[1][2]);
                       }),
               "forward of micro-batch 0 in stage 1, chunk 0 (rank 1, action 0) is done together",
               "backward of micro-batch 0 in stage 1, chunk 0 (rank 1, action 1), which needs");
  EXPECT_NAMES(refusal(shape, [](Lists& lists) { lists[1][0].with_next = true; }),
               "forward of micro-batch 0 in stage 1, chunk 0 (rank 1, action 0) is done together",
               "forward of micro-batch 1 in stage 1, chunk 0 (rank 1, action 1), and a pair is");
  EXPECT_NAMES(refusal(shape, [](Lists& lists) { lists[1].back().with_next = true; }),
               "backward of micro-batch 3 in stage 1, chunk 0 (rank 1, action 7) is done together",
               "with nothing");
  EXPECT_NAMES(refusal(kThree, [](Lists& lists) { lists[2][0].with_next = true; }),
               "forward of micro-batch 0 in stage 2, chunk 0 (rank 2, action 0)",
               "this schedule has none");
  // The first rank wants the gradient of 0 with the forward pass of 1, without which there is none.
  EXPECT_NAMES(refusal(shape,
                       [](Lists& lists) {
                         std::vector<Action>& first = lists[0];  // F0 F1 F2 F3+B0 ...
                         first[3].with_next = false;
                         std::rotate(first.begin() + 2, first.begin() + 4, first.begin() + 5);
                         first[1].with_next = true;
                       }),
               "ranks wait in a circle",
               "backward of micro-batch 0 in stage 0, chunk 0");
}

// What a pair needs comes before both, and what it makes goes behind both.
TEST(ScheduleCheck, RefusesMessagesBetweenThoseOfAPair) {
  const PipelineShape shape{.num_ranks = 2, .num_micro_batches = 4, .paired = true};
  // The last rank: receive, F0, receive, F1, B0, send, ...; the first: ..., receive, F3, B0, send,
  // ...
  EXPECT_NAMES(refusal(shape,
                       [](PipelineSchedule& schedule) {
                         std::swap(schedule.ranks[1][4], schedule.ranks[1][5]);
                       }),
               "send of gradient 0 from rank 1 to rank 0, made by backward of micro-batch 0",
               "stands not right after its action, but after forward of micro-batch 1");
  EXPECT_NAMES(refusal(shape,
                       [](PipelineSchedule& schedule) {
                         std::swap(schedule.ranks[1][2], schedule.ranks[1][3]);
                       }),
               "forward of micro-batch 1 in stage 1, chunk 0 (rank 1, step 2) has no receive",
               "rank 0");
}

TEST(ScheduleCheck, QueuesAreByEdgeAndKind) {
  const PipelineSchedule schedule = make_schedule(
      {.kind = ScheduleKind::zbv, .num_ranks = 3, .num_chunks = 2, .num_micro_batches = 4});
  std::set<std::tuple<std::int64_t, std::int64_t, MessageKind>> edges;
  for (const MessageQueue& queue : schedule.queues) {
    EXPECT_TRUE(edges.insert({queue.from_rank, queue.to_rank, queue.kind}).second);
    EXPECT_EQ(queue.num_messages, 4);
    EXPECT_GE(queue.slots, 2);
  }
  EXPECT_EQ(edges.size(), 8U) << "two neighbours, two ways, two kinds; none at the turn of the V";

  // In a loop of two, both boundaries from rank 0 to rank 1 are one queue.
  const PipelineSchedule loop = make_schedule(
      {.kind = ScheduleKind::interleaved, .num_ranks = 2, .num_chunks = 2, .num_micro_batches = 4});
  ASSERT_EQ(loop.queues.size(), 4U);
  EXPECT_EQ(loop.queues[0].num_messages, 8);
  EXPECT_EQ(loop.queues[1].num_messages, 8);
  EXPECT_EQ(loop.queues[2].num_messages, 4);

  EXPECT_TRUE(make_schedule({.kind = ScheduleKind::interleaved,
                             .num_ranks = 1,
                             .num_chunks = 3,
                             .num_micro_batches = 4})
                  .queues.empty());
}

TEST(ScheduleCheck, StepsSayWhatTheyAre) {
  const PipelineSchedule schedule = make_schedule(kThree);
  EXPECT_EQ(schedule.describe(schedule.ranks[0][0]),
            "forward of micro-batch 0 in stage 0, chunk 0");
  EXPECT_EQ(schedule.describe(schedule.ranks[0][1]),
            "send of activation 0 from rank 0 to rank 1, made by forward of micro-batch 0 in stage "
            "0, chunk 0");
  EXPECT_EQ(schedule.describe(schedule.ranks[1][0]),
            "receive of activation 0 from rank 0 to rank 1, for forward of micro-batch 0 in stage "
            "1, chunk 0");
}

// What is held on each rank, at the turn of the V and at the end of a loop.
TEST(ScheduleCheck, CountsSlots) {
  const PipelineSchedule v = make_schedule(
      {.kind = ScheduleKind::zbv, .num_ranks = 4, .num_chunks = 2, .num_micro_batches = 16});
  EXPECT_EQ(v.slots_of({.rank = 0, .chunk = 0}), (ChunkSlots{.held = 8}));
  EXPECT_EQ(v.slots_of({.rank = 0, .chunk = 1}), (ChunkSlots{.held = 1, .pending_weights = 1}));
  EXPECT_EQ(v.slots_of({.rank = 3, .chunk = 0}),
            (ChunkSlots{.held = 5, .pending_weights = 4, .gradients = 1}));
  EXPECT_EQ(v.slots_of({.rank = 3, .chunk = 1}),
            (ChunkSlots{.held = 4, .pending_weights = 3, .activations = 1}));
  const PipelineSchedule one = make_schedule({.num_micro_batches = 5});
  EXPECT_EQ(one.slots, (std::vector<ChunkSlots>{{.held = 1}}));
  const PipelineSchedule pairs = make_schedule({.num_micro_batches = 5, .paired = true});
  EXPECT_EQ(pairs.slots, (std::vector<ChunkSlots>{{.held = 2}}));
  const PipelineSchedule longer =
      make_schedule({.num_ranks = 3, .num_micro_batches = 9, .paired = true});
  EXPECT_EQ(longer.slots, (std::vector<ChunkSlots>{{.held = 6}, {.held = 4}, {.held = 2}}))
      << "of a forward pass beside a backward pass: one more than there are before it";
  // A list of our own, in which a whole backward pass comes before halved ones.
  const auto action = [](ActionKind kind, std::int32_t micro_batch) {
    return Action{.kind = kind, .micro_batch = micro_batch};
  };
  const PipelineSchedule mixed = add_messages({.num_micro_batches = 3},
                                              {{action(ActionKind::forward, 0),
                                                action(ActionKind::backward, 0),
                                                action(ActionKind::forward, 1),
                                                action(ActionKind::backward_inputs, 1),
                                                action(ActionKind::forward, 2),
                                                action(ActionKind::backward_inputs, 2),
                                                action(ActionKind::backward_weights, 1),
                                                action(ActionKind::backward_weights, 2)}});
  EXPECT_EQ(mixed.slots, (std::vector<ChunkSlots>{{.held = 2, .pending_weights = 2}}));
  const PipelineSchedule forward =
      make_schedule({.num_ranks = 4, .num_micro_batches = 9, .forward_only = true});
  EXPECT_EQ(forward.slots_of({.rank = 0, .chunk = 0}), (ChunkSlots{.held = 1}));
  EXPECT_EQ(forward.queues.size(), 3U);
}

}  // namespace
}  // namespace memphis
