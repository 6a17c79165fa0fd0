// SPDX-License-Identifier: Apache-2.0
//
// published_runs [RUNS.csv] [MODELS.csv] [--parts | --update | --fit]: what the planner says of published
// runs beside what was measured, as a table of Markdown. It is run in the root of the repository.
//
//   --parts   also where the time of each goes
//   --update  puts the table into docs/planner.md
//   --fit     for fit.py: reads lines of constants, in the order of TimeConstants::names with the share
//             of a 500 W GPU's rate behind, and answers each with a line of times
#include <cstdio>
#include <exception>
#include <fstream>
#include <iostream>
#include <iterator>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include <spdlog/fmt/fmt.h>

#include "csrc/plan/run_work.h"
#include "tests/plan/published/published_runs.h"

namespace {

using namespace memphis;

void print_parts(const std::vector<test::PredictedRun>& runs) {
  for (const test::PredictedRun& each : runs) {
    fmt::print("{}:", each.run.name);
    for (int i = 0; i < kNumParts; ++i) {
      const double share = each.time.parts[static_cast<std::size_t>(i)] / each.time.seconds;
      if (share > 0.001) {
        fmt::print(" {} {:.1f} %;", name_of(static_cast<StepPart>(i)), 100 * share);
      }
    }
    fmt::print("\n");
  }
}

// Between its first line and the first line behind it that is a heading.
void update(const std::string& file, const std::string& table) {
  std::ifstream in(file);
  const std::string text((std::istreambuf_iterator<char>(in)), {});
  const std::size_t begin = text.find(table.substr(0, table.find('\n')));
  const std::size_t end = text.find("\n#", begin);
  if (begin == std::string::npos || end == std::string::npos) {
    throw std::runtime_error("there is no table in " + file);
  }
  std::ofstream(file) << text.substr(0, begin) << table << text.substr(end);
}

void answer_fit(const std::vector<test::PublishedRun>& runs) {
  std::vector<RunWork> works;
  for (const test::PublishedRun& run : runs) {
    works.push_back(run_work(run.description));
    fmt::print("{};{};{:.9g}\n", run.name, run.source, run.measured_seconds);
  }
  fmt::print("\n");
  std::fflush(stdout);
  const Machine full = load_machine("configs/machines/h100_sxm.yaml");
  const Machine limited = load_machine("configs/machines/h100_500w.yaml");
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream stream(line);
    TimeConstants constants;
    for (double* value : constants.values()) {
      stream >> *value;
    }
    double share = 1;
    stream >> share;
    Machine machine = limited;
    machine.large_bf16_tflops = share * full.large_bf16_tflops;
    machine.large_fp8_tflops = share * full.large_fp8_tflops;
    for (std::size_t i = 0; i < works.size(); ++i) {
      fmt::print(
          "{:.9g} ",
          step_time(works[i], runs[i].machine == "h100_500w" ? machine : full, constants).seconds);
    }
    fmt::print("\n");
    std::fflush(stdout);
  }
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<std::string> files;
  bool parts = false;
  bool fit = false;
  bool updates = false;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    parts = parts || word == "--parts";
    fit = fit || word == "--fit";
    updates = updates || word == "--update";
    if (!word.starts_with("--")) {
      files.push_back(word);
    }
  }
  const std::string folder = "tests/plan/published/";
  try {
    const auto runs =
        test::read_published_runs(!files.empty() ? files[0] : folder + "runs.csv",
                                  files.size() > 1 ? files[1] : folder + "models.csv");
    if (fit) {
      answer_fit(runs);
    } else {
      const auto predicted = test::predict(runs, "configs/machines");
      const std::string table = test::table_of(predicted);
      if (updates) {
        update("docs/planner.md", table);
      } else {
        fmt::print("{}", table);
      }
      if (parts) {
        print_parts(predicted);
      }
    }
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 1;
  }
  return 0;
}
