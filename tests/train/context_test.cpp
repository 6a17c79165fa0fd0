// SPDX-License-Identifier: Apache-2.0
//
// Ranks that share out the tokens of a sequence change nothing but who does what. Each case is a run
// of a few steps, held to the same run on one rank in f64, where what differs is rounding alone:
//
//   every layout     of layouts(), with 2 and 4 times the ranks, on texts of one document, of many
//                    with odd lengths, with padding in mid-sequence, with and without the cap
//   pipelines        in every schedule, with what a layer computes again
//   exchanges        gathered keys, a ring, and all to all
//   orders           every order of tokens gives the run of one rank; each sees the same work
//   padding          a rank whose tokens are all padding adds nothing, and no NaN
//   samples          the text that the model writes is one rank's
//   memory           what the plan says, and activations fall with the ranks
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <fstream>
#include <map>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "csrc/comm/together.h"
#include "csrc/core/device.h"
#include "csrc/data/tokenizer.h"
#include "tests/support/departure.h"
#include "tests/support/layout_run.h"
#include "tests/support/tiny_run.h"

namespace memphis::test {
namespace {

// The second step has what the first one made of the weights.
constexpr int kNumSteps = 2;

// What is trained on, and what of the model depends on where a token stands.
struct Text {
  std::string name;
  std::vector<std::string> overrides;
};

// Lines of JSON, of lengths that follow Zipf's law and no multiple of anything.
std::string documents(const TemporaryDirectory& directory) {
  const std::string text = tiny_text();
  std::string lines;
  std::size_t at = 0;
  for (std::size_t i = 0; at + 200 < text.size(); ++i) {
    const std::size_t length = 3 + 97 / (1 + i * 7 % 13);
    std::string document = text.substr(at, length);
    std::replace(document.begin(), document.end(), '\n', ' ');
    lines += R"({"text": ")" + document + "\"}\n";
    at += length;
  }
  return directory.write("documents.jsonl", lines);
}

// A byte that stands for no token.
std::string pad_id(char byte) {
  return "model.pad_id=" + std::to_string(ByteTokenizer::kFirstByte + byte);
}

const std::vector<Text>& texts() {
  static const TemporaryDirectory directory;
  static const std::string lines = "data.train=[" + documents(directory) + "]";
  static const std::vector<Text> table = {
      {"one_document", {}},
      {"documents", {lines, "model.attention_temperature_len=8"}},
      // The letter that is most of them is the pad id.
      {"padding", {lines, pad_id('e'), "model.attention_cap=0"}},
      {"dense", {"model.dense_ffn_dim=16", "model.tie_embeddings=false", pad_id('t')}}};
  return table;
}

Layout on(const Text& text, Layout layout) {
  layout.overrides.insert(layout.overrides.end(), text.overrides.begin(), text.overrides.end());
  return layout;
}

const Outcome& one_rank(const Text& text, const std::vector<std::string>& more = {}) {
  static std::map<std::string, Outcome> outcomes;
  std::string name = text.name;
  for (const std::string& override : more) {
    name += " " + override;
  }
  const auto found = outcomes.find(name);
  if (found != outcomes.end()) {
    return found->second;
  }
  Layout layout = on(text, layouts().front());
  layout.overrides.insert(layout.overrides.end(), more.begin(), more.end());
  return outcomes.emplace(name, train(layout, Ranks::threads, "f64", kNumSteps)).first->second;
}

struct Case {
  Text text;
  Layout layout;
  std::vector<std::string> model;  // what one rank is told of it too
};

void PrintTo(const Case& tested, std::ostream* out) {
  *out << tested.layout.name << " on " << tested.text.name;
}

std::vector<Case> cases() {
  std::vector<Case> result;
  for (const int context : {2, 4}) {
    for (std::size_t i = 0; i < layouts().size(); ++i) {
      const Text& text = texts()[(i + static_cast<std::size_t>(context)) % texts().size()];
      result.push_back({text, in_context(layouts()[i], context), {}});
    }
  }
  return result;
}

class ContextTest : public testing::TestWithParam<Case> {};

TEST_P(ContextTest, TrainsAsOneRankDoes) {
  const Case& tested = GetParam();
  const Layout layout = on(tested.text, tested.layout);
  const Outcome actual = train(layout, Ranks::threads, "f64", kNumSteps);
  const Outcome& one = one_rank(tested.text, tested.model);
  expect_same_bits(actual.initial, one.initial, "at step 0,");
  expect_same_run(actual, one);
  if (HasFailure()) {
    Layout alone = on(tested.text, layouts().front());
    alone.overrides.push_back("batch.micro_batch=16");
    ADD_FAILURE() << describe_departure(first_step(alone, Ranks::threads),
                                        first_step(layout, Ranks::threads));
  }
}

INSTANTIATE_TEST_SUITE_P(Layouts, ContextTest, testing::ValuesIn(cases()), [](const auto& tested) {
  return tested.param.layout.name + "_on_" + tested.param.text.name;
});

std::vector<Case> piped_cases() {
  const std::vector<std::string> deep = {"model.num_layers=4"};
  const auto of = [&](const char* name,
                      const char* of_layout,
                      int pipeline,
                      int context,
                      const std::vector<std::string>& more,
                      std::size_t text) {
    Layout layout = piped(name, in_context(layout_named(of_layout), context), pipeline, more);
    std::erase_if(layout.overrides, [](const std::string& override) {
      return override.starts_with("batch.micro_batch");
    });
    layout.overrides.insert(layout.overrides.end(), {"model.num_layers=4", "batch.micro_batch=2"});
    return Case{texts()[text], layout, deep};
  };
  return {of("stages_1f1b", "one", 2, 2, {}, 1),
          of("stages_interleaved",
             "data2_expert2",
             2,
             2,
             {"parallel.schedule=interleaved", "parallel.chunks=2"},
             2),
          of("stages_zb_h1", "tensor2_expert2", 2, 4, {"parallel.schedule=zb-h1"}, 1),
          of("stages_zbv_again",
             "data2_tensor2",
             2,
             2,
             {"parallel.schedule=zbv", "memory.recompute=block"},
             3),
          of("again_attention", "tensor2", 1, 2, {"memory.recompute=[attention, geglu]"}, 2),
          of("again_block_shared_weights",
             "data2_shared_weights",
             1,
             4,
             {"memory.recompute=block"},
             1)};
}

INSTANTIATE_TEST_SUITE_P(Pipelines,
                         ContextTest,
                         testing::ValuesIn(piped_cases()),
                         [](const auto& tested) { return tested.param.layout.name; });

std::int64_t tensor_degree(const Layout& layout) {
  for (const std::string& override : layout.overrides) {
    if (override.starts_with("parallel.tensor=")) {
      return std::stoll(override.substr(std::string("parallel.tensor=").size()));
    }
  }
  return 1;
}

std::vector<Case> ordered_cases() {
  std::vector<Case> result;
  for (const char* order : {"zigzag", "blocks"}) {
    for (const std::size_t text : {0, 1}) {
      Layout layout = in_context(layout_named("tensor2"), 4);
      layout.name = std::string(order) + "_on_" + texts()[text].name;
      layout.overrides.push_back(std::string("parallel.context_order=") + order);
      result.push_back({texts()[text], layout, {}});
    }
  }
  return result;
}

// Of the layouts without a pipeline those that cut attention, in the other ways to the keys.
std::vector<Case> exchange_cases() {
  std::vector<Case> result;
  for (const char* exchange : {"ring", "all_to_all"}) {
    for (const int context : {2, 4}) {
      for (const char* name : {"one",
                               "data2_shared_weights",
                               "tensor2_expert2",
                               "tensor2_whole_sequences",
                               "tensor4_shared_heads",
                               "data2_tensor2_expert2_split2"}) {
        const Text& text = texts()[result.size() % texts().size()];
        Layout layout = in_context(layout_named(name), context);
        layout.name += std::string("_") + exchange + "_on_" + text.name;
        layout.overrides.push_back(std::string("parallel.context_exchange=") + exchange);
        // From all to all each rank takes whole heads, on one machine.
        const bool of_heads = std::string(exchange) == "all_to_all";
        if (of_heads && context * tensor_degree(layout) > 8) {
          continue;
        }
        const std::vector<std::string> model =
            of_heads ? std::vector<std::string>{"model.num_kv_heads=8", "model.num_heads=8"}
                     : std::vector<std::string>{};
        layout.overrides.insert(layout.overrides.end(), model.begin(), model.end());
        result.push_back({text, layout, model});
      }
    }
  }
  for (const char* exchange : {"ring", "all_to_all"}) {
    Case again = piped_cases()[3];
    again.layout.name += std::string("_") + exchange;
    const std::vector<std::string> more = {std::string("parallel.context_exchange=") + exchange,
                                           "model.num_kv_heads=4"};
    again.layout.overrides.insert(again.layout.overrides.end(), more.begin(), more.end());
    again.model.push_back("model.num_kv_heads=4");
    result.push_back(again);
  }
  return result;
}

INSTANTIATE_TEST_SUITE_P(Exchanges,
                         ContextTest,
                         testing::ValuesIn(exchange_cases()),
                         [](const auto& tested) { return tested.param.layout.name; });

INSTANTIATE_TEST_SUITE_P(Orders,
                         ContextTest,
                         testing::ValuesIn(ordered_cases()),
                         [](const auto& tested) { return tested.param.layout.name; });

TEST(Context, RepeatsItselfToTheBit) {
  const Layout layout = on(texts()[1], in_context(layout_named("data2_tensor2_expert4"), 2));
  const Outcome first = train(layout, Ranks::threads, "f32", 3);
  const Outcome second = train(layout, Ranks::threads, "f32", 3);
  EXPECT_EQ(first.losses, second.losses);
  expect_same_bits(second.gradient, first.gradient, "gradient of");
  expect_same_bits(second.final, first.final, "after 3 steps,");
}

// All of a text but its first letters is the pad id: the ranks that have those behind have nothing.
TEST(Context, ARankWhoseTokensAreAllPaddingAddsNothing) {
  const TemporaryDirectory directory;
  std::string lines;
  for (int i = 0; i < 600; ++i) {
    lines += R"({"text": "ab)" + std::string(29, 'z') + "\"}\n";
  }
  const Text text{"nothing",
                  {"data.train=[" + directory.write("nothing.jsonl", lines) + "]", pad_id('z')}};
  const Outcome one = train(on(text, layouts().front()), Ranks::threads, "f64", kNumSteps);
  for (const int context : {2, 4}) {
    SCOPED_TRACE(context);
    const Outcome actual = train(
        on(text, in_context(layout_named("tensor2"), context)), Ranks::threads, "f64", kNumSteps);
    for (const double loss : actual.losses) {
      EXPECT_TRUE(std::isfinite(loss));
    }
    expect_same_run(actual, one);
  }
}

