// SPDX-License-Identifier: Apache-2.0
#include "csrc/train/metrics.h"

#include <array>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <ctime>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <spdlog/fmt/fmt.h>

#include "csrc/core/error.h"
#include "csrc/core/file.h"
#include "csrc/core/file_calls.h"
#include "csrc/core/json.h"
#include "csrc/core/log.h"
#include "csrc/core/printable.h"
#include "csrc/core/progress.h"

namespace memphis {
namespace {

// Calls visit(line, object) with each whole line that holds an object.
template <class Visit>
void visit_lines(const std::string& text, const Visit& visit) {
  std::size_t begin = 0;
  for (std::size_t end = text.find('\n'); end != std::string::npos;
       begin = end + 1, end = text.find('\n', begin)) {
    const std::string line = text.substr(begin, end - begin);
    const auto object = parse_json(line);
    if (object && object->is_object()) {
      visit(line, *object);
    }
  }
}

std::int64_t step_of(const nlohmann::json& object) {
  return member_or(object, "step", std::int64_t{0});
}

// The lines of an earlier process that stay: whole ones, of steps up to `last_step`.
// Those of starts and ends stay in any case, or nobody would know of them.
std::string kept_lines(const std::string& text,
                       std::int64_t last_step,
                       std::int64_t& num_dropped_steps) {
  std::string kept;
  visit_lines(text, [&](const std::string& line, const nlohmann::json& object) {
    if (step_of(object) <= last_step || object.contains("steps_again") || object.contains("end")) {
      kept += line + "\n";
    } else if (object.contains("loss")) {
      ++num_dropped_steps;
    }
  });
  return kept;
}

// "2026-01-31T23:59:59.123Z", the time now: the same text in every time zone.
std::string utc_now() {
  const auto now = std::chrono::floor<std::chrono::milliseconds>(std::chrono::system_clock::now());
  const std::time_t seconds = std::chrono::system_clock::to_time_t(now);
  std::tm utc{};
  gmtime_r(&seconds, &utc);
  return fmt::format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
                     utc.tm_year + 1900,
                     utc.tm_mon + 1,
                     utc.tm_mday,
                     utc.tm_hour,
                     utc.tm_min,
                     utc.tm_sec,
                     now.time_since_epoch().count() % 1000);
}

}  // namespace

MetricsFile::MetricsFile(const std::filesystem::path& path, std::int64_t resumed_step)
    : resumed_step_(resumed_step) {
  if (std::filesystem::exists(path)) {
    const std::string text = read_text(path);
    const std::string kept = kept_lines(text, resumed_step, steps_again_);
    if (kept != text) {
      write_text_atomically(path, kept);
    }
  }
  constexpr mode_t kMode = 0666;  // less the umask
  Descriptor descriptor = open_path(path, O_WRONLY | O_CREAT | O_APPEND, kMode);
  if (!descriptor.is_open()) {
    throw PreflightError(
        fmt::format("cannot open {} for writing ({}); check run.dir and its "
                    "permissions",
                    path.string(),
                    system_reason(errno)));
  }
  lines_ = RecordFile(std::move(descriptor), path);
}

void MetricsFile::also_to_tensorboard(const std::filesystem::path& dir) {
  events_.emplace(dir, resumed_step_ + 1);
  events_->set_without_room(without_room_);
}

void MetricsFile::set_without_room(RecordFile::WithoutRoom without_room) {
  without_room_ = without_room;
  lines_.set_without_room(without_room);
  if (events_) {
    events_->set_without_room(without_room);
  }
}

void MetricsFile::require_written() {
  lines_.require_written();
  if (events_) {
    events_->require_written();
  }
}

void MetricsFile::write_line(std::string line) {
  line += '\n';
  lines_.append(line);
}

