// SPDX-License-Identifier: Apache-2.0
#include "csrc/plan/step_time.h"

#include <cmath>
#include <string>

#include <gtest/gtest.h>

#include "csrc/core/error.h"
#include "tests/support/error_text.h"

namespace memphis {
namespace {

constexpr double kRounding = 1e-12;

const Machine& h100() {
  static const Machine machine = load_machine("configs/machines/h100_sxm.yaml");
  return machine;
}

// Grok-1 as it is trained elsewhere: 8 stages of tensor 4, context 2, experts in a node.
RunDescription grok1() {
  RunDescription run;
  run.model = {.num_layers = 64,
               .d_model = 6144,
               .num_heads = 48,
               .num_kv_heads = 8,
               .head_dim = 128,
               .vocab_size = 131072,
               .expert_ffn_dim = 32768,
               .num_experts = 8,
               .experts_per_token = 2};
  run.parallel.pipeline = 8;
  run.parallel.schedule = ScheduleKind::interleaved;
  run.parallel.chunks = 8;
  run.parallel.data = 8;
  run.parallel.context = 2;
  run.parallel.tensor = 4;
  run.parallel.expert = 8;
  run.batch = {.sequence_length = 8192, .micro_batch = 1, .global_batch = 1024};
  run.num_ranks = 512;
  return run;
}

StepTime time_of(const RunDescription& run) {
  return step_time(run_work(run), h100());
}

RankGroup ranks(std::int64_t stride, std::int64_t count) {
  return {.first = 0, .stride = stride, .count = count};
}

TEST(StepTime, PartsAddUp) {
  const StepTime time = time_of(grok1());
  double sum = 0;
  for (const double part : time.parts) {
    EXPECT_GE(part, 0);
    sum += part;
  }
  EXPECT_NEAR(sum, time.seconds, kRounding * sum);
  EXPECT_EQ(time.binding(), StepPart::expert_products);
  EXPECT_NEAR(time.tokens_per_second_of_rank, 1024 * 8192 / time.seconds / 512, 1e-9);
  EXPECT_NEAR(time.mfu, time.model_tflops / 989, kRounding);
  EXPECT_GT(time.unhalved_mfu, time.mfu);
}

// NCCL's own figures: a ring in a node is bound by its links, one that has all ranks of its nodes by
// all of their ports, one that has one rank a node by one port.
TEST(StepTime, AGroupIsAsFastAsItsLinks) {
  const auto gather = [](const RankGroup& group) {
    return exchange_seconds({.kind = ExchangeKind::tensor,
                             .pattern = Pattern::all_gather,
                             .bytes = 8e9,
                             .group = group},
                            h100());
  };
  EXPECT_NEAR(gather(ranks(1, 8)), 7e9 / 362e9, 1e-4);
  EXPECT_NEAR(gather(ranks(1, 16)), 7.5e9 / 362e9, 1e-3);
  EXPECT_NEAR(gather(ranks(4, 16)), 7.5e9 / 96e9, 1e-3);
  EXPECT_NEAR(gather(ranks(8, 16)), 7.5e9 / 48e9, 1e-3);
  EXPECT_EQ(gather(ranks(1, 1)), 0);
  const auto sum = exchange_seconds({.kind = ExchangeKind::tensor,
                                     .pattern = Pattern::all_reduce,
                                     .bytes = 8e9,
                                     .group = ranks(1, 8)},
                                    h100());
  EXPECT_NEAR(sum, 2 * gather(ranks(1, 8)), kRounding);
}

// Measured by arXiv 2603.07685: 4096 tokens of 7168, 8 choices of 256 experts, with NCCL's exchange
// and with one that sends a token to a node once.
TEST(StepTime, RowsTakeWhatWasMeasured) {
  const auto rows = [](std::int64_t count, bool once) {
    const double tokens = 4096.0 * 7168 * 2;
    return 1e6 * exchange_seconds({.kind = ExchangeKind::rows,
                                   .pattern = Pattern::all_to_all,
                                   .bytes = 8 * tokens,
                                   .group = ranks(1, count),
                                   .tokens_bytes = once ? tokens : 0,
                                   .choices = 8},
                                  h100());
  };
  constexpr double kWithin = 0.25;
  for (const auto& [count, all, once] : {std::tuple(8, 1265.0, 661.0),
                                         std::tuple(16, 5774.0, 1485.0),
                                         std::tuple(32, 8059.0, 3064.0),
                                         std::tuple(64, 9164.0, 4626.0)}) {
    EXPECT_NEAR(rows(count, false), all, kWithin * all) << count;
    EXPECT_NEAR(rows(count, true), once, kWithin * once) << count;
  }
}

TEST(StepTime, ATokenMeetsNoMoreNodesThanItsRouterLetsIt) {
  Exchange exchange{.kind = ExchangeKind::rows,
                    .pattern = Pattern::all_to_all,
                    .bytes = 8e8,
                    .group = ranks(1, 64),
                    .tokens_bytes = 1e8,
                    .choices = 8};
  const double any = exchange_seconds(exchange, h100());
  exchange.most_nodes = 4;
  // 5.25 of 8 nodes are met by chance.
  EXPECT_NEAR(exchange_seconds(exchange, h100()) / any, 4 / 5.25, 0.01);
}

TEST(StepTime, SmallProductsAreSlow) {
  const TimeConstants constants;
  const auto rate = [&](double rows, double count, bool together) {
    const Product product{.M = rows, .N = 4096, .K = 4096, .count = count, .together = together};
    return product.flops() / product_seconds(product, Products::bf16, h100(), constants);
  };
  const double best = h100().large_bf16_tflops * 1e12 * constants.dense_products;
  EXPECT_GT(rate(16384, 1, true), 0.9 * best);
  EXPECT_LT(rate(16384, 1, true), best);
  EXPECT_LT(rate(64, 1, true), 0.3 * best);
  // 16 tiles of a product leave most of 132 multiprocessors idle, those of eight do not.
  EXPECT_GT(rate(128, 8, true), 4 * rate(128, 8, false));
}

// The head of a model in 8 bits has 16.
TEST(StepTime, WhatStaysIn16BitsTakesAsLongAsIn16) {
  const TimeConstants constants;
  const Product product{.M = 8192, .N = 8192, .K = 8192};
  EXPECT_EQ(product_seconds(product, Products::fp8, h100(), constants),
            product_seconds(product, Products::bf16, h100(), constants));
  Product small = product;
  small.in_fp8 = true;
  EXPECT_LT(product_seconds(small, Products::fp8, h100(), constants),
            0.7 * product_seconds(product, Products::bf16, h100(), constants));
}

// 602 TFLOP/s forward and 450 backward, for 2.5 times the FLOP.
TEST(StepTime, AttentionTakesWhatItsKernelsDo) {
  RunDescription run = grok1();
  run.parallel = {};
  run.parallel.data = 1;
  run.batch.global_batch = 1;
  run.num_ranks = 1;
  const double flops = 64.0 * 8192 * 8192 * 2 * 6144;
  const double expected = (flops / 602e12 + 2.5 * flops / 450e12) / TimeConstants().attention;
  EXPECT_NEAR(time_of(run).of(StepPart::attention), expected, 1e-9 * expected);
}

// It is the last rank's, which has most to do and is waited for.
TEST(StepTime, TheHeadIsOfTheBusiestRank) {
  RunDescription run = grok1();
  const StepTime with = time_of(run);
  run.model.vocab_size = 128;
  const StepTime without = time_of(run);
  const double flops = 6.0 * 131072 * 6144 * 4096 / 4 * 128;  // of 128 micro-batches
  const double least = flops / 989e12;
  EXPECT_GT(with.of(StepPart::products) - without.of(StepPart::products), least);
  EXPECT_GT(with.seconds - without.seconds, 0.8 * least);
}

TEST(StepTime, AMeasuredTableTakesThePlaceOfTheModel) {
  Machine machine = h100();
  machine.measured_gflop = {10, 1000};
  machine.measured_per_mille = {500, 900};
  const TimeConstants constants;
  const auto share = [&](double rows) {
    const Product product{.M = rows, .N = 1e4, .K = 1e4};
    return product.flops() / product_seconds(product, Products::bf16, machine, constants) /
           (machine.large_bf16_tflops * 1e12 * constants.dense_products);
  };
  EXPECT_NEAR(share(10), 0.5, kRounding);
  EXPECT_NEAR(share(50), 0.5, kRounding);
  EXPECT_NEAR(share(2525), 0.7, 1e-3);
  EXPECT_NEAR(share(1e5), 0.9, kRounding);
}

// Each of these is worse than the layout, and in its own part.
TEST(StepTime, WorseLayoutsTakeLonger) {
  const StepTime good = time_of(grok1());
  const auto expect_worse = [&](const RunDescription& run, StepPart part) {
    const StepTime time = time_of(run);
    EXPECT_GT(time.seconds, good.seconds) << name_of(part);
    EXPECT_GT(time.of(part), good.of(part)) << name_of(part);
  };
  RunDescription run = grok1();
  run.parallel.schedule = ScheduleKind::one_f_one_b;
  run.parallel.chunks = 1;
  expect_worse(run, StepPart::pipeline);
  run = grok1();
  run.techniques.routed = true;
  expect_worse(run, StepPart::expert_products);
  run = grok1();
  run.techniques.again_products = 1;
  expect_worse(run, StepPart::again);
  run = grok1();
  run.techniques.data_overlap = false;
  expect_worse(run, StepPart::data);
  run = grok1();
  run.techniques.older_attention = true;
  expect_worse(run, StepPart::attention);
  run = grok1();
  run.techniques.eager = true;
  expect_worse(run, StepPart::streams);
  run = grok1();  // experts of other nodes
  run.parallel.expert_tensor = 4;
  run.techniques.experts_as_tensor = true;
  expect_worse(run, StepPart::rows);
  run = grok1();
  run.parallel.tensor = 8;
  run.parallel.context = 1;
  expect_worse(run, StepPart::tensor);
}

// A router sends a rank more rows than others, unless there are no others.
TEST(StepTime, ARankThatHasAllExpertsHasNoUnequalLoad) {
  const auto seconds_of_experts = [](std::int64_t expert, bool routed) {
    RunDescription run = grok1();
    run.parallel.expert = expert;
    run.techniques.routed = routed;
    return time_of(run).of(StepPart::expert_products);
  };
  EXPECT_EQ(seconds_of_experts(1, true), seconds_of_experts(1, false));
  EXPECT_GT(seconds_of_experts(8, true), 1.01 * seconds_of_experts(8, false));
}

// A job is as slow as its slowest rank, but for what ranks wait anyhow.
TEST(StepTime, ASlowRankIsWaitedFor) {
  const RunWork work = run_work(grok1());
  const double all = step_time(work, h100()).seconds;
  const double one = step_time(work, h100(), {}, 0.9).seconds;
  EXPECT_GT(one, 1.09 * all);
  EXPECT_LT(one, all / 0.9);
}

TEST(StepTime, OverlapHidesExchanges) {
  RunDescription run = grok1();
  const StepTime seen = time_of(run);
  run.techniques.tensor_overlap = true;
  run.techniques.expert_overlap = true;
  const StepTime hidden = time_of(run);
  EXPECT_LT(hidden.of(StepPart::tensor), 0.5 * seen.of(StepPart::tensor));
  EXPECT_LT(hidden.of(StepPart::rows), 0.6 * seen.of(StepPart::rows));
  EXPECT_EQ(hidden.of(StepPart::products), seen.of(StepPart::products));
}

// Of what travels beside products no more is seen than it takes longer than they do.
TEST(StepTime, ExchangesBesideProductsAreSeenAsFarAsTheyAreLonger) {
  const auto tensor_time = [](double bytes, bool beside) {
    RunWork work = run_work(grok1());
    for (LayerWork* layer : {&work.kinds[0], &work.head}) {
      for (PassWork* pass :
           {&layer->forward, &layer->backward_inputs, &layer->backward_weights, &layer->again}) {
        std::erase_if(pass->exchanges, [](const Exchange& exchange) {
          return exchange.kind == ExchangeKind::tensor;
        });
      }
    }
    work.kinds[0].forward.exchanges.push_back({.kind = ExchangeKind::tensor,
                                               .pattern = Pattern::all_gather,
                                               .bytes = bytes,
                                               .group = {.first = 0, .stride = 1, .count = 4},
                                               .beside = beside});
    return step_time(work, h100()).of(StepPart::tensor);
  };
  constexpr double kTokens = 2.0 * 4096 * 6144;
  EXPECT_GT(tensor_time(kTokens, false), 0);
  EXPECT_EQ(tensor_time(kTokens, true), 0);
  const double alone = tensor_time(1000 * kTokens, false);
  const double beside = tensor_time(1000 * kTokens, true);
  EXPECT_GT(beside, 0);
  EXPECT_LT(beside, alone);
}

TEST(StepTime, AMachineWithoutTheProductsIsRefused) {
  const Machine cpu = load_machine("configs/machines/cpu.yaml");
  const std::string text =
      test::error_text<ConfigError>([&] { step_time(run_work(grok1()), cpu); });
  EXPECT_TRUE(test::follows_grammar(text)) << text;
  EXPECT_NE(text.find("large_bf16_tflops is 0"), std::string::npos) << text;
}

}  // namespace
}  // namespace memphis
