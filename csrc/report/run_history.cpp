// SPDX-License-Identifier: Apache-2.0
#include "csrc/report/run_history.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <ctime>
#include <fstream>
#include <limits>
#include <map>

#include <spdlog/fmt/fmt.h>

#include "csrc/config/load.h"
#include "csrc/core/error.h"
#include "csrc/core/file.h"
#include "csrc/core/json.h"
#include "csrc/core/progress.h"
#include "csrc/train/routing.h"
#include "csrc/train/run_lock.h"

namespace memphis {
namespace {

constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
// A heat map has no more columns than this many pixels have.
constexpr std::size_t kMaxLooks = 2048;
// Whole numbers are exact below it.
constexpr double kMaxStep = 9e15;
// A rank is slow that works so many times as long as the one in the middle.
constexpr double kSlow = 1.2;

constexpr std::array<std::string_view, kNumColumns> kKeys = {"loss",
                                                             "balance_loss",
                                                             "router_z_loss",
                                                             "grad_norm",
                                                             "learning_rate",
                                                             "expert_load_max",
                                                             "tokens",
                                                             "seconds",
                                                             "tokens_per_second",
                                                             "model_flops_per_second",
                                                             "data_seconds",
                                                             "model_seconds",
                                                             "optimizer_seconds",
                                                             "communication_seconds",
                                                             "exposed_seconds"};

using Json = nlohmann::json;

// JSON has no NaN: it is null there, and other writers write it out.
double number(const Json& object, std::string_view key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_number() ? found->get<double>() : kNone;
}

double number_or(const Json& object, std::string_view key, double otherwise) {
  const double value = number(object, key);
  return std::isnan(value) ? otherwise : value;
}

std::int64_t whole(const Json& object, std::string_view key) {
  const double value = number_or(object, key, 0);
  // Whatever a damaged file says, it is to be a whole number.
  return std::abs(value) < kMaxStep ? static_cast<std::int64_t>(value) : 0;
}

std::string text_of(const Json& object, std::string_view key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_string() ? found->get<std::string>() : "";
}

std::vector<float> list_of(const Json& value) {
  std::vector<float> list;
  if (value.is_array()) {
    for (const Json& element : value) {
      list.push_back(element.is_number() ? element.get<float>()
                                         : std::numeric_limits<float>::quiet_NaN());
    }
  }
  return list;
}

std::vector<float> list_of(const Json& object, std::string_view key) {
  const auto found = object.find(key);
  return found == object.end() ? std::vector<float>{} : list_of(*found);
}

// "2026-01-31T23:59:59.123Z" as seconds since 1970.
double seconds_since_1970(const std::string& text) {
  std::tm utc{};
  double seconds = 0;
  if (std::sscanf(text.c_str(),
                  "%d-%d-%dT%d:%d:%lf",
                  &utc.tm_year,
                  &utc.tm_mon,
                  &utc.tm_mday,
                  &utc.tm_hour,
                  &utc.tm_min,
                  &seconds) != 6) {
    return kNone;
  }
  utc.tm_year -= 1900;
  utc.tm_mon -= 1;
  return static_cast<double>(timegm(&utc)) + seconds;
}

std::optional<Json> parse_line(std::string line) {
  std::optional<Json> value = parse_json(line);
  if (!value) {
    for (const std::string_view word : {"-Infinity", "Infinity", "NaN"}) {
      for (std::size_t at = line.find(word); at != std::string::npos; at = line.find(word)) {
        line.replace(at, word.size(), "null");
      }
    }
    value = parse_json(line);
  }
  return value && value->is_object() ? value : std::nullopt;
}

class Reader {
 public:
  explicit Reader(RunHistory& run) : run_(run) {}

  void read(const std::filesystem::path& path) {
    std::ifstream file(path);
    std::int64_t bytes = 0;
    std::error_code error;
    const auto size = static_cast<std::int64_t>(std::filesystem::file_size(path, error));
    constexpr std::int64_t kMega = 1'000'000;
    Progress progress("read " + run_.name, size / kMega, "MB");
    std::int64_t line_number = 0;
    for (std::string line; std::getline(file, line);) {
      ++line_number;
      bytes += static_cast<std::int64_t>(line.size()) + 1;
      if (line.empty()) {
        continue;
      }
      const bool torn = file.eof();  // the writer may be at it: that is no damage
      const std::optional<Json> object = parse_line(line);
      if ((!object || !take(*object)) && !torn) {
        run_.first_damaged_line = run_.damaged_lines++ == 0 ? line_number : run_.first_damaged_line;
      }
      progress.update(bytes / kMega);
    }
    understand_config(1);
    for (auto& [rank, slow] : slow_) {
      slow.of = looks_;
      run_.slow_ranks.push_back(slow);
    }
    std::sort(run_.slow_ranks.begin(), run_.slow_ranks.end(), [](const auto& a, const auto& b) {
      return a.looks > b.looks;
    });
  }

