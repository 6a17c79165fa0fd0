// SPDX-License-Identifier: Apache-2.0
#include "csrc/train/record_file.h"

#include <cerrno>
#include <utility>

#include <spdlog/fmt/fmt.h>
#include <sys/stat.h>

#include "csrc/core/error.h"
#include "csrc/core/file.h"
#include "csrc/core/log.h"
#include "csrc/core/write_advice.h"

namespace memphis {

RecordFile::RecordFile(Descriptor descriptor, std::filesystem::path path)
    : path_(std::move(path)), descriptor_(std::move(descriptor)) {}

int RecordFile::try_to_write(std::string_view record) {
  struct stat before {};
  const bool known = ::fstat(descriptor_.number(), &before) == 0;
  const int error_number = known ? write_all(descriptor_.number(), record) : errno;
  // Of a record that was written in part the rest would never come.
  if (error_number != 0 && known &&
      cut_file(descriptor_.number(), static_cast<std::uint64_t>(before.st_size)) != 0) {
    log_warning("the last line of {} is cut short", path_.string());
  }
  return error_number;
}

void RecordFile::fail(int error_number) const {
  throw PreflightError(fmt::format("cannot write {} ({}); {} and start again",
                                   path_.string(),
                                   system_reason(error_number),
                                   write_advice(error_number)));
}

void RecordFile::append(std::string_view record) {
  const bool was_full = !kept_.empty();
  if (was_full && kept_.size() + record.size() > kMostKept) {
    // What is kept may have room by now, and what follows it then too.
    if (try_to_write(kept_) != 0) {
      ++num_left_out_;
      return;
    }
    kept_.clear();
  }
  kept_.append(record);
  const int error_number = try_to_write(kept_);
  if (error_number == 0) {
    kept_.clear();
    if (was_full) {
      log_info(
          "{} is written again{}",
          path_.string(),
          num_left_out_ == 0 ? std::string() : fmt::format(", without {} records", num_left_out_));
      num_left_out_ = 0;
    }
    return;
  }
  if (without_room_ == WithoutRoom::fails || (error_number != ENOSPC && error_number != EDQUOT)) {
    fail(error_number);
  }
  if (!was_full) {
    log_warning(
        "cannot write {} ({}): what belongs there is kept in memory, up to {} MiB, until there is "
        "room, and training goes on; {}",
        path_.string(),
        system_reason(error_number),
        kMostKept >> 20U,
        write_advice(error_number));
  }
}

void RecordFile::require_written() {
  if (!kept_.empty()) {
    if (const int error_number = try_to_write(kept_); error_number != 0) {
      fail(error_number);
    }
    kept_.clear();
  }
}

}  // namespace memphis
