// SPDX-License-Identifier: Apache-2.0
#include "csrc/doctor/job_checks.h"

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <utility>

#include <spdlog/fmt/fmt.h>
#include <unistd.h>

#include "csrc/checkpoint/store.h"
#include "csrc/comm/solo.h"
#include "csrc/comm/together.h"
#include "csrc/core/error.h"
#include "csrc/core/file.h"
#include "csrc/data/corpus.h"
#include "csrc/data/dataset.h"
#include "csrc/data/kept_tokenizer.h"
#include "csrc/data/megatron_stream.h"
#include "csrc/data/questions.h"
#include "csrc/data/run_tokens.h"
#include "csrc/data/text_files.h"
#include "csrc/data/text_format.h"
#include "csrc/data/token_file_stream.h"
#include "csrc/data/unpacked_file.h"
#include "csrc/plan/parameters.h"
#include "csrc/train/initial_weights.h"
#include "csrc/train/run_lock.h"

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

// Whether that is read back in a few seconds, from a slow disk too.
bool is_soon_read(const Config& config) {
  constexpr double kReadBytes = 1e9;
  return checkpoint_bytes(config) < kReadBytes;
}

// A compressed file that was cut short shows it at its end alone. A few seconds' worth of them is
// unpacked whole.
constexpr double kMostUnpacked = 0.5e9;
struct Unpacking {
  double bytes = 0;
  int num_left = 0;

  void read(const CorpusFile& file) {
    if (file.packing == Packing::none) {
      return;
    }
    const std::unique_ptr<UnpackedFile> source = open_unpacked(file.path, file.packing);
    std::vector<std::byte> piece(std::size_t{1} << 20U);
    std::size_t count = 1;
    while (bytes < kMostUnpacked && count > 0) {
      count = source->read(piece);
      bytes += static_cast<double>(count);
    }
    num_left += count > 0 ? 1 : 0;
  }
};

}  // namespace

std::vector<Finding> check_run_directory(const Config& config, const Instruments& instruments) {
  const fs::path folder = existing(config.run.dir);
  std::vector<Finding> findings;
  try {
    const Space space = instruments.space(folder);
    const auto of_one = static_cast<std::uint64_t>(checkpoint_bytes(config));
    const auto needed = static_cast<double>(space_needed(of_one));
    const std::string measured =
        fmt::format("{} free in {}, {} needed for two checkpoints and logs",
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

Finding check_tokenizer(const Config& config) {
  const char* const kWhat = "data.tokenizer";
  try {
    const std::shared_ptr<const Tokenizer> tokenizer =
        open_tokenizer_of_run(config.data.tokenizer, config.data.tokenizer_pattern, config.run.dir);
    if (tokenizer == nullptr) {
      return with(good(kWhat, "none: ids stand for no known text"), ExitCode::data);
    }
    require_fitting(tokenizer.get(),
                    config.data,
                    {.vocab_size = config.model.vocab_size, .pad_id = config.model.pad_id});
    return with(
        good(kWhat, fmt::format("{}, of {} ids", tokenizer->kind(), tokenizer->vocab_size())),
        ExitCode::data);
  } catch (const Error& error) {
    return with(bad(kWhat, error.what(), {}), error.code());
  }
}

std::vector<Finding> check_data(const Config& config,
                                const std::vector<std::string>& default_roots) {
  std::vector<Finding> findings;
  std::shared_ptr<const Tokenizer> tokenizer;
  try {
    tokenizer =
        open_tokenizer_of_run(config.data.tokenizer, config.data.tokenizer_pattern, config.run.dir);
  } catch (const Error&) {
    return {unchecked("data", "the tokenizer, which has a line of its own, cannot be opened")};
  }
  Unpacking unpacking;
  bool any_lines = false;
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
        ++formats[format ? format->name : std::string("text")];
      }
      // As a run sorts and opens them.
      const SortedFiles sorted = sort_files(files.files, config.data);
      require_tokenizer(key, sorted, tokenizer.get());
      for (const TextFile& each : sorted.text) {
        const InputFile file(each.path);
        const std::vector<std::byte> head = file.beginning(kFormatBytes);
        const auto format = recognise_format(each.path, head, head.size() == file.size());
        if (each.origin == TextFile::Origin::named && (format || file.size() == 0)) {
          findings.push_back(with(
              bad(key,
                  fmt::format(
                      "{} is {}", each.path.string(), format ? format->name : std::string("empty")),
                  format ? format->advice : std::string("leave it out")),
              ExitCode::data));
        }
      }
      any_lines = any_lines || has_lines(sorted);
      for (const CorpusFile& each : sorted.documents) {
        unpacking.read(each);
      }
      for (const fs::path& path : sorted.megatron) {
        require_same_tokenizer(path, tokenizer.get());
        (void)megatron_ids(path);
      }
      for (const fs::path& path : sorted.token_files) {
        (void)token_file_ids(path, config.model.vocab_size);
      }
      std::string kinds;
      for (const auto& [name, count] : formats) {
        kinds += fmt::format("{}{} of {}", kinds.empty() ? "" : ", ", count, name);
      }
      findings.push_back(
          with(good(key, fmt::format("{} in {}", bytes_text(bytes), kinds)), ExitCode::data));
    } catch (const Error& error) {
      findings.push_back(with(bad(key, error.what(), {}), error.code()));
    }
  };
  check("data.train", config.data.train.empty() ? default_roots : config.data.train);
  if (!config.data.validation.empty()) {
    check("data.validation", config.data.validation);
  }
  try {
    if (newest_step(config.run.dir) < 0) {
      require_fields_used(config.data, any_lines);
    }
  } catch (const Error& error) {
    findings.push_back(with(bad("data.field", error.what(), {}), error.code()));
  }
  if (unpacking.num_left > 0) {
    findings.push_back(unchecked("compressed data",
                                 fmt::format("{} files beyond the first {} of text, whose "
                                             "beginnings alone were unpacked",
                                             unpacking.num_left,
                                             bytes_text(kMostUnpacked))));
  }
  return findings;
}

