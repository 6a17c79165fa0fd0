// SPDX-License-Identifier: Apache-2.0
#include "csrc/doctor/diagnosis.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <limits>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <utility>

#include <spdlog/fmt/fmt.h>
#include <unistd.h>

#include "csrc/comm/clock_offset.h"
#include "csrc/comm/together.h"
#include "csrc/core/arena.h"
#include "csrc/core/device.h"
#include "csrc/core/error.h"
#include "csrc/core/file.h"
#include "csrc/doctor/job_checks.h"
#include "csrc/doctor/node_checks.h"
#include "csrc/doctor/sum_check.h"
#include "csrc/doctor/within.h"
#include "csrc/train/outliers.h"

namespace memphis::doctor {
namespace {

namespace fs = std::filesystem;

// Of a rate or a clock, as whole numbers that ranks add up.
constexpr double kMillionth = 1e-6;

class Examination {
 public:
  Examination(World& world, const Question& question, const Instruments& instruments)
      : world_(world),
        question_(question),
        instruments_(instruments),
        all_(create_group_of_all(world, "doctor")) {
    for (int rank = 0; rank < all_->size(); ++rank) {
      nodes_.push_back(text_of_rank(*all_, rank, instruments.node, "doctor.nodes"));
    }
    first_here_ = std::find(nodes_.begin(), nodes_.end(), instruments.node) - nodes_.begin();
  }

  Diagnosis run() {
    look_at_node();
    compare_clocks();
    look_at_run_directory();
    time_ranks();
    add_over_ranks();
    look_at_files();
    return gather();
  }

 private:
  bool speaks_for_node() const { return all_->rank() == first_here_; }
  bool leads() const { return all_->rank() == 0; }

  // What takes longer than that is a finding itself.
  void add(const std::string& what, const std::function<std::vector<Finding>()>& look) {
    try {
      const auto found = within(instruments_.patience_seconds, look);
      if (found) {
        own_.insert(own_.end(), found->begin(), found->end());
        return;
      }
      own_.push_back(bad(what,
                         fmt::format("no answer within {:.4g} s", instruments_.patience_seconds),
                         "see `dmesg` of the node, and whether its file servers answer"));
    } catch (const std::exception& error) {
      own_.push_back(bad(what, error.what(), {}));
    }
  }

  void look_at_node() {
    world_.activity().enter("doctor: the machine");
    if (!speaks_for_node()) {
      return;
    }
    const auto here = static_cast<int>(std::count(nodes_.begin(), nodes_.end(), instruments_.node));
    // A simulated GPU is in no slot.
    const bool on_gpus = question_.device == Device::cuda && !device_info(Device::cuda).simulated;
    const NodeQuestion asked{
        .num_ranks = all_->size(), .num_ranks_here = here, .num_gpus_needed = on_gpus ? here : 0};
    own_.push_back(
        good("MPI", fmt::format("{} of {} ranks, {}", here, all_->size(), question_.launched_by)));
    add("machine", [instruments = instruments_, asked] { return check_node(instruments, asked); });
  }

  // A number of each rank, on every rank.
  std::vector<double> values_of_all(double own, std::string_view name) {
    std::vector<std::int64_t> words(static_cast<std::size_t>(all_->size()));
    words[static_cast<std::size_t>(all_->rank())] = std::llround(own / kMillionth);
    sum_over_ranks(*all_, words, name);
    std::vector<double> values;
    for (const std::int64_t word : words) {
      values.push_back(static_cast<double>(word) * kMillionth);
    }
    return values;
  }

  void compare_clocks() {
    world_.activity().enter("doctor: clocks");
    if (all_->size() == 1) {
      own_.push_back(unchecked("clock", "one rank has nothing to compare it with"));
      return;
    }
    const ClockOffset offset = measure_clock_offset(*all_);
    // Where the first rank's monotonic clock is 0, on this rank's wall.
    const std::int64_t zero = wall_at_monotonic_zero() - offset.offset;
    std::int64_t reference = leads() ? zero : 0;
    const TensorView view(&reference, {1}, DType::i64, Device::cpu);
    all_->run(Broadcast{.x = view, .root = 0}, "doctor.clock", {});
    const std::vector<double> ahead =
        values_of_all(static_cast<double>(zero - reference) * 1e-9, "doctor.clocks");
    const double own = ahead[static_cast<std::size_t>(all_->rank())] - spread_of(ahead).median;
    if (!speaks_for_node()) {
      return;
    }
    // Of two that differ, both are half of it away from their middle.
    constexpr double kMostSeconds = 0.5;
    const std::string measured = fmt::format("{:+.3f} s from the middle of all", own);
    own_.push_back(std::abs(own) > kMostSeconds
                       ? bad("clock", measured, "see `chronyc tracking`, and that chronyd runs")
                       : good("clock", measured));
  }

