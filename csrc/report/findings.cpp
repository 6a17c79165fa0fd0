// SPDX-License-Identifier: Apache-2.0
#include "csrc/report/findings.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <span>

#include <spdlog/fmt/fmt.h>

#include "csrc/core/progress.h"
#include "csrc/report/peaks.h"
#include "csrc/report/plot.h"
#include "csrc/train/loss_watch.h"

namespace memphis {
namespace {

using Weight = Finding::Weight;

class Finder {
 public:
  explicit Finder(const RunHistory& run) : run_(run) {}

  std::vector<Finding> find() {
    loss();
    spikes();
    routers();
    ranks();
    clocks();
    restarts();
    pace();
    shares();
    validation();
    files();
    // How it ended comes before what led there.
    std::stable_sort(found_.begin(), found_.end(), [](const Finding& a, const Finding& b) {
      if (a.weight != b.weight) {
        return a.weight < b.weight;
      }
      return a.outcome != b.outcome ? a.outcome : a.step < b.step;
    });
    return std::move(found_);
  }

 private:
  void add(Weight weight,
           double step,
           const std::string& title,
           const std::string& number,
           const std::string& advice) {
    found_.push_back({weight, step, title, number, advice, false});
  }

  void loss() {
    const std::vector<double>& losses = run_[Column::loss];
    for (std::size_t i = 0; i < losses.size(); ++i) {
      if (!std::isfinite(losses[i])) {
        add(Weight::bad,
            run_.steps[i],
            "Loss is not a number",
            fmt::format("from step {:.0f} on", run_.steps[i]),
            "The weights are of no use from here on: go back to a checkpoint before it, with a "
            "lower optimizer.learning_rate or optimizer.clip_norm.");
        break;
      }
    }
    if (!run_.ends.empty() && !run_.ends.back().done) {
      const EndEvent& end = run_.ends.back();
      const bool diverged = end.reason.find("diverged") != std::string::npos;
      const bool stopped = end.reason.find("stopped by signal") != std::string::npos ||
                           end.reason.find("stopped ahead of") != std::string::npos;
      const bool goes_on = !run_.starts.empty() && run_.starts.back().time > end.time;
      if (!goes_on) {
        add(stopped ? Weight::note : Weight::bad,
            static_cast<double>(end.step),
            diverged ? "Training diverged"
                     : (stopped ? "Run was stopped" : "Run ended with an error"),
            fmt::format("after step {}", end.step),
            end.reason);
        found_.back().outcome = true;
      }
    }
    if (!run_.config) {
      return;
    }
    LossWatch watch(run_.config->model.vocab_size, {});
    double exploded = -1;
    double worst = 0;
    std::string limit;
    const auto report = [&](double until) {
      add(Weight::bad,
          exploded,
          "Loss exploded",
          fmt::format("{} nats at worst, above {}{}",
                      short_number(worst),
                      limit,
                      until < 0 ? "" : fmt::format("; back at step {:.0f}", until)),
          "The weights were worse than untrained ones. Look at the gradient norm just before it; "
          "go back to the checkpoint before this step with a lower optimizer.learning_rate or "
          "optimizer.clip_norm, or a longer schedule.warmup_steps.");
    };
    for (std::size_t i = 0; i < losses.size(); ++i) {
      const LossWatch::News news =
          watch.observe(static_cast<std::int64_t>(run_.steps[i]), losses[i]);
      if (news == LossWatch::News::exploded) {
        exploded = run_.steps[i];
        worst = losses[i];
        limit = watch.describe_limit();
      } else if (news == LossWatch::News::recovered) {
        report(run_.steps[i]);
        exploded = -1;
      }
      worst = std::max(worst, std::isfinite(losses[i]) ? losses[i] : worst);
    }
    if (exploded >= 0) {
      report(-1);
    }
  }

  void spikes() {
    const Peaks loss =
        find_peaks(run_, run_[Column::loss], [](double value, const SlidingWindow& window) {
          constexpr double kDeviations = 6;
          constexpr double kShare = 1.1;
          return value > window.median() + kDeviations * window.deviation() &&
                 value > kShare * window.median();
        });
    if (loss.count > 0) {
      add(Weight::odd,
          loss.step,
          loss.count == 1 ? "Loss spike" : fmt::format("{} loss spikes", loss.count),
          fmt::format(
              "{} nats, where {} was usual", short_number(loss.value), short_number(loss.before)),
          "The worst is named. If each is higher than the one before, lower "
          "optimizer.learning_rate; one that comes with one batch is a matter of its text.");
    }
    constexpr double kTimes = 10;
    const Peaks norm =
        find_peaks(run_, run_[Column::grad_norm], [](double value, const SlidingWindow& window) {
          return value > kTimes * window.median();
        });
    if (norm.count > 0) {
      add(Weight::odd,
          norm.step,
          norm.count == 1 ? "Gradient spike" : fmt::format("{} gradient spikes", norm.count),
          fmt::format("norm {}, {:.0f} times what was usual", short_number(norm.value), norm.share),
          "The worst is named. Clipping (optimizer.clip_norm) holds the update down; beta2 keeps "
          "the size of it for some hundred steps.");
    }
  }