std::vector<Finding> check_questions(const Config& config) {
  const char* const kWhat = "data.evaluate";
  if (config.data.evaluate.empty()) {
    return {};
  }
  try {
    const std::shared_ptr<const Tokenizer> tokenizer =
        open_tokenizer_of_run(config.data.tokenizer, config.data.tokenizer_pattern, config.run.dir);
    std::vector<memphis::Question> questions;
    for (const std::string& file : config.data.evaluate) {
      const std::vector<memphis::Question> read = read_questions(file);
      questions.insert(questions.end(), read.begin(), read.end());
    }
    const QuestionWindows windows(questions, config.batch.sequence_length, tokenizer.get());
    return {with(good(kWhat, fmt::format("{} questions", questions.size())), ExitCode::data)};
  } catch (const Error& error) {
    return {with(bad(kWhat, error.what(), {}), error.code())};
  }
}

std::vector<Finding> check_initial_weights(const Config& config) {
  const char* const kWhat = "run.init_from";
  if (config.run.init_from.empty()) {
    return {};
  }
  try {
    if (newest_step(config.run.dir) >= 0) {
      return {unchecked(
          kWhat, fmt::format("a run goes on from a checkpoint in {}, if one is", config.run.dir))};
    }
    const std::unique_ptr<World> world = make_solo_world();
    const std::unique_ptr<Communicator> alone = create_group_of_all(*world, "doctor.weights");
    const std::optional<StoredWeights> stored = open_initial_weights(
        config, nullptr, *alone, is_soon_read(config) ? verify_checkpoint : verify_sizes);
    return {with(good(kWhat,
                      fmt::format("{}, of the config's model in {}",
                                  stored->folder().string(),
                                  name_of(stored->dtype()))),
                 ExitCode::checkpoint)};
  } catch (const Error& error) {
    return {with(bad(kWhat, error.what(), {}), error.code())};
  }
}

std::vector<Finding> check_checkpoint(const Config& config) {
  const bool reads = is_soon_read(config);
  const std::string how =
      reads ? "all of it read back" : "its files have their sizes, and are not read back";
  const char* const kWhat = "checkpoint";
  try {
    // What a job is writing, putting in place and taking away says nothing of what it will leave.
    if (const auto owner = RunLock::owner(config.run.dir)) {
      return {unchecked(kWhat, fmt::format("{} is in use by {}", config.run.dir, *owner))};
    }
    const Verify verify = reads ? verify_checkpoint : verify_sizes;
    Scan scan = find_newest_valid(config.run.dir, verify);
    std::erase_if(scan.rejected, [](const Rejected& one) { return one.unfinished; });
    if (!scan.rejected.empty()) {
      const Rejected& newest = scan.rejected.front();
      return {with(
          bad(kWhat,
              fmt::format("{} is not valid: {}", newest.path.string(), newest.reason),
              scan.newest ? fmt::format("a run would go on from {}", scan.newest->path.string())
                          : std::string("no other is valid: restore one")),
          ExitCode::checkpoint)};
    }
    // Whether a run may begin without one, or beside one, is as run.resume has it.
    if (!scan.newest || config.run.resume == Resume::never) {
      (void)choose_checkpoint(config.run.dir, config.run.resume, verify);
      return {unchecked(kWhat, fmt::format("{} holds none", config.run.dir))};
    }
    return {with(good(kWhat, fmt::format("{}, {}", scan.newest->path.string(), how)),
                 ExitCode::checkpoint)};
  } catch (const Error& error) {
    return {with(bad(kWhat, error.what(), {}), error.code())};
  }
}

}  // namespace memphis::doctor
