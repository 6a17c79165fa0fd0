// SPDX-License-Identifier: Apache-2.0
//
// Models and layouts that nobody chose: sizes that divide unevenly, heads and experts in threes,
// one to three experts a token, padding in mid-sequence. Each is held to one rank in f64, and what
// one layout saves another goes on from.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/core/error.h"
#include "tests/support/departure.h"
#include "tests/support/layout_run.h"
#include "tests/support/test_tensor.h"
#include "tests/support/tiny_run.h"

namespace memphis::test {
namespace {

constexpr int kNumCases = 8;
constexpr int kNumSteps = 5;

class Draw {
 public:
  explicit Draw(std::uint32_t seed) : engine_(seed) {}

  template <class T>
  T of(const std::vector<T>& values) {
    return values[std::uniform_int_distribution<std::size_t>(0, values.size() - 1)(engine_)];
  }
  std::int64_t divisor_of(std::int64_t number) {
    std::vector<std::int64_t> divisors;
    for (std::int64_t i = 1; i <= number; ++i) {
      if (number % i == 0) {
        divisors.push_back(i);
      }
    }
    return of(divisors);
  }

 private:
  std::mt19937 engine_;
};

std::string set(const std::string& key, std::int64_t value) {
  return key + "=" + std::to_string(value);
}

struct Model {
  std::vector<std::string> overrides;  // of the model and of what is learnt
  std::int64_t global_batch = 0;
};

Model draw_model(Draw& draw) {
  const auto heads = draw.of<std::int64_t>({2, 3, 4, 6, 8, 12});
  const auto experts = draw.of<std::int64_t>({2, 3, 4, 6, 8, 12});
  Model model;
  model.global_batch = draw.of<std::int64_t>({24, 48});
  model.overrides = {
      set("model.vocab_size", draw.of<std::int64_t>({259, 260, 263, 300})),
      set("model.num_layers", draw.of<std::int64_t>({1, 2, 3})),
      set("model.d_model", draw.of<std::int64_t>({16, 24, 32, 40})),
      set("model.num_heads", heads),
      set("model.num_kv_heads", draw.divisor_of(heads)),
      set("model.head_dim", draw.of<std::int64_t>({4, 6, 8, 16})),
      set("model.ffn_dim", draw.of<std::int64_t>({12, 20, 36, 48, 60})),
      set("model.num_experts", experts),
      set("model.experts_per_token",
          draw.of<std::int64_t>({1, 2, std::min<std::int64_t>(3, experts)})),
      set("model.dense_ffn_dim", draw.of<std::int64_t>({0, 12, 20, 48})),
      set("model.attention_temperature_len", draw.of<std::int64_t>({0, 8})),
      set("model.router_cap", draw.of<std::int64_t>({0, 5})),
      set("model.final_cap", draw.of<std::int64_t>({0, 10})),
      set("model.pad_id", draw.of<std::int64_t>({-1, 0, 35, 114})),
      std::string("model.tie_embeddings=") + draw.of<std::string>({"true", "false"}),
      set("batch.sequence_length", draw.of<std::int64_t>({8, 12, 24, 30, 32})),
      set("batch.global_batch", model.global_batch),
      "loss.balance=" + draw.of<std::string>({"0", "0.1"}),
      "loss.router_z=" + draw.of<std::string>({"0", "0.01"}),
      "optimizer.clip_norm=" + draw.of<std::string>({"0", "0.5"}),
  };
  return model;
}

// What a config refuses is drawn again; of no ranks if it refuses all.
Layout draw_layout(Draw& draw,
                   const Model& model,
                   const std::vector<std::int64_t>& numbers_of_ranks) {
  const TemporaryDirectory directory;
  const std::string yaml = tiny_yaml(directory);
  const auto ranks = draw.of(numbers_of_ranks);
  for (int attempt = 0; attempt < 100; ++attempt) {
    const std::int64_t tensor = draw.divisor_of(ranks);
    const std::int64_t expert = draw.divisor_of(ranks);
    const std::int64_t expert_tensor = draw.divisor_of(ranks / expert);
    const std::int64_t context = draw.divisor_of(ranks / tensor);
    const std::int64_t data = ranks / tensor / context;
    const std::int64_t micro_batch = draw.of<std::int64_t>({1, 2, 3, 4});
    Layout layout{.name = "ranks " + std::to_string(ranks),
                  .num_ranks = static_cast<int>(ranks),
                  .data = static_cast<int>(data),
                  .overrides = model.overrides};
    for (const std::string& override :
         {set("parallel.tensor", tensor),
          set("parallel.context", context),
          "parallel.context_order=" + draw.of<std::string>({"auto", "auto", "zigzag", "blocks"}),
          "parallel.context_exchange=" +
              draw.of<std::string>({"auto", "gather", "ring", "all_to_all"}),
          set("parallel.expert", expert),
          set("parallel.expert_tensor", expert_tensor),
          set("parallel.zero", draw.of<std::int64_t>({0, 1, 2, 3})),
          "parallel.sequence_parallel=" + draw.of<std::string>({"true", "true", "false"}),
          "parallel.expert_buffer=" +
              draw.of<std::string>({"0", "0", std::to_string(expert * expert_tensor)}),
          "memory.recompute=" +
              draw.of<std::string>({"none", "norm", "[attention, geglu]", "experts", "block"}),
          set("batch.micro_batch", micro_batch)}) {
      layout.overrides.push_back(override);
      layout.name += " " + override;
    }
    if (model.global_batch % (data * micro_batch) != 0) {
      continue;
    }
    try {
      parse_config(yaml, "tiny.yaml", run_overrides(layout, "f64"), Check::machine, ranks);
      return layout;
    } catch (const ConfigError&) {
    }
  }
  return {.name = "none", .num_ranks = 0, .data = 0, .overrides = {}};
}

Layout one_rank(const Model& model, std::int64_t micro_batch) {
  Layout result{.name = "one", .num_ranks = 1, .data = 1, .overrides = model.overrides};
  result.overrides.push_back(set("batch.micro_batch", micro_batch));
  return result;
}

std::string description(const Model& model, const Layout& layout) {
  std::string text = layout.name + ", model:";
  for (const std::string& override : model.overrides) {
    text += " " + override;
  }
  return text;
}

const std::vector<std::int64_t> kNumbersOfRanks = {2, 3, 4, 6, 8, 12, 16, 24};

class RandomLayoutTest : public testing::TestWithParam<int> {
 protected:
  // Others with every seed of the test.
  static std::uint32_t seed() {
    return static_cast<std::uint32_t>(kNumCases * (test_seed() - 1)) +
           static_cast<std::uint32_t>(GetParam());
  }
};

TEST_P(RandomLayoutTest, TrainsAsOneRankDoes) {
  Draw draw(seed());
  Model model;
  Layout layout;
  do {
    model = draw_model(draw);
    layout = draw_layout(draw, model, kNumbersOfRanks);
  } while (layout.num_ranks == 0);
  SCOPED_TRACE(description(model, layout));

  const Outcome one = train(one_rank(model, 6), Ranks::threads, "f64", kNumSteps);
  const Outcome actual = train(layout, Ranks::threads, "f64", kNumSteps);
  EXPECT_TRUE(actual.initial == one.initial) << "weights of step 0";
  double largest_of_all = 0;
  for (const auto& [name, gradient] : one.gradient) {
    for (const double value : gradient) {
      largest_of_all = std::max(largest_of_all, std::abs(value));
    }
  }
  // With one expert a token the norm behind it takes a gate's scale away again: of the router's
  // gradient the sum of large terms is next to nothing, and rounding is not.
  expect_same_run(actual, one, 1e-3 * largest_of_all);
  if (HasFailure()) {
    ADD_FAILURE() << describe_departure(
        first_step(one_rank(model, model.global_batch), Ranks::threads),
        first_step(layout, Ranks::threads));
  }
}

TEST_P(RandomLayoutTest, GoesOnFromWhatAnotherSaved) {
  constexpr int kSaved = 2;
  Draw draw(seed() + 1'000'000);
  Model model;
  Layout writer;
  Layout reader;
  do {
    model = draw_model(draw);
    writer = draw_layout(draw, model, kNumbersOfRanks);
    reader = draw_layout(draw, model, {1, 2, 3, 4, 6, 8, 12, 16});
  } while (writer.num_ranks == 0 || reader.num_ranks == 0);
  SCOPED_TRACE(description(model, writer) + "\nread by " + reader.name);

  const TemporaryDirectory directory;
  const std::string yaml = tiny_yaml(directory);
  const auto on_ranks_of = [&](const Layout& layout, const auto& body) {
    std::vector<std::string> overrides = run_overrides(layout, "f64");
    for (const char* more : {"schedule.decay=constant",
                             "schedule.warmup_steps=1",
                             "schedule.steps=2",
                             "metrics.validate_every=0"}) {
      overrides.emplace_back(more);
    }
    on_ranks(Ranks::threads, layout.num_ranks, [&](World& world) {
      RankRun run(world, yaml, overrides);
      body(run);
    });
  };
  Tensors saved;
  std::vector<double> losses;
  on_ranks_of(writer, [&](RankRun& run) {
    run.trainer().run();
    Tensors state = run.state();
    std::vector<double> own = {run.trainer().step().loss, run.trainer().step().loss};
    if (run.world().rank() == 0) {
      saved = std::move(state);
      losses = std::move(own);
    }
  });
  on_ranks_of(reader, [&](RankRun& run) {
    ASSERT_EQ(run.trainer().current_step(), kSaved);
    const Tensors state = run.state();
    for (const double expected : losses) {
      const double loss = run.trainer().step().loss;
      if (run.world().rank() == 0) {
        EXPECT_NEAR(loss, expected, 1e-9 * expected);
      }
    }
    if (run.world().rank() == 0) {
      EXPECT_TRUE(state == saved) << "weights or optimizer state";
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Seeds, RandomLayoutTest, testing::Range(0, kNumCases));

}  // namespace
}  // namespace memphis::test
