// SPDX-License-Identifier: Apache-2.0
#include "tests/plan/published/published_runs.h"

#include <cmath>
#include <fstream>
#include <map>
#include <sstream>
#include <stdexcept>

#include <spdlog/fmt/fmt.h>

#include "csrc/plan/run_work.h"

namespace memphis::test {
namespace {

using Row = std::map<std::string, std::string>;

std::vector<std::string> split(const std::string& text, char at) {
  std::vector<std::string> words;
  std::stringstream stream(text);
  for (std::string word; std::getline(stream, word, at);) {
    words.push_back(word);
  }
  return words;
}

std::vector<Row> read_table(const std::filesystem::path& file) {
  std::ifstream stream(file);
  if (!stream) {
    throw std::runtime_error("there is no table " + file.string());
  }
  std::vector<std::string> names;
  std::vector<Row> rows;
  int number = 0;
  for (std::string line; std::getline(stream, line);) {
    ++number;
    if (line.empty() || line.starts_with('#')) {
      continue;
    }
    const std::vector<std::string> words = split(line, ',');
    if (names.empty()) {
      names = words;
      continue;
    }
    if (words.size() != names.size()) {
      throw std::runtime_error(fmt::format(
          "{}:{}: {} values for {} columns", file.string(), number, words.size(), names.size()));
    }
    Row& row = rows.emplace_back();
    for (std::size_t i = 0; i < names.size(); ++i) {
      row[names[i]] = words[i];
    }
  }
  return rows;
}

std::int64_t whole(const Row& row, const std::string& column) {
  std::size_t used = 0;
  const std::string& text = row.at(column);
  const std::int64_t value = std::stoll(text, &used);
  if (used != text.size()) {
    throw std::runtime_error(column + " is " + text);
  }
  return value;
}

ModelShape model_of(const Row& row) {
  return {.num_layers = whole(row, "layers"),
          .d_model = whole(row, "d"),
          .num_heads = whole(row, "heads"),
          .num_kv_heads = whole(row, "kv"),
          .head_dim = whole(row, "head_dim"),
          .value_dim = whole(row, "value_dim"),
          .query_rank = whole(row, "q_rank"),
          .key_value_rank = whole(row, "kv_rank"),
          .rotated_dim = whole(row, "rotated"),
          .window = whole(row, "window"),
          .vocab_size = whole(row, "vocab"),
          .gated = whole(row, "gated") == 1,
          .dense_layers = whole(row, "dense_layers"),
          .experts_every = whole(row, "experts_every"),
          .dense_ffn_dim = whole(row, "dense_ffn"),
          .shared_ffn_dim = whole(row, "shared_ffn"),
          .expert_ffn_dim = whole(row, "expert_ffn"),
          .num_experts = whole(row, "experts"),
          .experts_per_token = whole(row, "chosen"),
          .nodes_of_token = whole(row, "nodes"),
          .predicted_layers = whole(row, "predicted")};
}

Techniques techniques_of(const std::string& words) {
  Techniques t;
  const std::map<std::string, bool Techniques::*> switches = {
      {"older_attention", &Techniques::older_attention},
      {"eager", &Techniques::eager},
      {"tensor_overlap", &Techniques::tensor_overlap},
      {"expert_overlap", &Techniques::expert_overlap},
      {"one_row_a_node", &Techniques::one_row_a_node},
      {"routed", &Techniques::routed},
      {"sharded_weights", &Techniques::sharded_weights},
      {"experts_as_tensor", &Techniques::experts_as_tensor}};
  for (const std::string& word : split(words, ' ')) {
    if (const auto found = switches.find(word); found != switches.end()) {
      t.*found->second = true;
    } else if (word == "bf16") {
      t.products = Products::bf16;
    } else if (word == "fp8") {
      t.products = Products::fp8;
    } else if (word == "gradients16") {
      t.gradient_bytes = 2;
    } else if (word == "again_streams") {
      t.again_streams = 1;
    } else if (word == "again_half") {
      t.again_products = 0.5;
      t.again_streams = 1;
    } else if (word == "again_all") {
      t.again_products = 1;
      t.again_scores = 1;
      t.again_streams = 1;
      t.again_exchanges = true;
    } else {
      throw std::runtime_error("there is no technique " + word);
    }
  }
  return t;
}

PublishedRun run_of(const Row& row, const std::map<std::string, ModelShape>& models) {
  PublishedRun run{.name = row.at("run"),
                   .source = row.at("source"),
                   .model = row.at("model"),
                   .machine = row.at("machine"),
                   .description = {}};
  RunDescription& description = run.description;
  description.model = models.at(run.model);
  description.num_ranks = whole(row, "gpus");
  ParallelConfig& p = description.parallel;
  p.tensor = whole(row, "tensor");
  p.pipeline = whole(row, "pipeline");
  p.chunks = whole(row, "chunks");
  p.context = whole(row, "context");
  p.expert = whole(row, "expert");
  p.expert_tensor = whole(row, "expert_tensor");
  p.schedule = p.chunks > 1 ? ScheduleKind::interleaved : ScheduleKind::one_f_one_b;
  p.data = description.num_ranks / (p.tensor * p.pipeline * p.context);
  description.batch = {.sequence_length = whole(row, "sequence"),
                       .micro_batch = whole(row, "micro_batch"),
                       .global_batch = whole(row, "global_batch")};
  description.techniques = techniques_of(row.at("techniques"));
  // Megatron's pipeline without chunks waits for its messages.
  description.techniques.message_overlap = p.chunks > 1;

  const double measured = std::stod(row.at("measured"));
  const std::string& unit = row.at("unit");
  const DescribedFlops flops =
      flops_per_token(description.model, description.batch.sequence_length);
  const double tokens = description.step_tokens() / static_cast<double>(description.num_ranks);
  if (unit == "seconds") {
    run.measured_seconds = measured;
  } else if (unit == "tokens") {
    run.measured_seconds = tokens / measured;
  } else if (unit == "tflops") {
    run.measured_seconds = tokens * flops.halved / (measured * 1e12);
  } else if (unit == "tflops_unhalved") {
    run.measured_seconds = tokens * flops.unhalved / (measured * 1e12);
  } else {
    throw std::runtime_error("there is no unit " + unit);
  }
  return run;
}

}  // namespace

std::vector<PublishedRun> read_published_runs(const std::filesystem::path& runs,
                                              const std::filesystem::path& models) {
  std::map<std::string, ModelShape> shapes;
  for (const Row& row : read_table(models)) {
    shapes[row.at("model")] = model_of(row);
  }
  std::vector<PublishedRun> result;
  for (const Row& row : read_table(runs)) {
    try {
      result.push_back(run_of(row, shapes));
    } catch (const std::exception& error) {
      throw std::runtime_error(
          fmt::format("{}: run {}: {}", runs.string(), row.at("run"), error.what()));
    }
  }
  return result;
}

std::vector<PredictedRun> predict(const std::vector<PublishedRun>& runs,
                                  const std::filesystem::path& machines,
                                  const TimeConstants& constants) {
  std::map<std::string, Machine> known;
  std::vector<PredictedRun> result;
  for (const PublishedRun& run : runs) {
    if (!known.contains(run.machine)) {
      known[run.machine] = load_machine(find_machine(run.machine, {machines}));
    }
    result.push_back({run, step_time(run_work(run.description), known.at(run.machine), constants)});
  }
  return result;
}

double mean_error(const std::vector<PredictedRun>& runs) {
  double total = 0;
  for (const PredictedRun& each : runs) {
    total += std::abs(each.error());
  }
  return total / static_cast<double>(runs.size());
}

std::string table_of(const std::vector<PredictedRun>& runs) {
  std::string text =
      "| run | source | model | GPUs | products | measured, s | predicted, s | error |\n"
      "| --- | --- | --- | ---: | --- | ---: | ---: | ---: |\n";
  for (const PredictedRun& each : runs) {
    const PublishedRun& run = each.run;
    text += fmt::format("| {} | {} | {} | {} | {} | {:.3f} | {:.3f} | {:+.1f} % |\n",
                        run.name,
                        run.source,
                        run.model,
                        run.description.num_ranks,
                        run.description.techniques.products == Products::fp8 ? "fp8" : "bf16",
                        run.measured_seconds,
                        each.time.seconds,
                        100 * each.error());
  }
  return text + fmt::format("\n{} runs, mean of the absolute errors {:.2f} %\n",
                            runs.size(),
                            100 * mean_error(runs));
}

}  // namespace memphis::test
