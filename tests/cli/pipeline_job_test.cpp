// SPDX-License-Identifier: Apache-2.0
//
// A pipeline as a job of several processes: what its benchmark tells, and what is said of a rank
// that is lost.
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <tuple>
#include <utility>

#include <gtest/gtest.h>

#include "csrc/core/json.h"
#include "csrc/plan/schedule_messages.h"
#include "tests/cli/job.h"
#include "tests/support/process.h"
#include "tests/support/tiny_run.h"

namespace memphis::test {
namespace {

class PipelineJob : public Job {};

TEST_F(PipelineJob, ARankThatSendsNothingEndsTheJob) {
  const Ended ended = run(join(mpirun(4),
                               {MEMPHIS_FAULTY_JOB,
                                config_,
                                "withholds",
                                "model.num_layers=4",
                                "parallel.pipeline=4",
                                "batch.micro_batch=1",
                                "run.hang_seconds=5"}));
  EXPECT_EQ(ended.code, 12) << ended.error;
  const std::string cause = cause_of(ended);
  // The one of those that wait in vain whose patience ends first.
  EXPECT_TRUE(says(cause, "memphis: rank # of 4 on "));
  EXPECT_TRUE(says(cause, "step 3, stage #, micro-batch #, receive of a"));
  EXPECT_TRUE(says(cause, " has waited for # s; not arrived: rank # (alive"));
}

// 8 stages on 4 ranks. Rank 2 is lost in stage 6, and rank 3 stands in stage 7, waiting for it.
class LostStage : public Job {
 protected:
  Ended lose(const std::string& fault, const std::string& lost_seconds) const {
    return run(join(mpirun(4),
                    {MEMPHIS_FAULTY_JOB,
                     config_,
                     fault,
                     "model.num_layers=8",
                     "parallel.pipeline=4",
                     "parallel.schedule=interleaved",
                     "parallel.chunks=2",
                     "batch.micro_batch=1",
                     "run.lost_seconds=" + lost_seconds}));
  }
  static void expect_named(const Ended& ended, const std::string& how) {
    const std::string cause = cause_of(ended);
    EXPECT_TRUE(cause.starts_with("memphis: rank 2 of 4 on ")) << cause;
    EXPECT_TRUE(says(cause, how));
    EXPECT_TRUE(
        says(cause, "; last heard of in step 3, stage 6, micro-batch 0, send of an activation, "));
    EXPECT_TRUE(says(cause,
                     "; not arrived: rank 2; noticed by rank 3 in step 3, stage 7, micro-batch 0, "
                     "receive of an activation, in pipeline.activation of the "
                     "pipeline_activations group, waiting for rank 2"));
  }
};

TEST_F(LostStage, ThatIsKilledIsNamedWithItsNeighbour) {
  const TimeToSayWhy time;
  const Ended ended = lose("dies", "60");
  EXPECT_EQ(ended.code, 128 + SIGKILL) << "which mpirun makes of it";
  expect_named(ended, ": its process # is gone (killed, or out of memory)");
}

TEST_F(LostStage, ThatIsStoppedIsNamedWithItsNeighbour) {
  const Ended ended = lose("freezes", "5");
  EXPECT_EQ(ended.code, 12) << ended.error;
  expect_named(ended, ": silent for # s (stopped, or its machine or network is down)");
}

// Counts what the schedule says. How long it takes is the machine's affair.
class PipelineBenchmark : public Job {
 protected:
  void expect_messages(int num_ranks, const Arguments& layout) const {
    const Arguments all = join({"model.num_layers=8",
                                "batch.micro_batch=1",
                                "precision.compute=f32",
                                "parallel.pipeline=" + std::to_string(num_ranks)},
                               layout);
    Process process(join(join(mpirun(num_ranks), {MEMPHIS_BINARY, "bench", "step", config_}),
                         join(all, {"--steps", "2", "--json"})),
                    directory_.path());
    ASSERT_EQ(process.wait(), 0) << process.standard_error();
    const auto result = parse_json(process.standard_output()).value();
    const Config config =
        parse_config(tiny_yaml(directory_), "tiny.yaml", all, Check::machine, num_ranks);
    const PipelineSchedule schedule =
        make_schedule(pipeline_shape(config.parallel, config.batch.global_batch));
    const PipelineShape& shape = schedule.shape;
    const double bytes = static_cast<double>(config.batch.sequence_length) *
                         static_cast<double>(config.model.d_model) * sizeof(float);
    std::map<std::pair<std::int64_t, std::int64_t>, double> calls;  // by boundary
    std::map<std::tuple<std::int64_t, std::int64_t, bool>, double> of_queues;
    for (const auto& row : result["collectives"]) {
      EXPECT_EQ(row["timed"], true) << row;
      if (!row.contains("from_stage")) {
        EXPECT_FALSE(row["name"].get<std::string>().starts_with("pipeline.")) << row;
        continue;
      }
      const std::int64_t from = row["from_stage"];
      const std::int64_t to = row["to_stage"];
      const double count = row["calls"];
      EXPECT_EQ(row["name"], from < to ? "pipeline.activation" : "pipeline.gradient");
      EXPECT_EQ(row["bytes"].get<double>(), count * bytes) << row;
      EXPECT_TRUE(calls.emplace(std::pair(from, to), count).second) << row;
      of_queues[{shape.place_of(from).rank, shape.place_of(to).rank, from < to}] += count;
    }
    EXPECT_EQ(calls.size(), static_cast<std::size_t>(2 * (shape.num_stages() - 1)));
    for (std::int64_t stage = 0; stage + 1 < shape.num_stages(); ++stage) {
      EXPECT_EQ((calls[{stage, stage + 1}]), config.batch.global_batch) << "behind stage " << stage;
      EXPECT_EQ((calls[{stage + 1, stage}]), config.batch.global_batch) << "behind stage " << stage;
    }
    EXPECT_EQ(of_queues.size(), schedule.queues.size());
    for (const MessageQueue& queue : schedule.queues) {
      const bool activations = queue.kind == MessageKind::activation;
      EXPECT_EQ((of_queues[{queue.from_rank, queue.to_rank, activations}]), queue.num_messages)
          << queue.from_rank << " to " << queue.to_rank;
    }
  }
};

TEST_F(PipelineBenchmark, TellsOfEachBoundaryOfTwoRanks) {
  expect_messages(2, {"parallel.schedule=1f1b"});
}

TEST_F(PipelineBenchmark, TellsOfEachBoundaryOfFourRanksWithTwoChunks) {
  expect_messages(4, {"parallel.schedule=interleaved", "parallel.chunks=2"});
}

}  // namespace
}  // namespace memphis::test
