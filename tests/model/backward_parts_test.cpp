// SPDX-License-Identifier: Apache-2.0
//
// The backward pass of layers in two parts, the gradients of their inputs and those of their
// weights, in any order that a schedule may have them in, gives the bits of the pass in one part.
// What is free between the two is made NaN, so that nothing can come of it, and so are the weights'
// gradients before the first micro-batch, which writes them.
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/comm/threads.h"
#include "csrc/comm/together.h"
#include "csrc/core/arena.h"
#include "csrc/model/block.h"
#include "csrc/model/grok.h"
#include "csrc/plan/mesh.h"
#include "tests/support/op_test.h"
#include "tests/support/test_tensor.h"
#include "tests/support/tiny_model.h"

namespace memphis::test {
namespace {

constexpr std::int64_t kNumBatches = 2;
constexpr std::int64_t kSequences = 3;
constexpr std::int64_t kLength = 10;

using Bytes = std::vector<std::byte>;

Bytes bytes_of(const TensorView& view, Stream stream) {
  Bytes bytes(view.bytes());
  device_copy(bytes.data(), view.data, bytes.size(), stream);
  synchronize(stream);
  return bytes;
}

constexpr std::byte kZero{0};
constexpr std::byte kNaN{0xff};  // every byte of one, in every dtype

void fill(const TensorView& view, std::byte value, Stream stream) {
  if (view.present()) {
    const Bytes bytes(view.bytes(), value);
    device_copy(view.data, bytes.data(), bytes.size(), stream);
    synchronize(stream);
  }
}

void poison(const TensorView& view, Stream stream) {
  fill(view, kNaN, stream);
}

// What a run leaves: gradients of every parameter, and that of each micro-batch's embedding.
using Outcome = std::map<std::string, Bytes>;

void expect_same(const Outcome& actual, const Outcome& expected) {
  ASSERT_EQ(actual.size(), expected.size());
  for (const auto& [name, bytes] : expected) {
    EXPECT_TRUE(actual.at(name) == bytes) << name;
  }
}

// The layers of a rank's model, and two micro-batches, each with a place of its own for what lies
// between the two parts.
class Layers {
 public:
  Layers(const ModelConfig& config, const Share& share, Groups groups, const Target& target)
      : config_(config),
        dims_(make_dims(config_, kSequences, kLength, share)),
        stream_(target.device),
        parameters_(plan_parameters(config_, target.dtype, share),
                    target.dtype,
                    target.device,
                    Parameters::Gradients::allocate),
        plan_(plan_for(dims_, target)),
        activations_arena_("activations", plan_.activation_bytes(), target.device),
        workspace_arena_("workspace", plan_.workspace_bytes(), target.device),
        kept_arena_("kept", kept_bytes(), target.device),
        activations_(allocate_activations(plan_, activations_arena_, workspace_arena_)),
        groups_(std::move(groups)),
        residency_(parameters_, groups_, stream()),
        model_(config_, dims_, groups_, residency_, activations_, stream()) {
    parameters_.initialise(6 + test_seed(), stream());
    for (const Slot& slot : activations_.slots) {
      batches_.push_back(std::make_unique<MicroBatch>(slot, dims_, target.device));
      std::vector<LayerGradients<TensorView>>& kept = kept_.emplace_back();
      for (std::int64_t layer = 0; layer < dims_.L; ++layer) {
        LayerGradients<TensorSpec>::for_each(
            plan_.gradients, kept.emplace_back(), [&](const TensorSpec& spec, TensorView& view) {
              view = kept_arena_.allocate(spec);
            });
      }
    }
  }

  // Of one rank.
  Layers(const ModelConfig& config, const Target& target)
      : Layers(config, {}, Groups(target.device), target) {}

  // Called between the two parts.
  std::function<void(std::int64_t batch)> between = [this](std::int64_t batch) {
    poison_what_is_free(batch);
  };