  void routers() {
    for (const Collapse& collapse : run_.collapses) {
      const bool back = collapse.to_step >= 0;
      add(back ? Weight::odd : Weight::bad,
          collapse.from_step,
          fmt::format("Router of layer {} collapsed", collapse.layer),
          fmt::format("{:.1f} effective experts of {} at the lowest{}",
                      collapse.lowest,
                      run_.config ? run_.config->model.num_experts : 0,
                      back ? fmt::format("; back at step {:.0f}", collapse.to_step) : ""),
          "Nearly all tokens of that layer go to the same few experts: raise loss.balance or "
          "loss.router_z, or lower optimizer.learning_rate.");
    }
  }

  void ranks() {
    for (const SlowRank& slow : run_.slow_ranks) {
      if (2 * slow.looks < slow.of || slow.of < 2) {
        break;
      }
      add(Weight::odd,
          slow.worst_step,
          fmt::format("Rank {} is slow", slow.rank),
          fmt::format("{:.2f} times the median rank at worst, slowest in {} of {} looks",
                      slow.worst,
                      slow.looks,
                      slow.of),
          "All others wait for it in each step: look at its machine (clocks, temperature, other "
          "jobs), or, if it moves with the layout, at parallel.stages.");
    }
  }

  void clocks() {
    if (run_.throttled_looks > 0) {
      add(Weight::odd,
          run_.throttled_step,
          "GPU clocks are held down",
          fmt::format("{}; in {} of {} looks",
                      run_.throttled,
                      run_.throttled_looks,
                      run_.gpu_watts.x.size()),
          "Heat asks for cooling; a power limit is what large products run into, and costs the "
          "share that the clock loses.");
    }
  }

  void restarts() {
    const std::size_t starts = run_.starts.size();
    if (starts > 1 || run_.repeated_in_file) {
      add(run_.steps_again > 0 ? Weight::odd : Weight::note,
          starts > 1 ? static_cast<double>(run_.starts.back().step) : 0,
          starts > 2 ? fmt::format("{} restarts", starts - 1) : "Restart",
          fmt::format("{} step{} done twice", run_.steps_again, run_.steps_again == 1 ? "" : "s"),
          run_.steps_again > 0
              ? "What lay between the last checkpoint and the end of a process was done again; a "
                "lower checkpoint.every loses less. The table of restarts has each."
              : "No work was lost. The table of restarts has each.");
    }
  }

  void pace() {
    constexpr double kTimes = 5;
    constexpr double kLong = 1;
    const std::vector<double>& seconds = run_[Column::seconds];
    const Peaks stalls = find_peaks(run_, seconds, [](double value, const SlidingWindow& window) {
      return value > kTimes * window.median() && value > window.median() + kLong;
    });
    if (stalls.count > 0) {
      add(Weight::odd,
          stalls.step,
          stalls.count == 1 ? "Stall" : fmt::format("{} stalls", stalls.count),
          fmt::format("{} for a step, where {} s were usual",
                      short_duration(stalls.value),
                      short_number(stalls.before)),
          "The longest is named. Look at the phases of that step: reading of data, a rank that "
          "others waited for, a machine that was paused.");
    }
    slower();
  }

  void slower() {
    const std::vector<double>& rates = run_[Column::tokens_per_second];
    constexpr std::size_t kTenths = 10;
    constexpr double kShare = 0.85;
    if (rates.size() < kTenths * kLeast) {
      return;
    }
    double best = 0;
    double lowest_share = 1;
    double lowest = 0;
    double step = 0;
    double before = 0;
    for (std::size_t tenth = 0; tenth < kTenths; ++tenth) {
      const auto begin =
          rates.begin() + static_cast<std::ptrdiff_t>(tenth * rates.size() / kTenths);
      const auto end =
          rates.begin() + static_cast<std::ptrdiff_t>((tenth + 1) * rates.size() / kTenths);
      const double rate = median_of({begin, end});
      if (best > 0 && rate < kShare * best && rate / best < lowest_share) {
        lowest_share = rate / best;
        lowest = rate;
        before = best;
        step = run_.steps[static_cast<std::size_t>(begin - rates.begin())];
      }
      best = std::max(best, rate);
    }
    if (lowest_share < 1) {
      step = turning_point(rates, (before + lowest) / 2, step);
      add(Weight::odd,
          step,
          "Throughput dropped",
          fmt::format("{} tokens/s, {:.0f} % below {}",
                      short_number(lowest),
                      100 * (1 - lowest_share),
                      short_number(before)),
          "Over a tenth of the run from this step on. Look which phase of a step grew, at the "
          "slowest rank, and at what else the machine did.");
    }
  }

