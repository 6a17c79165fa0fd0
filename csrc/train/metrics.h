// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <exception>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "csrc/config/config.h"
#include "csrc/core/error.h"
#include "csrc/data/questions.h"
#include "csrc/plan/flops.h"
#include "csrc/plan/memory.h"
#include "csrc/train/event_file.h"
#include "csrc/train/gpu_telemetry.h"
#include "csrc/train/record_file.h"
#include "csrc/train/step.h"

namespace memphis {

// metrics.jsonl of a run: one JSON object a line, written line by line. PreflightError where a line
// cannot be written, of which then nothing stays in the file.
// Its keys are in metric_keys.h.
class MetricsFile {
 public:
  // Opens for appending. A line of a step after `resumed_step`, written before the run was killed,
  // and a last line that was cut short are dropped: those steps will be run and written again.
  MetricsFile(const std::filesystem::path& path, std::int64_t resumed_step);

  // What is made of a disk that is full, there and in event files; at first it is an error.
  void set_without_room(RecordFile::WithoutRoom without_room);
  // PreflightError where not all is written still.
  void require_written();

  // From now on what is written goes to event files for TensorBoard in `dir`, too.
  void also_to_tensorboard(const std::filesystem::path& dir);

  struct StepRecord {
    std::int64_t step = 0;
    StepResult result;
    double learning_rate = 0;
    std::uint64_t samples = 0;  // consumed so far
    double seconds = 0;         // of this step, by the clock
    double model_flops_per_second = 0;
  };
  void write_step(const StepRecord& record);
  // What a process is that begins, or goes on, after `step`.
  struct StartRecord {
    std::int64_t step = 0;
    std::int64_t last_step = 0;
    std::int64_t num_ranks = 1;
    std::string device;  // "4 ranks of cpu (Xeon), f32"
    std::string layout;
    std::int64_t parameters = 0;
    ModelFlops flops_per_token;
    double hardware_flops_per_token = 0;  // with what is computed again
    std::optional<double> peak_flops_per_second;
    MemoryPlan memory;
  };
  void write_start(const StartRecord& record);
  void write_routing(std::int64_t step, const Routing& routing, const RankTimes& ranks);
  // Why no more lines come of this process.
  void write_end(std::int64_t step, bool done, std::string_view reason);
  void write_gpus(std::int64_t step, const GpuSummary& gpus, double joules_per_token);
  // `set` is empty where there is one, of no name.
  void write_validation(std::int64_t step,
                        std::string_view set,
                        double loss,
                        std::int64_t targets,
                        double elapsed_seconds);
  void write_evaluation(std::int64_t step, const QuestionScores& scores);
  void write_sample(std::int64_t step, std::string_view text);

 private:
  void write_line(std::string line);

  std::int64_t resumed_step_;
  std::int64_t steps_again_ = 0;
  RecordFile::WithoutRoom without_room_ = RecordFile::WithoutRoom::fails;
  std::optional<EventFile> events_;
  RecordFile lines_;
};

// What a metrics.jsonl has of a step.
struct StepLines {
  bool step = false;
  bool validation = false;
  bool evaluation = false;
  bool sample = false;
};
// Of none where there is no such file.
StepLines lines_of_step(const std::filesystem::path& path, std::int64_t step);

// The metrics.jsonl of a run on its first rank, and on the others nothing. A line that cannot be
// written does not end the run there, among collectives: the others are told, and all save first.
class Report {
 public:
  // `check`, where there is one, is asked before each line, which is not written where it throws.
  void open(const std::filesystem::path& path,
            std::int64_t resumed_step,
            RecordFile::WithoutRoom without_room = RecordFile::WithoutRoom::fails,
            std::function<void()> check = {});

  // Calls write(MetricsFile&) unless one has failed.
  template <class Write>
  void write(const Write& write) {
    if (!file_ || failure_) {
      return;
    }
    try {
      if (check_) {
        check_();
      }
      write(*file_);
    } catch (const Error&) {
      failure_ = std::current_exception();
    }
  }

  bool failed() const { return failure_ != nullptr; }
  // Throws what was wrong, where something was.
  void rethrow() const;

 private:
  std::optional<MetricsFile> file_;
  std::function<void()> check_;
  std::exception_ptr failure_;
};

// Peak dense bf16 FLOP/s of the GPUs of so many ranks, for model FLOP utilisation; empty for a
// device whose peak is not known, the CPU among them.
std::optional<double> peak_flops_per_second(Device device, int num_ranks);

// "FLOP a token: 28.1 M, attention counted by its causal half; ...": what MFU and HFU are shares of.
std::string describe_flops(const MetricsFile::StartRecord& record);

// "step 120/2000  loss 1.8342  grad 0.710  lr 3.10e-03  busiest expert 1.24x  12034 tok/s
// 102.6 GFLOP/s  eta 2m05s".
std::string progress_line(const MetricsFile::StepRecord& record,
                          std::int64_t last_step,
                          double seconds_per_step,
                          const ModelFlops& flops_per_token,
                          std::optional<double> peak);

// The same beside a live line's bar: "loss 1.8342  12034 tok/s  102.6 GFLOP/s".
std::string live_note(const MetricsFile::StepRecord& record,
                      double seconds_per_step,
                      const ModelFlops& flops_per_token,
                      std::optional<double> peak);

}  // namespace memphis
