// SPDX-License-Identifier: Apache-2.0
#include "csrc/train/generator.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <gtest/gtest.h>
#include <omp.h>

#include "csrc/core/error.h"
#include "csrc/data/tokenizer.h"
#include "tests/support/tiny_model.h"

namespace memphis::test {
namespace {

constexpr std::int64_t kLength = 8;

// With logits that differ enough to be told apart by few draws.
ModelConfig config_of_bytes() {
  ModelConfig config = tiny_grok2();
  config.vocab_size = ByteTokenizer::kVocabSize;
  config.num_layers = 1;
  config.final_cap = 0;
  config.output_multiplier = 3;
  config.pad_id = -1;
  return config;
}

class GeneratorTest : public testing::Test {
 protected:
  GeneratorTest()
      : config_(config_of_bytes()),
        weights_(config_, 1, kLength, DType::f32, Device::cpu),
        groups_(Device::cpu),
        residency_(weights_.parameters(), groups_, weights_.stream()),
        model_(config_,
               plan_inference(config_, 1, kLength, DType::f32, Device::cpu),
               residency_,
               groups_,
               weights_.stream()) {
    omp_set_num_threads(1);  // a pass is a few thousand products
  }

  // Of the token that follows: the window holds the last tokens of the context, at least half as many
  // as it has places.
  std::vector<float> next_logits(const std::vector<std::int32_t>& context) {
    std::size_t used = context.size();
    while (used > kLength) {
      used -= kLength / 2;
    }
    std::vector<std::int32_t> window(context.end() - static_cast<std::ptrdiff_t>(used),
                                     context.end());
    window.resize(kLength, 5);  // of no importance: nothing looks ahead
    model_.forward(window);
    return model_.logits_of(static_cast<std::int64_t>(used) - 1);
  }

  static std::vector<std::int32_t> context_of(const std::string& text) {
    std::vector<std::int32_t> context = {ByteTokenizer::kBos};
    for (const std::int32_t token : ByteTokenizer().encode(text)) {
      context.push_back(token);
    }
    return context;
  }

