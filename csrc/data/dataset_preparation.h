// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "csrc/config/config.h"
#include "csrc/data/id_scan.h"

namespace memphis {

// The parts of open_dataset that may take long, in pieces, between which ranks hear of each other.
// One rank of a job tokenizes while the others wait; ids are read by all.
class DatasetPreparation {
 public:
  DatasetPreparation(const DataConfig& config,
                     const std::vector<std::string>& default_roots,
                     const std::filesystem::path& run_dir);
  ~DatasetPreparation();
  DatasetPreparation(const DatasetPreparation&) = delete;
  DatasetPreparation& operator=(const DatasetPreparation&) = delete;

  // Tokenizes for about so long. False once all is.
  bool advance(double seconds);

  // After that: the ids that no start has read yet, for all ranks to share out.
  std::vector<IdScan::Column> unread_ids(std::int64_t vocab_size) const;
  // What they have found, for open_dataset to take it from `run_dir`.
  void keep(const IdScan& scan, const std::string& results) const;
  // Whether that shows that tokens which an earlier start has made are damaged: all of this again.
  bool discard_damaged();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace memphis
