// SPDX-License-Identifier: Apache-2.0
#include "csrc/report/trace_summary.h"

#include <algorithm>
#include <fstream>

#include "csrc/core/json.h"

namespace memphis {
namespace {

// "layer 12" is one of many: they are added up as "layer".
std::string without_number(std::string name) {
  const std::size_t space = name.rfind(' ');
  if (space != std::string::npos &&
      name.find_first_not_of("0123456789", space + 1) == std::string::npos) {
    name.resize(space);
  }
  return name;
}

void add_rank(const std::filesystem::path& path, TraceSummary& summary) {
  std::ifstream file(path);
  std::map<int, std::string> tracks;
  double worked = 0;
  double waited = 0;
  for (std::string line; std::getline(file, line);) {
    while (!line.empty() && (line.back() == ',' || line.back() == '\r')) {
      line.pop_back();
    }
    const auto event = parse_json(line);
    if (!event || !event->is_object() || !event->contains("name") || !event->contains("tid") ||
        !(*event)["name"].is_string() || !(*event)["tid"].is_number()) {
      continue;
    }
    const std::string name = (*event)["name"];
    const int thread = (*event)["tid"];
    if (name == "thread_name" && event->contains("args")) {
      tracks[thread] = member_or((*event)["args"], "name", std::string());
      continue;
    }
    const auto duration = event->find("dur");
    if (duration == event->end() || !duration->is_number()) {
      continue;
    }
    constexpr double kMicro = 1e-6;
    const double seconds = duration->get<double>() * kMicro;
    const std::string& track = tracks[thread];
    if (track == "step") {
      summary.seconds_of_action[without_number(name)] += seconds;
      worked += seconds;
    } else if (track == "waiting") {
      summary.seconds_of_waiting[without_number(name)] += seconds;
      waited += seconds;
    }
  }
  summary.worked_seconds.push_back(std::max(worked - waited, 0.0));
  summary.waited_seconds.push_back(waited);
  ++summary.num_ranks;
}

}  // namespace

TraceSummary summarize_traces(const std::filesystem::path& dir) {
  TraceSummary summary;
  std::error_code error;
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(dir, error)) {
    if (entry.path().filename().string().starts_with("rank-") &&
        entry.path().extension() == ".json") {
      files.push_back(entry.path());
    }
  }
  std::sort(files.begin(), files.end());
  for (const std::filesystem::path& file : files) {
    add_rank(file, summary);
  }
  return summary;
}

}  // namespace memphis
