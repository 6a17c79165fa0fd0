// SPDX-License-Identifier: Apache-2.0
#include "csrc/train/metrics.h"

#include <cmath>

#include <nlohmann/json.hpp>
#include <spdlog/fmt/fmt.h>

#include "csrc/core/error.h"
#include "csrc/core/file.h"

namespace memphis {
namespace {

// The lines of an earlier process that stay: whole ones, of steps up to `last_step`.
std::string kept_lines(const std::string& text, std::int64_t last_step) {
  std::string kept;
  std::size_t begin = 0;
  for (std::size_t end = text.find('\n'); end != std::string::npos;
       begin = end + 1, end = text.find('\n', begin)) {
    const std::string line = text.substr(begin, end - begin);
    const auto object = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (object.is_object() && object.value("step", std::int64_t{0}) <= last_step) {
      kept += line + "\n";
    }
  }
  return kept;
}

std::string duration(double seconds) {
  const auto whole = static_cast<std::int64_t>(std::llround(seconds));
  if (whole < 60) {
    return fmt::format("{}s", whole);
  }
  if (whole < 3600) {
    return fmt::format("{}m{:02}s", whole / 60, whole % 60);
  }
  return fmt::format("{}h{:02}m", whole / 3600, whole / 60 % 60);
}

}  // namespace

MetricsFile::MetricsFile(const std::filesystem::path& path, std::int64_t resumed_step)
    : path_(path) {
  if (std::filesystem::exists(path)) {
    const std::string text = read_text(path);
    const std::string kept = kept_lines(text, resumed_step);
    if (kept != text) {
      write_text_atomically(path, kept);
    }
  }
  file_.open(path, std::ios::app);
  if (!file_) {
    throw PreflightError("cannot open " + path.string() +
                         " for writing; check run.dir and its permissions");
  }
}

void MetricsFile::write_line(const std::string& line) {
  file_ << line << '\n' << std::flush;
  if (!file_) {
    throw PreflightError("cannot write " + path_.string() +
                         " (disk full, or it was removed); free space and start again, the run "
                         "resumes from its last checkpoint");
  }
}

void MetricsFile::write_step(const StepRecord& record) {
  const StepResult& result = record.result;
  nlohmann::ordered_json line = {
      {"step", record.step},
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
  write_line(line.dump());
}

void MetricsFile::write_validation(std::int64_t step,
                                   double loss,
                                   std::int64_t targets,
                                   double elapsed_seconds) {
  const nlohmann::ordered_json line = {{"step", step},
                                       {"validation_loss", loss},
                                       {"validation_targets", targets},
                                       {"elapsed_seconds", elapsed_seconds}};
  write_line(line.dump());
}

void MetricsFile::write_sample(std::int64_t step, std::string_view text) {
  const nlohmann::ordered_json line = {{"step", step}, {"sample", text}};
  // A sample of bytes need not be UTF-8.
  write_line(line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
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

std::string progress_line(const MetricsFile::StepRecord& record,
                          std::int64_t last_step,
                          double seconds_per_step,
                          const ModelFlops& flops_per_token,
                          std::optional<double> peak) {
  const double tokens_per_second = static_cast<double>(record.result.tokens) / seconds_per_step;
  const double flops_per_second = tokens_per_second * flops_per_token.halved;
  const std::string rate =
      peak ? fmt::format("MFU {:.1f}% ({:.1f}% un-halved)",
                         100 * flops_per_second / *peak,
                         100 * tokens_per_second * flops_per_token.unhalved / *peak)
           : fmt::format("{:.1f} GFLOP/s", flops_per_second * 1e-9);
  return fmt::format(
      "step {}/{}  loss {:.4f}  grad {:.3f}  lr {:.2e}  load {:.2f}  {:.0f} tok/s  {}  "
      "eta {}",
      record.step,
      last_step,
      record.result.loss,
      record.result.grad_norm,
      record.learning_rate,
      record.result.expert_load_max,
      tokens_per_second,
      rate,
      duration(seconds_per_step * static_cast<double>(last_step - record.step)));
}

}  // namespace memphis