void MetricsFile::write_step(const StepRecord& record) {
  const StepResult& result = record.result;
  nlohmann::ordered_json line = {
      {"step", record.step},
      {"time", utc_now()},
      {"loss", result.loss},
      {"balance_loss", result.balance},
      {"router_z_loss", result.router_z},
      {"grad_norm", result.grad_norm},
      {"learning_rate", record.learning_rate},
      {"expert_load_max", result.expert_load_max},
      {"tokens", result.tokens},
      {"samples", record.samples},
      {"seconds", record.seconds},
      {"tokens_per_second", static_cast<double>(result.tokens) / record.seconds},
      {"model_flops_per_second", record.model_flops_per_second},
      {"data_seconds", result.data_seconds},
      {"model_seconds", result.model_seconds},
      {"optimizer_seconds", result.optimizer_seconds}};
  if (result.communication) {
    line["communication_seconds"] = result.communication->seconds;
    line["exposed_seconds"] = result.communication->exposed_seconds;
  }
  if (result.context_imbalance) {
    line["context_imbalance"] = *result.context_imbalance;
  }
  if (result.skipped) {
    line["skipped"] = true;
    // Of a step that was left out there may be numbers that JSON has none for.
    for (const char* key : {"loss", "balance_loss", "router_z_loss", "grad_norm"}) {
      if (!std::isfinite(line[key].get<double>())) {
        line.erase(key);
      }
    }
  }
  write_line(line.dump());
  if (events_) {
    std::vector<EventFile::Scalar> scalars;
    for (const auto& [key, value] : line.items()) {
      if (value.is_number() && key != "step") {
        scalars.push_back({key, value.get<double>()});
      }
    }
    events_->write_scalars(record.step, scalars);
  }
}

