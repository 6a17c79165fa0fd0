// SPDX-License-Identifier: Apache-2.0
#include "tests/support/tiny_run.h"

#include <array>
#include <string_view>

#include "csrc/config/load.h"
#include "csrc/core/rng.h"

namespace memphis::test {
namespace {

std::string sentences(std::uint64_t count) {
  constexpr std::array<std::string_view, 4> kSubjects = {"the wind", "a river", "my aunt", "no one"};
  constexpr std::array<std::string_view, 4> kVerbs = {"crosses", "forgets", "repairs", "hears"};
  constexpr std::array<std::string_view, 4> kObjects = {
      "the bridge", "a quiet song", "twelve clocks", "every door"};
  const CounterRng rng(1, "sentences");
  std::string text;
  for (std::uint64_t i = 0; i < count; ++i) {
    text += kSubjects[rng.word(3 * i) % 4];
    text += ' ';
    text += kVerbs[rng.word(3 * i + 1) % 4];
    text += ' ';
    text += kObjects[rng.word(3 * i + 2) % 4];
    text += ".\n";
  }
  return text;
}

constexpr std::string_view kConfig = R"(model:
  vocab_size: 259
  num_layers: 2
  d_model: 32
  num_heads: 4
  num_kv_heads: 2
  ffn_dim: 48
  num_experts: 4
  experts_per_token: 2
run: {device: cpu, seed: 3}
batch: {sequence_length: 32, micro_batch: 4, global_batch: 8}
optimizer: {learning_rate: 1e-2}
schedule: {steps: 40, warmup_steps: 4, decay: constant}
precision: {compute: f32}
metrics: {every: 1000, validate_every: 0, sample_every: 0}
checkpoint: {every: 20, keep: 5}
)";

}  // namespace

TinyRun::TinyRun() : text_(sentences(600)) {
  const std::string text = directory_.write("text/sentences.txt", text_);
  directory_.write("tiny.yaml", std::string(kConfig) + "data: {train: [" + text + "]}\n");
}

Config TinyRun::config(const std::vector<std::string>& overrides) const {
  std::vector<std::string> all = {"run.dir=" + run_dir().string()};
  all.insert(all.end(), overrides.begin(), overrides.end());
  return load_config(config_file(), all);
}

std::vector<std::byte> weight_bits(const Parameters& parameters, Stream stream) {
  std::vector<std::byte> bits;
  for (std::size_t i = 0; i < parameters.plan().segments.size(); ++i) {
    const TensorView weights = parameters.segment_weights(static_cast<int>(i));
    const std::size_t begin = bits.size();
    bits.resize(begin + weights.bytes());
    device_copy(bits.data() + begin, weights.data, weights.bytes(), stream);
  }
  synchronize(stream);
  return bits;
}

}  // namespace memphis::test
