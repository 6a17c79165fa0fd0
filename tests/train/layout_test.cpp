// SPDX-License-Identifier: Apache-2.0
//
// A layout changes nothing but speed. Each case is a training run on so many ranks, held to the
// same run on one rank:
//
//   weights of step 0       the same bits
//   gradient of step 1      every parameter within twice the error that one rank's f32 has
//   losses of 30 steps      within 1e-5 in f32; within 1e-9 in f64, where no rounding is large
//   enough
//                           to send a token to another expert
//   the same layout again   the same bits
//   samples                 the same set, in the same order of micro-batches
//   checkpoints             every element once, whatever layout wrote it and whichever reads it
#include <cmath>
#include <functional>
#include <map>
#include <mutex>
#include <numeric>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/comm/threads.h"
#include "csrc/plan/share.h"
#include "csrc/train/trainer.h"
#include "tests/support/perturbation.h"
#include "tests/support/tiny_run.h"
#include "tests/support/tolerance.h"

namespace memphis::test {
namespace {

constexpr int kNumSteps = 30;

struct Layout {
  const char* name;
  int num_ranks;
  std::vector<std::string> overrides;
};

Layout layout(const char* name,
              int data,
              int tensor,
              int expert,
              int expert_tensor,
              const std::vector<std::string>& more = {}) {
  Layout result{.name = name,
                .num_ranks = data * tensor,
                .overrides = {"parallel.tensor=" + std::to_string(tensor),
                              "parallel.expert=" + std::to_string(expert),
                              "parallel.expert_tensor=" + std::to_string(expert_tensor)}};
  result.overrides.insert(result.overrides.end(), more.begin(), more.end());
  return result;
}

// The model has 4 query heads, 2 key/value heads, 4 experts of width 48; a step is 16 sequences.
const std::vector<Layout>& layouts() {
  static const std::vector<Layout> table = {
      layout("one", 1, 1, 1, 1),
      layout("one_small_batches", 1, 1, 1, 1, {"batch.micro_batch=2"}),
      layout("data2", 2, 1, 1, 1),
      layout("data2_whole_optimizer", 2, 1, 1, 1, {"parallel.zero=0"}),
      layout("data2_shared_gradients", 2, 1, 1, 1, {"parallel.zero=2", "batch.micro_batch=2"}),
      layout("data2_small_buckets", 2, 1, 2, 1, {"parallel.bucket_mib=0"}),
      layout("data2_expert2", 2, 1, 2, 1),
      layout("data2_split_expert", 2, 1, 1, 2),
      layout("tensor2", 1, 2, 1, 1),
      layout("tensor2_whole_sequences", 1, 2, 1, 1, {"parallel.sequence_parallel=false"}),
      layout("tensor2_expert2", 1, 2, 2, 1),
      layout("tensor2_split_expert", 1, 2, 1, 2),
      layout("data4", 4, 1, 1, 1),
      layout("data4_expert4", 4, 1, 4, 1),
      layout("data4_expert2_split2", 4, 1, 2, 2),
      layout("data4_expert4_batch1", 4, 1, 4, 1, {"batch.micro_batch=1"}),
      layout("data2_tensor2", 2, 2, 1, 1),
      layout("data2_tensor2_expert4", 2, 2, 4, 1),
      layout("data2_tensor2_expert2_split2", 2, 2, 2, 2),
      layout("data2_tensor2_split4", 2, 2, 1, 4),
      layout("data2_tensor2_whole_sequences_expert4",
             2,
             2,
             4,
             1,
             {"parallel.sequence_parallel=false"}),
      layout("data2_tensor2_whole_optimizer", 2, 2, 2, 1, {"parallel.zero=0"}),
      layout("data2_tensor2_shared_gradients", 2, 2, 2, 1, {"parallel.zero=2"}),
      layout("data4_expert2_small_buckets_shared_gradients",
             4,
             1,
             2,
             1,
             {"parallel.zero=2", "parallel.bucket_mib=0", "batch.micro_batch=1"}),
      layout("tensor4_shared_heads", 1, 4, 1, 1),
      layout("tensor4_shared_heads_small_buckets", 1, 4, 1, 1, {"parallel.bucket_mib=0"}),
      layout("data2_tensor4_shared_heads_shared_gradients",
             2,
             4,
             2,
             1,
             {"parallel.zero=2", "batch.micro_batch=2"}),
      layout("tensor4_shared_heads_expert4", 1, 4, 4, 1),
      layout("tensor4_shared_heads_whole_sequences",
             1,
             4,
             2,
             2,
             {"parallel.sequence_parallel=false", "parallel.zero=0"}),
      layout("data8", 8, 1, 4, 1, {"batch.micro_batch=1"}),
      layout("data4_tensor2_expert4", 4, 2, 4, 1, {"batch.micro_batch=2"}),
      layout("data4_tensor2_expert4_split2", 4, 2, 4, 2, {"batch.micro_batch=2"}),
      layout("data2_tensor4_expert2_split2", 2, 4, 2, 2),
      layout("data2_tensor4_whole_sequences", 2, 4, 4, 2, {"parallel.sequence_parallel=false"}),
      layout("data8_tensor2_expert4_split4", 8, 2, 4, 4, {"batch.micro_batch=1"}),
      layout("data4_tensor4_expert4_split2", 4, 4, 4, 2, {"batch.micro_batch=2"}),
      layout("data16", 16, 1, 2, 2, {"batch.micro_batch=1"}),
      layout("data4_tensor4_room_for_twice_the_share",
             4,
             4,
             4,
             1,
             {"batch.micro_batch=2", "parallel.expert_buffer=2.5"}),
  };
  return table;
}

// By the names of logical parameters, whole.
using Tensors = std::map<std::string, std::vector<double>>;

double element(const TensorView& view, std::int64_t index) {
  return view.dtype == DType::f64 ? view.as<double>()[index]
                                  : static_cast<double>(view.as<float>()[index]);
}

// Adds the elements that this rank counts of a flat array over its index space.
template <class Flat>
void gather(Tensors& all, const ParameterPlan& plan, const Flat& value_of) {
  for (const LogicalParameter& parameter : plan.logical) {
    std::vector<double>& whole = all[parameter.name];
    // NaN is equal to nothing: an element that nobody counts is found.
    whole.resize(static_cast<std::size_t>(parameter.whole.num_elements()), std::nan(""));
    for (const Range& run : plan.counted) {
      const std::int64_t begin = std::max(run.begin, parameter.begin);
      const std::int64_t end =
          std::min(run.begin + run.count, parameter.begin + parameter.spec.num_elements());
      if (begin >= end) {
        continue;
      }
      const Range local{.begin = begin - parameter.begin, .count = end - begin};
      for_each_run(parameter, local, [&](std::int64_t at, std::int64_t from, std::int64_t count) {
        for (std::int64_t i = 0; i < count; ++i) {
          double& target = whole[static_cast<std::size_t>(at + i)];
          EXPECT_TRUE(std::isnan(target)) << parameter.name << " is counted twice";
          target = value_of(parameter, from + i);
        }
      });
    }
  }
}

struct Outcome {
  Tensors initial;
  Tensors gradient;  // of step 1
  Tensors final;
  std::vector<double> losses;
  std::vector<double> balance;
  std::vector<double> grad_norms;
  double validation = 0;
};

// Moves every f32 weight by one rounding, up and down in turn, beginning with `sign`.
void nudge_weights(Trainer& trainer, double sign) {
  const double unit = rounding_unit(DType::f32);
  const auto num_segments = trainer.plan().parameters.segments.size();
  for (std::size_t segment = 0; segment < num_segments; ++segment) {
    const TensorView weights_n = trainer.parameters().segment_weights(segment);
    for (std::int64_t i = 0; i < weights_n.num_elements(); ++i) {
      float& weight = weights_n.as<float>()[i];
      const double factor = 1.0 + 2.0 * unit * (i % 2 == 0 ? sign : -sign);
      weight = static_cast<float>(static_cast<double>(weight) * factor);
    }
  }
}

Outcome train(const Layout& layout, const std::string& compute, int num_steps, double nudge = 0) {
  const TemporaryDirectory directory;
  std::vector<std::string> overrides = {"precision.compute=" + compute,
                                        "model.router_init_std=0.3",
                                        "batch.global_batch=16",
                                        "optimizer.learning_rate=1e-3"};
  overrides.insert(overrides.end(), layout.overrides.begin(), layout.overrides.end());
  const std::string yaml = tiny_yaml(directory);
  Outcome outcome;
  std::mutex mutex;
  run_threads(layout.num_ranks, [&](World& world) {
    const Config config =
        parse_config(yaml, "tiny.yaml", overrides, Check::machine, layout.num_ranks);
    Trainer trainer(config, {}, world);
    if (nudge != 0) {
      nudge_weights(trainer, nudge);
    }
    const ParameterPlan& plan = trainer.plan().parameters;
    const auto weights = [&](Tensors& all) {
      const std::lock_guard lock(mutex);
      gather(all, plan, [&](const LogicalParameter& parameter, std::int64_t i) {
        return element(trainer.parameters().logical_weights(parameter), i);
      });
    };
    weights(outcome.initial);
    for (int step = 0; step < num_steps; ++step) {
      const StepResult result = trainer.step();
      const std::lock_guard lock(mutex);
      if (step == 0) {
        gather(outcome.gradient, plan, [&](const LogicalParameter& parameter, std::int64_t i) {
          const Range one{.begin = parameter.begin + i, .count = 1};
          return element(trainer.parameters().sums(one), 0);
        });
      }
      if (world.rank() == 0) {
        outcome.losses.push_back(result.loss);
        outcome.balance.push_back(result.balance);
        outcome.grad_norms.push_back(result.grad_norm);
      } else if (outcome.losses.size() > static_cast<std::size_t>(step)) {
        EXPECT_EQ(result.loss, outcome.losses[static_cast<std::size_t>(step)])
            << "ranks report different losses";
      }
    }
    weights(outcome.final);
    const double validation = trainer.validation_loss();
    if (world.rank() == 0) {
      outcome.validation = validation;
    }
  });
  return outcome;
}

const Outcome& reference(const std::string& compute) {
  static std::map<std::string, Outcome> outcomes;
  const auto found = outcomes.find(compute);
  return found != outcomes.end()
             ? found->second
             : outcomes.emplace(compute, train(layouts().front(), compute, kNumSteps))
                   .first->second;
}

// The gradient of step 1 on one rank: of each element the result that is farthest from the exact
// one, among sums over micro-batches of several sizes and weights that differ by a rounding. Each
// is as good a result in f32.
std::vector<double> one_rank_in_f32(const std::string& name, const std::vector<double>& exact) {
  static const std::vector<Tensors> gradients = [] {
    std::vector<Tensors> result;
    for (const char* micro_batch : {"1", "4", "16"}) {
      for (const double nudge : {0.0, 1.0, -1.0}) {
        const Layout one =
            layout("one", 1, 1, 1, 1, {std::string("batch.micro_batch=") + micro_batch});
        result.push_back(train(one, "f32", 1, nudge).gradient);
      }
    }
    return result;
  }();
  std::vector<double> result = exact;
  for (const Tensors& gradient : gradients) {
    result = farther(exact, std::move(result), gradient.at(name));
  }
  return result;
}

void expect_near(const std::vector<double>& actual,
                 const std::vector<double>& exact,
                 double relative,
                 const char* what) {
  ASSERT_EQ(actual.size(), exact.size());
  for (std::size_t i = 0; i < exact.size(); ++i) {
    EXPECT_NEAR(actual[i], exact[i], relative * std::abs(exact[i])) << what << " of step " << i + 1;
  }
}

class LayoutTest : public testing::TestWithParam<Layout> {};

TEST_P(LayoutTest, TrainsAsOneRankDoesInF32) {
  const Outcome actual = train(GetParam(), "f32", kNumSteps);
  const Outcome& one = reference("f32");
  const Outcome& exact = reference("f64");
  EXPECT_EQ(actual.initial, one.initial);
  for (const auto& [name, gradient] : exact.gradient) {
    const auto row = static_cast<std::int64_t>(gradient.size());
    EXPECT_TRUE(close_to(
        actual.gradient.at(name), gradient, one_rank_in_f32(name, gradient), DType::f32, row))
        << name;
  }
  expect_near(actual.losses, one.losses, 1e-5, "loss");
}

TEST_P(LayoutTest, TrainsAsOneRankDoesInF64) {
  const Outcome actual = train(GetParam(), "f64", kNumSteps);
  const Outcome& one = reference("f64");
  EXPECT_EQ(actual.initial, one.initial);
  for (const auto& [name, gradient] : one.gradient) {
    double largest = 0;
    double difference = 0;
    for (std::size_t i = 0; i < gradient.size(); ++i) {
      largest = std::max(largest, std::abs(gradient[i]));
      const double apart = std::abs(actual.gradient.at(name)[i] - gradient[i]);
      difference = std::isnan(apart) ? apart : std::max(difference, apart);
    }
    EXPECT_LE(difference, 1e-12 * largest) << name;
  }
  expect_near(actual.losses, one.losses, 1e-9, "loss");
  expect_near(actual.balance, one.balance, 1e-9, "balance loss");
  expect_near(actual.grad_norms, one.grad_norms, 1e-9, "gradient norm");
  EXPECT_NEAR(actual.validation, one.validation, 1e-9 * one.validation);
}

TEST_P(LayoutTest, RepeatsItselfToTheBit) {
  const Outcome first = train(GetParam(), "f32", 3);
  const Outcome second = train(GetParam(), "f32", 3);
  EXPECT_EQ(first.losses, second.losses);
  EXPECT_EQ(first.gradient, second.gradient);
  EXPECT_EQ(first.final, second.final);
}

// Weights, and what the optimizer keeps, by the names that checkpoints give them.
void gather_state(Tensors& all, Trainer& trainer) {
  const ParameterPlan& plan = trainer.plan().parameters;
  gather(all, plan, [&](const LogicalParameter& parameter, std::int64_t i) {
    return element(trainer.parameters().logical_weights(parameter), i);
  });
  for (const Optimizer::StateTensor& state : trainer.optimizer().state()) {
    std::vector<double>& whole = all[state.name];
    whole.resize(static_cast<std::size_t>(state.parameter->whole.num_elements()), std::nan(""));
    for_each_run(
        *state.parameter, state.local, [&](std::int64_t at, std::int64_t from, std::int64_t count) {
          for (std::int64_t i = 0; i < count; ++i) {
            double& target = whole[static_cast<std::size_t>(at + i)];
            const double value = element(state.view, from + i - state.local.begin);
            // Without ZeRO, or where ranks share a head, several keep the same.
            EXPECT_TRUE(std::isnan(target) || target == value) << state.name;
            target = value;
          }
        });
  }
}

struct Saved {
  TemporaryDirectory directory;
  Tensors state;
};

std::vector<std::string> saved_run(const Layout& layout, int num_steps) {
  std::vector<std::string> overrides = {"precision.compute=f64",
                                        "batch.global_batch=16",
                                        "optimizer.learning_rate=1e-3",
                                        "schedule.decay=constant",
                                        "schedule.warmup_steps=1",
                                        "metrics.validate_every=0",
                                        "schedule.steps=" + std::to_string(num_steps)};
  overrides.insert(overrides.end(), layout.overrides.begin(), layout.overrides.end());
  return overrides;
}

// Runs `body` on each rank's trainer of the run in `saved`.
void with_trainers(Saved& saved,
                   const Layout& layout,
                   int num_steps,
                   const std::function<void(Trainer&, World&)>& body) {
  const std::string yaml = tiny_yaml(saved.directory);
  run_threads(layout.num_ranks, [&](World& world) {
    const Config config = parse_config(
        yaml, "tiny.yaml", saved_run(layout, num_steps), Check::machine, layout.num_ranks);
    Trainer trainer(config, {}, world);
    body(trainer, world);
  });
}

std::vector<Layout> checkpoint_layouts() {
  std::vector<Layout> result;
  for (const Layout& one : layouts()) {
    for (const char* name : {"one",
                             "data2_whole_optimizer",
                             "data2_split_expert",
                             "data4_expert2_small_buckets_shared_gradients",
                             "tensor2_whole_sequences",
                             "data4_expert2_split2",
                             "data2_tensor2_expert4",
                             "data2_tensor2_split4",
                             "tensor4_shared_heads",
                             "tensor4_shared_heads_whole_sequences",
                             "data4_tensor2_expert4_split2",
                             "data8",
                             "data2_tensor4_expert2_split2"}) {
      if (one.name == std::string(name)) {
        result.push_back(one);
      }
    }
  }
  return result;
}

class CheckpointLayoutTest : public testing::TestWithParam<Layout> {};

TEST_P(CheckpointLayoutTest, IsReadByEveryLayout) {
  constexpr int kSaved = 3;
  constexpr int kLast = 13;
  Saved saved;
  std::mutex mutex;
  std::vector<double> losses;
  with_trainers(saved, GetParam(), kSaved, [&](Trainer& trainer, World& world) {
    trainer.run();  // which saves after its last step
    {
      const std::lock_guard lock(mutex);
      gather_state(saved.state, trainer);
    }
    for (int step = kSaved; step < kLast; ++step) {
      const double loss = trainer.step().loss;
      if (world.rank() == 0) {
        losses.push_back(loss);
      }
    }
  });
  ASSERT_EQ(checkpoint_layouts().size(), 13U);
  for (const Layout& reader : checkpoint_layouts()) {
    Tensors state;
    with_trainers(saved, reader, kLast, [&](Trainer& trainer, World& world) {
      ASSERT_EQ(trainer.current_step(), kSaved);
      ASSERT_EQ(trainer.samples(), 16U * kSaved);
      {
        const std::lock_guard lock(mutex);
        gather_state(state, trainer);
      }
      for (const double expected : losses) {
        const double loss = trainer.step().loss;
        if (world.rank() == 0) {
          EXPECT_NEAR(loss, expected, 1e-9 * expected) << reader.name;
        }
      }
    });
    EXPECT_EQ(state, saved.state) << "written by " << GetParam().name << ", read by "
                                  << reader.name;
  }
}

INSTANTIATE_TEST_SUITE_P(Layouts,
                         CheckpointLayoutTest,
                         testing::ValuesIn(checkpoint_layouts()),
                         [](const auto& tested) { return std::string(tested.param.name); });

INSTANTIATE_TEST_SUITE_P(Layouts, LayoutTest, testing::ValuesIn(layouts()), [](const auto& tested) {
  return std::string(tested.param.name);
});

}  // namespace
}  // namespace memphis::test
