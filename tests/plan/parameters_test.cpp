// SPDX-License-Identifier: Apache-2.0
#include "csrc/plan/parameters.h"

#include <algorithm>
#include <cstddef>
#include <set>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/config/load.h"
#include "csrc/plan/flops.h"
#include "csrc/plan/mesh.h"
#include "csrc/plan/share.h"
#include "tests/support/tiny_model.h"

namespace memphis::test {
namespace {

ModelConfig preset(const std::string& name) {
  return parse_config(
             "model: {preset: " + name + "}\nschedule: {steps: 1}", "preset", {}, Check::text)
      .model;
}

// xAI publishes "314B"; the counts follow from the released shapes.
TEST(ParameterPlan, CountsGrok1AndGrok2) {
  EXPECT_EQ(plan_parameters(preset("grok-1"), DType::bf16).num_parameters, 315'684'820'992);
  EXPECT_EQ(plan_parameters(preset("grok-2"), DType::bf16).num_parameters, 269'515'497'472);
}

TEST(ParameterPlan, LogicalParametersFillTheirSegmentsWithoutOverlap) {
  const ParameterPlan plan = plan_parameters(tiny_grok2(), DType::bf16);
  std::vector<LogicalParameter> sorted = plan.logical;
  std::sort(
      sorted.begin(), sorted.end(), [](const auto& a, const auto& b) { return a.begin < b.begin; });
  std::int64_t end = 0;
  for (const LogicalParameter& parameter : sorted) {
    const Segment& segment = plan.segments[static_cast<std::size_t>(parameter.segment)];
    EXPECT_GE(parameter.begin, end) << parameter.name;
    end = parameter.begin + parameter.spec.num_elements();
    EXPECT_GE(parameter.begin, segment.begin) << parameter.name;
    EXPECT_LE(end, segment.begin + segment.num_elements) << parameter.name;
    EXPECT_EQ(parameter.spec.dtype, segment.dtype) << parameter.name;
    const bool is_norm = parameter.name.find("norm") != std::string::npos;
    EXPECT_EQ(segment.decay, !is_norm) << parameter.name << ": weight decay spares norms alone";
  }
  EXPECT_LE(end, plan.num_elements);
}

// What lies between tensors is zero from the beginning, also where the gradients of another layer
// have been: each of its tensors lies where one of theirs does.
TEST(ParameterPlan, GradientsOfLayersThatTakeTurnsLieAlike) {
  ModelConfig model = tiny_grok2();
  model.num_layers = 5;
  for (const double bucket_mib : {0.0, 64.0}) {
    ParallelConfig parallel;
    parallel.data = 2;
    parallel.zero = 2;
    parallel.bucket_mib = bucket_mib;
    const ParameterPlan plan =
        plan_parameters(model, DType::bf16, make_share(model, parallel, Mesh(parallel, 2), 1));
    const auto places_of = [&](std::size_t layer) {
      std::vector<std::int64_t> result;
      LayerParameters<Placement> placed = plan.placements.layers[layer];
      for_each_layer_parameter(placed, placed, [&](const Placement& one, const Placement&) {
        const Segment& segment = plan.segments[static_cast<std::size_t>(one.segment)];
        result.push_back(segment.gradient_begin + one.begin - segment.begin);
        result.push_back(one.spec.num_elements());
      });
      return result;
    };
    EXPECT_EQ(places_of(2), places_of(0));
    EXPECT_EQ(places_of(4), places_of(0));
    EXPECT_EQ(places_of(3), places_of(1));
    EXPECT_NE(places_of(1), places_of(0));
  }
}

// The model multiplies by q, k and v as one matrix, and by an expert's gate and up as one.
TEST(ParameterPlan, WhatIsMultipliedTogetherLiesTogether) {
  const ParameterPlan plan = plan_parameters(tiny_grok1(), DType::f32);
  const auto place = [&](const std::string& name) {
    for (const LogicalParameter& parameter : plan.logical) {
      if (parameter.name == "model.layers.1." + name + ".weight") {
        return parameter;
      }
    }
    throw std::runtime_error("no parameter " + name);
  };
  const auto follows = [&](const std::string& first, const std::string& second) {
    const LogicalParameter a = place(first);
    return place(second).begin == a.begin + a.spec.num_elements();
  };
  EXPECT_EQ(place("self_attn.q_proj").begin, plan.placements.layers[1].qkv_CD.begin);
  EXPECT_TRUE(follows("self_attn.q_proj", "self_attn.k_proj"));
  EXPECT_TRUE(follows("self_attn.k_proj", "self_attn.v_proj"));
  EXPECT_TRUE(follows("block_sparse_moe.experts.3.w1", "block_sparse_moe.experts.3.w3"));
  EXPECT_TRUE(follows("block_sparse_moe.experts.3.w3", "block_sparse_moe.experts.4.w1"));
  EXPECT_TRUE(follows("block_sparse_moe.experts.3.w2", "block_sparse_moe.experts.4.w2"));
  EXPECT_EQ(plan.placements.head_VD.begin, plan.placements.embedding_VD.begin);
}

// Kernels read the gradients of a run 16 bytes at a time, however odd the tensors' sizes are.
TEST(ParameterPlan, WhatIsCountedBeginsAligned) {
  ModelConfig model = tiny_grok1();
  model.d_model = 31;
  model.num_heads = 6;
  model.num_kv_heads = 3;
  model.head_dim = 6;
  Share share;
  share.bucket_bytes = 0;
  for (const std::int64_t rank : {0, 1, 4, 5}) {  // pairs that share a key/value head
    share.tensor = {.index = rank, .count = 6};
    const ParameterPlan plan = plan_parameters(model, DType::f32, share);
    for (const Range& run : plan.counted) {
      EXPECT_EQ(run.begin % 4, 0) << "rank " << rank;
    }
    // And what a parameter has of it is found without a look at all.
    for (const LogicalParameter& parameter : plan.logical) {
      std::vector<Range> has;
      for (const Range& run : plan.counted) {
        if (parameter.local(run).count > 0) {
          has.push_back(run);
        }
      }
      const auto found = plan.counted_in(parameter);
      EXPECT_EQ(std::vector<Range>(found.begin(), found.end()), has) << parameter.name;
    }
  }
}

// What is looked at for all parameters grows with the layers, and not with their square.
TEST(ParameterPlan, RunsOfADeepModelAreLookedAtAboutOnce) {
  ModelConfig model = tiny_grok1();
  model.num_layers = 512;
  const ParameterPlan plan = plan_parameters(model, DType::bf16, {});
  std::size_t looks = 0;
  for (const LogicalParameter& parameter : plan.logical) {
    looks += plan.counted_in(parameter).size();
  }
  EXPECT_LE(looks, plan.logical.size() + plan.counted.size());
}

// Proxies of the benchmark documents: 12.91, 11.93 and 8.68 GFLOP a token; Grok-1 521.9 at 8192.
TEST(ModelFlops, CountWhatATokenMultiplies) {
  ModelConfig config;
  config.vocab_size = 131072;
  config.num_layers = 8;
  config.d_model = 3072;
  config.num_heads = 24;
  config.num_kv_heads = 4;
  config.head_dim = 128;
  config.ffn_dim = 8192;
  config.num_experts = 8;
  EXPECT_NEAR(model_flops_per_token(config, 8192).halved * 1e-9, 11.93, 0.005);
  EXPECT_NEAR(model_flops_per_token(preset("grok-1"), 8192).halved * 1e-9, 521.9, 0.05);
  EXPECT_NEAR(model_flops_per_token(preset("grok-1"), 8192).unhalved * 1e-9, 541.2, 0.05);
}

}  // namespace
}  // namespace memphis::test
