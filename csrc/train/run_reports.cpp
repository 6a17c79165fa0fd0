// SPDX-License-Identifier: Apache-2.0
#include "csrc/train/run_reports.h"

#include <algorithm>
#include <filesystem>
#include <span>

#include <spdlog/fmt/fmt.h>

#include "csrc/comm/launch_environment.h"
#include "csrc/comm/together.h"
#include "csrc/core/error.h"
#include "csrc/core/log.h"
#include "csrc/core/printable.h"
#include "csrc/optim/lr_schedule.h"
#include "csrc/train/due.h"
#include "csrc/train/run_directory.h"

namespace memphis {
namespace {

// Weight of the past in the smoothed step time behind the progress line's rate and ETA.
constexpr double kSmoothing = 0.9;

}  // namespace

RunReports::RunReports(const Of& of)
    : of_(of),
      leads_(of.world.rank() == 0),
      flops_(model_flops_per_token(of.config.model, of.config.batch.sequence_length)),
      peak_(peak_flops_per_second(of.device, of.world.size())),
      router_watch_(of.config.model.num_layers,
                    of.config.model.num_experts,
                    of.config.model.experts_per_token) {
  const Config& config = of.config;
  const Tokenizer* const tokenizer = of.dataset.tokenizer.get();
  describe_mixture();
  for (const ValidationSet& set : of.dataset.validation) {
    validation_loaders_.emplace_back(
        *set.stream,
        set.range,
        config.batch.sequence_length,
        config.data.document_boundaries ? Boundaries::kept : Boundaries::ignored,
        static_cast<std::int32_t>(std::max<std::int64_t>(config.model.pad_id, 0)));
  }
  if (!validation_loaders_.empty()) {
    evaluator_.emplace(
        config, of.plan, of.groups, of.model, of.pipeline, validation_loaders_, of.stream);
  }
  if (!config.data.evaluate.empty()) {
    questions_.emplace(config, of.plan, of.groups, of.model, of.pipeline, tokenizer, of.stream);
  }
  if (of.plan.sampling && tokenizer == nullptr && leads_) {
    log_info("data.tokenizer is none: no text is sampled");
  }
  if (of.plan.sampling && tokenizer != nullptr) {
    sampler_.emplace(config.model, *of.plan.sampling, of.residency, of.groups, of.stream);
  }
}

void RunReports::describe_mixture() const {
  const std::vector<TrainingSource>& sources = of_.dataset.sources;
  if (!leads_ || sources.size() == 1) {
    return;
  }
  const Mixture& mixture = of_.loader.mixture();
  const std::int64_t last_step = of_.config.schedule.steps;
  const auto last = static_cast<std::uint64_t>(last_step * of_.config.batch.global_batch);
  for (std::size_t i = 0; i < sources.size(); ++i) {
    log_info("{}: {} of {} samples, {} samples an epoch, {:.2f} epochs by step {}",
             sources[i].name,
             mixture.parts(i),
             mixture.period(),
             of_.loader.num_samples(i),
             of_.loader.epochs(i, last),
             last_step);
  }
}

void RunReports::say_failure() const {
  try {
    rethrow();
  } catch (const Error& error) {
    log_error("memphis: {}", error.what());
  }
}

RunReports::Owed RunReports::due_after(std::int64_t step) const {
  const MetricsConfig& metrics = of_.config.metrics;
  const bool last = step == of_.config.schedule.steps;
  return {.validation = evaluator_ && (due(step, metrics.validate_every) || last),
          .evaluation = questions_ && (due(step, metrics.evaluate_every) || last),
          .sample = sampler_ && (due(step, metrics.sample_every) || last)};
}

RunReports::Owed RunReports::find_owed(std::int64_t step) {
  constexpr std::int64_t kValidation = 1;
  constexpr std::int64_t kSample = 2;
  constexpr std::int64_t kEvaluation = 4;
  Communicator& all = of_.groups.all_host();
  std::int64_t owed = 0;
  together(all, "metrics.read", [&] {
    const std::filesystem::path dir = of_.config.run.dir;
    const StepLines lines = leads_ ? lines_of_step(dir / kMetricsName, step) : StepLines{};
    // A run whose step has no line has lost the file, or wrote another one.
    if (!lines.step) {
      return;
    }
    const Owed due_now = due_after(step);
    owed = (due_now.validation && !lines.validation ? kValidation : 0) |
           (due_now.evaluation && !lines.evaluation ? kEvaluation : 0) |
           (due_now.sample && !lines.sample ? kSample : 0);
  });
  owed = largest_of_all(all, owed, "metrics.read");
  return {.validation = (owed & kValidation) != 0,
          .evaluation = (owed & kEvaluation) != 0,
          .sample = (owed & kSample) != 0};
}

void RunReports::open(std::int64_t step) {
  together(of_.groups.all_host(), "metrics.jsonl", [&] {
    if (leads_) {
      const std::filesystem::path dir = of_.config.run.dir;
      of_.require_run_dir();
      // As long as saves may fail for want of room, so may lines.
      report_.open(dir / kMetricsName,
                   step,
                   of_.config.checkpoint.max_failures > 0 ? RecordFile::WithoutRoom::is_kept
                                                          : RecordFile::WithoutRoom::fails,
                   of_.require_run_dir);
      if (of_.config.metrics.tensorboard) {
        report_.write(
            [&](MetricsFile& metrics) { metrics.also_to_tensorboard(dir / "tensorboard"); });
        report_.rethrow();
      }
    }
  });
}

void RunReports::begin(std::int64_t step, std::uint64_t samples) {
  if (leads_) {
    const MetricsFile::StartRecord start = start_record(step);
    log_info("{}", describe_flops(start));
    report_.write([&](MetricsFile& metrics) { metrics.write_start(start); });
    progress_.emplace("train", of_.config.schedule.steps, "steps", step);
    progress_->only_live();  // elsewhere there are lines of steps
  }
  if (of_.device == Device::cuda && !device_info(of_.device).simulated) {
    gpu_.emplace(kNvmlName, gpu_identity());
  }
  first_sample_ = samples_said_ = samples_ = samples;
  began_at_ = now_seconds();
}

double RunReports::elapsed_seconds() const {
  return now_seconds() - began_at_;
}

void RunReports::go_back(std::uint64_t samples) {
  samples_said_ = std::min(samples_said_, samples);
}

void RunReports::end(std::int64_t step, bool done, const std::string& reason) {
  progress_.reset();
  report_.write([&](MetricsFile& metrics) {
    metrics.write_end(step, done, reason);
    metrics.require_written();
  });
}

MetricsFile::StartRecord RunReports::start_record(std::int64_t step) const {
  const Config& config = of_.config;
  const std::int64_t num_ranks = of_.mesh.num_ranks();
  MetricsFile::StartRecord record;
  record.step = step;
  record.last_step = config.schedule.steps;
  record.num_ranks = num_ranks;
  record.device = fmt::format("{} rank{} of {} ({}), {}",
                              num_ranks,
                              num_ranks == 1 ? "" : "s",
                              name_of(of_.device),
                              device_info(of_.device).name,
                              name_of(of_.compute));
  for (const Axis axis : kAxes) {
    if (of_.mesh.degree(axis) > 1) {
      record.layout += fmt::format(
          "{}{} {}", record.layout.empty() ? "" : ", ", name_of(axis), of_.mesh.degree(axis));
    }
  }
  record.parameters = of_.plan.parameters.num_parameters;
  record.flops_per_token = flops_;
  record.hardware_flops_per_token = flops_.halved + recompute_cost(config.model,
                                                                   config.batch.sequence_length,
                                                                   of_.compute,
                                                                   of_.plan.activations.recompute)
                                                        .flops;
  record.peak_flops_per_second = peak_;
  record.memory = of_.plan.memory;
  return record;
}

void RunReports::observe(const Step& step) {
  say_epochs(step);
  samples_ = step.samples;
  record_ = {};
  record_.step = step.step;
  record_.result = step.result;
  record_.samples = step.samples;
  record_.seconds = step.result.seconds;
  record_.learning_rate =
      learning_rate(of_.config.schedule, of_.config.optimizer.learning_rate, step.step);
  record_.model_flops_per_second =
      static_cast<double>(step.result.tokens) * flops_.halved / record_.seconds;
  report_.write([&](MetricsFile& metrics) { metrics.write_step(record_); });
  smoothed_seconds_ = smoothed_seconds_ == 0
                          ? record_.seconds
                          : kSmoothing * smoothed_seconds_ + (1 - kSmoothing) * record_.seconds;
  if (leads_) {
    progress_->update(step.step, live_note(record_, smoothed_seconds_, flops_, peak_));
  }
}

void RunReports::say_epochs(const Step& step) const {
  const std::vector<TrainingSource>& sources = of_.dataset.sources;
  for (std::size_t i = 0; leads_ && i < sources.size(); ++i) {
    const auto before = static_cast<std::uint64_t>(of_.loader.epochs(i, step.samples_before));
    const auto now = static_cast<std::uint64_t>(of_.loader.epochs(i, step.samples));
    if (now > before) {
      log_info("step {}  {} begins epoch {}, of {} samples",
               step.step,
               sources[i].name.empty() ? std::string("data.train") : sources[i].name,
               now + 1,
               of_.loader.num_samples(i));
    }
  }
}

void RunReports::say(std::int64_t step) {
  const std::int64_t last_step = of_.config.schedule.steps;
  if (leads_ &&
      (step == last_step || (due(step, of_.config.metrics.every) && !Progress::is_live()))) {
    log_info("{}", progress_line(record_, last_step, smoothed_seconds_, flops_, peak_));
  }
}

void RunReports::describe(const Step& step) {
  describe_routing(step);
  describe_gpus(step);
}

void RunReports::describe_routing(const Step& step) {
  const Routing routing = of_.train_step.routing();
  const RankTimes ranks = of_.train_step.rank_times(step.result);
  for (const SlowRankWatch::News& news : slow_rank_watch_.observe(ranks.seconds)) {
    const std::string host =
        text_of_rank(of_.groups.all_host(), news.rank, host_name(), "step.slow_rank");
    if (leads_ && news.slow) {
      log_warning(
          "step {}: rank {} on {} is slow: its own work takes {:.3g} s a step, where the median of "
          "all ranks is {:.3g} s with a deviation of {:.2g} s; see what `memphis doctor` says of "
          "that machine",
          step.step,
          news.rank,
          host,
          news.seconds,
          news.spread.median,
          news.spread.deviation);
    } else if (leads_) {
      log_warning(
          "step {}: rank {} on {} is as fast as the others again", step.step, news.rank, host);
    }
  }
  if (!leads_) {
    return;
  }
  report_.write([&](MetricsFile& metrics) { metrics.write_routing(step.step, routing, ranks); });
  for (const RouterWatch::News& news : router_watch_.observe(routing)) {
    if (news.collapsed) {
      log_warning(
          "step {}: the router of layer {} has collapsed: its tokens go to as few as {:.1f} of {} "
          "experts would take, below {:.1f}; raise loss.balance, or lower optimizer.learning_rate",
          step.step,
          news.layer,
          news.effective_experts,
          routing.num_experts,
          router_watch_.limit());
    } else {
      log_warning(
          "step {}: the router of layer {} spreads its tokens again, over {:.1f} of {} experts",
          step.step,
          news.layer,
          news.effective_experts,
          routing.num_experts);
    }
  }
}

void RunReports::describe_gpus(const Step& step) {
  if (!gpu_) {
    return;
  }
  Communicator& all = of_.groups.all_host();
  std::vector<std::int64_t> words(static_cast<std::size_t>(all.size()) * kReadingWords);
  encode(gpu_->read(),
         std::span(words).subspan(static_cast<std::size_t>(all.rank()) * kReadingWords,
                                  kReadingWords));
  sum_over_ranks(all, words, "step.gpus");
  const GpuSummary gpus = summarize(words);
  if (!leads_ || gpus.num_readings == 0) {
    return;
  }
  const double tokens = static_cast<double>(step.samples - samples_said_) *
                        static_cast<double>(of_.config.batch.sequence_length);
  const double joules = gpus.joules - joules_said_;
  joules_said_ = gpus.joules;
  samples_said_ = step.samples;
  report_.write([&](MetricsFile& metrics) {
    metrics.write_gpus(step.step, gpus, tokens > 0 ? joules / tokens : 0);
  });
}

void RunReports::validate(std::int64_t step, const GivesUp& gives_up) {
  of_.world.activity().enter("validation");
  const double elapsed = elapsed_seconds();
  std::vector<Evaluator::Result> results;
  for (std::size_t set = 0; set < evaluator_->num_sets(); ++set) {
    const std::optional<Evaluator::Result> result = evaluator_->run(set, gives_up);
    if (!result) {
      return;
    }
    results.push_back(*result);
  }
  if (!leads_) {
    return;
  }
  for (std::size_t set = 0; set < results.size(); ++set) {
    const Evaluator::Result& result = results[set];
    const std::string& name = of_.dataset.validation[set].name;
    const std::string of_name = name.empty() ? "" : " of " + name;
    of_.health.observe_validation(step, of_name, result.loss);
    report_.write([&](MetricsFile& metrics) {
      metrics.write_validation(step, name, result.loss, result.targets, elapsed);
    });
    log_info("step {}  validation loss{} {:.4f} nats a token, over {} tokens  (after {:.0f} s)",
             step,
             of_name,
             result.loss,
             result.targets,
             elapsed);
  }
}

void RunReports::evaluate(std::int64_t step, const GivesUp& gives_up) {
  of_.world.activity().enter("evaluation");
  const std::optional<QuestionScores> scores = questions_->run(gives_up);
  if (!scores || !leads_) {
    return;
  }
  report_.write([&](MetricsFile& metrics) { metrics.write_evaluation(step, *scores); });
  log_info("step {}  accuracy {:.4f}, {:.4f} by mean log-probability a byte, over {} questions",
           step,
           scores->accuracy,
           scores->accuracy_normalised,
           scores->num_questions);
}

void RunReports::sample(std::int64_t step, const GivesUp& gives_up) {
  const MetricsConfig& metrics = of_.config.metrics;
  of_.world.activity().enter("sampling");
  bool gave_up = false;
  const std::string text =
      generate_text(*sampler_,
                    metrics.sample_prompt,
                    {.num_tokens = metrics.sample_tokens,
                     .temperature = metrics.sample_temperature,
                     .seed = static_cast<std::uint64_t>(of_.config.run.seed + step),
                     .tokenizer = of_.dataset.tokenizer.get(),
                     .gives_up = [&] { return gave_up = gave_up || gives_up(); }});
  if (gave_up || !leads_) {
    return;
  }
  report_.write([&](MetricsFile& file) { file.write_sample(step, text); });
  log_info("step {}  sample: {}", step, printable(metrics.sample_prompt + text));
}

void RunReports::say_energy() const {
  if (!leads_ || joules_said_ <= 0) {
    return;
  }
  constexpr double kJoulesPerKwh = 3.6e6;
  log_info("GPUs took {:.4g} kWh, {:.4g} J a token",
           joules_said_ / kJoulesPerKwh,
           joules_said_ / (static_cast<double>(samples_ - first_sample_) *
                           static_cast<double>(of_.config.batch.sequence_length)));
}

}  // namespace memphis
