// SPDX-License-Identifier: Apache-2.0
//
// Logits of two small models with Grok-1's architecture against those that its reference
// implementation, xAI's model.py, gives for the same weights and tokens.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/checkpoint/hf.h"
#include "csrc/checkpoint/npy.h"
#include "csrc/checkpoint/weights.h"
#include "csrc/core/file.h"
#include "csrc/core/json.h"
#include "csrc/train/generator.h"
#include "tests/support/golden_model.h"

namespace memphis::test {
namespace {

namespace fs = std::filesystem;

// Of the largest logit: some hundred f32 roundings (2^-24 each) on the way through three layers.
constexpr double kTolerance = 2e-5;

ModelConfig config_of(const GoldenModel& golden) {
  return read_hf_config(golden.folder() / "config.json");
}

// Largest difference of a logit over the largest logit, for the folder's tokens.
double relative_difference(const fs::path& folder, const ModelConfig& config) {
  const OwnedStream stream(Device::cpu);
  Parameters parameters(
      plan_parameters(config, DType::f32), DType::f32, Device::cpu, Parameters::Gradients::none);
  StoredWeights(folder, config).load(parameters, stream.view());
  const auto rows = parse_json(read_text(folder / "tokens.json"))
                        .value()["tokens"]
                        .get<std::vector<std::vector<std::int32_t>>>();
  const NpyArray expected = read_npy(folder / "logits.npy");
  const auto length = static_cast<std::int64_t>(rows.front().size());
  const Groups groups(Device::cpu);
  WeightResidency residency(parameters, groups, stream.view());
  InferenceModel model(config,
                       plan_inference(config, 1, length, DType::f32, Device::cpu),
                       residency,
                       groups,
                       stream.view());
  double difference = 0;
  double largest = 0;
  std::size_t i = 0;
  for (const std::vector<std::int32_t>& row : rows) {
    model.forward(row);
    for (std::int64_t t = 0; t < length; ++t) {
      for (const float logit : model.logits_of(t)) {
        const float reference = expected.values.at(i++);
        difference = std::fmax(difference, std::abs(static_cast<double>(logit - reference)));
        largest = std::fmax(largest, std::abs(static_cast<double>(reference)));
        EXPECT_TRUE(std::isfinite(logit));
      }
    }
  }
  EXPECT_EQ(i, expected.values.size());
  return difference / largest;
}

TEST(Golden, LogitsAgree) {
  for (const char* name : {"grok_tiny", "grok_tiny_nopad"}) {
    const GoldenModel golden(name);
    EXPECT_LE(relative_difference(golden.folder(), config_of(golden)), kTolerance) << name;
  }
}

// Token by token too, with keys and values kept. Where a token and all before it are pads, which are no
// keys, what it is to see is the mean of the whole row, which is not there yet.
TEST(Golden, LogitsOfTextThatGrowsAgree) {
  for (const char* name : {"grok_tiny", "grok_tiny_nopad"}) {
    const GoldenModel golden(name);
    const ModelConfig config = config_of(golden);
    const OwnedStream stream(Device::cpu);
    Parameters parameters(
        plan_parameters(config, DType::f32), DType::f32, Device::cpu, Parameters::Gradients::none);
    StoredWeights(golden.folder(), config).load(parameters, stream.view());
    const auto rows = parse_json(read_text(golden.folder() / "tokens.json"))
                          .value()["tokens"]
                          .get<std::vector<std::vector<std::int32_t>>>();
    const NpyArray expected = read_npy(golden.folder() / "logits.npy");
    const std::size_t length = rows.front().size();
    const auto V = static_cast<std::size_t>(config.vocab_size);
    const Groups groups(Device::cpu);
    WeightResidency residency(parameters, groups, stream.view());
    CachedModel model(config,
                      static_cast<std::int64_t>(rows.size()),
                      static_cast<std::int64_t>(length),
                      residency,
                      groups,
                      stream.view());
    double difference = 0;
    double largest = 0;
    std::size_t compared = 0;
    for (std::size_t t = 0; t < length; ++t) {
      std::vector<SequenceModel::Tokens> contexts;
      std::vector<const SequenceModel::Tokens*> asked;
      for (const std::vector<std::int32_t>& row : rows) {
        contexts.emplace_back(row.begin(), row.begin() + static_cast<std::ptrdiff_t>(t) + 1);
      }
      for (const SequenceModel::Tokens& context : contexts) {
        asked.push_back(&context);
      }
      const std::vector<std::vector<float>> logits = model.next(asked);
      for (std::size_t row = 0; row < rows.size(); ++row) {
        const bool sees_a_key =
            std::any_of(contexts[row].begin(), contexts[row].end(), [&](std::int32_t token) {
              return token != config.pad_id;
            });
        for (std::size_t v = 0; sees_a_key && v < V; ++v) {
          const double reference = expected.values.at((row * length + t) * V + v);
          difference =
              std::fmax(difference, std::abs(static_cast<double>(logits[row][v]) - reference));
          largest = std::fmax(largest, std::abs(reference));
          ++compared;
        }
      }
    }
    EXPECT_GT(compared, expected.values.size() / 2);
    EXPECT_LE(difference / largest, kTolerance) << name;
  }
}

// The comparison sees the padding and every multiplier and cap of the architecture.
TEST(Golden, WrongArithmeticIsSeen) {
  const GoldenModel golden("grok_tiny");
  std::vector<std::pair<std::string, ModelConfig>> wrong(7, {"", config_of(golden)});
  wrong[0].first = "pad_id";
  wrong[0].second.pad_id = -1;
  wrong[1].first = "attention_cap";
  wrong[1].second.attention_cap = 1;
  wrong[2].first = "attention_multiplier";
  wrong[2].second.attention_multiplier *= 1.01;
  wrong[3].first = "embedding_multiplier";
  wrong[3].second.embedding_multiplier *= 2;
  wrong[4].first = "output_multiplier";
  wrong[4].second.output_multiplier *= 1.01;
  wrong[5].first = "experts_per_token";
  wrong[5].second.experts_per_token = 3;
  wrong[6].first = "rope_theta";
  wrong[6].second.rope_theta *= 2;
  for (const auto& [name, config] : wrong) {
    EXPECT_GT(relative_difference(golden.folder(), config), 10 * kTolerance) << name;
  }
}

}  // namespace
}  // namespace memphis::test
