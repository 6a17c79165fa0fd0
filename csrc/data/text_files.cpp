// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/text_files.h"

#include <map>
#include <system_error>

#include <glob.h>

#include "csrc/core/error.h"

namespace memphis {
namespace {

namespace fs = std::filesystem;

class Listing {
 public:
  explicit Listing(std::string_view key) : key_(key) {}

  void add_entry(const std::string& entry) {
    std::error_code error;
    const fs::file_status status = fs::status(entry, error);
    if (status.type() == fs::file_type::not_found) {
      add_pattern(entry);
    } else if (status.type() == fs::file_type::directory) {
      add_directory(entry);
    } else if (status.type() == fs::file_type::regular) {
      add_file(entry, true);
    } else {
      fail(entry, error ? error.message() : "it is neither a regular file nor a directory");
    }
  }

  TextFiles take() {
    TextFiles result;
    result.num_hidden = num_hidden_;
    result.files.reserve(named_.size());
    for (const auto& [path, named] : named_) {
      result.files.push_back({.path = path, .named = named});
    }
    return result;
  }

 private:
  void add_file(const fs::path& path, bool named) {
    std::error_code error;
    // One name for a file, however many entries and links lead to it.
    const fs::path canonical = fs::canonical(path, error);
    if (error) {
      fail(path, error.message());
    }
    bool& entry = named_[canonical];
    entry = entry || named;
  }

  void add_directory(const fs::path& root) {
    std::error_code error;
    fs::recursive_directory_iterator iterator(root, error);
    for (; !error && iterator != fs::recursive_directory_iterator(); iterator.increment(error)) {
      if (iterator->path().filename().native().starts_with('.')) {
        ++num_hidden_;
        iterator.disable_recursion_pending();
        continue;
      }
      std::error_code dangling;  // a link to nothing is no regular file
      if (iterator->is_regular_file(dangling)) {
        add_file(iterator->path(), false);
      }
    }
    if (error) {
      fail(root, error.message());
    }
  }

  void add_pattern(const std::string& pattern) {
    glob_t matches{};
    const int status = ::glob(pattern.c_str(), GLOB_ERR | GLOB_NOSORT, nullptr, &matches);
    std::vector<fs::path> paths;
    if (status == 0) {
      paths.assign(matches.gl_pathv, matches.gl_pathv + matches.gl_pathc);
    }
    ::globfree(&matches);
    if (status == GLOB_NOMATCH) {
      throw DataError(key_ + " entry '" + pattern + "' matches nothing (seen from " +
                      fs::current_path().string() +
                      "); give a file, a directory or a pattern that exists");
    }
    if (status != 0) {
      fail(pattern, "a directory on the way cannot be listed");
    }
    for (const fs::path& path : paths) {
      std::error_code dangling;
      if (fs::is_directory(path, dangling)) {
        add_directory(path);
      } else if (fs::is_regular_file(path, dangling)) {
        add_file(path, false);
      }
    }
  }

  [[noreturn]] void fail(const fs::path& path, const std::string& reason) const {
    throw DataError("cannot read " + path.string() + " of " + key_ + " (" + reason +
                    "); check the path and its permissions");
  }

  std::string key_;
  std::map<fs::path, bool> named_;
  std::int64_t num_hidden_ = 0;
};

}  // namespace

TextFiles list_text_files(std::string_view key, const std::vector<std::string>& entries) {
  Listing listing(key);
  for (const std::string& entry : entries) {
    listing.add_entry(entry);
  }
  return listing.take();
}

}  // namespace memphis
