// SPDX-License-Identifier: Apache-2.0
#include "csrc/train/rotation.h"

#include <utility>
#include <vector>

#include <spdlog/fmt/fmt.h>

namespace memphis {
namespace {

// As a word of a shell's command.
std::string quoted(const std::filesystem::path& path) {
  constexpr std::string_view kPlain =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+=:@,";
  const std::string text = path.string();
  if (text.find_first_not_of(kPlain) == std::string::npos) {
    return text;
  }
  std::string result(1, '\'');
  for (const char letter : text) {
    if (letter == '\'') {
      result.append("'\\'");  // ends the quotes, and begins them again behind it
    }
    result.push_back(letter);
  }
  result.push_back('\'');
  return result;
}

}  // namespace

Standing Rotation::standing(const std::filesystem::path& checkpoint) {
  const auto found = known_.find(checkpoint);
  if (found != known_.end()) {
    return found->second;
  }
  const Verdict verdict = verify_manifest(checkpoint);
  auto standing = Standing::foreign;
  if (verdict.manifest && is_of_run_(*verdict.manifest)) {
    standing = verdict.manifest->exploded_at > 0 ? Standing::spare : Standing::counts;
  }
  return known_[checkpoint] = standing;
}

std::string Rotation::way_back(std::int64_t exploded_at, const std::string& change) const {
  const std::vector<std::filesystem::path> checkpoints = committed_checkpoints(run_dir_);
  if (checkpoints.empty()) {
    return fmt::format("nothing was saved yet: start again {}, and the run starts over", change);
  }
  std::vector<std::filesystem::path> newer;
  for (const std::filesystem::path& checkpoint : checkpoints) {
    const Verdict verdict = verify_manifest(checkpoint);
    // The loss of a step is that of the weights that the step before it left.
    if (!verdict.manifest || verdict.manifest->exploded_at > 0 ||
        verdict.manifest->step >= exploded_at - 1) {
      newer.push_back(checkpoint);
      continue;
    }
    if (newer.empty()) {
      return fmt::format("{} is from before that: start again {}, and the run goes on from there",
                         checkpoint.string(),
                         change);
    }
    const std::filesystem::path aside = run_dir_ / "set-aside";
    std::string command = fmt::format("mkdir -p {} && mv", quoted(aside));
    for (const std::filesystem::path& each : newer) {
      command += fmt::format(" {}", quoted(each));
    }
    return fmt::format(
        "{} is the last checkpoint from before that: set newer ones aside with `{} {}`, start "
        "again {}, and the run goes on from there",
        checkpoint.string(),
        command,
        quoted(aside),
        change);
  }
  return fmt::format("no checkpoint is from before that: start again {} in another run.dir",
                     change);
}

}  // namespace memphis