  // "F0 I0 F1 W0 I1 W1": forward passes, gradients of inputs and of weights, of all layers of a
  // micro-batch; B: block_backward; P: both parts of a layer, in scratch, and then the next layer.
  // The gradients of weights consist of bytes `before` when it begins.
  Outcome run(const std::string& order, std::byte before = kNaN) {
    for (LayerWeights gradients : parameters_.gradients().layers) {
      for_each_layer_parameter(
          gradients, gradients, [&](const TensorView& view, const TensorView&) {
            fill(view, before, stream());
          });
    }
    Outcome result;
    for (std::size_t i = 0; i < order.size(); i += 3) {
      const std::int64_t batch = order[i + 1] - '0';
      switch (order[i]) {
        case 'F':
          forward(batch);
          continue;
        case 'W':
          backward_weights(batch);
          continue;
        default:
          backward(batch, order[i]);
          result["dhidden" + std::to_string(batch)] =
              bytes_of(activations_.backward.dhidden_TD, stream());
          if (order[i] == 'I') {
            between(batch);
          }
      }
    }
    for (const LogicalParameter& parameter : parameters_.plan().logical) {
      result[parameter.name] = bytes_of(
          parameters_.sums({.begin = parameter.begin, .count = parameter.spec.num_elements()}),
          stream());
    }
    return result;
  }

  // All scratch, and of the layers what recomputation gives back and no weight's gradient is made
  // of.
  void poison_what_is_free(std::int64_t batch) {
    const SharedActivations<TensorView>& shared = activations_.shared;
    BackwardScratch<TensorView>::for_each(
        activations_.backward,
        activations_.backward,
        [&](const TensorView& view, const TensorView&) { poison(view, stream()); });
    SharedActivations<TensorView>::for_each(
        shared, shared, [&](const TensorView& view, const TensorView&) {
          if (view.data != shared.rope_table_SH.data && view.data != shared.stats.data) {
            poison(view, stream());
          }
        });
    for_each_given_back([&](const LayerTensor& tensor, std::int64_t index) {
      if (!tensor.for_weights) {
        poison_in_layers(batch, index);
      }
    });
  }

  // Calls visit(tensor, index) for what recomputation may give back, `index` of all tensors.
  template <class Visit>
  void for_each_given_back(const Visit& visit) const {
    std::int64_t index = 0;
    Planned::for_each(plan_.layer, plan_.layer, [&](const LayerTensor& tensor, const LayerTensor&) {
      if (tensor.spec.present() && tensor.by != GivenBackBy::nothing) {
        visit(tensor, index);
      }
      ++index;
    });
  }

  void poison_in_layers(std::int64_t batch, std::int64_t index) {
    for (const Layer& layer : batch_at(batch).layers) {
      std::int64_t at = 0;
      Layer::for_each(layer, layer, [&](const TensorView& view, const TensorView&) {
        if (at++ == index) {
          poison(view, stream());
        }
      });
    }
  }

 private:
  using Planned = LayerActivations<LayerTensor>;

  static ActivationPlan plan_for(const Dims& dims, const Target& target) {
    ActivationPlan plan = plan_activations(dims, target.dtype, Keep::all_layers, target.device);
    plan.chunks.front().num_slots = kNumBatches;
    return plan;
  }

  std::size_t kept_bytes() const {
    std::size_t bytes = 0;
    LayerGradients<TensorSpec>::for_each(
        plan_.gradients, plan_.gradients, [&](const TensorSpec& spec, const TensorSpec&) {
          bytes += spec.present() ? arena_bytes(spec) : 0;
        });
    return static_cast<std::size_t>(kNumBatches * dims_.L) * bytes;
  }

  Stream stream() const { return stream_.view(); }
  MicroBatch& batch_at(std::int64_t batch) { return *batches_[static_cast<std::size_t>(batch)]; }

  BlockContext context_of(const MicroBatch& batch) const {
    return {.model = config_,
            .dims = dims_,
            .groups = groups_,
            .batch = batch.tensors,
            .shared = activations_.shared,
            .scratch = activations_.backward,
            .key_valid_U = batch.key_valid_U,
            .routed_valid_T = batch.routed_valid_T,
            .stream = stream(),
            .rows = row_places(activations_.shared),
            .weight_gradient = &batch == batches_.front().get() ? kernels::WeightGradient::write
                                                                : kernels::WeightGradient::add};
  }