// In a micro-batch of one sequence there is one such token, or none: some ranks have no padding of
// their own, and see that of the others.
TEST(Context, ARankWithoutPaddingDoesNotSeeThatOfTheOthers) {
  const Text text{"rare", {pad_id('.')}};
  const Outcome one = train(on(text, layouts().front()), Ranks::threads, "f64", kNumSteps);
  for (const char* exchange : {"gather", "ring"}) {
    SCOPED_TRACE(exchange);
    expect_same_run(train(on(text,
                             in_context(layout_named("data4_expert4_batch1"),
                                        2,
                                        {std::string("parallel.context_exchange=") + exchange})),
                          Ranks::threads,
                          "f64",
                          kNumSteps),
                    one);
  }
}

TEST(Context, WritesTheTextThatOneRankDoes) {
  const auto sampled = [](const Layout& layout) {
    const TemporaryDirectory directory;
    const std::string yaml = tiny_yaml(directory);
    std::vector<std::string> overrides = run_overrides(layout, "f64");
    overrides.insert(overrides.end(),
                     {"metrics.sample_every=1",
                      "schedule.steps=1",
                      "schedule.warmup_steps=0",
                      "metrics.sample_prompt=grok routes every token",
                      "metrics.sample_tokens=40",
                      "metrics.sample_temperature=0.8"});
    on_ranks(Ranks::threads, layout.num_ranks, [&](World& world) {
      RankRun run(world, yaml, overrides);
      run.trainer().run();
    });
    std::ifstream metrics(directory.path() / "run" / "metrics.jsonl");
    std::string line;
    while (std::getline(metrics, line)) {
      const auto object = nlohmann::json::parse(line);
      if (object.contains("sample")) {
        return object["sample"].get<std::string>();
      }
    }
    return std::string("no sample");
  };
  const std::string one = sampled(layouts().front());
  EXPECT_GT(one.size(), 40U);
  EXPECT_EQ(sampled(in_context(layout_named("one"), 2)), one);
  EXPECT_EQ(sampled(in_context(layout_named("tensor2"), 4)), one);
  EXPECT_EQ(sampled(piped("stages", in_context(layout_named("tensor2"), 2), 2, {})), one);
  EXPECT_EQ(sampled(in_context(layout_named("one"), 4, {"parallel.context_exchange=ring"})), one);
}