  // A rank may have to wait for its core between a look at one clock and at the other: of some looks,
  // the one that took least.
  std::int64_t wall_at_monotonic_zero() const {
    const auto monotonic = [] {
      return std::chrono::duration_cast<std::chrono::nanoseconds>(
                 std::chrono::steady_clock::now().time_since_epoch())
          .count();
    };
    constexpr int kLooks = 16;
    std::int64_t least = std::numeric_limits<std::int64_t>::max();
    std::int64_t zero = 0;
    for (int look = 0; look < kLooks; ++look) {
      const std::int64_t before = monotonic();
      const std::int64_t wall = instruments_.wall_nanoseconds();
      const std::int64_t after = monotonic();
      if (after - before < least) {
        least = after - before;
        zero = wall - (before + least / 2);
      }
    }
    return zero;
  }

  // The first rank leaves a word in run.dir, and the others look for it.
  void look_at_run_directory() {
    world_.activity().enter("doctor: run.dir");
    if (!question_.config) {
      if (speaks_for_node()) {
        own_.push_back(unchecked("run.dir", "there is no config"));
      }
      return;
    }
    const Config& config = *question_.config;
    if (speaks_for_node()) {
      add("run.dir", [config, instruments = instruments_] {
        return check_run_directory(config, instruments);
      });
    }
    // All have written at the same time, and none has made the folder.
    largest_of_all(*all_, 0, "doctor.written");
    const fs::path folder = config.run.dir;
    std::string word;
    std::optional<bool> made;  // whether the folder is the doctor's own
    const auto forget = [folder](bool is_own) {
      remove_file(folder / kWordName);
      return is_own && remove_directory(folder) == 0;
    };
    if (leads()) {
      word = fmt::format("{:016x}", std::random_device{}() * 0x100000001ULL + ::getpid());
      try {
        const auto write = [folder, word] {
          std::error_code ignored;
          const bool is_new = !fs::exists(folder, ignored);
          make_directories(folder);  // what fails here fails below, with a reason
          write_text_atomically(folder / kWordName, word);
          return is_new;
        };
        made = within(instruments_.patience_seconds, write, forget);
      } catch (const std::exception&) {
        // It cannot be written to, which the line of its speed says.
      }
    }
    word = text_of_rank(*all_, 0, leads() && !made ? std::string() : word, "doctor.word");
    if (word.empty()) {
      if (speaks_for_node()) {
        own_.push_back(unchecked("run.dir shared", "the first rank cannot write there"));
      }
      return;
    }
    std::string seen;
    std::string unread;  // why, where it is there
    if (speaks_for_node()) {
      try {
        const auto look = [folder] {
          // A machine that has looked in vain may believe so for a while, on NFS, unless it makes
          // something there.
          make_directories(folder);
          return read_text(folder / kWordName, 64);
        };
        const auto read = within(instruments_.patience_seconds,
                                 look,
                                 [folder](const auto& /*late*/) { remove_directory(folder); });
        seen = read.value_or(std::string());
      } catch (const std::exception& error) {
        std::error_code ignored;
        if (fs::exists(folder / kWordName, ignored)) {
          unread = fmt::format(": {}", error.what());
        }
      }
      own_.push_back(
          seen == word
              ? good("run.dir shared", leads() ? "as rank 0 has it" : "what rank 0 wrote is there")
              : bad("run.dir shared",
                    fmt::format("what rank 0 wrote is not in {}, seen from {}{}",
                                folder.string(),
                                fs::current_path().string(),
                                unread),
                    "mount the file system of rank 0 here, or use a run.dir that all share"));
    }
    // All have looked.
    largest_of_all(*all_, 0, "doctor.looked");
    if (leads()) {
      within(instruments_.patience_seconds, [forget, is_own = *made] { return forget(is_own); });
    } else if (seen != word && speaks_for_node()) {
      // Unless there is something in it.
      within(instruments_.patience_seconds, [folder] { return remove_directory(folder); });
    }
  }

  // The same work on all ranks at once.
  void time_ranks() {
    world_.activity().enter("doctor: products and copies");
    compare_rates("products", "TFLOP/s", instruments_.product_tflops);
    compare_rates("copies", "GB/s", instruments_.copy_gb_per_second);
  }