  ModelConfig config_;
  TinyModel weights_;
  Groups groups_;
  WeightResidency residency_;
  InferenceModel model_;
};

std::int32_t most_probable(const std::vector<float>& logits) {
  return static_cast<std::int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

// Past the window's end too, where the oldest tokens have fallen out.
TEST_F(GeneratorTest, WithoutTemperatureTakesTheMostProbableToken) {
  for (const std::string prompt : {"", "a", "grok routes tokens"}) {
    std::vector<std::int32_t> context = context_of(prompt);
    std::string expected;
    for (int i = 0; i < 20; ++i) {
      const std::int32_t token = most_probable(next_logits(context));
      if (token == ByteTokenizer::kEos) {
        break;
      }
      context.push_back(token);
      expected += ByteTokenizer().decode(std::vector<std::int32_t>{token});
    }
    EXPECT_EQ(generate_text(model_, prompt, {.num_tokens = 20, .temperature = 0}), expected);
  }
}

TEST_F(GeneratorTest, StopsAtTheEndOfTheDocument) {
  const std::string text = generate_text(model_, "a", {.num_tokens = 1, .temperature = 0});
  ASSERT_EQ(text.size(), 1U);
  // The token that follows and the end of a document change places in the head.
  const std::int32_t token = most_probable(next_logits(context_of("a")));
  const TensorView& head_VD = weights_.parameters().weights().head_VD;
  const std::int64_t D = head_VD.dim(1);
  float* const head = head_VD.as<float>();
  std::swap_ranges(head + token * D, head + (token + 1) * D, head + ByteTokenizer::kEos * D);
  EXPECT_EQ(generate_text(model_, "a", {.num_tokens = 20, .temperature = 0}), "");
}

// Within five standard errors of e^(logit / temperature), normalised.
TEST_F(GeneratorTest, DrawsFromTheDistributionOfItsTemperature) {
  constexpr int kDraws = 1500;
  const std::vector<float> logits = next_logits(context_of("ab"));
  for (const double temperature : {0.5, 1.5}) {
    std::vector<double> probability;
    double total = 0;
    for (const float logit : logits) {
      probability.push_back(std::exp(static_cast<double>(logit) / temperature));
      total += probability.back();
    }
    std::vector<double> count(256);
    for (int seed = 0; seed < kDraws; ++seed) {
      const std::string text = generate_text(
          model_,
          "ab",
          {.num_tokens = 1, .temperature = temperature, .seed = static_cast<std::uint64_t>(seed)});
      for (const char letter : text) {
        count[static_cast<unsigned char>(letter)] += 1;
      }
    }
    for (std::size_t letter = 0; letter < count.size(); ++letter) {
      const auto token = ByteTokenizer::token_of(static_cast<std::byte>(letter));
      const double p = probability[static_cast<std::size_t>(token)] / total;
      EXPECT_NEAR(count[letter] / kDraws, p, 5 * std::sqrt(p / kDraws) + 1.0 / kDraws)
          << "letter " << letter << " at temperature " << temperature;
    }
  }
}

// All tokens are as good as equal; each is drawn by a number of its own.
TEST_F(GeneratorTest, DrawsEachTokenAnew) {
  const auto draw = [&](std::uint64_t seed) {
    return generate_text(model_, "a", {.num_tokens = 30, .temperature = 1e9, .seed = seed});
  };
  std::string all;
  for (std::uint64_t seed = 1; seed <= 4; ++seed) {
    all += draw(seed);
    EXPECT_EQ(draw(seed), draw(seed)) << "same seed, same text";
  }
  EXPECT_GT(std::set<char>(all.begin(), all.end()).size(), 25U);
  EXPECT_NE(draw(1), draw(2));
}

// The same text, and so the same logits up to rounding, with keys and values kept, in a batch too: of
// prompts of unequal length, past the end of the window, and where a prompt takes the place of one
// that has ended.
TEST_F(GeneratorTest, TextIsTheSameWithACache) {
  const std::vector<std::string> prompts = {
      "", "a", "grok routes tokens", "two experts", "a", "every token to two experts of eight"};
  const SampleOptions options = {.num_tokens = 21, .temperature = 0};
  std::vector<std::string> expected;
  for (const std::string& prompt : prompts) {
    expected.push_back(generate_text(model_, prompt, options));
  }
  for (const std::int64_t num_sequences : {1, 2, 4}) {
    CachedModel cached(config_, num_sequences, kLength, residency_, groups_, weights_.stream());
    for (int again = 0; again < 2; ++again) {
      const std::vector<GeneratedText> texts = generate_texts(cached, prompts, options);
      for (std::size_t i = 0; i < prompts.size(); ++i) {
        EXPECT_EQ(texts[i].text, expected[i]) << "prompt " << i << " of " << num_sequences;
      }
    }
  }
}

TEST_F(GeneratorTest, ACacheGivesTheLogitsOfTheWholeWindow) {
  CachedModel cached(config_, 3, kLength, residency_, groups_, weights_.stream());
  WindowModel window(model_);
  std::vector<SequenceModel::Tokens> contexts = {
      context_of("a"), context_of("grok"), context_of("")};
  for (int step = 0; step < 12; ++step) {
    std::vector<const SequenceModel::Tokens*> asked;
    for (std::size_t i = 0; i < contexts.size(); ++i) {
      asked.push_back(step % 4 == 3 && i == 1 ? nullptr : &contexts[i]);
    }
    const std::vector<std::vector<float>> logits = cached.next(asked);
    for (std::size_t i = 0; i < contexts.size(); ++i) {
      if (asked[i] == nullptr) {
        EXPECT_TRUE(logits[i].empty());
        continue;
      }
      const std::vector<float> expected = window.next(std::vector{asked[i]}).front();
      ASSERT_EQ(logits[i].size(), expected.size());
      for (std::size_t v = 0; v < expected.size(); ++v) {
        ASSERT_NEAR(logits[i][v], expected[v], 2e-5) << "step " << step << " sequence " << i;
      }
    }
    for (std::size_t i = 0; i < contexts.size(); ++i) {
      // Another token than the last time, and at times another text.
      contexts[i].push_back(
          static_cast<std::int32_t>((41 * step + 7 * static_cast<int>(i)) % 250 + 3));
      if (step == 6 && i == 2) {
        contexts[i][1] = 99;
      }
    }
  }
}

// A pad that was kept is no key of later tokens.
TEST(CachedModel, DoesNotAttendToPads) {
  ModelConfig config = config_of_bytes();
  config.pad_id = 9;
  TinyModel weights(config, 1, kLength, DType::f32, Device::cpu);
  const Groups groups(Device::cpu);
  WeightResidency residency(weights.parameters(), groups, weights.stream());
  InferenceModel model(config,
                       plan_inference(config, 1, kLength, DType::f32, Device::cpu),
                       residency,
                       groups,
                       weights.stream());
  WindowModel window(model);
  CachedModel cached(config, 2, kLength, residency, groups, weights.stream());
  SequenceModel::Tokens context = {1, 9, 30, 9};
  for (const std::int32_t token : {40, 9, 50, 60}) {
    const std::vector<float> expected = window.next(std::vector{&std::as_const(context)}).front();
    const std::vector<float> logits =
        cached.next(std::vector<const SequenceModel::Tokens*>{nullptr, &context}).back();
    for (std::size_t v = 0; v < expected.size(); ++v) {
      ASSERT_NEAR(logits[v], expected[v], 2e-5) << "before token " << token;
    }
    context.push_back(token);
  }
}

TEST(DrawToken, LeavesOutWhatItIsTold) {
  // Probabilities 0.5, 0.25, 0.125, 0.125 at temperature 1.
  const std::vector<float> logits = {
      std::log(0.125F), std::log(0.5F), std::log(0.25F), std::log(0.125F)};
  const auto drawn = [&](SampleOptions options, const std::vector<std::int32_t>& context = {}) {
    options.temperature = options.temperature == 0.8 ? 1 : options.temperature;
    std::vector<double> share(4);
    for (int i = 0; i < 1000; ++i) {
      share[static_cast<std::size_t>(draw_token(logits, context, options, (i + 0.5) / 1000))] +=
          1e-3;
    }
    return share;
  };
  const auto expect_shares = [](const std::vector<double>& actual,
                                const std::vector<double>& shares) {
    for (std::size_t i = 0; i < shares.size(); ++i) {
      EXPECT_NEAR(actual[i], shares[i], 2e-3) << "token " << i;
    }
  };
  expect_shares(drawn({}), {0.125, 0.5, 0.25, 0.125});
  expect_shares(drawn({.top_k = 2}), {0, 2.0 / 3, 1.0 / 3, 0});
  expect_shares(drawn({.top_k = 9}), {0.125, 0.5, 0.25, 0.125});
  expect_shares(drawn({.top_p = 0.74}), {0, 2.0 / 3, 1.0 / 3, 0});
  expect_shares(drawn({.top_p = 0.49}), {0, 1, 0, 0});
  expect_shares(drawn({.top_p = 0.8}), {1.0 / 7, 4.0 / 7, 2.0 / 7, 0});
  expect_shares(drawn({.top_p = 0}), {0, 1, 0, 0});
  expect_shares(drawn({.min_p = 0.3}), {0, 2.0 / 3, 1.0 / 3, 0});
  expect_shares(drawn({.top_k = 3, .top_p = 0.5}), {0, 1, 0, 0});
  // log p of token 1 is doubled, once however often it has come: its share goes from 0.5 to 0.25.
  expect_shares(drawn({.repetition_penalty = 2}, {1, 1}), {1.0 / 6, 1.0 / 3, 1.0 / 3, 1.0 / 6});
  EXPECT_EQ(draw_token({1.0F, 4.0F, 2.1F, 0.0F},
                       std::vector<std::int32_t>{1},
                       {.temperature = 0, .repetition_penalty = 2},
                       0.5),
            2);
}

// Whatever is shown piece by piece is the text, which ends before the stop text, of which nothing is
// shown.
TEST_F(GeneratorTest, EndsBeforeAStopText) {
  CachedModel cached(config_, 2, 64, residency_, groups_, weights_.stream());
  const SampleOptions plain = {.num_tokens = 40, .temperature = 1.2, .seed = 5};
  const std::vector<GeneratedText> whole = generate_texts(cached, {"a", "b"}, plain);
  ASSERT_GT(whole[0].text.size(), 12U);
  std::vector<std::string> shown(2);
  SampleOptions options = plain;
  options.stop = {"never there", whole[0].text.substr(7, 3)};
  options.on_text = [&](std::size_t prompt, std::string_view text) { shown[prompt] += text; };
  const std::vector<GeneratedText> ended = generate_texts(cached, {"a", "b"}, options);
  EXPECT_EQ(ended[0].text, whole[0].text.substr(0, whole[0].text.find(options.stop[1])));
  EXPECT_EQ(ended[0].end, GeneratedText::End::stop);
  for (std::size_t i = 0; i < shown.size(); ++i) {
    EXPECT_EQ(shown[i], ended[i].text);
  }
  EXPECT_NE(whole[0].text, whole[1].text);
}

TEST(InferenceModel, TakesEachSequenceForOneDocument) {
  const ModelConfig config = config_of_bytes();
  TinyModel weights(config, 1, kLength, DType::f32, Device::cpu);
  const Groups groups(Device::cpu);
  WeightResidency residency(weights.parameters(), groups, weights.stream());
  InferenceModel model(config,
                       plan_inference(config, 3, kLength, DType::f32, Device::cpu),
                       residency,
                       groups,
                       weights.stream());
  std::vector<std::int32_t> tokens;
  for (int b = 0; b < 3; ++b) {
    for (std::int32_t t = 0; t < kLength; ++t) {
      tokens.push_back(17 * t + 3);
    }
  }
  model.forward(tokens);
  for (std::int64_t t = 0; t < kLength; ++t) {
    const std::vector<float> first = model.logits_of(t);
    const std::vector<float> last = model.logits_of(2 * kLength + t);
    for (std::size_t v = 0; v < first.size(); ++v) {
      ASSERT_NEAR(first[v], last[v], 1e-5) << "token " << t;
    }
  }
  tokens[4] = static_cast<std::int32_t>(config.vocab_size);
  EXPECT_THROW(model.forward(tokens), ContractError);
  tokens[4] = -1;
  EXPECT_THROW(model.forward(tokens), ContractError);
  tokens[4] = static_cast<std::int32_t>(config.vocab_size) - 1;
  EXPECT_NO_THROW(model.forward(tokens));
}

// A pad is no key: what its row of the embedding holds reaches no later token.
TEST(InferenceModel, DoesNotAttendToPads) {
  for (const std::int64_t pad_id : {9, -1}) {
    ModelConfig config = config_of_bytes();
    config.pad_id = pad_id;
    TinyModel weights(config, 1, kLength, DType::f32, Device::cpu);
    const Groups groups(Device::cpu);
    WeightResidency residency(weights.parameters(), groups, weights.stream());
    InferenceModel model(config,
                         plan_inference(config, 1, kLength, DType::f32, Device::cpu),
                         residency,
                         groups,
                         weights.stream());
    const std::vector<std::int32_t> tokens = {1, 9, 30, 40, 9, 50, 60, 70};
    model.forward(tokens);
    const std::vector<float> before = model.logits_of(7);
    const TensorView& embedding_VD = weights.parameters().weights().embedding_VD;
    float* const row = embedding_VD.as<float>() + 9 * embedding_VD.dim(1);
    std::reverse(row, row + embedding_VD.dim(1));
    model.forward(tokens);
    EXPECT_EQ(model.logits_of(7) == before, pad_id == 9) << "pad_id " << pad_id;
  }
}

}  // namespace
}  // namespace memphis::test
