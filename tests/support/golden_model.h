// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <string>

#include "tests/support/temporary_directory.h"

namespace memphis::test {

// A model of tests/model/golden as a folder in Hugging Face's form, with its tokens and the logits
// that Grok-1's reference implementation gives for them. Its weights are those of a formula, which
// tests/model/golden/reference.py has too, and are written here.
class GoldenModel {
 public:
  explicit GoldenModel(const std::string& name);  // grok_tiny, with padded rows, or grok_tiny_nopad

  const std::filesystem::path& folder() const { return directory_.path(); }

 private:
  TemporaryDirectory directory_;
};

}  // namespace memphis::test
