// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/text_files.h"

#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <set>
#include <system_error>
#include <utility>

#include <sys/stat.h>
#include <unistd.h>

#include "csrc/core/error.h"
#include "csrc/core/path_pattern.h"

namespace memphis {
namespace {

namespace fs = std::filesystem;
using Origin = TextFile::Origin;

bool holds(const fs::path& directory, const char* name) {
  std::error_code ignored;
  return fs::exists(directory / name, ignored);
}

// The path up to the first name with a sign of a pattern.
fs::path before_signs(const std::string& pattern) {
  fs::path prefix;
  for (const fs::path& part : fs::path(pattern)) {
    if (is_path_pattern(part.string())) {
      break;
    }
    prefix /= part;
  }
  return prefix.empty() ? fs::path(".") : prefix;
}

class Listing {
 public:
  Listing(std::string_view key, const fs::path& run_dir) : key_(key) {
    std::error_code ignored;
    if (!run_dir.empty()) {
      run_dir_ = fs::weakly_canonical(fs::absolute(run_dir, ignored), ignored);
      run_dir_ = run_dir_.has_filename() ? run_dir_ : run_dir_.parent_path();  // behind a slash
    }
    for (const int stream : {STDOUT_FILENO, STDERR_FILENO}) {
      struct stat status {};
      if (::fstat(stream, &status) == 0 && S_ISREG(status.st_mode)) {
        outputs_.emplace(status.st_dev, status.st_ino);
      }
    }
  }

  void add_entry(const std::string& entry) {
    std::error_code error;
    const fs::file_status status = fs::status(entry, error);
    if (status.type() == fs::file_type::not_found) {
      add_pattern(entry);
    } else if (status.type() == fs::file_type::directory) {
      add_directory(entry, Part::asked_for);
    } else if (status.type() == fs::file_type::regular) {
      add_file(entry, Origin::named);
    } else {
      fail(entry, error ? error.message() : "it is neither a regular file nor a directory");
    }
  }

  TextFiles take() {
    TextFiles result;
    result.hidden.assign(hidden_.begin(), hidden_.end());
    result.repeated.assign(repeated_.begin(), repeated_.end());
    for (const auto& [path, reason] : passed_over_) {
      result.passed_over.push_back({.path = path, .reason = reason});
    }
    result.files.reserve(origins_.size());
    for (const auto& [path, origin] : origins_) {
      result.files.push_back({.path = path, .origin = origin});
    }
    return result;
  }

 private:
  // One name for a file, however many entries and links lead to it.
  fs::path canonical(const fs::path& path) const {
    std::error_code error;
    fs::path result = fs::canonical(path, error);
    if (error) {
      fail(path, error.message());
    }
    return result;
  }

  void add_file(const fs::path& path, Origin origin) {
    const fs::path name = canonical(path);
    if (origin != Origin::named && is_output(name)) {
      passed_over_.emplace(name, "the output of this process goes to it");
      return;
    }
    const auto [entry, is_new] = origins_.emplace(name, origin);
    if (!is_new && origin == Origin::named && entry->second == Origin::named) {
      repeated_.insert(name);
    }
    entry->second = std::max(entry->second, origin);
  }

  bool is_output(const fs::path& path) const {
    struct stat status {};
    return !outputs_.empty() && ::stat(path.c_str(), &status) == 0 &&
           outputs_.contains({status.st_dev, status.st_ino});
  }

  // What a run directory has.
  static bool is_own_name(const std::string& name) {
    return name == "config.yaml" || name == "metrics.jsonl" || name == "lock" || name == "trace" ||
           name.starts_with("step-");
  }

  // Why a directory is not walked; empty for one that is. The names of its files, here and above,
  // are those of csrc/train and csrc/checkpoint, which stand on this layer.
  std::string own_work(const fs::path& directory) {
    const auto [found, is_new] = own_work_.emplace(directory, std::string());
    if (is_new) {
      found->second = directory == run_dir_ ? "it is run.dir"
                      : holds(directory, "config.yaml") &&
                              (holds(directory, "metrics.jsonl") || holds(directory, "lock"))
                          ? "it is a run directory of memphis"
                      : holds(directory, "manifest.json") && holds(directory, "COMMIT")
                          ? "it is a checkpoint of memphis"
                          : "";
    }
    return found->second;
  }

