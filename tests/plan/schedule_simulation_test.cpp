// SPDX-License-Identifier: Apache-2.0
#include "csrc/plan/schedule_simulation.h"

#include <algorithm>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/core/error.h"

namespace memphis {
namespace {

constexpr double kExact = 1e-9;

// Costs of all of a rank's layers, for one micro-batch. Everything kept for it is one unit.
struct RankCost {
  double forward = 1;
  double inputs = 1;
  double weights = 1;
};

PipelineCosts costs_of(const PipelineShape& shape,
                       const RankCost& cost,
                       const MessageCost& message = {}) {
  const auto chunks = static_cast<double>(shape.num_chunks);
  return {.stages = std::vector<StageCost>(static_cast<std::size_t>(shape.num_stages()),
                                           {.forward = cost.forward / chunks,
                                            .backward_inputs = cost.inputs / chunks,
                                            .backward_weights = cost.weights / chunks,
                                            .activation = 1 / chunks}),
          .message = message};
}

// Room for all messages: what a schedule costs by itself.
PipelineSchedule without_slots(const PipelineShape& shape) {
  PipelineSchedule schedule = make_schedule(shape);
  for (MessageQueue& queue : schedule.queues) {
    queue.slots = 0;
  }
  return schedule;
}

PipelineSimulation price(const PipelineShape& shape,
                         const RankCost& cost = {},
                         const MessageCost& message = {}) {
  return simulate(without_slots(shape), costs_of(shape, cost, message));
}

double bubble(const PipelineSimulation& simulation, const PipelineShape& shape, const RankCost& c) {
  return simulation.makespan -
         static_cast<double>(shape.num_micro_batches) * (c.forward + c.inputs + c.weights);
}

double largest_peak(const PipelineSimulation& simulation) {
  double result = 0;
  for (const RankSimulation& rank : simulation.ranks) {
    result = std::max(result, rank.peak_activations);
  }
  return result;
}

struct Column {
  ScheduleKind kind;
  std::int64_t num_chunks;
};

constexpr Column kColumns[] = {{ScheduleKind::one_f_one_b, 1},
                               {ScheduleKind::interleaved, 2},
                               {ScheduleKind::interleaved, 4},
                               {ScheduleKind::zb_h1, 1},
                               {ScheduleKind::zbv, 2}};

PipelineShape shape_of(const Column& column, std::int64_t num_ranks, std::int64_t micro_batches) {
  return {.kind = column.kind,
          .num_ranks = num_ranks,
          .num_chunks = column.num_chunks,
          .num_micro_batches = micro_batches};
}

// Bubble and largest peak where F, I and W take the same time, in the order of kColumns.
struct GoldenRow {
  std::int64_t num_ranks;
  std::int64_t num_micro_batches;
  double bubbles[5];
  double percent[5];
  double peaks[5];
};

constexpr GoldenRow kGolden[] = {
    {4, 8, {9, 4.5, 2.25, 3, 1.5}, {27.27, 15.79, 8.57, 11.11, 5.88}, {4, 5.5, 4.75, 4, 4}},
    {4, 16, {9, 4.5, 2.25, 3, 1.5}, {15.79, 8.57, 4.48, 5.88, 3.03}, {4, 5.5, 4.75, 4, 4}},
    {8, 32, {21, 10.5, 5.25, 7, 3.5}, {17.95, 9.86, 5.19, 6.80, 3.52}, {8, 11.5, 9.75, 8, 8}},
    {16,
     64,
     {45, 22.5, 11.25, 15, 7.5},
     {18.99, 10.49, 5.54, 7.25, 3.76},
     {16, 23.5, 19.75, 16, 16}},
};

TEST(ScheduleSimulation, HasTheBubblesAndPeaksOfTheTable) {
  for (const GoldenRow& row : kGolden) {
    for (std::size_t i = 0; i < std::size(kColumns); ++i) {
      const PipelineShape shape = shape_of(kColumns[i], row.num_ranks, row.num_micro_batches);
      const PipelineSimulation simulation = price(shape);
      const std::string where = std::string(name_of(shape.kind)) + " " +
                                std::to_string(shape.num_chunks) + ", " +
                                std::to_string(row.num_ranks);
      EXPECT_NEAR(bubble(simulation, shape, {}), row.bubbles[i], kExact) << where;
      EXPECT_NEAR(
          simulation.bubble_share,
          row.bubbles[i] / (row.bubbles[i] + 3 * static_cast<double>(shape.num_micro_batches)),
          kExact)
          << where;
      EXPECT_NEAR(100 * simulation.bubble_share, row.percent[i], 0.005) << where;
      EXPECT_NEAR(largest_peak(simulation), row.peaks[i], kExact) << where;
    }
  }
}

TEST(ScheduleSimulation, HasTheBubblesOfUnequalPasses) {
  constexpr RankCost kCost{.forward = 1, .inputs = 1.2, .weights = 0.8};
  constexpr double kBubbles[] = {21, 10.5, 5.25, 9.8, 4.2};
  for (std::size_t i = 0; i < std::size(kColumns); ++i) {
    const PipelineShape shape = shape_of(kColumns[i], 8, 32);
    EXPECT_NEAR(bubble(price(shape, kCost), shape, kCost), kBubbles[i], kExact)
        << name_of(shape.kind);
  }
}

// The closed forms, for every number of micro-batches that they hold for: bubbles of (p - 1) passes
// and what each rank holds.
TEST(ScheduleSimulation, HasTheBubblesAndPeaksOfTheFormulas) {
  constexpr RankCost kCost{.forward = 1, .inputs = 1.25, .weights = 0.5};
  const double pass = kCost.forward + kCost.inputs + kCost.weights;
  for (std::int64_t p = 1; p <= 16; p += p < 6 ? 1 : 5) {
    const auto ranks = static_cast<double>(p);
    for (std::int64_t m = 1; m <= 64; m += m < 2 * p + 2 ? 1 : 9) {
      const PipelineShape one{.num_ranks = p, .num_micro_batches = m};
      const PipelineSimulation of_one = price(one, kCost);
      EXPECT_NEAR(bubble(of_one, one, kCost), (ranks - 1) * pass, kExact) << p << " " << m;
      for (std::int64_t r = 0; r < p; ++r) {
        EXPECT_EQ(of_one.ranks[static_cast<std::size_t>(r)].peak_activations,
                  static_cast<double>(std::min(p - r, m)));
      }
      if (m < p) {
        continue;
      }
      PipelineShape zero = one;
      zero.kind = ScheduleKind::zb_h1;
      const PipelineSimulation of_zero = price(zero, kCost);
      EXPECT_NEAR(bubble(of_zero, zero, kCost),
                  (ranks - 1) * (kCost.forward + kCost.inputs - kCost.weights),
                  kExact)
          << p << " " << m;
      for (std::int64_t r = 0; r < p; ++r) {
        const RankSimulation& rank = of_zero.ranks[static_cast<std::size_t>(r)];
        EXPECT_EQ(rank.peak_activations, ranks);
        EXPECT_EQ(rank.peak_pending_weights, static_cast<double>(r == 0 ? 0 : std::min(r + 1, m)));
      }
      for (std::int64_t v = 2; v <= 4; ++v) {
        PipelineShape loop = one;
        loop.kind = ScheduleKind::interleaved;
        loop.num_chunks = v;
        const PipelineSimulation of_loop = price(loop, kCost);
        const auto chunks = static_cast<double>(v);
        EXPECT_NEAR(bubble(of_loop, loop, kCost), (ranks - 1) * pass / chunks, kExact)
            << p << " " << v << " " << m;
        if (m % p == 0 && m > p) {
          EXPECT_NEAR(of_loop.ranks.front().peak_activations, ranks + (ranks - 1) / chunks, kExact);
          EXPECT_NEAR(
              of_loop.ranks.back().peak_activations, ((chunks - 1) * ranks + 1) / chunks, kExact);
        }
      }
      if (m >= 2 * p - 1) {
        const PipelineShape v = shape_of({ScheduleKind::zbv, 2}, p, m);
        const PipelineSimulation of_v = price(v);
        EXPECT_NEAR(bubble(of_v, v, {}), (ranks - 1) / 2, kExact) << p << " " << m;
        for (const RankSimulation& rank : of_v.ranks) {
          EXPECT_NEAR(rank.peak_activations, ranks, kExact) << p << " " << m;
        }
      }
    }
  }
}

// A V that has not as many micro-batches as it takes to fill it.
TEST(ScheduleSimulation, HasTheBubblesOfAVThatIsNotFilled) {
  const auto bubble_of = [](std::int64_t micro_batches) {
    const PipelineShape shape = shape_of({ScheduleKind::zbv, 2}, 8, micro_batches);
    return bubble(price(shape), shape, {});
  };
  EXPECT_NEAR(bubble_of(1), 14, kExact);
  EXPECT_NEAR(bubble_of(8), 7, kExact);
  EXPECT_NEAR(bubble_of(10), 5, kExact);
  EXPECT_NEAR(bubble_of(12), 3.5, kExact);
  EXPECT_NEAR(bubble_of(15), 3.5, kExact);
}

// What is idle where each message takes a share of a forward pass to arrive, in percent.
TEST(ScheduleSimulation, LatencyKillsDeepInterleaving) {
  struct Row {
    Column column;
    double percent[4];
  };
  constexpr double kLatencies[] = {0, 0.02, 0.05, 0.1};
  constexpr Row kRows[] = {{{ScheduleKind::one_f_one_b, 1}, {17.9, 18.9, 20.3, 22.5}},
                           {{ScheduleKind::interleaved, 2}, {9.9, 10.4, 11.1, 12.3}},
                           {{ScheduleKind::interleaved, 4}, {5.2, 6.3, 8.0, 10.7}},
                           {{ScheduleKind::interleaved, 8}, {2.7, 5.1, 8.5, 13.7}},
                           {{ScheduleKind::zbv, 2}, {3.5, 4.2, 5.1, 6.6}}};
  for (const Row& row : kRows) {
    for (std::size_t i = 0; i < std::size(kLatencies); ++i) {
      const PipelineSimulation simulation =
          price(shape_of(row.column, 8, 32), {}, {.latency = kLatencies[i]});
      EXPECT_NEAR(100 * simulation.bubble_share, row.percent[i], 0.0501)
          << name_of(row.column.kind) << " " << row.column.num_chunks << ", " << kLatencies[i];
    }
  }
}

// 64 layers on 8 ranks, and the head of Grok-1, 0.605 of a layer, on top of the last stage.
TEST(ScheduleSimulation, AHeadOnTheLastStageCostsMoreThanTheBubble) {
  const auto efficiency = [](const Column& column) {
    const PipelineShape shape = shape_of(column, 8, 128);
    PipelineCosts costs = costs_of(shape, {.forward = 8, .inputs = 8, .weights = 8});
    StageCost& last = costs.stages.back();
    last.forward += 0.605;
    last.backward_inputs += 0.605;
    last.backward_weights += 0.605;
    return 100 * (1 - simulate(without_slots(shape), costs).bubble_share);
  };
  EXPECT_NEAR(efficiency({ScheduleKind::one_f_one_b, 1}), 89.31, 0.005);
  EXPECT_NEAR(efficiency({ScheduleKind::interleaved, 8}), 93.26, 0.005);
  EXPECT_NEAR(efficiency({ScheduleKind::zbv, 2}), 93.19, 0.005);
}

// Two ranks, F = 1 and B = 2, one unit in flight and a quarter on the wire.
TEST(ScheduleSimulation, CountsMessages) {
  const PipelineShape shape{.num_ranks = 2, .num_micro_batches = 1};
  const MessageCost message{.latency = 1, .bytes = 8, .bytes_per_second = 32};
  const PipelineSimulation one = price(shape, {}, message);
  EXPECT_DOUBLE_EQ(one.makespan, 6 + 2 * 1.25);
  EXPECT_DOUBLE_EQ(one.ranks[0].busy, 3);
  EXPECT_DOUBLE_EQ(one.ranks[0].idle, 5.5);
  EXPECT_DOUBLE_EQ(one.bubble_share, 11.0 / 17.0);

  // A message of 4 a time on the wire: the third forward pass waits for two messages before it.
  const PipelineShape three{.num_ranks = 2, .num_micro_batches = 3, .forward_only = true};
  EXPECT_DOUBLE_EQ(price(three, {}, {.bytes = 8, .bytes_per_second = 2}).makespan, 1 + 3 * 4 + 1);
  EXPECT_DOUBLE_EQ(price(three, {}, {.latency = 4}).makespan, 3 + 4 + 1);
  EXPECT_DOUBLE_EQ(price(three, {}, {.latency = 4, .overlapped = false}).makespan, 3 * 5 + 1);
}

TEST(ScheduleSimulation, AMessageWaitsForItsSlot) {
  PipelineSchedule schedule =
      make_schedule({.num_ranks = 2, .num_micro_batches = 3, .forward_only = true});
  ASSERT_EQ(schedule.queues.size(), 1U);
  const PipelineCosts costs{.stages = {{.forward = 1}, {.forward = 4}}, .message = {.latency = 1}};
  // Made at 1, 2 and 3, and used up at 6, 10 and 14.
  schedule.queues[0].slots = 0;
  const PipelineSimulation free = simulate(schedule, costs);
  EXPECT_DOUBLE_EQ(free.makespan, 14);
  EXPECT_EQ(free.peak_messages, (std::vector<std::int64_t>{3}));
  // The second leaves at 6, when the first is used up, and the third at 11.
  schedule.queues[0].slots = 1;
  EXPECT_DOUBLE_EQ(simulate(schedule, costs).makespan, 16);
}

// Messages made at 1, 2 and 3, each used up when the next is made: a slot is not free before.
TEST(ScheduleSimulation, AMessageKeepsItsSlotUntilItIsUsedUp) {
  const PipelineShape shape{.num_ranks = 2, .num_micro_batches = 3, .forward_only = true};
  EXPECT_EQ(price(shape).peak_messages, (std::vector<std::int64_t>{2}));
}

TEST(ScheduleSimulation, ForwardPassesAloneFillThePipeline) {
  for (std::int64_t p = 1; p <= 8; ++p) {
    for (std::int64_t m = p; m <= 20; ++m) {
      for (const Column& column : kColumns) {
        PipelineShape shape = shape_of(column, p, m);
        shape.forward_only = true;
        const PipelineSimulation simulation = price(shape);
        // In a V the last rank has its second chunk right after its first.
        const double stages = static_cast<double>(p - 1) / static_cast<double>(column.num_chunks) *
                              (column.kind == ScheduleKind::zbv ? 2 : 1);
        EXPECT_LE(simulation.makespan, static_cast<double>(m) + stages + kExact)
            << name_of(column.kind) << " " << p << " " << m;
        EXPECT_LE(largest_peak(simulation), 1) << "nothing is kept";
      }
    }
  }
}

TEST(ScheduleSimulation, HasACostForEachStage) {
  const PipelineSchedule schedule = make_schedule({.num_ranks = 2, .num_micro_batches = 1});
  EXPECT_THROW(simulate(schedule, {.stages = {{}, {}, {}}, .message = {}}), ContractError);
}

}  // namespace
}  // namespace memphis