  // The step before `last` from which on rates are below `limit`, but for one in four.
  double turning_point(const std::vector<double>& rates, double limit, double last) const {
    const auto end = std::lower_bound(run_.steps.begin(), run_.steps.end(), last);
    std::int64_t above = 0;
    double step = last;
    for (auto i = end - run_.steps.begin(); i-- > 0;) {
      above += rates[static_cast<std::size_t>(i)] > limit ? 1 : 0;
      if (4 * above > end - run_.steps.begin() - i) {
        break;
      }
      step = rates[static_cast<std::size_t>(i)] > limit ? step
                                                        : run_.steps[static_cast<std::size_t>(i)];
    }
    return step;
  }

  void shares() {
    const auto sum = [&](Column column) {
      const std::vector<double>& values = run_[column];
      return std::accumulate(values.begin(), values.end(), 0.0, [](double all, double value) {
        return std::isfinite(value) ? all + value : all;
      });
    };
    const double all = sum(Column::seconds);
    constexpr double kData = 0.1;
    constexpr double kExposed = 0.2;
    if (all > 0 && sum(Column::data_seconds) > kData * all) {
      add(Weight::odd,
          run_.steps.front(),
          "Waits for data",
          fmt::format("{:.0f} % of the time of steps", 100 * sum(Column::data_seconds) / all),
          "Reading a batch takes more than it should: the disk, or the network behind it.");
    }
    if (all > 0 && sum(Column::exposed_seconds) > kExposed * all) {
      add(Weight::odd,
          run_.steps.front(),
          "Waits for other ranks",
          fmt::format("{:.0f} % of the time of steps", 100 * sum(Column::exposed_seconds) / all),
          "Exchanges are not hidden behind work: `memphis plan --search` knows other layouts, and "
          "metrics.trace shows where ranks stand.");
    }
  }

  void validation() {
    const Points& points = run_.validation;
    constexpr std::size_t kLast = 3;
    constexpr double kAbove = 1.05;
    if (points.y.size() <= kLast) {
      return;
    }
    const auto lowest = std::min_element(points.y.begin(), points.y.end());
    const auto at = static_cast<std::size_t>(lowest - points.y.begin());
    const bool all_above = std::all_of(points.y.end() - kLast, points.y.end(), [&](double value) {
      return value > kAbove * *lowest;
    });
    if (all_above) {
      add(Weight::odd,
          points.x[at],
          "Validation loss rises",
          fmt::format(
              "{} now, {} at its lowest", short_number(points.y.back()), short_number(*lowest)),
          "The lowest is at the step that is named. Where the training loss still falls the model "
          "learns its text by heart: more text, or fewer steps.");
    }
  }

  void files() {
    if (run_.damaged_lines > 0) {
      add(Weight::odd,
          0,
          "Damaged metrics",
          fmt::format("{} line{} of metrics.jsonl, the first is number {}",
                      run_.damaged_lines,
                      run_.damaged_lines == 1 ? "" : "s",
                      run_.first_damaged_line),
          "They are passed over. A disk that was full, or an editor, leaves such lines.");
    }
    if (run_.steps.empty()) {
      add(Weight::note, 0, "No step is done yet", "0 steps", "There is nothing to be seen before.");
      return;
    }
    const std::int64_t last = run_.last_step();
    const bool said_so = !run_.ends.empty() &&
                         (run_.starts.empty() || run_.ends.back().time >= run_.starts.back().time);
    if (!said_so && last > 0 && run_.steps.back() < static_cast<double>(last)) {
      const bool runs = !run_.owner.empty();
      add(runs ? Weight::note : Weight::odd,
          run_.steps.back(),
          runs ? "Run goes on" : "Run ended without a word",
          fmt::format("step {:.0f} of {}", run_.steps.back(), last),
          runs ? run_.owner + " is at it."
               : "No process holds the run directory, and none has said why it ended: it was "
                 "killed, or its machine was lost.");
    }
  }

  const RunHistory& run_;
  std::vector<Finding> found_;
};

}  // namespace

std::vector<Finding> find_what_stands_out(const RunHistory& run) {
  return Finder(run).find();
}

}  // namespace memphis
