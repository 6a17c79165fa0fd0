// SPDX-License-Identifier: Apache-2.0
#include "csrc/model/weight_residency.h"

#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/comm/together.h"
#include "csrc/core/error.h"
#include "csrc/plan/share.h"
#include "tests/support/layout_run.h"
#include "tests/support/tiny_model.h"
#include "tests/support/world_decorator.h"

namespace memphis::test {
namespace {

constexpr int kNumRanks = 4;
constexpr int kNumLayers = 5;
constexpr std::uint64_t kSeed = 11;

// Counts what is asked for, by name.
class CountingCommunicator final : public CommunicatorDecorator {
 public:
  CountingCommunicator(std::unique_ptr<Communicator> real, std::map<std::string, int>& counts)
      : CommunicatorDecorator(std::move(real)), counts_(counts) {}

 private:
  void before(const Collective& /*collective*/, std::string_view name) override {
    ++counts_[std::string(name)];
  }

  std::map<std::string, int>& counts_;
};

class CountingWorld final : public WorldDecorator {
 public:
  explicit CountingWorld(World& real) : WorldDecorator(real) {}

  std::unique_ptr<Communicator> create_group(std::string axis,
                                             std::span<const int> ranks,
                                             Device device,
                                             int num_channels) override {
    return std::make_unique<CountingCommunicator>(
        real().create_group(std::move(axis), ranks, device, num_channels), counts);
  }

  std::map<std::string, int> counts;
};

ModelConfig model_of_layers() {
  ModelConfig model = tiny_grok1();
  model.num_layers = kNumLayers;
  return model;
}

// One rank of those that share out a model's weights, and the same weights not shared out.
class SharedWeights {
 public:
  explicit SharedWeights(World& world)
      : world_(world),
        mesh_(parallel(3), world.size()),
        groups_(world_, mesh_, model_of_layers(), Device::cpu, create_group_of_all(world_)),
        stream_(Device::cpu),
        parameters_(plan(3)),
        whole_(plan(0)),
        residency(parameters_, groups_, stream_.view()) {
    parameters_.initialise(kSeed, stream_.view());
    whole_.initialise(kSeed, stream_.view());
  }

  const ParameterPlan& plan() const { return parameters_.plan(); }
  Parameters& parameters() { return parameters_; }
  int num_gathers() { return std::exchange(world_.counts["layer.weights"], 0); }
  // Segments of a layer that are gathered.
  int num_segments(int layer) const {
    int count = 0;
    for (const Segment& segment : plan().segments) {
      count += segment.place && segment.layer == layer ? 1 : 0;
    }
    return count;
  }

  // The logical parameters of a layer that differ from the whole ones.
  std::vector<std::string> wrong_weights(int layer) const {
    std::vector<std::string> wrong;
    for (std::size_t i = 0; i < plan().logical.size(); ++i) {
      const LogicalParameter& parameter = plan().logical[i];
      if (plan().segments[static_cast<std::size_t>(parameter.segment)].layer != layer) {
        continue;
      }
      const TensorView actual = parameters_.logical_weights(parameter);
      const TensorView expected = whole_.logical_weights(whole_.plan().logical[i]);
      if (std::memcmp(actual.data, expected.data, expected.bytes()) != 0) {
        wrong.push_back(parameter.name);
      }
    }
    return wrong;
  }

  // Every element of both is doubled, as by a step of an optimizer.
  void double_weights() {
    const auto twice = [](const TensorView& view) {
      for (std::int64_t i = 0; i < view.num_elements(); ++i) {
        view.as<float>()[i] *= 2;
      }
    };
    for (std::size_t i = 0; i < plan().segments.size(); ++i) {
      twice(parameters_.owned_weights(i));
      residency.changed(i);
      twice(whole_.segment_weights(i));
    }
  }

 private:
  static ParallelConfig parallel(std::int64_t zero) {
    return {.data = kNumRanks, .expert = 2, .zero = zero};
  }
  Parameters plan(std::int64_t zero) const {
    const Share share = make_share(model_of_layers(), parallel(zero), mesh_, world_.rank());
    return {plan_parameters(model_of_layers(), DType::f32, share),
            DType::f32,
            Device::cpu,
            Parameters::Gradients::none};
  }

  mutable CountingWorld world_;
  Mesh mesh_;
  Groups groups_;
  OwnedStream stream_;
  Parameters parameters_;
  Parameters whole_;

