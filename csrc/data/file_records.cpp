// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/file_records.h"

#include <system_error>
#include <utility>

#include <spdlog/fmt/fmt.h>

#include "csrc/core/error.h"
#include "csrc/core/json.h"
#include "csrc/core/log.h"

namespace memphis {
namespace {

constexpr int kVersion = 1;

std::string key_of(const InputFile& file, const std::string& what) {
  return fmt::format("{} {} {} {}", what, file.size(), file.modified_ns(), file.path().string());
}

}  // namespace

FileRecords::FileRecords(std::filesystem::path path) : path_(std::move(path)) {
  std::error_code ignored;
  if (path_.empty() || !std::filesystem::is_regular_file(path_, ignored)) {
    return;
  }
  try {
    const auto root = parse_json(read_text(path_)).value_or(nlohmann::json());
    if (root.is_object() && root.value("version", 0) == kVersion) {
      for (const auto& [key, value] : root.at("files").items()) {
        records_[key] = {.digest = value.at("digest").get<std::string>(),
                         .largest_id = value.at("largest_id").get<std::int64_t>()};
      }
    }
  } catch (const std::exception&) {
    records_.clear();  // it is written anew
  }
}

std::optional<FileRecords::Record> FileRecords::find(const InputFile& file,
                                                     const std::string& what) const {
  const std::scoped_lock lock(mutex_);
  const auto found = records_.find(key_of(file, what));
  return found == records_.end() ? std::nullopt : std::optional(found->second);
}

void FileRecords::put(const InputFile& file, const std::string& what, const Record& record) {
  const std::scoped_lock lock(mutex_);
  records_[key_of(file, what)] = record;
  changed_ = true;
}

void FileRecords::save() const {
  const std::scoped_lock lock(mutex_);
  if (path_.empty() || !changed_) {
    return;
  }
  nlohmann::json files = nlohmann::json::object();
  for (const auto& [key, record] : records_) {
    files[key] = {{"digest", record.digest}, {"largest_id", record.largest_id}};
  }
  make_directories(path_.parent_path());  // what fails here fails below
  try {
    write_text_atomically(path_,
                          nlohmann::json{{"version", kVersion}, {"files", files}}.dump(
                              1, ' ', false, nlohmann::json::error_handler_t::replace));
    changed_ = false;
  } catch (const Error& error) {
    log_info("what was learnt of the data is not kept, and is read again at the next start: {}",
             error.what());
  }
}

}  // namespace memphis
