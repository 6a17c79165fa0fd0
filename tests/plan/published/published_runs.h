// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "csrc/plan/machine.h"
#include "csrc/plan/run_description.h"
#include "csrc/plan/step_time.h"

// Runs that others published, and what the planner says of them.
namespace memphis::test {

struct PublishedRun {
  std::string name;
  std::string source;
  std::string model;
  std::string machine;
  RunDescription description;
  double measured_seconds = 0;  // of a step
};

// std::runtime_error, which names the line, where a table is not as its first line says.
std::vector<PublishedRun> read_published_runs(const std::filesystem::path& runs,
                                              const std::filesystem::path& models);

struct PredictedRun {
  PublishedRun run;
  StepTime time;

  double error() const { return time.seconds / run.measured_seconds - 1; }
};
std::vector<PredictedRun> predict(const std::vector<PublishedRun>& runs,
                                  const std::filesystem::path& machines,
                                  const TimeConstants& constants = {});

// A line a run, in Markdown, and the mean behind them.
std::string table_of(const std::vector<PredictedRun>& runs);
double mean_error(const std::vector<PredictedRun>& runs);  // of absolute values

}  // namespace memphis::test