void MetricsFile::write_start(const StartRecord& record) {
  const MemoryPlan& memory = record.memory;
  nlohmann::ordered_json line = {
      {"step", record.step},
      {"time", utc_now()},
      {"steps_again", steps_again_},
      {"last_step", record.last_step},
      {"ranks", record.num_ranks},
      {"device", record.device},
      {"layout", record.layout},
      {"parameters", record.parameters},
      {"model_flops_per_token", record.flops_per_token.halved},
      {"model_flops_per_token_unhalved", record.flops_per_token.unhalved},
      {"hardware_flops_per_token", record.hardware_flops_per_token}};
  if (record.peak_flops_per_second) {
    line["peak_flops_per_second"] = *record.peak_flops_per_second;
  }
  line["memory"] = {{"weights", memory.weights_bytes},
                    {"gradients", memory.gradients_bytes},
                    {"master weights", memory.master_bytes},
                    {"moments", memory.moments_bytes},
                    {"activations", memory.activations_bytes},
                    {"workspace", memory.workspace_bytes},
                    {"library workspace", memory.library_bytes},
                    {"communication", memory.communication_bytes},
                    {"sampling", memory.sampling_bytes},
                    {"host", memory.host.total_bytes()}};
  write_line(line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
}

void MetricsFile::write_routing(std::int64_t step, const Routing& routing, const RankTimes& ranks) {
  // Three digits say all that a plot shows, in a third of the room.
  const auto rounded = [](double value) { return std::round(value * 1e3) / 1e3; };
  const auto list = [&](const std::vector<double>& values) {
    nlohmann::ordered_json array = nlohmann::ordered_json::array();
    for (const double value : values) {
      array.push_back(rounded(value));
    }
    return array;
  };
  nlohmann::ordered_json loads = nlohmann::ordered_json::array();
  const auto experts = static_cast<std::size_t>(routing.num_experts);
  for (std::size_t begin = 0; begin < routing.load_LE.size(); begin += experts) {
    const auto first = routing.load_LE.begin() + static_cast<std::ptrdiff_t>(begin);
    loads.push_back(list({first, first + static_cast<std::ptrdiff_t>(experts)}));
  }
  const nlohmann::ordered_json line = {{"step", step},
                                       {"time", utc_now()},
                                       {"expert_load", loads},
                                       {"effective_experts", list(routing.effective_experts)},
                                       {"router_entropy", list(routing.entropy)},
                                       {"kept_probability", list(routing.kept_probability)},
                                       {"dropped_tokens", 0},
                                       {"slowest_rank", ranks.slowest_rank},
                                       {"slowest_rank_seconds", ranks.slowest_seconds},
                                       {"median_rank_seconds", ranks.median_seconds}};
  write_line(line.dump());
  if (events_) {
    std::vector<EventFile::Histogram> histograms;
    std::vector<EventFile::Scalar> scalars;
    for (std::size_t layer = 0; layer < routing.effective_experts.size(); ++layer) {
      const auto first = routing.load_LE.begin() + static_cast<std::ptrdiff_t>(layer * experts);
      histograms.push_back({fmt::format("expert_load/layer_{}", layer),
                            {first, first + static_cast<std::ptrdiff_t>(experts)}});
    }
    events_->write_histograms(step, histograms);
    std::vector<std::string> tags;
    for (std::size_t layer = 0; layer < routing.effective_experts.size(); ++layer) {
      tags.push_back(fmt::format("effective_experts/layer_{}", layer));
      tags.push_back(fmt::format("router_entropy/layer_{}", layer));
    }
    for (std::size_t layer = 0; layer < routing.effective_experts.size(); ++layer) {
      scalars.push_back({tags[2 * layer], routing.effective_experts[layer]});
      scalars.push_back({tags[2 * layer + 1], routing.entropy[layer]});
    }
    events_->write_scalars(step, scalars);
  }
}

void MetricsFile::write_gpus(std::int64_t step, const GpuSummary& gpus, double joules_per_token) {
  const nlohmann::ordered_json line = {
      {"step", step},
      {"time", utc_now()},
      {"gpu_watts", gpus.watts},
      {"gpu_joules", gpus.joules},
      {"joules_per_token", joules_per_token},
      {"gpu_celsius_max", gpus.hottest_celsius},
      {"hottest_rank", gpus.hottest_rank},
      {"gpu_mhz_min", gpus.slowest_mhz},
      {"slowest_clock_rank", gpus.slowest_rank},
      {"throttled_rank", gpus.throttled_rank},
      {"throttle_reasons", describe_throttle(gpus.throttle_reasons)}};
  write_line(line.dump());
}

void MetricsFile::write_end(std::int64_t step, bool done, std::string_view reason) {
  const nlohmann::ordered_json line = {
      {"step", step}, {"time", utc_now()}, {"end", reason}, {"done", done}};
  write_line(line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
}

void MetricsFile::write_validation(std::int64_t step,
                                   std::string_view set,
                                   double loss,
                                   std::int64_t targets,
                                   double elapsed_seconds) {
  nlohmann::ordered_json line = {{"step", step}, {"time", utc_now()}};
  if (!set.empty()) {
    line["validation_set"] = set;
  }
  line["validation_loss"] = loss;
  line["validation_targets"] = targets;
  line["elapsed_seconds"] = elapsed_seconds;
  write_line(line.dump());
  if (events_) {
    const std::string tag =
        set.empty() ? "validation_loss" : fmt::format("validation_loss/{}", set);
    const EventFile::Scalar scalar{tag, loss};
    events_->write_scalars(step, {&scalar, 1});
  }
}

void MetricsFile::write_evaluation(std::int64_t step, const QuestionScores& scores) {
  const nlohmann::ordered_json line = {{"step", step},
                                       {"time", utc_now()},
                                       {"accuracy", scores.accuracy},
                                       {"accuracy_normalised", scores.accuracy_normalised},
                                       {"questions", scores.num_questions}};
  write_line(line.dump());
  if (events_) {
    const std::array scalars = {
        EventFile::Scalar{"accuracy", scores.accuracy},
        EventFile::Scalar{"accuracy_normalised", scores.accuracy_normalised}};
    events_->write_scalars(step, scalars);
  }
}

void MetricsFile::write_sample(std::int64_t step, std::string_view text) {
  const nlohmann::ordered_json line = {{"step", step}, {"time", utc_now()}, {"sample", text}};
  // A sample of bytes need not be UTF-8.
  write_line(line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
  if (events_) {
    events_->write_text(step, "sample", printable(text, Lines::kept));
  }
}

StepLines lines_of_step(const std::filesystem::path& path, std::int64_t step) {
  StepLines lines;
  if (std::filesystem::exists(path)) {
    visit_lines(read_text(path), [&](const std::string& /*line*/, const nlohmann::json& object) {
      if (step_of(object) == step) {
        lines.step = lines.step || object.contains("loss");
        lines.validation = lines.validation || object.contains("validation_loss");
        lines.evaluation = lines.evaluation || object.contains("accuracy");
        lines.sample = lines.sample || object.contains("sample");
      }
    });
  }
  return lines;
}

void Report::open(const std::filesystem::path& path,
                  std::int64_t resumed_step,
                  RecordFile::WithoutRoom without_room,
                  std::function<void()> check) {
  file_.emplace(path, resumed_step);
  file_->set_without_room(without_room);
  check_ = std::move(check);
}

void Report::rethrow() const {
  if (failure_) {
    std::rethrow_exception(failure_);
  }
}

std::optional<double> peak_flops_per_second(Device device, int num_ranks) {
  if (device == Device::cpu) {
    return std::nullopt;
  }
  // Dense bf16 peaks of the SXM parts, from NVIDIA's data sheets.
  switch (device_info(device).compute_capability) {
    case 80:
      return 312e12 * num_ranks;
    case 90:
      return 989e12 * num_ranks;
    default:
      return std::nullopt;
  }
}

std::string describe_flops(const MetricsFile::StartRecord& record) {
  const auto giga = [](double flops) { return fmt::format("{:.4g} GFLOP", flops * 1e-9); };
  return fmt::format(
      "a token takes {} forward and backward, attention counted by its causal half ({} by the "
      "whole "
      "square; {} with what is computed again); {}",
      giga(record.flops_per_token.halved),
      giga(record.flops_per_token.unhalved),
      giga(record.hardware_flops_per_token),
      record.peak_flops_per_second
          ? fmt::format("MFU = that * tokens/s / {:.4g} TFLOP/s, the dense bf16 peak of all ranks",
                        *record.peak_flops_per_second * 1e-12)
          : "the peak of this device is not known, so there is no MFU");
}

namespace {

// "12034 tok/s  MFU 41.2% (44.0% un-halved)", or GFLOP/s where the peak is not known.
std::string rate_text(double tokens_per_second,
                      const ModelFlops& flops_per_token,
                      std::optional<double> peak) {
  const double flops_per_second = tokens_per_second * flops_per_token.halved;
  const std::string rate =
      peak ? fmt::format("MFU {:.1f}% ({:.1f}% un-halved)",
                         100 * flops_per_second / *peak,
                         100 * tokens_per_second * flops_per_token.unhalved / *peak)
           : fmt::format("{:.1f} GFLOP/s", flops_per_second * 1e-9);
  return fmt::format("{:.0f} tok/s  {}", tokens_per_second, rate);
}

}  // namespace

std::string progress_line(const MetricsFile::StepRecord& record,
                          std::int64_t last_step,
                          double seconds_per_step,
                          const ModelFlops& flops_per_token,
                          std::optional<double> peak) {
  return fmt::format(
      "step {}/{}  loss {:.4f}  grad {:.3f}  lr {:.2e}  busiest expert {:.2f}x{}  {}  eta {}",
      record.step,
      last_step,
      record.result.loss,
      record.result.grad_norm,
      record.learning_rate,
      record.result.expert_load_max,
      record.result.context_imbalance
          ? fmt::format("  busiest context rank {:.2f}x", *record.result.context_imbalance)
          : std::string(),
      rate_text(
          static_cast<double>(record.result.tokens) / seconds_per_step, flops_per_token, peak),
      short_duration(seconds_per_step * static_cast<double>(last_step - record.step)));
}

std::string live_note(const MetricsFile::StepRecord& record,
                      double seconds_per_step,
                      const ModelFlops& flops_per_token,
                      std::optional<double> peak) {
  return fmt::format(
      "loss {:.4f}  {}",
      record.result.loss,
      rate_text(
          static_cast<double>(record.result.tokens) / seconds_per_step, flops_per_token, peak));
}

}  // namespace memphis
