// SPDX-License-Identifier: Apache-2.0
#include "csrc/report/page.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include <spdlog/fmt/fmt.h>

#include "csrc/core/progress.h"
#include "csrc/plan/memory.h"
#include "csrc/report/findings.h"
#include "csrc/report/plot.h"
#include "csrc/report/sections.h"
#include "csrc/report/style.h"

namespace memphis {
namespace {

// What plots mark of a run: not each note, or they would hide the curves.
std::vector<Mark> marks_of(const RunHistory& run, const std::vector<Finding>& findings) {
  std::vector<Mark> marks;
  for (std::size_t i = 1; i < run.starts.size(); ++i) {
    marks.push_back({static_cast<double>(run.starts[i].step), "restart", false});
  }
  for (const Finding& finding : findings) {
    const bool somewhere = finding.step > 0 && finding.title.find("estart") == std::string::npos;
    if (finding.weight != Finding::Weight::note && somewhere) {
      marks.push_back({finding.step,
                       finding.title + ": " + finding.number,
                       finding.weight == Finding::Weight::bad});
    }
  }
  return marks;
}

class Plots {
 public:
  Plots(const std::vector<RunHistory>& runs, std::vector<Mark> marks)
      : runs_(runs), marks_(std::move(marks)) {}

  std::string of(Column column,
                 const std::string& title,
                 const std::string& unit,
                 const std::string& what,
                 bool from_zero = false) const {
    Plot plot{title, unit, what, {}, marks_, from_zero};
    for (std::size_t i = 0; i < runs_.size(); ++i) {
      plot.curves.push_back(
          {runs_[i].name, static_cast<int>(i), false, false, runs_[i].points(column)});
    }
    return draw(plot);
  }

  std::string loss() const {
    Plot plot{"Loss", "nats a token", "", {}, marks_, false};
    for (std::size_t i = 0; i < runs_.size(); ++i) {
      const std::string behind = runs_.size() > 1 ? runs_[i].name + ", " : "";
      const int color = static_cast<int>(i);
      plot.curves.push_back(
          {behind + "training", color, false, false, runs_[i].points(Column::loss)});
      if (!runs_[i].validation.empty()) {
        // A second colour tells the two of one run apart.
        plot.curves.push_back({behind + "validation",
                               runs_.size() == 1 ? 1 : color,
                               true,
                               true,
                               runs_[i].validation});
      }
    }
    return draw(plot);
  }

  std::string validation() const {
    Plot plot{"Validation loss", "nats a token", "Over the text that is held out.", {}, {}, false};
    for (std::size_t i = 0; i < runs_.size(); ++i) {
      const RunHistory& run = runs_[i];
      const auto name_of = [&](const std::string& set) {
        return set.empty() ? run.name : run.alone ? set : run.name + ", " + set;
      };
      // Sets of one run are told apart by colour, those of several runs by their names alone.
      const auto color = [&](std::size_t set) { return static_cast<int>(run.alone ? set : i); };
      plot.curves.push_back({name_of(run.validation_set), color(0), false, true, run.validation});
      for (std::size_t set = 0; set < run.more_validation.size(); ++set) {
        const auto& [name, points] = run.more_validation[set];
        plot.curves.push_back({name_of(name), color(set + 1), !run.alone, true, points});
      }
    }
    return draw(plot);
  }

  std::string now_and_then(Points RunHistory::*points,
                           const std::string& title,
                           const std::string& unit,
                           bool from_zero) const {
    Plot plot{title, unit, "", {}, marks_, from_zero};
    for (std::size_t i = 0; i < runs_.size(); ++i) {
      plot.curves.push_back({runs_[i].name, static_cast<int>(i), false, false, runs_[i].*points});
    }
    return draw(plot);
  }

  // FLOP over the peak, in all three conventions.
  std::string utilisation() const {
    Plot plot{"Utilisation", "% of the peak", "", {}, marks_, true};
    for (std::size_t i = 0; i < runs_.size(); ++i) {
      const StartEvent* const start = runs_[i].last_start();
      if (start == nullptr || start->peak_flops_per_second <= 0) {
        continue;
      }
      const auto add = [&](const std::string& name, double flops, bool faint) {
        Points points = runs_[i].points(Column::tokens_per_second);
        for (double& value : points.y) {
          constexpr double kPercent = 100;
          value *= kPercent * flops / start->peak_flops_per_second;
        }
        plot.curves.push_back(
            {runs_[i].name + " " + name, static_cast<int>(i), faint, false, std::move(points)});
      };
      add("MFU", start->model_flops_per_token, false);
      add("MFU un-halved", start->unhalved_flops_per_token, true);
      add("HFU", start->hardware_flops_per_token, true);
    }
    plot.what =
        "MFU counts causal attention by its half, un-halved by the whole square, HFU also "
        "what is computed again.";
    return draw(plot);
  }

