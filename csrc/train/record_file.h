// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

#include "csrc/core/file_calls.h"

namespace memphis {

// A file that grows by records, of which none is there in part: lines of metrics, events.
class RecordFile {
 public:
  // What a disk, or a quota, that is full for a while makes of a record: an error, or one warning
  // and a place in memory until there is room. Beyond kMostKept bytes records are left out.
  enum class WithoutRoom : std::uint8_t { fails, is_kept };
  static constexpr std::size_t kMostKept = std::size_t{4} << 20U;

  RecordFile() = default;
  // `descriptor` is open for appending.
  RecordFile(Descriptor descriptor, std::filesystem::path path);

  void set_without_room(WithoutRoom without_room) { without_room_ = without_room; }

  // PreflightError where it cannot be written.
  void append(std::string_view record);
  // PreflightError where there are records that are not written still.
  void require_written();

 private:
  // 0, or a value of errno, and nothing of it is in the file.
  int try_to_write(std::string_view record);
  [[noreturn]] void fail(int error_number) const;

  std::filesystem::path path_;
  Descriptor descriptor_;
  WithoutRoom without_room_ = WithoutRoom::fails;
  std::string kept_;  // records that there was no room for
  std::int64_t num_left_out_ = 0;
};

}  // namespace memphis