TEST(Context, TakesTheMemoryThatThePlanSays) {
  for (const char* exchange : {"gather", "ring", "all_to_all"}) {
    for (const char* name : {"one", "data2_tensor2_expert4", "data2_shared_weights"}) {
      expect_memory_as_planned(in_context(layout_named(name),
                                          2,
                                          {"metrics.sample_every=1",
                                           "model.num_kv_heads=4",
                                           std::string("parallel.context_exchange=") + exchange}),
                               "f32");
    }
  }
}

// What ranks keep of a layer is of the tokens that they have.
TEST(Context, ActivationsFallWithTheRanks) {
  const auto activations = [](int context) {
    const Layout layout = in_context(layout_named("one"), context, {"batch.sequence_length=128"});
    const TemporaryDirectory directory;
    const std::string yaml = tiny_yaml(directory);
    std::size_t bytes = 0;
    on_ranks(Ranks::threads, layout.num_ranks, [&](World& world) {
      RankRun run(world, yaml, run_overrides(layout, "f32"));
      if (world.rank() == 0) {
        bytes = run.trainer().plan().memory.activations_bytes;
      }
      std::int64_t none = 0;
      sum_over_ranks(run.all(), {&none, 1}, "test.end");
    });
    return static_cast<double>(bytes);
  };
  const double alone = activations(1);
  for (const int context : {2, 4}) {
    // Beside the tokens' own, where keys are numbered and what a sequence's experts have.
    EXPECT_NEAR(activations(context) * context / alone, 1, 0.05) << context;
  }
}

}  // namespace
}  // namespace memphis::test
