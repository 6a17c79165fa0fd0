// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "csrc/train/record_file.h"

namespace memphis {

// A file of events as TensorBoard reads them: scalars, texts and histograms of a step. One is written
// by each process; TensorBoard joins those of a folder, and forgets what a later one begins before.
//
// Errors      PreflightError where the file cannot be made or written.
// Source      Event, Summary, HistogramProto and TensorProto of TensorFlow, in protobuf's encoding; in
//             records of length, masked CRC-32C of it, bytes, and masked CRC-32C of these.
class EventFile {
 public:
  // In `dir`, which is made; `step` is the first one that will come.
  EventFile(const std::filesystem::path& dir, std::int64_t step);

  struct Scalar {
    std::string_view tag;
    double value;
  };
  void write_scalars(std::int64_t step, std::span<const Scalar> scalars);
  void write_text(std::int64_t step, std::string_view tag, std::string_view text);
  struct Histogram {
    std::string tag;
    std::vector<double> buckets;  // of values from 0, 1, 2 ... on, each up to the next
  };
  void write_histograms(std::int64_t step, std::span<const Histogram> histograms);

  void set_without_room(RecordFile::WithoutRoom without_room) {
    records_.set_without_room(without_room);
  }
  void require_written() { records_.require_written(); }

  const std::filesystem::path& path() const { return path_; }

 private:
  void write_record(const std::string& event);

  std::filesystem::path path_;
  RecordFile records_;
};

}  // namespace memphis
