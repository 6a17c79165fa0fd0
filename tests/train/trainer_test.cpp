// SPDX-License-Identifier: Apache-2.0
#include "csrc/train/trainer.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <map>
#include <new>

#include <gtest/gtest.h>
#include <omp.h>

#include "csrc/core/error.h"
#include "tests/support/error_text.h"
#include "tests/support/tiny_run.h"

namespace {

std::atomic<std::uint64_t> g_num_heap_allocations{0};

void* counted(void* data) {
  ++g_num_heap_allocations;
  if (data == nullptr) {
    throw std::bad_alloc();
  }
  return data;
}

}  // namespace

// Replaced in this program, to count. Not inlined, or the compiler finds free() called on what came
// from new.
[[gnu::noinline]] void* operator new(std::size_t bytes) {
  return counted(std::malloc(std::max<std::size_t>(bytes, 1)));
}
[[gnu::noinline]] void* operator new(std::size_t bytes, const std::nothrow_t& /*tag*/) noexcept {
  ++g_num_heap_allocations;
  return std::malloc(std::max<std::size_t>(bytes, 1));
}
[[gnu::noinline]] void* operator new(std::size_t bytes, std::align_val_t alignment) {
  const auto multiple = static_cast<std::size_t>(alignment);
  return counted(std::aligned_alloc(multiple, (bytes + multiple - 1) / multiple * multiple));
}
[[gnu::noinline]] void operator delete(void* data) noexcept {
  std::free(data);
}
[[gnu::noinline]] void operator delete(void* data, std::size_t) noexcept {
  std::free(data);
}
[[gnu::noinline]] void operator delete(void* data, std::align_val_t) noexcept {
  std::free(data);
}