 private:
  const std::vector<RunHistory>& runs_;
  std::vector<Mark> marks_;
};

std::string findings_of(const RunHistory& run, const std::vector<Finding>& findings, bool named) {
  std::string html =
      named ? fmt::format("<h3 style=\"margin:14px 0 6px\">{}</h3>", escaped(run.name)) : "";
  html += "<ul class=\"findings\">";
  for (const Finding& finding : findings) {
    constexpr const char* kClasses[] = {"bad", "odd", "note"};
    html += fmt::format(
        "<li class=\"{}\"><b>{}</b><span class=\"at\">{}</span><span class=\"num\">{}</span>"
        "<p>{}</p></li>",
        kClasses[static_cast<std::size_t>(finding.weight)],
        escaped(finding.title),
        finding.step > 0 ? fmt::format("step {:.0f}", finding.step) : "",
        escaped(finding.number),
        escaped(finding.advice));
  }
  if (findings.empty()) {
    html +=
        "<li><b>Nothing</b><p>No explosion, spike, collapsed router, slow rank, restart, stall or "
        "loss of speed was found.</p></li>";
  }
  return html + "</ul>\n";
}

// Of one line, whatever it says.
std::string section(const std::string& title, const std::string& body) {
  return body.empty() ? "" : fmt::format("<h2>{}</h2>\n{}\n", title, body);
}

}  // namespace

std::string report_page(std::vector<RunHistory> runs) {
  runs.front().alone = runs.size() == 1;
  // Folders of one name, such as "run", are told apart by where they lie.
  for (std::size_t i = 0; i < runs.size(); ++i) {
    for (std::size_t k = 0; k < i; ++k) {
      if (runs[k].name == runs[i].name && runs[k].dir != runs[i].dir) {
        runs[i].name = runs[i].dir.string();
      }
    }
  }
  std::string names;
  std::string title;
  std::string cards;
  std::string stands_out;
  std::vector<Mark> marks;
  for (std::size_t i = 0; i < runs.size(); ++i) {
    const std::vector<Finding> findings = find_what_stands_out(runs[i]);
    const std::vector<Mark> more = marks_of(runs[i], findings);
    marks.insert(marks.end(), more.begin(), more.end());
    names += fmt::format("<span class=\"key c{}\">{}</span>", i % 8, escaped(runs[i].name));
    title += (i == 0 ? "" : ", ") + runs[i].name;
    cards += summary_cards(runs[i], static_cast<int>(i), runs.size() > 1);
    stands_out += findings_of(runs[i], findings, runs.size() > 1);
  }
  const Plots plots(runs, std::move(marks));
  std::string learning =
      plots.loss() +
      (runs.size() > 1 || runs[0].validation.x.size() > 1 ? plots.validation() : "") +
      plots.now_and_then(&RunHistory::accuracy, "Accuracy", "of questions", true) +
      plots.of(Column::grad_norm,
               "Gradient norm",
               "before clipping",
               "A spike here comes before one of the loss.") +
      plots.of(Column::learning_rate, "Learning rate", "", "", true);
  std::string speed = plots.of(Column::tokens_per_second, "Throughput", "tokens/s", "", true) +
                      plots.utilisation() +
                      plots.of(Column::model_flops_per_second,
                               "Model FLOP/s",
                               "",
                               "Attention counted by its causal half, nothing twice.",
                               true) +
                      plots.of(Column::seconds, "Time of a step", "seconds", "");
  std::string experts =
      plots.of(Column::expert_load_max,
               "Busiest expert",
               "times an equal share",
               "In the layer where it is worst.") +
      plots.of(Column::balance_loss, "Balance loss", "", "1: each expert has its share.") +
      plots.of(Column::router_z_loss, "Router z loss", "", "");
  std::string phases;
  std::string memory;
  std::string rest;
  std::string samples;
  for (const RunHistory& run : runs) {
    phases += time_by_phase(run);
    experts += expert_maps(run);
    memory += memory_and_layout(run);
    rest += restarts_and_config(run);
    samples += samples_of(run);
  }
  const std::string gpus =
      plots.now_and_then(&RunHistory::gpu_watts, "Power of all GPUs", "W", true) +
      plots.now_and_then(&RunHistory::joules_per_token, "Energy of a token", "J", true) +
      plots.now_and_then(&RunHistory::gpu_celsius, "Hottest GPU", "degrees C", false) +
      plots.now_and_then(&RunHistory::gpu_mhz, "Slowest clock", "MHz", false);
  const auto grid = [](const std::string& figures) {
    return figures.empty() ? "" : "<div class=\"plots\">" + figures + "</div>";
  };
  std::string traces;
  for (const RunHistory& run : runs) {
    traces += trace_section(run);
  }
  return fmt::format(
             "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
             "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">"
             "<title>{} - memphis report</title><style>{}</style></head><body><main>\n"
             "<header><h1>{}</h1><label class=\"switch\"><input type=\"checkbox\" id=\"theme\"> "
             "other "
             "theme</label></header>\n{}{}\n",
             escaped(title),
             page_style(),
             runs.size() == 1 ? escaped(title) : fmt::format("{} runs", runs.size()),
             runs.size() > 1 ? "<div>" + names + "</div>" : "",
             cards) +
         section("What stands out", stands_out) + section("Learning", grid(learning)) +
         section("Speed", grid(speed + phases)) + section("Experts", grid(experts)) +
         section("GPUs", grid(gpus)) + section("Trace", traces) +
         section("Memory, layout and arithmetic", memory) + section("Samples", samples) +
         section("Starts, ends and config", rest) +
         "<footer>Written by memphis report. Lines of more steps than a plot has room for show the "
         "lowest and the highest value of each stretch.</footer>\n</main><script>" +
         std::string(page_script()) + "</script></body></html>\n";
}

}  // namespace memphis
