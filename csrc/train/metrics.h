// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <string_view>

#include "csrc/config/config.h"
#include "csrc/plan/flops.h"
#include "csrc/train/step.h"

namespace memphis {

// metrics.jsonl of a run: one JSON object a line, flushed line by line.
//
//   {"step", "loss", "balance_loss", "router_z_loss", "grad_norm", "learning_rate",
//    "expert_load_max", "tokens", "samples", "seconds", "tokens_per_second",
//    "model_flops_per_second", "data_seconds", "model_seconds", "optimizer_seconds",
//    "communication_seconds", "exposed_seconds"}; the last two unless GPUs exchange and nobody
//                                               times it (metrics.trace does)
//   {"step", "validation_loss", "validation_targets", "elapsed_seconds"}
//   {"step", "sample"}
class MetricsFile {
 public:
  // Opens for appending. A line of a step after `resumed_step`, written before the run was killed,
  // and a last line that was cut short are dropped: those steps will be run and written again.
  MetricsFile(const std::filesystem::path& path, std::int64_t resumed_step);

  struct StepRecord {
    std::int64_t step = 0;
    StepResult result;
    double learning_rate = 0;
    std::uint64_t samples = 0;  // consumed so far
    double seconds = 0;         // of this step, by the clock
    double model_flops_per_second = 0;
  };
  void write_step(const StepRecord& record);
  void write_validation(std::int64_t step,
                        double loss,
                        std::int64_t targets,
                        double elapsed_seconds);
  void write_sample(std::int64_t step, std::string_view text);

 private:
  void write_line(const std::string& line);

  std::filesystem::path path_;
  std::ofstream file_;
};

// Peak dense bf16 FLOP/s of the GPUs of so many ranks, for model FLOP utilisation; empty for a
// device whose peak is not known, the CPU among them.
std::optional<double> peak_flops_per_second(Device device, int num_ranks);

// "step 120/2000 loss 1.8342 grad 0.71 lr 3.1e-03 12034 tok/s 102.6 GFLOP/s eta 2m05s".
std::string progress_line(const MetricsFile::StepRecord& record,
                          std::int64_t last_step,
                          double seconds_per_step,
                          const ModelFlops& flops_per_token,
                          std::optional<double> peak);

}  // namespace memphis
