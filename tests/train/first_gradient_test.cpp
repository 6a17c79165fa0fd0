// SPDX-License-Identifier: Apache-2.0
//
// A step writes its first contribution to each gradient and adds the others: whatever lay there
// before the step, its bits are the same, and nothing clears the gradients.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/core/device.h"
#include "tests/support/layout_run.h"
#include "tests/support/tiny_run.h"

namespace memphis::test {
namespace {

// The second step has what the first one left, and a validation between them.
constexpr int kNumSteps = 2;

// Of what lies between tensors. Its square is no f32, so that no norm sees it.
constexpr float kMark = 0x1p-100F;

void fill(const TensorView& view, float value, Stream stream) {
  if (!view.present()) {
    return;
  }
  ASSERT_EQ(view.dtype, DType::f32);
  const std::vector<float> values(static_cast<std::size_t>(view.num_elements()), value);
  device_copy(view.data, values.data(), view.bytes(), stream);
  synchronize(stream);
}

// NaN in every tensor's gradient and in the sums of ZeRO-2, the mark between tensors. Returns how
// many elements have it.
std::int64_t poison_gradients(Trainer& trainer) {
  constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
  const Parameters& parameters = trainer.parameters();
  const Stream stream = trainer.stream();
  const std::size_t num_segments = parameters.plan().segments.size();
  for (std::size_t i = 0; i < num_segments; ++i) {
    fill(parameters.segment_sums(i), kNaN, stream);
  }
  for (std::size_t i = 0; i < num_segments; ++i) {
    fill(parameters.segment_gradients(i), kMark, stream);
  }
  const ModelParameters<TensorView>& gradients = parameters.gradients();
  for (const TensorView& view :
       {gradients.embedding_VD, gradients.final_norm_D, gradients.head_VD}) {
    fill(view, kNaN, stream);
  }
  for (LayerParameters<TensorView> layer : gradients.layers) {
    for_each_layer_parameter(
        layer, layer, [&](const TensorView& view, const TensorView&) { fill(view, kNaN, stream); });
  }
  std::int64_t num_marked = 0;
  for (std::size_t i = 0; i < num_segments; ++i) {
    const TensorView all_n = parameters.segment_gradients(i);
    for (const double value :
         elements(all_n, {.begin = 0, .count = all_n.num_elements()}, stream)) {
      num_marked += std::isnan(value) ? 0 : 1;
    }
  }
  return num_marked;
}

// Of marks sums over ranks, which no gradient is as small as.
std::int64_t count_marked(Trainer& trainer) {
  const Parameters& parameters = trainer.parameters();
  std::int64_t num_marked = 0;
  for (std::size_t i = 0; i < parameters.plan().segments.size(); ++i) {
    const TensorView all_n = parameters.segment_gradients(i);
    for (const double value :
         elements(all_n, {.begin = 0, .count = all_n.num_elements()}, trainer.stream())) {
      num_marked += value >= kMark && value <= 1024 * double{kMark} ? 1 : 0;
    }
  }
  return num_marked;
}

struct Steps {
  std::vector<double> losses;
  std::vector<double> grad_norms;
  std::vector<Tensors> gradients;
  Tensors weights;
};

Steps run_steps(const Layout& layout, bool poisoned) {
  const TemporaryDirectory directory;
  const std::string yaml = tiny_yaml(directory);
  Steps outcome;
  on_ranks(Ranks::threads, layout.num_ranks, [&](World& world) {
    RankRun run(world, yaml, run_overrides(layout, "f32"));
    Steps own;
    for (int step = 0; step < kNumSteps; ++step) {
      const std::int64_t num_marked = poisoned ? poison_gradients(run.trainer()) : 0;
      if (step > 0) {
        run.trainer().validation_loss();
      }
      const StepResult result = run.trainer().step();
      if (poisoned) {
        EXPECT_GT(num_marked, 0);
        EXPECT_EQ(count_marked(run.trainer()), num_marked) << "gradients were cleared";
      }
      own.gradients.push_back(run.gradients());
      own.losses.push_back(run.same_on_all(result.loss));
      own.grad_norms.push_back(run.same_on_all(result.grad_norm));
    }
    own.weights = run.weights();
    if (keeps_result(Ranks::threads, world)) {
      outcome = std::move(own);
    }
  });
  return outcome;
}

class FirstGradientTest : public testing::TestWithParam<Layout> {};

TEST_P(FirstGradientTest, ReadsNothingOfWhatWasThere) {
  const Steps expected = run_steps(GetParam(), false);
  const Steps actual = run_steps(GetParam(), true);
  EXPECT_EQ(actual.losses, expected.losses);
  EXPECT_EQ(actual.grad_norms, expected.grad_norms);
  for (std::size_t step = 0; step < expected.gradients.size(); ++step) {
    SCOPED_TRACE("step " + std::to_string(step + 1));
    expect_same_bits(actual.gradients.at(step), expected.gradients[step], "gradient of");
  }
  expect_same_bits(actual.weights, expected.weights, "at the end,");
}

// Tied and not: every layout of few ranks, which have each ZeRO stage and whatever ranks share, and
// every schedule, with several micro-batches.
constexpr int kMostRanks = 4;
std::vector<Layout> cases() {
  std::vector<Layout> result;
  const auto add = [&](const Layout& layout, const std::vector<std::string>& more) {
    for (const bool tied : {true, false}) {
      Layout one = layout;
      one.name += tied ? "_tied" : "_untied";
      one.overrides.push_back(std::string("model.tie_embeddings=") + (tied ? "true" : "false"));
      one.overrides.insert(one.overrides.end(), more.begin(), more.end());
      result.push_back(std::move(one));
    }
  };
  for (const Layout& one : layouts()) {
    if (one.num_ranks <= kMostRanks) {
      add(one, {});
    }
  }
  add(layout("one_dense_again", 1, 1, 1, 1, {"batch.micro_batch=2", "memory.recompute=block"}),
      {"model.dense_ffn_dim=40"});
  const std::vector<std::pair<const char*, std::vector<std::string>>> schedules = {
      {"1f1b", {}},
      {"interleaved", {"parallel.chunks=2", "parallel.stages=[1,0,0,1]"}},
      {"zb-h1", {"model.dense_ffn_dim=40"}},
      {"zbv", {"parallel.stages=[0,1,1,0]", "memory.recompute=block"}},
  };
  for (const auto& [schedule, more] : schedules) {
    for (const char* base : {"one_small_batches", "data2_expert2"}) {
      std::string name = std::string("pipeline2_") + schedule + "_" + base;
      std::replace(name.begin(), name.end(), '-', '_');
      Layout one = layout_named(base);
      one.overrides.push_back(std::string("parallel.schedule=") + schedule);
      add(piped(name, one, 2, more), {});
    }
  }
  return result;
}

INSTANTIATE_TEST_SUITE_P(Layouts,
                         FirstGradientTest,
                         testing::ValuesIn(cases()),
                         [](const auto& tested) { return tested.param.name; });

}  // namespace
}  // namespace memphis::test