namespace memphis::test {
namespace {

std::vector<std::byte> weights_of(Trainer& trainer) {
  std::vector<std::byte> bytes;
  for (std::size_t i = 0; i < trainer.plan().parameters.segments.size(); ++i) {
    const TensorView view = trainer.parameters().segment_weights(i);
    const auto* begin = static_cast<const std::byte*>(view.data);
    bytes.insert(bytes.end(), begin, begin + view.bytes());
  }
  return bytes;
}

class TrainerMemory : public testing::TestWithParam<std::vector<std::string>> {};

TEST_P(TrainerMemory, IsWhatThePlanSays) {
  const TemporaryDirectory directory;
  const std::uint64_t before = allocated_bytes();
  const std::uint64_t pinned_before = pinned_bytes();
  const Trainer trainer(tiny_config(directory, GetParam()), {});
  EXPECT_EQ(allocated_bytes() - before, trainer.plan().memory.allocated_bytes());
  EXPECT_EQ(pinned_bytes() - pinned_before, trainer.plan().memory.host.standing_bytes());
}

// The first step may: threads start, and scratch of the CPU is sized by the first call of an op.
// Neither routing nor which thread does what may change that later.
TEST_P(TrainerMemory, IsNotAllocatedAfterTheFirstStep) {
  const TemporaryDirectory directory;
  const int threads = omp_get_max_threads();
  for (const int num_threads : {1, 2, 5}) {
    omp_set_num_threads(num_threads);
    Trainer trainer(tiny_config(directory, GetParam()), {});
    trainer.step();
    const std::uint64_t device = allocation_count();
    const std::uint64_t heap = g_num_heap_allocations;
    for (int i = 0; i < 10; ++i) {
      trainer.step();
    }
    EXPECT_EQ(allocation_count(), device) << num_threads << " threads";
    EXPECT_EQ(g_num_heap_allocations, heap) << num_threads << " threads";
  }
  omp_set_num_threads(threads);
}

INSTANTIATE_TEST_SUITE_P(
    Configs,
    TrainerMemory,
    testing::Values(std::vector<std::string>{},
                    std::vector<std::string>{"metrics.sample_every=10"},
                    std::vector<std::string>{"precision.compute=bf16"},
                    std::vector<std::string>{"data.held_out=0", "metrics.validate_every=0"},
                    std::vector<std::string>{"memory.recompute=[norm, geglu]"},
                    std::vector<std::string>{"memory.recompute=block", "memory.recompute_layers=1"},
                    std::vector<std::string>{"model.dense_ffn_dim=40",
                                             "model.tie_embeddings=false",
                                             "model.router_cap=30",
                                             "model.final_cap=50"}));

// Nats a byte of a model that knows how often each byte comes and nothing else.
double byte_entropy(const std::string& text) {
  std::map<char, double> counts;
  for (const char letter : text) {
    counts[letter] += 1;
  }
  double entropy = 0;
  for (const auto& [letter, count] : counts) {
    const double share = count / static_cast<double>(text.size());
    entropy -= share * std::log(share);
  }
  return entropy;
}

TEST(Trainer, LearnsMoreThanByteFrequencies) {
  const TemporaryDirectory directory;
  Trainer trainer(tiny_config(directory, {"schedule.steps=120"}), {});
  for (int i = 0; i < 120; ++i) {
    trainer.step();
  }
  EXPECT_LT(trainer.validation_loss(), 0.5 * byte_entropy(tiny_text()));
}

TEST(Trainer, GradientAccumulationChangesRoundingAlone) {
  const TemporaryDirectory directory;
  std::vector<std::vector<double>> losses;
  for (const char* micro_batch : {"8", "4", "2", "1"}) {
    Trainer trainer(tiny_config(directory,
                                {"precision.compute=f64",  // no rounding sends a token elsewhere
                                 std::string("batch.micro_batch=") + micro_batch}),
                    {});
    losses.emplace_back();
    for (int i = 0; i < 5; ++i) {
      const StepResult result = trainer.step();
      losses.back().push_back(result.loss);
      losses.back().push_back(result.balance);
    }
  }
  for (std::size_t run = 1; run < losses.size(); ++run) {
    for (std::size_t i = 0; i < losses[run].size(); ++i) {
      // A few thousand roundings of sums, and what five steps make of them.
      EXPECT_NEAR(losses[run][i], losses[0][i], 1e-9 * losses[0][i]) << "run " << run;
    }
  }
}

TEST(Trainer, BitsDoNotDependOnTheNumberOfThreads) {
  const TemporaryDirectory directory;
  const int threads = omp_get_max_threads();
  std::vector<std::vector<std::byte>> weights;
  for (const int num_threads : {1, 2, 3}) {
    omp_set_num_threads(num_threads);
    Trainer trainer(tiny_config(directory), {});
    for (int i = 0; i < 5; ++i) {
      trainer.step();
    }
    weights.push_back(weights_of(trainer));
  }
  omp_set_num_threads(threads);
  EXPECT_EQ(weights[0], weights[1]);
  EXPECT_EQ(weights[0], weights[2]);
}

TEST(Trainer, ValidationLeavesTrainingAlone) {
  const TemporaryDirectory directory;
  Trainer looks(tiny_config(directory), {});
  Trainer does_not(tiny_config(directory), {});
  for (int i = 0; i < 3; ++i) {
    looks.step();
    does_not.step();
    EXPECT_EQ(looks.validation_loss(), looks.validation_loss());
  }
  EXPECT_EQ(weights_of(looks), weights_of(does_not));
}

// The norms keep a loss finite at almost any learning rate; what ends a run is a weight that is
// lost.
TEST(Trainer, ADivergedRunSaysSo) {
  const TemporaryDirectory directory;
  Trainer trainer(tiny_config(directory), {});
  trainer.step();
  trainer.parameters().weights().final_norm_D.as<float>()[3] =
      std::numeric_limits<float>::quiet_NaN();
  const std::string text = error_text<DivergedError>([&] { trainer.step(); });
  EXPECT_NE(text.find("training diverged"), std::string::npos) << text;
}

}  // namespace
}  // namespace memphis::test
