// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <mutex>
#include <optional>
#include <string>

#include "csrc/core/file.h"

namespace memphis {

// What was learnt by reading files whole, kept in a file of the run's: a run that goes on takes it
// from there for those that have the size and the time of their last change that they had. A file of
// records that is missing or damaged is an empty one.
class FileRecords {
 public:
  struct Record {
    std::string digest;
    std::int64_t largest_id = -1;
  };

  FileRecords() = default;
  // `path` is empty where nothing is kept.
  explicit FileRecords(std::filesystem::path path);

  // Of `file` as it is; `what` tells apart what is learnt of one file. Any number of threads may ask.
  std::optional<Record> find(const InputFile& file, const std::string& what) const;
  void put(const InputFile& file, const std::string& what, const Record& record);

  // Writes what has been put since, if anything. What cannot be written is not kept.
  void save() const;

 private:
  std::filesystem::path path_;
  mutable std::mutex mutex_;
  std::map<std::string, Record> records_;
  mutable bool changed_ = false;
};

}  // namespace memphis
