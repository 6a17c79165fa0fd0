// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <string>

#include "csrc/checkpoint/manifest.h"
#include "csrc/checkpoint/store.h"

namespace memphis {

// The checkpoints of a run as they matter to what is kept of them. Of the first rank.
class Rotation {
 public:
  // Whether a checkpoint is of this run; asked once each.
  using IsOfRun = std::function<bool(const Manifest&)>;
  Rotation(std::filesystem::path run_dir, IsOfRun is_of_run)
      : run_dir_(std::move(run_dir)), is_of_run_(std::move(is_of_run)) {}

  Standing standing(const std::filesystem::path& checkpoint);

  // How to go on from good weights where the loss exploded, or was not a number, in step
  // `exploded_at`: which checkpoint is the last that is well, and the command that sets newer ones
  // aside. `change` is what the run should be started again with. Reads as advice: the last part of
  // an error, or of a warning.
  std::string way_back(std::int64_t exploded_at, const std::string& change) const;

 private:
  std::filesystem::path run_dir_;
  IsOfRun is_of_run_;
  std::map<std::filesystem::path, Standing> known_;
};

}  // namespace memphis