  // A rank has a GPU to itself, whose rate is its own. A processor is shared, by ranks and by whatever
  // else runs there, which slows some of them and not others: it is as fast as the fastest of its ranks.
  void compare_rates(const std::string& what,
                     const std::string& unit,
                     const std::function<double()>& measure) {
    largest_of_all(*all_, 0, "doctor.begin");
    double own = 0;
    std::string failure;
    try {
      own = measure();
    } catch (const std::exception& error) {
      failure = error.what();
    }
    const std::vector<double> of_ranks = values_of_all(own, "doctor.rates");
    if (!failure.empty()) {
      own_.push_back(bad(what, failure, {}));
      return;
    }
    const bool by_node = instruments_.rates_are_shared;
    if (by_node && !speaks_for_node()) {
      return;
    }
    const auto rank = static_cast<std::size_t>(all_->rank());
    const std::vector<double> rates = by_node ? fastest_of_nodes_like_this(of_ranks) : of_ranks;
    const std::size_t me = by_node ? 0 : rank;
    constexpr double kWorthAWord = 0.15;
    const std::vector<std::size_t> slow = outliers(rates, Side::below, kWorthAWord);
    const bool is_slow = std::find(slow.begin(), slow.end(), me) != slow.end();
    const auto num_here = std::count(nodes_.begin(), nodes_.end(), instruments_.node);
    const std::string like =
        by_node ? fmt::format(" of {} rank{}", num_here, num_here == 1 ? "" : "s") : "";
    const std::string kind = by_node ? "node" : "rank";
    const std::string rate = by_node ? fmt::format("{:.4g} {}", rates[me], unit)
                                     : fmt::format("rank {}: {:.4g} {}", rank, rates[me], unit);
    const Spread spread = spread_of(rates);
    const std::string measured =
        rates.size() == 1
            ? fmt::format("{}, with no other {}{} to compare", rate, kind, like)
            : fmt::format("{}, where the median of all {}s{} is {:.4g} with a deviation of {:.2g}",
                          rate,
                          kind,
                          like,
                          spread.median,
                          spread.deviation);
    if (is_slow) {
      own_.push_back(bad(what, measured, "see its clocks, cooling and what else runs there"));
      own_.back().code = ExitCode::bad_hardware;
    } else if (speaks_for_node()) {
      own_.push_back(good(what, measured));
    }
  }

  // This one first. Among more ranks a processor's cores are shared out in smaller parts.
  std::vector<double> fastest_of_nodes_like_this(const std::vector<double>& of_ranks) const {
    std::map<std::string, double> fastest;
    for (std::size_t rank = 0; rank < of_ranks.size(); ++rank) {
      double& of_node = fastest[nodes_[rank]];
      of_node = std::max(of_node, of_ranks[rank]);
    }
    const auto ranks_on = [&](const std::string& node) {
      return std::count(nodes_.begin(), nodes_.end(), node);
    };
    std::vector<double> rates = {fastest[instruments_.node]};
    for (const auto& [node, rate] : fastest) {
      if (node != instruments_.node && ranks_on(node) == ranks_on(instruments_.node)) {
        rates.push_back(rate);
      }
    }
    return rates;
  }

  // Over NCCL on GPUs, over MPI on processors.
  void add_over_ranks() {
    world_.activity().enter("doctor: all-reduce");
    if (all_->size() == 1) {
      own_.push_back(unchecked("all-reduce", "there is one rank"));
      return;
    }
    const Device device = question_.device;
    const auto group = create_group_of_all(world_, "doctor.sum", device);
    const OwnedStream stream(device);
    const std::int64_t count = (device == Device::cpu ? 1 : 64) << 20;
    const TensorSpec spec({count}, DType::i32);
    Arena arena("doctor's sum", arena_bytes(spec), device);
    const TensorView x = arena.allocate(spec);
    std::vector<std::int32_t> host(static_cast<std::size_t>(count));
    double seconds = 0;
    bool right = true;
    constexpr int kRounds = 3;
    for (int round = 0; round < kRounds; ++round) {
      fill_for_sum(host, all_->rank(), round);
      device_copy(x.data, host.data(), x.bytes(), stream.view());
      synchronize(stream.view());
      largest_of_all(*all_, 0, "doctor.begin");
      const auto begin = std::chrono::steady_clock::now();
      group->run(AllReduce{.y = x, .x = x}, "doctor.sum", stream.view());
      synchronize(stream.view());
      seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
      device_copy(host.data(), x.data, x.bytes(), stream.view());
      synchronize(stream.view());
      right = right && !first_wrong_sum(host, all_->size(), round);
    }
    const double size = all_->size();
    const double rate = 2 * (size - 1) / size * static_cast<double>(x.bytes()) / seconds * 1e-9;
    const std::string measured = fmt::format(
        "{:.3g} GB/s of each rank's link, over {}", rate, device == Device::cuda ? "NCCL" : "MPI");
    if (!right) {
      own_.push_back(bad("all-reduce",
                         fmt::format("rank {} has a wrong sum", all_->rank()),
                         "its memory, GPU or NIC lies: take the node out"));
      own_.back().code = ExitCode::bad_hardware;
    } else if (speaks_for_node()) {
      own_.push_back(good("all-reduce", measured));
    }
  }

