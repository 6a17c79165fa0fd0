// SPDX-License-Identifier: Apache-2.0
#include "csrc/report/sections.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include <spdlog/fmt/fmt.h>

#include "csrc/core/progress.h"
#include "csrc/plan/memory.h"
#include "csrc/report/plot.h"
#include "csrc/report/trace_summary.h"

namespace memphis {
namespace {

std::string card(const std::string& name, const std::string& value, const std::string& unit = "") {
  return fmt::format("<div class=\"card\"><span>{}</span><b>{}</b>{}</div>",
                     escaped(name),
                     escaped(value),
                     unit.empty() ? "" : "<i>" + escaped(unit) + "</i>");
}

double sum_of(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0, [](double all, double value) {
    return std::isfinite(value) ? all + value : all;
  });
}

std::string heading(const RunHistory& run, const std::string& what) {
  return run.alone ? what : fmt::format("{} ({})", what, run.name);
}

std::string box(const std::string& title, const std::string& body) {
  return fmt::format("<div class=\"box\"><h3>{}</h3>{}</div>\n", escaped(title), body);
}

template <class... Cells>
std::string row(const Cells&... cells) {
  return "<tr>" + (("<td>" + escaped(cells) + "</td>") + ...) + "</tr>";
}

}  // namespace

std::string summary_cards(const RunHistory& run, int color, bool named) {
  std::string html = named ? fmt::format(
                                 "<div class=\"keys c{}\" style=\"margin-left:0\"><span "
                                 "class=\"key c{}\">{}</span></div>",
                                 color % 8,
                                 color % 8,
                                 escaped(run.name))
                           : "";
  html += "<div class=\"cards\">";
  const std::int64_t last = run.last_step();
  const double at = run.steps.empty() ? 0 : run.steps.back();
  html += card("step",
               short_number(at),
               last > 0 ? fmt::format("of {}", short_number(static_cast<double>(last))) : "");
  if (!run.steps.empty()) {
    html += card("loss", short_number(run[Column::loss].back()), "nats a token");
  }
  if (!run.validation.empty()) {
    const auto best = std::min_element(run.validation.y.begin(), run.validation.y.end());
    html += card(
        "best validation loss",
        short_number(*best),
        fmt::format("at step {:.0f}",
                    run.validation.x[static_cast<std::size_t>(best - run.validation.y.begin())]));
  }
  const double seconds = sum_of(run[Column::seconds]);
  const double tokens = sum_of(run[Column::tokens]);
  if (seconds > 0) {
    html += card("throughput", short_number(tokens / seconds), "tokens/s");
    html += card("trained on", short_number(tokens), "tokens");
    html += card("time of steps", short_duration(seconds));
  }
  const StartEvent* const start = run.last_start();
  if (start != nullptr) {
    if (start->peak_flops_per_second > 0 && seconds > 0) {
      constexpr double kPercent = 100;
      html += card("MFU",
                   fmt::format("{:.1f} %",
                               kPercent * tokens / seconds * start->model_flops_per_token /
                                   start->peak_flops_per_second),
                   "causal half");
    }
    html += card("parameters", short_number(start->parameters));
    if (run.joules > 0) {
      constexpr double kJoulesPerKwh = 3.6e6;
      html += card("energy of GPUs", short_number(run.joules / kJoulesPerKwh), "kWh");
    }
    html += card("restarts", std::to_string(run.starts.size() - 1));
  }
  return html + "</div>\n";
}

std::string time_by_phase(const RunHistory& run) {
  StackedPlot plot{heading(run, "Time of a step by phase"),
                   "seconds",
                   "Means of runs of steps, on the first rank. What is left is logging, "
                   "checkpoints of the step before, and the launch.",
                   {"forward and backward", "data", "optimizer", "rest", "waiting for others"},
                   {}};
  Points model = run.points(Column::model_seconds);
  const Points data = run.points(Column::data_seconds);
  const Points optimizer = run.points(Column::optimizer_seconds);
  const Points waiting = run.points(Column::exposed_seconds);
  Points rest = run.points(Column::seconds);
  for (std::size_t i = 0; i < rest.y.size(); ++i) {
    rest.y[i] -= model.y[i] + data.y[i] + optimizer.y[i];
    // Ranks wait within their passes.
    model.y[i] -= std::isfinite(waiting.y[i]) ? std::min(waiting.y[i], model.y[i]) : 0;
  }
  plot.parts = {model, data, optimizer, rest, waiting};
  return draw(plot);
}