  void forward(std::int64_t index) {
    const std::uint64_t seed = 2 * test_seed() + static_cast<std::uint64_t>(index);
    std::vector<std::int32_t> tokens;
    std::vector<std::int32_t> positions;
    std::vector<std::uint8_t> valid;
    for (const double token : random_integers(dims_.T, "tokens", 0, dims_.V, seed)) {
      const auto t = static_cast<std::int64_t>(tokens.size());
      tokens.push_back(static_cast<std::int32_t>(token));
      positions.push_back(static_cast<std::int32_t>(t % dims_.S % 6));  // a document ends within
      valid.push_back(t % 11 == 3 ? 0 : 1);
    }
    const std::vector<std::int32_t> targets(tokens.size(), -1);
    MicroBatch& batch = batch_at(index);
    model_.load(batch,
                {.tokens_T = tokens,
                 .targets_T = targets,
                 .positions_T = positions,
                 .valid_T = valid,
                 .any_padding = true});
    model_.forward(batch);
    synchronize(stream());
  }

  // The gradient that the last layer gets is the micro-batch's own.
  void backward(std::int64_t index, char kind) {
    HostScalars scalars(activations_.shared.step_scalars);
    scalars.set(StepScalar::auxiliary, {0.1, 0.05});
    scalars.copy_scales(stream());
    const TensorView& dhidden_TD = activations_.backward.dhidden_TD;
    const TestTensor drawn(
        {{dhidden_TD.dim(0), dhidden_TD.dim(1)}, dhidden_TD.dtype},
        stream_.view().device,
        random_normal(dhidden_TD.num_elements(), "dhidden" + std::to_string(index)));
    device_copy(dhidden_TD.data, drawn.view().data, dhidden_TD.bytes(), stream());
    const MicroBatch& batch = batch_at(index);
    const BlockContext context = context_of(batch);
    const LayerGradients<TensorView> in_scratch =
        gradients_in_scratch(activations_.shared, activations_.backward);
    StreamNorm norm;  // of the layer after
    for (auto i = static_cast<std::size_t>(dims_.L); i-- > 0;) {
      const LayerWeights& weights = parameters_.weights().layers[i];
      const LayerWeights& gradients = parameters_.gradients().layers[i];
      const Layer& layer = batch.layers[i];
      const ExpertExchange& exchange = batch.exchanges[i];
      const LayerGradients<TensorView>& kept =
          kind == 'I' ? kept_[static_cast<std::size_t>(index)][i] : in_scratch;
      block_end_backward(context, weights, gradients, layer, norm);
      norm = {.out_TD = {},
              .rrms_T = layer.attention_in_rrms_T,
              .weight_D = weights.pre_attention_norm_D,
              .dweight_D = gradients.pre_attention_norm_D};
      for (const BackwardPart part :
           {BackwardPart::send, BackwardPart::experts, BackwardPart::join}) {
        block_backward(context,
                       part,
                       weights,
                       gradients,
                       layer,
                       exchange,
                       kept,
                       kind == 'B' ? Backward::all : Backward::inputs);
      }
      if (kind == 'P') {
        block_backward_weights(context, gradients, layer, exchange, kept);
      }
    }
    stream_norm_backward(context, norm, batch.hidden_before(0));
    synchronize(stream());
  }

  void backward_weights(std::int64_t index) {
    const MicroBatch& batch = batch_at(index);
    for (auto i = static_cast<std::size_t>(dims_.L); i-- > 0;) {
      block_backward_weights(context_of(batch),
                             parameters_.gradients().layers[i],
                             batch.layers[i],
                             batch.exchanges[i],
                             kept_[static_cast<std::size_t>(index)][i]);
    }
    synchronize(stream());
  }