  void look_at_files() {
    world_.activity().enter("doctor: files of the config");
    if (!leads()) {
      return;
    }
    job_.push_back(question_.config_finding);
    if (!question_.config) {
      for (const char* what : {"data.train", "checkpoint"}) {
        job_.push_back(unchecked(what, "there is no config"));
      }
      return;
    }
    std::swap(own_, job_);
    const Config config = *question_.config;
    add("data.tokenizer", [config] { return std::vector{check_tokenizer(config)}; });
    add("data", [config, roots = question_.default_roots] { return check_data(config, roots); });
    add("data.evaluate", [config] { return check_questions(config); });
    add("run.init_from", [config] { return check_initial_weights(config); });
    add("checkpoint", [config] { return check_checkpoint(config); });
    std::swap(own_, job_);
  }

  Diagnosis gather() {
    world_.activity().enter("doctor: gathering");
    Diagnosis diagnosis;
    std::map<std::string, std::size_t> index;
    for (int rank = 0; rank < all_->size(); ++rank) {
      const std::string text = text_of_rank(*all_, rank, encode(own_), "doctor.findings");
      if (!leads()) {
        continue;
      }
      const std::string& node = nodes_[static_cast<std::size_t>(rank)];
      if (index.emplace(node, diagnosis.nodes.size()).second) {
        diagnosis.nodes.push_back({.node = node, .ranks = {}, .findings = {}});
      }
      NodeReport& report = diagnosis.nodes[index[node]];
      report.ranks.push_back(rank);
      for (Finding& finding : decode(text)) {
        report.findings.push_back(std::move(finding));
      }
    }
    diagnosis.job = std::move(job_);
    pass_over_what_is_nowhere_good(diagnosis);
    return diagnosis;
  }

  static void pass_over_what_is_nowhere_good(Diagnosis& diagnosis) {
    std::set<std::string> good_somewhere;
    for (const NodeReport& report : diagnosis.nodes) {
      for (const Finding& finding : report.findings) {
        if (finding.beside_others && finding.state == State::good) {
          good_somewhere.insert(finding.what);
        }
      }
    }
    for (NodeReport& report : diagnosis.nodes) {
      for (Finding& finding : report.findings) {
        if (finding.beside_others && !good_somewhere.contains(finding.what)) {
          finding = unchecked(
              finding.what,
              finding.measured + (diagnosis.nodes.size() == 1 ? ", with no other node to compare"
                                                              : ", as on every node that has it"));
        }
      }
    }
  }

  static constexpr const char* kWordName = ".memphis-doctor";

  World& world_;
  const Question& question_;
  const Instruments& instruments_;
  std::unique_ptr<Communicator> all_;
  std::vector<std::string> nodes_;  // of ranks
  std::ptrdiff_t first_here_ = 0;
  std::vector<Finding> own_;  // of this rank's machine
  std::vector<Finding> job_;
};

bool is_bad(const Finding& finding) {
  return finding.state == State::bad;
}

}  // namespace

bool NodeReport::is_good() const {
  return std::none_of(findings.begin(), findings.end(), is_bad);
}

std::string Diagnosis::text() const {
  std::string text;
  for (const NodeReport& report : nodes) {
    text += fmt::format("{}, rank{} {}: {}\n",
                        report.node,
                        report.ranks.size() == 1 ? "" : "s",
                        list_ranks(report.ranks),
                        report.is_good() ? "good" : "BAD");
    for (const Finding& finding : report.findings) {
      text += line_of(finding) + "\n";
    }
  }
  text += "the job\n";
  for (const Finding& finding : job) {
    text += line_of(finding) + "\n";
  }
  return text;
}

ExitCode Diagnosis::code() const {
  std::vector<Finding> all;
  for (const NodeReport& report : nodes) {
    all.insert(all.end(), report.findings.begin(), report.findings.end());
  }
  all.insert(all.end(), job.begin(), job.end());
  const auto first = std::find_if(all.begin(), all.end(), is_bad);
  return first == all.end() ? ExitCode::done : first->code;
}

std::vector<std::string> Diagnosis::nodes_that_are(bool good) const {
  std::vector<std::string> names;
  for (const NodeReport& report : nodes) {
    if (report.is_good() == good) {
      names.push_back(report.node);
    }
  }
  return names;
}

Diagnosis diagnose(World& world, const Question& question, const Instruments& instruments) {
  return Examination(world, question, instruments).run();
}

}  // namespace memphis::doctor