std::string expert_maps(const RunHistory& run) {
  if (run.routing.empty() || run.routing.back().load_LE.empty()) {
    return "";
  }
  const RoutingLook& last = run.routing.back();
  HeatMap load{heading(run, fmt::format("Load of experts, step {:.0f}", last.step)),
               "Tokens over an equal share: 1 is even. Red is more, blue is less.",
               "layer",
               "expert",
               {},
               last.load_LE};
  for (std::size_t e = 0; e < last.load_LE.front().size(); ++e) {
    load.columns.push_back(std::to_string(e));
  }
  // One cell of it is a mean over no more than it must be: the lowest of a stretch of looks.
  constexpr std::size_t kColumns = 120;
  const std::size_t columns = std::min(kColumns, run.routing.size());
  const std::size_t layers = last.effective_L.size();
  const auto experts = static_cast<double>(last.load_LE.front().size());
  HeatMap used{heading(run, "Effective experts by layer"),
               fmt::format("How many of {:.0f} experts the load amounts to, the fewest of each "
                           "stretch: the bluer, the nearer to a collapsed router.",
                           experts),
               "layer",
               "step",
               {},
               std::vector<std::vector<float>>(layers, std::vector<float>(columns)),
               1,
               experts,
               experts + 1};
  Plot entropy{
      heading(run, "Router"),
      "mean over layers",
      "Entropy of a token's probabilities, over ln(experts): 1 knows no difference. And the "
      "sum of the probabilities of the experts that a token goes to.",
      {{"entropy", 0, false, false, {}}, {"kept probability", 1, false, false, {}}},
      {},
      true};
  const auto mean = [](const std::vector<float>& values) {
    return std::accumulate(values.begin(), values.end(), 0.0) /
           static_cast<double>(std::max<std::size_t>(values.size(), 1));
  };
  for (const RoutingLook& look : run.routing) {
    entropy.curves[0].points.add(look.step, mean(look.entropy_L));
    entropy.curves[1].points.add(look.step, mean(look.kept_L));
  }
  for (std::size_t column = 0; column < columns; ++column) {
    const std::size_t begin = column * run.routing.size() / columns;
    const std::size_t end = (column + 1) * run.routing.size() / columns;
    used.columns.push_back(fmt::format("{:.0f}", run.routing[begin].step));
    for (std::size_t layer = 0; layer < layers; ++layer) {
      float lowest = static_cast<float>(experts);
      for (std::size_t i = begin; i < end; ++i) {
        if (layer < run.routing[i].effective_L.size()) {
          lowest = std::min(lowest, run.routing[i].effective_L[layer]);
        }
      }
      used.values_RC[layer][column] = lowest;
    }
  }
  return draw(load) + draw(used) + draw(entropy);
}

std::string memory_and_layout(const RunHistory& run) {
  const StartEvent* const start = run.last_start();
  if (start == nullptr) {
    return "";
  }
  std::vector<Part> parts;
  double all = 0;
  for (const auto& [kind, bytes] : start->memory) {
    if (bytes > 0) {
      parts.push_back({kind, bytes, human_bytes(static_cast<std::size_t>(bytes))});
      all += bytes;
    }
  }
  std::string html;
  if (!parts.empty()) {
    html += box(heading(run,
                        fmt::format("Memory plan of the first rank, {}",
                                    human_bytes(static_cast<std::size_t>(all)))),
                draw_parts(parts));
  }
  const auto giga = [](double flops) { return short_number(flops * 1e-9) + " GFLOP"; };
  std::string table =
      row(std::string("device"), start->device) +
      row(std::string("layout"), start->layout.empty() ? "one rank" : start->layout) +
      row(std::string("FLOP of a token"),
          giga(start->model_flops_per_token) + ", causal attention by its half") +
      row(std::string("un-halved"),
          giga(start->unhalved_flops_per_token) + ", attention by the whole square") +
      row(std::string("hardware"),
          giga(start->hardware_flops_per_token) + ", halved, with what is computed again") +
      row(std::string("peak"),
          start->peak_flops_per_second > 0 ? short_number(start->peak_flops_per_second * 1e-12) +
                                                 " TFLOP/s, dense bf16, of all ranks"
                                           : "not known of this device, so there is no MFU") +
      row(std::string("MFU, HFU"), std::string("FLOP of a token * tokens/s / peak"));
  return html + box(heading(run, "Layout and arithmetic"), "<table>" + table + "</table>");
}