  // Whether it is an entry itself. Text that lies where a run writes is read then, without what the
  // run has written.
  enum class Part : std::uint8_t { asked_for, found };

  void add_directory(const fs::path& directory, Part part) {
    const fs::path name = canonical(directory);
    if (!entered_.insert(name).second) {
      return;  // a link led here before, perhaps from below
    }
    const std::string reason = own_work(name);
    if (!reason.empty() && part == Part::found) {
      passed_over_.emplace(name, reason);
      return;
    }
    for (const fs::path& entry : entries_of(directory)) {
      if (entry.filename().native().starts_with('.')) {
        hidden_.insert(entry);
      } else if (!reason.empty() && is_own_name(entry.filename().string())) {
        passed_over_.emplace(entry, "memphis wrote it");
      } else {
        add_found(entry, Origin::walked);
      }
    }
  }

  std::vector<fs::path> entries_of(const fs::path& directory) const {
    try {
      return list_directory(directory);
    } catch (const DataError& error) {
      throw DataError(key_ + ": " + error.what());
    }
  }

  // What a walk or a pattern has come to.
  void add_found(const fs::path& path, Origin origin) {
    std::error_code error;
    const fs::file_status status = fs::status(path, error);
    switch (status.type()) {
      case fs::file_type::directory:
        add_directory(path, Part::found);
        break;
      case fs::file_type::regular:
        add_file(path, origin);
        break;
      case fs::file_type::not_found:
        passed_over_.emplace(path, "it is a link to nothing");
        break;
      case fs::file_type::none:
        if (error != std::errc::too_many_symbolic_link_levels) {
          fail(path, error.message());
        }
        passed_over_.emplace(path, "it is a link that leads to itself");
        break;
      default:
        passed_over_.emplace(path, "it is neither a regular file nor a directory");
    }
  }

  void add_pattern(const std::string& pattern) {
    bool matches = false;
    const fs::path prefix = before_signs(pattern);
    std::optional<fs::path> above;
    try {
      visit_matches(pattern, [&](const fs::path& path) {
        if (!above) {
          above = canonical(prefix);
        }
        matches = true;
        if (const auto own = own_work_around(path, *above)) {
          passed_over_.insert(*own);
        } else {
          add_found(path, Origin::matched);
        }
        return true;
      });
    } catch (const DataError& error) {
      throw DataError(key_ + " entry '" + pattern + "': " + error.what());
    }
    if (!matches) {
      throw DataError(
          key_ + " entry '" + pattern + "' matches nothing (seen from " +
          fs::current_path().string() +
          (pattern.find('{') == std::string::npos ? "" : ", braces being letters as others") +
          "); give a file, a directory or a pattern that exists");
    }
  }

  // What of memphis's own work a match lies in, from `above` on, where the pattern's signs begin.
  std::optional<std::pair<fs::path, std::string>> own_work_around(const fs::path& match,
                                                                  const fs::path& above) {
    std::error_code ignored;
    fs::path part = fs::weakly_canonical(match, ignored);
    for (fs::path path = part.parent_path(); path != part; path = part.parent_path()) {
      if (std::string reason = own_work(path); !reason.empty()) {
        if (path != above) {
          return std::pair{path, std::move(reason)};
        }
        return is_own_name(part.filename().string())
                   ? std::optional(std::pair{part, std::string("memphis wrote it")})
                   : std::nullopt;
      }
      if (path == above) {
        return {};
      }
      part = path;
    }
    return {};
  }

  [[noreturn]] void fail(const fs::path& path, const std::string& reason) const {
    throw DataError("cannot read " + path.string() + " of " + key_ + " (" + reason +
                    "); check the path and its permissions");
  }

  std::string key_;
  fs::path run_dir_;
  std::set<std::pair<dev_t, ino_t>> outputs_;
  std::map<fs::path, Origin> origins_;
  std::map<fs::path, std::string> passed_over_;
  std::map<fs::path, std::string> own_work_;  // of directories that were looked into
  std::set<fs::path> entered_;
  std::set<fs::path> hidden_;
  std::set<fs::path> repeated_;
};

}  // namespace

TextFiles list_text_files(std::string_view key,
                          const std::vector<std::string>& entries,
                          const fs::path& run_dir) {
  Listing listing(key, run_dir);
  for (const std::string& entry : entries) {
    listing.add_entry(entry);
  }
  return listing.take();
}

}  // namespace memphis