 private:
  // A config is of so many ranks, which the first start says.
  void understand_config(std::int64_t num_ranks) {
    if (run_.config || run_.config_text.empty()) {
      return;
    }
    try {
      run_.config = parse_config(run_.config_text, "config.yaml", {}, Check::text, num_ranks);
      const ModelConfig& model = run_.config->model;
      watch_.emplace(model.num_layers, model.num_experts, model.experts_per_token);
    } catch (const Error&) {
      // Of another version: what is shown does without.
    }
  }

  bool take(const Json& object) {
    const double step = number(object, "step");
    if (!(step >= 0 && step < kMaxStep)) {
      return false;  // or it is not a number
    }
    if (object.contains("loss")) {
      add_step(step, object);
    } else if (object.contains("validation_loss")) {
      validation_of(text_of(object, "validation_set")).add(step, number(object, "validation_loss"));
    } else if (object.contains("sample")) {
      run_.samples.push_back({whole(object, "step"), text_of(object, "sample")});
    } else if (object.contains("gpu_watts")) {
      add_gpus(step, object);
    } else if (object.contains("expert_load")) {
      add_look(step, object);
    } else if (object.contains("steps_again")) {
      add_start(object);
    } else if (object.contains("accuracy")) {
      run_.accuracy.add(step, number(object, "accuracy"));
    } else if (object.contains("end")) {
      const auto done = object.find("done");
      run_.ends.push_back({whole(object, "step"),
                           text_of(object, "time"),
                           text_of(object, "end"),
                           done != object.end() && done->is_boolean() && done->get<bool>()});
    }
    return true;  // or of a kind that another version writes
  }

  void add_step(double step, const Json& object) {
    // Where a writer has not dropped what is done again, the last word counts.
    if (!run_.steps.empty() && step <= run_.steps.back()) {
      const auto first = std::lower_bound(run_.steps.begin(), run_.steps.end(), step);
      const auto keep = static_cast<std::size_t>(first - run_.steps.begin());
      run_.steps_again += static_cast<std::int64_t>(run_.steps.size() - keep);
      run_.repeated_in_file = true;
      run_.steps.resize(keep);
      run_.clock.resize(keep);
      for (std::vector<double>& column : run_.columns) {
        column.resize(keep);
      }
    }
    run_.steps.push_back(step);
    run_.clock.push_back(seconds_since_1970(text_of(object, "time")));
    for (std::size_t i = 0; i < kNumColumns; ++i) {
      run_.columns[i].push_back(number(object, kKeys[i]));
    }
  }

  Points& validation_of(const std::string& set) {
    if (run_.validation.empty() || run_.validation_set == set) {
      run_.validation_set = set;
      return run_.validation;
    }
    for (auto& [name, points] : run_.more_validation) {
      if (name == set) {
        return points;
      }
    }
    return run_.more_validation.emplace_back(set, Points{}).second;
  }

  void add_start(const Json& object) {
    StartEvent start;
    start.step = whole(object, "step");
    start.time = text_of(object, "time");
    start.steps_again = whole(object, "steps_again");
    start.last_step = whole(object, "last_step");
    start.device = text_of(object, "device");
    start.layout = text_of(object, "layout");
    start.parameters = number_or(object, "parameters", 0);
    start.model_flops_per_token = number_or(object, "model_flops_per_token", 0);
    start.unhalved_flops_per_token = number_or(object, "model_flops_per_token_unhalved", 0);
    start.hardware_flops_per_token = number_or(object, "hardware_flops_per_token", 0);
    start.peak_flops_per_second = number_or(object, "peak_flops_per_second", 0);
    const auto memory = object.find("memory");
    if (memory != object.end() && memory->is_object()) {
      for (const auto& [kind, bytes] : memory->items()) {
        start.memory.emplace_back(kind, bytes.is_number() ? bytes.get<double>() : 0);
      }
    }
    understand_config(std::max<std::int64_t>(whole(object, "ranks"), 1));
    run_.steps_again += start.steps_again;
    run_.starts.push_back(std::move(start));
  }

