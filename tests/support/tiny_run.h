// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <filesystem>
#include <string>
#include <vector>

#include "csrc/config/config.h"
#include "csrc/model/parameters.h"
#include "tests/support/temporary_directory.h"

namespace memphis::test {

// A config file for a model of some 40 thousand parameters, the text that it trains on and room for
// run directories, all of which go with the object.
class TinyRun {
 public:
  TinyRun();

  // The file's config with `overrides`; the run directory is run_dir().
  Config config(const std::vector<std::string>& overrides = {}) const;

  const std::filesystem::path& path() const { return directory_.path(); }
  std::string config_file() const { return path() / "tiny.yaml"; }
  std::filesystem::path run_dir() const { return path() / "run"; }

  // Sentences over a small vocabulary: their letters have a far higher entropy than their words.
  const std::string& text() const { return text_; }

 private:
  TemporaryDirectory directory_;
  std::string text_;
};

// Every weight, to compare bits.
std::vector<std::byte> weight_bits(const Parameters& parameters, Stream stream);

}  // namespace memphis::test