  ModelConfig config_;
  Dims dims_;
  OwnedStream stream_;
  Parameters parameters_;
  ActivationPlan plan_;
  Arena activations_arena_;
  Arena workspace_arena_;
  Arena kept_arena_;
  Activations activations_;
  Groups groups_;
  WeightResidency residency_;
  Grok model_;
  std::vector<std::unique_ptr<MicroBatch>> batches_;
  std::vector<std::vector<LayerGradients<TensorView>>> kept_;  // by micro-batch and layer
};

// Sums of gradients are formed in the order of the micro-batches in all of them.
constexpr std::string_view kInOnePart = "F0 B0 F1 B1";
constexpr std::string_view kInTwoParts[] = {
    "F0 I0 W0 F1 I1 W1",  // one after the other
    "F0 F1 I0 I1 W0 W1",  // weights' at the end
    "F0 F1 I0 W0 I1 W1",  // no second part disturbs a first
    "F0 I0 F1 W0 I1 W1",  // nor a forward pass a second
    "F0 F1 P0 P1",        // in the scratch of a pass in one part
};

void expect_same_bits(Layers& layers) {
  const Outcome expected = layers.run(std::string(kInOnePart), kZero);
  expect_same(layers.run(std::string(kInOnePart)), expected);
  for (const std::string_view order : kInTwoParts) {
    SCOPED_TRACE(order);
    expect_same(layers.run(std::string(order)), expected);
  }
}

struct Model {
  std::string name;
  ModelConfig config;
};

std::vector<Model> models() {
  return {{"experts", tiny_grok1()}, {"experts_and_dense", tiny_grok2()}};
}

class BackwardPartsTest : public testing::TestWithParam<Target> {};

TEST_P(BackwardPartsTest, GiveTheBitsOfOnePart) {
  if (const std::string reason = skip_reason(GetParam()); !reason.empty()) {
    GTEST_SKIP() << reason;
  }
  std::vector<Model> tested = models();
  if (GetParam().device == Device::cuda && device_info(Device::cuda).simulated) {
    tested.erase(tested.begin());  // the other has all of its parts, and takes a minute
  }
  for (const Model& model : tested) {
    SCOPED_TRACE(model.name);
    Layers layers(model.config, GetParam());
    expect_same_bits(layers);
  }
}

INSTANTIATE_TEST_SUITE_P(Targets,
                         BackwardPartsTest,
                         testing::ValuesIn(all_targets()),
                         [](const auto& tested) { return name_of(tested.param); });

// A mark too few is caught above. One too many would be memory that nothing reads.
TEST(BackwardParts, WhatIsMarkedIsWhatWeightsNeed) {
  for (const Model& model : models()) {
    SCOPED_TRACE(model.name);
    Layers layers(model.config, {Device::cpu, DType::f32});
    const Outcome expected = layers.run("F0 B0");
    int num_marked = 0;
    layers.for_each_given_back([&](const LayerTensor& tensor, std::int64_t index) {
      layers.between = [&](std::int64_t batch) { layers.poison_in_layers(batch, index); };
      num_marked += tensor.for_weights ? 1 : 0;
      EXPECT_EQ(layers.run("F0 I0 W0") != expected, tensor.for_weights) << "tensor " << index;
    });
    EXPECT_GT(num_marked, 0);
  }
}

struct RankLayout {
  const char* name;
  int tensor;
  int data;
  int expert;
  int expert_tensor;
  bool sequence_parallel;
};

class BackwardPartsOnRanksTest : public testing::TestWithParam<RankLayout> {};

TEST_P(BackwardPartsOnRanksTest, GiveTheBitsOfOnePart) {
  const RankLayout& layout = GetParam();
  ParallelConfig parallel;
  parallel.data = layout.data;
  parallel.tensor = layout.tensor;
  parallel.expert = layout.expert;
  parallel.expert_tensor = layout.expert_tensor;
  parallel.sequence_parallel = layout.sequence_parallel;
  parallel.zero = 0;  // each rank has the gradients of all that it holds
  for (const Model& model : models()) {
    for (const DType dtype : {DType::f32, DType::f64}) {
      SCOPED_TRACE(model.name);
      run_threads(layout.tensor * layout.data, [&](World& world) {
        const Mesh mesh(parallel, world.size());
        Layers layers(model.config,
                      make_share(model.config, parallel, mesh, world.rank()),
                      Groups(world, mesh, model.config, Device::cpu, create_group_of_all(world)),
                      {Device::cpu, dtype});
        expect_same_bits(layers);
      });
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Layouts,
                         BackwardPartsOnRanksTest,
                         testing::Values(RankLayout{"tensor2", 2, 1, 1, 1, true},
                                         RankLayout{"tensor2_whole_sequences", 2, 1, 1, 1, false},
                                         RankLayout{"data2_expert2", 1, 2, 2, 1, true},
                                         RankLayout{"data2_split_experts", 1, 2, 1, 2, true},
                                         RankLayout{
                                             "data2_tensor2_expert2_split2", 2, 2, 2, 2, true}),
                         [](const auto& tested) { return std::string(tested.param.name); });

}  // namespace
}  // namespace memphis::test