  void add_gpus(double step, const Json& object) {
    run_.gpu_watts.add(step, number(object, "gpu_watts"));
    run_.gpu_celsius.add(step, number(object, "gpu_celsius_max"));
    run_.gpu_mhz.add(step, number(object, "gpu_mhz_min"));
    run_.joules_per_token.add(step, number(object, "joules_per_token"));
    // A process counts its own.
    const double joules = number_or(object, "gpu_joules", 0);
    run_.joules += joules >= last_joules_ ? joules - last_joules_ : joules;
    last_joules_ = joules;
    if (number_or(object, "throttled_rank", -1) >= 0) {
      if (run_.throttled_looks++ == 0) {
        run_.throttled_step = step;
        run_.throttled = fmt::format(
            "rank {}: {}", whole(object, "throttled_rank"), text_of(object, "throttle_reasons"));
      }
    }
  }

  void add_look(double step, const Json& object) {
    understand_config(1);  // where no start has said more
    RoutingLook look;
    look.step = step;
    const auto loads = object.find("expert_load");
    if (loads->is_array()) {
      for (const Json& layer : *loads) {
        look.load_LE.push_back(list_of(layer));
      }
    }
    look.effective_L = list_of(object, "effective_experts");
    look.entropy_L = list_of(object, "router_entropy");
    look.kept_L = list_of(object, "kept_probability");
    watch(look);
    ++looks_;
    const double slowest = number(object, "slowest_rank_seconds");
    const double median = number(object, "median_rank_seconds");
    if (median > 0 && slowest > kSlow * median) {
      SlowRank& slow = slow_[whole(object, "slowest_rank")];
      slow.rank = whole(object, "slowest_rank");
      ++slow.looks;
      if (slowest / median > slow.worst) {
        slow.worst = slowest / median;
        slow.worst_step = step;
      }
    }
    if (number_of_look_++ % stride_ == 0) {
      run_.routing.push_back(std::move(look));
      if (run_.routing.size() >= 2 * kMaxLooks) {
        std::size_t kept = 0;
        for (std::size_t i = 0; i < run_.routing.size(); i += 2) {
          run_.routing[kept++] = std::move(run_.routing[i]);
        }
        run_.routing.resize(kept);
        stride_ *= 2;
      }
    }
  }

  void watch(const RoutingLook& look) {
    if (!watch_ ||
        look.effective_L.size() != static_cast<std::size_t>(run_.config->model.num_layers)) {
      return;
    }
    Routing routing;
    routing.effective_experts.assign(look.effective_L.begin(), look.effective_L.end());
    for (const RouterWatch::News& news : watch_->observe(routing)) {
      if (news.collapsed) {
        open_[news.layer] = run_.collapses.size();
        run_.collapses.push_back(
            {.layer = news.layer, .from_step = look.step, .lowest = news.effective_experts});
      } else {
        run_.collapses[open_[news.layer]].to_step = look.step;
        open_.erase(news.layer);
      }
    }
    for (const auto& [layer, index] : open_) {
      Collapse& collapse = run_.collapses[index];
      collapse.lowest =
          std::min<double>(collapse.lowest, look.effective_L[static_cast<std::size_t>(layer)]);
    }
  }

  RunHistory& run_;
  std::optional<RouterWatch> watch_;
  std::map<std::int64_t, std::size_t> open_;  // of layers that are collapsed: place in collapses
  std::map<std::int64_t, SlowRank> slow_;
  std::int64_t looks_ = 0;
  double last_joules_ = 0;
  std::size_t number_of_look_ = 0;
  std::size_t stride_ = 1;
};

}  // namespace

std::string_view key_of(Column column) {
  return kKeys[static_cast<std::size_t>(column)];
}

std::int64_t RunHistory::last_step() const {
  if (!starts.empty() && starts.back().last_step > 0) {
    return starts.back().last_step;
  }
  return config ? config->schedule.steps : 0;
}

RunHistory read_run(const std::filesystem::path& dir) {
  const std::filesystem::path metrics = dir / "metrics.jsonl";
  if (!std::filesystem::is_regular_file(metrics)) {
    throw DataError(
        fmt::format("{} has no metrics.jsonl (it is no run directory, or its run has not "
                    "begun); name what run.dir names",
                    dir.string()));
  }
  RunHistory run;
  run.dir = dir;
  run.name =
      dir.filename().empty() ? dir.parent_path().filename().string() : dir.filename().string();
  const std::filesystem::path config = dir / "config.yaml";
  if (std::filesystem::is_regular_file(config)) {
    run.config_text = read_text(config);
  }
  run.owner = RunLock::owner(dir).value_or("");
  Reader(run).read(metrics);
  return run;
}

}  // namespace memphis