 public:
  WeightResidency residency;
};

// Forward and backward, as the model goes.
template <class Visit>
void pass(SharedWeights& weights, const Visit& visit) {
  for (int layer = 0; layer < kNumLayers; ++layer) {
    const auto use = weights.residency.acquire(
        layer, layer + 1 < kNumLayers ? std::optional(layer + 1) : std::nullopt);
    visit(layer);
  }
  for (int layer = kNumLayers; layer-- > 0;) {
    const auto use =
        weights.residency.acquire(layer, layer > 0 ? std::optional(layer - 1) : std::nullopt);
    visit(layer);
  }
}

TEST(WeightResidency, HasALayerWholeWhileItIsInUse) {
  on_ranks(Ranks::threads, kNumRanks, [](World& world) {
    SharedWeights weights(world);
    ASSERT_GT(weights.num_segments(0), 0);
    for (int step = 0; step < 3; ++step) {
      for (int micro_batch = 0; micro_batch < 2; ++micro_batch) {
        pass(weights, [&](int layer) {
          EXPECT_EQ(weights.wrong_weights(layer), std::vector<std::string>{}) << "layer " << layer;
        });
      }
      weights.double_weights();
    }
  });
}

// The two layers that a pass ends with are there when the next one begins with them.
TEST(WeightResidency, GathersALayerOnceWhereItIsKept) {
  on_ranks(Ranks::threads, kNumRanks, [](World& world) {
    SharedWeights weights(world);
    const int one = weights.num_segments(0);
    const auto go = [&] {
      pass(weights, [](int /*layer*/) {});
      return weights.num_gathers();
    };
    EXPECT_EQ(go(), one * (kNumLayers + kNumLayers - 2)) << "nothing is there";
    EXPECT_EQ(go(), one * 2 * (kNumLayers - 2));
    weights.double_weights();
    EXPECT_EQ(weights.num_gathers(), one * 2) << "those that are used first";
    EXPECT_EQ(go(), one * 2 * (kNumLayers - 2));
  });
}

// While a layer is at work: the next one's, before anybody has asked for it.
TEST(WeightResidency, StartsTheNextLayerAhead) {
  on_ranks(Ranks::threads, kNumRanks, [](World& world) {
    SharedWeights weights(world);
    for (int layer = 0; layer + 1 < kNumLayers; ++layer) {
      const auto use = weights.residency.acquire(layer, layer + 1);
      EXPECT_EQ(weights.num_gathers(),
                (layer == 0 ? weights.num_segments(0) : 0) + weights.num_segments(layer + 1));
    }
  });
}

// Where a layer ends and the next one begins both are in use, and the one after them comes when the
// first has left its place.
TEST(WeightResidency, HasTwoLayersInUseAtOnce) {
  on_ranks(Ranks::threads, kNumRanks, [](World& world) {
    SharedWeights weights(world);
    auto use = weights.residency.acquire(0, 1);
    for (int layer = 1; layer < kNumLayers; ++layer) {
      auto next = weights.residency.acquire(layer);
      EXPECT_EQ(weights.wrong_weights(layer - 1), std::vector<std::string>{});
      EXPECT_EQ(weights.wrong_weights(layer), std::vector<std::string>{});
      if (layer + 1 < kNumLayers) {
        EXPECT_THROW(weights.residency.expect(layer + 1), ContractError);
        use = std::move(next);
        weights.num_gathers();
        weights.residency.expect(layer + 1);
        EXPECT_EQ(weights.num_gathers(), weights.num_segments(layer + 1));
        EXPECT_EQ(weights.wrong_weights(layer), std::vector<std::string>{});
      }
    }
  });
}

TEST(WeightResidency, RefusesToTakeThePlaceOfALayerInUse) {
  on_ranks(Ranks::threads, kNumRanks, [](World& world) {
    SharedWeights weights(world);
    {
      const auto use = weights.residency.acquire(0);
      EXPECT_THROW((void)weights.residency.acquire(2), ContractError);
      EXPECT_THROW((void)weights.residency.acquire(1, 2), ContractError);
      { const auto other = weights.residency.acquire(1); }
      EXPECT_THROW((void)weights.residency.acquire(2), ContractError) << "0 is in use as before";
    }
    const auto use = weights.residency.acquire(2);
    EXPECT_EQ(weights.wrong_weights(2), std::vector<std::string>{});
  });
}

}  // namespace
}  // namespace memphis::test
