// SPDX-License-Identifier: Apache-2.0
#include "csrc/doctor/job_checks.h"

#include <map>
#include <set>
#include <utility>

#include <spdlog/fmt/fmt.h>
#include <unistd.h>

#include "csrc/checkpoint/store.h"
#include "csrc/core/error.h"
#include "csrc/core/file.h"
#include "csrc/data/text_files.h"
#include "csrc/data/text_format.h"
#include "csrc/plan/parameters.h"

namespace memphis::doctor {
namespace {

namespace fs = std::filesystem;

// The folder, or the nearest one above it that is there.
fs::path existing(fs::path folder) {
  std::error_code ignored;
  folder = fs::absolute(folder, ignored);
  while (!fs::exists(folder, ignored) && folder.has_relative_path()) {
    folder = folder.parent_path();
  }
  return folder;
}

Finding with(Finding finding, ExitCode code) {
  finding.code = code;
  return finding;
}

// What a checkpoint takes: weights of the model's dtype, with two moments and, beside bf16, master
// weights in f32.
double checkpoint_bytes(const Config& config) {
  const bool wide =
      config.precision.compute == Precision::f32 || config.precision.compute == Precision::f64;
  constexpr double kNarrow = 2 + 3 * 4;
  constexpr double kWide = 3 * 4;
  return (wide ? kWide : kNarrow) *
         static_cast<double>(count_parameters(config.model).total(config.model.num_layers));
}

}  // namespace

std::vector<Finding> check_run_directory(const Config& config, const Instruments& instruments) {
  const fs::path folder = existing(config.run.dir);
  std::vector<Finding> findings;
  try {
    const Space space = instruments.space(folder);
    const double needed = 2 * checkpoint_bytes(config);
    const std::string measured = fmt::format("{} free in {}, {} needed for two checkpoints",
                                             bytes_text(static_cast<double>(space.free_bytes)),
                                             folder.string(),
                                             bytes_text(needed));
    findings.push_back(static_cast<double>(space.free_bytes) < needed
                           ? bad("run.dir space", measured, "free space, or use another run.dir")
                           : good("run.dir space", measured));
  } catch (const Error& error) {
    findings.push_back(bad("run.dir space", error.what(), "mount it, or use another run.dir"));
  }
  try {
    const fs::path file =
        folder / fmt::format(".memphis-doctor-{}-{}", instruments.node, ::getpid());
    findings.push_back(good("run.dir speed",
                            fmt::format("{:.0f} MB/s written through to the disk",
                                        instruments.write_mb_per_second(file))));
  } catch (const Error& error) {
    findings.push_back(bad("run.dir speed", error.what(), "make it writable for this user"));
  }
  return findings;
}

std::vector<Finding> check_data(const Config& config,
                                const std::vector<std::string>& default_roots) {
  std::vector<Finding> findings;
  const auto check = [&](const std::string& key, const std::vector<std::string>& entries) {
    try {
      const TextFiles files = list_text_files(key, entries, config.run.dir);
      double bytes = 0;
      std::map<std::string, int> formats;
      for (const TextFile& each : files.files) {
        const InputFile file(each.path);
        bytes += static_cast<double>(file.size());
        const std::vector<std::byte> head = file.beginning(kFormatBytes);
        const std::optional<TextFormat> format =
            recognise_format(each.path, head, head.size() == file.size());
        if (format && format->kind == TextFormat::Kind::other &&
            each.origin == TextFile::Origin::named) {
          findings.push_back(with(
              bad(key, fmt::format("{} is {}", each.path.string(), format->name), format->advice),
              ExitCode::data));
        }
        ++formats[format ? format->name : std::string("text")];
      }
      std::string kinds;
      for (const auto& [name, count] : formats) {
        kinds += fmt::format("{}{} of {}", kinds.empty() ? "" : ", ", count, name);
      }
      findings.push_back(
          with(good(key, fmt::format("{} in {}", bytes_text(bytes), kinds)), ExitCode::data));
    } catch (const Error& error) {
      findings.push_back(with(bad(key, error.what(), {}), ExitCode::data));
    }
  };
  check("data.train", config.data.train.empty() ? default_roots : config.data.train);
  if (!config.data.validation.empty()) {
    check("data.validation", config.data.validation);
  }
  return findings;
}

std::vector<Finding> check_checkpoint(const Config& config) {
  constexpr double kReadBytes = 1e9;  // in a few seconds, from a slow disk
  const bool reads = checkpoint_bytes(config) < kReadBytes;
  const std::string how =
      reads ? "all of it read back" : "its files have their sizes, and are not read back";
  const char* const kWhat = "checkpoint";
  try {
    const Scan scan = find_newest_valid(config.run.dir, reads ? verify_checkpoint : verify_sizes);
    if (!scan.rejected.empty()) {
      const Rejected& newest = scan.rejected.front();
      return {with(
          bad(kWhat,
              fmt::format("{} is not valid: {}", newest.path.string(), newest.reason),
              scan.newest ? fmt::format("a run would go on from {}", scan.newest->path.string())
                          : std::string("no other is valid: restore one")),
          ExitCode::checkpoint)};
    }
    if (!scan.newest) {
      return {unchecked(kWhat, fmt::format("{} holds none", config.run.dir))};
    }
    return {with(good(kWhat, fmt::format("{}, {}", scan.newest->path.string(), how)),
                 ExitCode::checkpoint)};
  } catch (const Error& error) {
    return {with(bad(kWhat, error.what(), {}), ExitCode::checkpoint)};
  }
}

}  // namespace memphis::doctor
