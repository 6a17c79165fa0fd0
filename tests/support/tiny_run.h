// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "csrc/config/config.h"
#include "csrc/config/load.h"
#include "tests/support/temporary_directory.h"
#include "tests/support/test_tensor.h"

namespace memphis::test {

// A few words in an order that repeats, but not soon: easy to learn, and not from the frequencies
// of letters.
inline std::string tiny_text() {
  const std::vector<std::string> words = {"grok", "routes", "every", "token", "to", "two"};
  std::string text;
  for (std::size_t i = 0; i < 2400; ++i) {
    text += words[(i * i + i / 7) % words.size()];
    text += i % 6 == 5 ? " experts.\n" : " ";
  }
  return text;
}

// The config of a run that takes milliseconds a step, on tiny_text(), which is written to
// `directory` with it.
inline std::string tiny_yaml(const TemporaryDirectory& directory) {
  const std::string text = directory.write("text.txt", tiny_text());
  return R"(model: {vocab_size: 259, num_layers: 2, d_model: 32, num_heads: 4, num_kv_heads: 2,
        ffn_dim: 48, num_experts: 4}
run: {dir: )" +
         (directory.path() / "run").string() +
         ", device: cpu, seed: " + std::to_string(test_seed()) + R"(}
data: {train: [)" +
         text + R"(]}
batch: {sequence_length: 32, micro_batch: 4, global_batch: 8}
optimizer: {learning_rate: 4e-3}
schedule: {steps: 40, warmup_steps: 5}
checkpoint: {every: 20}
metrics: {every: 20, validate_every: 20, sample_every: 0}
)";
}

// The same up to `step`, at one rate once it is warm: where a run is to end changes nothing before.
inline std::vector<std::string> until_step(std::int64_t step) {
  return {"schedule.steps=" + std::to_string(step), "schedule.decay=constant"};
}
// A run that a test interrupts is not at its end by then, however long the test takes to see where it
// is. What it ought to have come to is asked of another one, which ends where it was gone on with to.
inline std::vector<std::string> endless() {
  return until_step(1'000'000);
}

inline Config tiny_config(const TemporaryDirectory& directory,
                          const std::vector<std::string>& overrides = {}) {
  return parse_config(tiny_yaml(directory), "tiny.yaml", overrides);
}

}  // namespace memphis::test