std::string restarts_and_config(const RunHistory& run) {
  struct Line {
    std::string time;
    std::string what;
  };
  std::vector<Line> events;
  for (std::size_t i = 0; i < run.starts.size(); ++i) {
    const StartEvent& start = run.starts[i];
    events.push_back({start.time,
                      fmt::format("{} after step {}{}",
                                  i == 0 ? "began" : "went on",
                                  start.step,
                                  start.steps_again > 0
                                      ? fmt::format(", {} steps are done again", start.steps_again)
                                      : "")});
  }
  for (const EndEvent& end : run.ends) {
    events.push_back({end.time, fmt::format("ended after step {}: {}", end.step, end.reason)});
  }
  std::stable_sort(
      events.begin(), events.end(), [](const Line& a, const Line& b) { return a.time < b.time; });
  std::string rows;
  for (const Line& event : events) {
    rows += row(event.time, event.what);
  }
  std::string html;
  if (!rows.empty()) {
    html += box(heading(run, "Starts and ends"), "<table>" + rows + "</table>");
  }
  if (!run.config_text.empty()) {
    html += fmt::format(
        "<details class=\"box\"><summary>config.yaml of {}</summary><pre>{}</pre>"
        "</details>\n",
        escaped(run.name),
        escaped(run.config_text));
  }
  return html;
}

std::string samples_of(const RunHistory& run) {
  if (run.samples.empty()) {
    return "";
  }
  // The first ones and the last ones: a long run has thousands.
  constexpr std::size_t kMost = 20;
  std::string html;
  const std::size_t count = run.samples.size();
  const std::string prompt = run.config ? run.config->metrics.sample_prompt : "";
  for (std::size_t i = 0; i < count; ++i) {
    if (count > kMost && i >= kMost / 2 && i + kMost / 2 < count) {
      continue;
    }
    const SampleText& sample = run.samples[i];
    html += fmt::format("<details{}><summary>step {}</summary><pre><b>{}</b>{}</pre></details>",
                        i + 1 == count ? " open" : "",
                        sample.step,
                        escaped(prompt),
                        escaped(sample.text));
  }
  return box(heading(run, fmt::format("{} samples", count)), html);
}

std::string trace_section(const RunHistory& run) {
  const TraceSummary trace = summarize_traces(run.dir / "trace");
  if (trace.empty()) {
    return "";
  }
  const auto parts_of = [](const std::map<std::string, double>& seconds) {
    std::vector<Part> parts;
    for (const auto& [name, value] : seconds) {
      parts.push_back({name, value, short_number(value) + " s"});
    }
    std::sort(
        parts.begin(), parts.end(), [](const Part& a, const Part& b) { return a.value > b.value; });
    constexpr std::size_t kMost = 12;
    parts.resize(std::min(parts.size(), kMost));
    return parts;
  };
  const auto slowest = std::max_element(trace.worked_seconds.begin(), trace.worked_seconds.end());
  std::string html =
      box(heading(run, "Time by action, all ranks"), draw_parts(parts_of(trace.seconds_of_action)));
  if (!trace.seconds_of_waiting.empty()) {
    html += box(heading(run, "Exposed communication, by collective"),
                draw_parts(parts_of(trace.seconds_of_waiting)));
  }
  html += box(heading(run, "Ranks"),
              fmt::format("<p>Of {} ranks, rank {} worked longest: {} s, and waited {} s for "
                          "others. trace/all.json opens in ui.perfetto.dev, with ranks as "
                          "processes.</p>",
                          trace.num_ranks,
                          slowest - trace.worked_seconds.begin(),
                          short_number(*slowest),
                          short_number(trace.waited_seconds[static_cast<std::size_t>(
                              slowest - trace.worked_seconds.begin())])));
  return html;
}

}  // namespace memphis
