// SPDX-License-Identifier: Apache-2.0
#include "csrc/plan/memory.h"

#include <string>

#include <gtest/gtest.h>

#include "csrc/core/error.h"
#include "csrc/plan/flops.h"
#include "csrc/plan/mesh.h"

namespace memphis {
namespace {

ModelConfig model_of(std::int64_t num_layers) {
  ModelConfig model;
  model.vocab_size = 1024;
  model.num_layers = num_layers;
  model.d_model = 128;
  model.num_heads = 4;
  model.num_kv_heads = 2;
  model.head_dim = 32;
  model.ffn_dim = 256;
  model.num_experts = 4;
  model.experts_per_token = 2;
  return model;
}

// Of rank 0 of `data` ranks.
ParameterPlan plan_of(std::int64_t num_layers,
                      std::int64_t data,
                      std::int64_t zero,
                      double bucket_mib = 0) {
  const ParallelConfig parallel{.data = data, .zero = zero, .bucket_mib = bucket_mib};
  return plan_parameters(model_of(num_layers),
                         DType::bf16,
                         make_share(model_of(num_layers), parallel, Mesh(parallel, data), 0));
}

// Bytes a parameter: 2 for the weight, 4 each for gradient, master and two moments; ZeRO-1 shares
// the last three out over the ranks, ZeRO-2 the gradients as well, but for those that are being
// formed, and ZeRO-3 the weights, but for those of two layers and what is around them.
TEST(Memory, OfARankIsWhatItsZeroSays) {
  constexpr std::int64_t kData = 8;
  for (const std::int64_t zero : {0, 1, 2, 3}) {
    const ParameterPlan plan = plan_of(8, kData, zero);
    const auto elements = static_cast<double>(plan.num_elements);
    const double owned = zero > 0 ? elements / kData : elements;
    const double rounding = 0.05 * elements;  // tensors begin aligned; norms and routers are f32
    const auto weights = static_cast<double>(weights_bytes(plan));
    if (zero < 3) {
      EXPECT_NEAR(weights, 2 * elements, rounding) << zero;
    } else {
      EXPECT_LT(weights, 2 * elements / 2);
      EXPECT_GT(weights, 2 * elements / kData);
    }
    EXPECT_NEAR(static_cast<double>(master_bytes(plan)), 4 * owned, rounding) << zero;
    EXPECT_NEAR(static_cast<double>(moments_bytes(plan)), 8 * owned, rounding) << zero;
    const auto gradients = static_cast<double>(gradients_bytes(plan, DType::bf16));
    if (zero < 2) {
      EXPECT_NEAR(gradients, 4 * elements, rounding) << zero;
    } else {
      EXPECT_LT(gradients, 4 * elements / 2) << "two layers of eight, and what is around them";
      EXPECT_GT(gradients, 4 * elements / kData) << "the sums of all that a rank owns";
    }
  }
}

TEST(Memory, OfAllKindsAddsUp) {
  const MemoryPlan plan{.weights_bytes = 1,
                        .gradients_bytes = 10,
                        .master_bytes = 100,
                        .moments_bytes = 1000,
                        .activations_bytes = 10000,
                        .workspace_bytes = 100000,
                        .library_bytes = 1000000,
                        .communication_bytes = 10000000,
                        .sampling_bytes = 100000000,
                        .host = {.batches_bytes = 2,
                                 .statistics_bytes = 20,
                                 .exchange_bytes = 200,
                                 .snapshot_bytes = 2000,
                                 .comparison_bytes = 20000,
                                 .staging_bytes = 200000,
                                 .trace_bytes = 2000000}};
  EXPECT_EQ(plan.total_bytes(), 111111111U);
  EXPECT_EQ(plan.allocated_bytes(), 100111111U);
  EXPECT_EQ(plan.host.standing_bytes(), 22222U);
  EXPECT_EQ(plan.host.total_bytes(), 2222222U);
  EXPECT_EQ(plan.needed_bytes(Device::cuda), 111111111U);
  EXPECT_EQ(plan.needed_bytes(Device::cpu), 113333333U) << "one memory has both";
}

TEST(Memory, ThatIsThereToTheByteIsEnough) {
  MemoryPlan plan;
  plan.weights_bytes = 1 << 20;
  plan.activations_bytes = 1 << 20;
  MemoryDemand demand{.pool = "this machine",
                      .free_bytes = 2 << 20,
                      .num_ranks = 1,
                      .needed_bytes = plan.total_bytes()};
  EXPECT_NO_THROW(require_fits(plan, demand, {}, Device::cpu));
  --demand.free_bytes;
  EXPECT_THROW(require_fits(plan, demand, {}, Device::cpu), PreflightError);
  const std::string table = format_memory_table(plan);
  EXPECT_NE(table.find("1.00 MiB"), std::string::npos) << table;
  EXPECT_NE(table.find("2.00 MiB"), std::string::npos) << table;
}

constexpr std::size_t kGiB = std::size_t{1} << 30U;

std::string refusal(const MemoryPlan& plan, const MemoryDemand& demand) {
  try {
    require_fits(plan, demand, {}, Device::cpu);
  } catch (const PreflightError& error) {
    return error.what();
  }
  return "";
}

TEST(Memory, OfAllThatShareItMustBeThere) {
  const MemoryPlan plan{.weights_bytes = 3 * kGiB};
  EXPECT_EQ(refusal(plan,
                    {.pool = "this machine",
                     .free_bytes = 6 * kGiB,
                     .num_ranks = 2,
                     .needed_bytes = 6 * kGiB}),
            "");
  const std::string text = refusal(plan,
                                   {.pool = "/sys/fs/cgroup/job/memory.max",
                                    .free_bytes = 6 * kGiB - 1,
                                    .num_ranks = 2,
                                    .needed_bytes = 6 * kGiB});
  EXPECT_NE(text.find("the 2 ranks here need 6.00 GiB"), std::string::npos) << text;
  EXPECT_NE(text.find("/sys/fs/cgroup/job/memory.max has 6.00 GiB free"), std::string::npos)
      << text;
  EXPECT_NE(text.find("start fewer ranks on a machine"), std::string::npos) << text;
}

TEST(Memory, OfOneRankIsTheRuns) {
  const MemoryPlan plan{.weights_bytes = 3 * kGiB};
  const std::string text = refusal(
      plan, {.pool = "this machine", .free_bytes = kGiB, .num_ranks = 1, .needed_bytes = 3 * kGiB});
  EXPECT_NE(text.find("the run needs 3.00 GiB on device cpu and this machine has 1.00 GiB free"),
            std::string::npos)
      << text;
}

// A training step keeps what each layer needs for its backward pass, inference one layer's alone.
TEST(Memory, OfActivationsIsThatOfTheLayersThatAreKept) {
  for (const Keep keep : {Keep::all_layers, Keep::one_layer}) {
    const auto bytes_of = [&](std::int64_t num_layers) {
      return plan_activations(make_dims(model_of(num_layers), 2, 16), DType::f32, keep, Device::cpu)
          .activation_bytes();
    };
    const std::size_t layer = bytes_of(2) - bytes_of(1);
    EXPECT_EQ(layer > 0, keep == Keep::all_layers);
    EXPECT_EQ(bytes_of(5), bytes_of(1) + 4 * layer);
  }
}

// Buckets close once they have so many MiB of f32, or a layer ends, and every rank starts them in
// one order.
TEST(Buckets, AreAsLargeAsAsked) {
  const auto num_segments = [](double bucket_mib) {
    return plan_of(8, 2, 1, bucket_mib).segments.size();
  };
  const std::size_t without_limit = num_segments(1e6);
  EXPECT_EQ(without_limit, 8 * 4U + 2U)
      << "matrices, experts, routers and norms of a layer; the embedding and the last norm";
  EXPECT_EQ(num_segments(0), 8 * 9U + 2U) << "each tensor is one";
  const std::size_t by_one = num_segments(1);
  EXPECT_GT(by_one, without_limit);
  EXPECT_LT(by_one, num_segments(0));
  std::size_t num_small = 0;
  for (const Segment& segment : plan_of(8, 2, 1, 1).segments) {
    const std::int64_t bytes = segment.num_elements * 4;
    num_small += bytes < 1 << 20 ? 1 : 0;
    // The tensor that fills it comes on top: here of an expert's gate and up matrices, 1 MiB.
    EXPECT_LE(bytes, 2 << 20);
  }
  EXPECT_LE(num_small, without_limit) << "the last of each kind";
}

// Grok-2's dense network, 3 matrices beside the experts; a head that is counted tied or not.
TEST(ModelFlops, CountTheDenseNetworkAndTheHead) {
  ModelConfig model = model_of(3);
  const ModelFlops without = model_flops_per_token(model, 64);
  model.dense_ffn_dim = 512;
  const ModelFlops with = model_flops_per_token(model, 64);
  EXPECT_DOUBLE_EQ(with.halved - without.halved, 6.0 * 3 * 3 * 128 * 512);
  const double matrices =
      6.0 * (3 * (2 * 128 * 4 * 32 + 2 * 128 * 2 * 32 + 2 * 3 * 128 * 256 + 128 * 4) + 1024 * 128);
  const double scores = 6.0 * 3 * 4 * 32 * 64;
  EXPECT_DOUBLE_EQ(without.halved, matrices + scores);
  EXPECT_DOUBLE_EQ(without.unhalved, matrices + 2 * scores);
}

}  // namespace
}  // namespace memphis
