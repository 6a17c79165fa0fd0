// SPDX-License-Identifier: Apache-2.0
#include "csrc/config/config.h"

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/config/load.h"
#include "csrc/config/machine.h"
#include "csrc/config/presets.h"
#include "csrc/config/schema.h"
#include "csrc/core/error.h"
#include "tests/support/error_text.h"

namespace memphis {
namespace {

const std::string kTiny =
    "model: {vocab_size: 512, num_layers: 2, d_model: 64, num_heads: 4, ffn_dim: 128,\n"
    "        num_experts: 4}\n"
    "schedule: {steps: 100}\n";

Config parse(const std::string& text, const std::vector<std::string>& overrides = {}) {
  return parse_config(text, "tiny.yaml", overrides, Check::text);
}

TEST(Config, DefaultsAreTheStructsOwn) {
  const Config config = parse(kTiny);
  EXPECT_EQ(config.run, RunConfig{});
  EXPECT_EQ(config.parallel, (ParallelConfig{.chunks = 1, .data = 1}));
  EXPECT_EQ(config.data, DataConfig{});
  EXPECT_EQ(config.batch, BatchConfig{});
  EXPECT_EQ(config.optimizer, OptimizerConfig{});
  EXPECT_EQ(config.loss, LossConfig{});
  EXPECT_EQ(config.precision, PrecisionConfig{});
  EXPECT_EQ(config.checkpoint, CheckpointConfig{});
  EXPECT_EQ(config.metrics, MetricsConfig{});
}

TEST(Config, DerivesWhatIsLeftOut) {
  const Config config = parse(kTiny);
  EXPECT_EQ(config.model.num_kv_heads, 4);
  EXPECT_EQ(config.model.head_dim, 16);
  EXPECT_EQ(config.model.embedding_multiplier, 8.0);
  EXPECT_EQ(config.model.attention_multiplier, 0.25);
  EXPECT_EQ(config.model.max_sequence_length, 256);
  EXPECT_EQ(config.schedule.decay_steps, 20);
}

TEST(Config, DerivedDecayEndsWithTheWarmUp) {
  const Config late = parse(kTiny, {"schedule.decay=wsd", "schedule.warmup_steps=95"});
  EXPECT_EQ(late.schedule.decay_steps, 5);
  const Config short_run = parse(kTiny, {"schedule.decay=wsd", "schedule.steps=3"});
  EXPECT_EQ(short_run.schedule.decay_steps, 1);
}

TEST(Config, GivenValuesAreNotDerived) {
  const Config config = parse(kTiny,
                              {"model.num_kv_heads=2",
                               "model.head_dim=32",
                               "model.embedding_multiplier=1",
                               "model.attention_multiplier=0.5",
                               "model.max_sequence_length=1024",
                               "schedule.decay_steps=7"});
  EXPECT_EQ(config.model.num_kv_heads, 2);
  EXPECT_EQ(config.model.head_dim, 32);
  EXPECT_EQ(config.model.embedding_multiplier, 1.0);
  EXPECT_EQ(config.model.attention_multiplier, 0.5);
  EXPECT_EQ(config.model.max_sequence_length, 1024);
  EXPECT_EQ(config.schedule.decay_steps, 7);
}

// No member has its default, so a key that reads or prints another member shows.
Config every_key_set() {
  return parse(
      "model:\n"
      "  preset: grok-2\n"
      "  vocab_size: 1000\n"
      "  num_layers: 3\n"
      "  d_model: 96\n"
      "  num_heads: 6\n"
      "  num_kv_heads: 2\n"
      "  head_dim: 24\n"
      "  ffn_dim: 160\n"
      "  num_experts: 7\n"
      "  experts_per_token: 3\n"
      "  dense_ffn_dim: 48\n"
      "  embedding_multiplier: 1.25\n"
      "  output_multiplier: 0.3\n"
      "  attention_multiplier: 0.2\n"
      "  attention_cap: 25.5\n"
      "  router_cap: 12\n"
      "  final_cap: 40\n"
      "  attention_temperature_len: 99\n"
      "  rope_theta: 5e5\n"
      "  tie_embeddings: false\n"
      "  norm_eps: 1e-6\n"
      "  pad_id: -1\n"
      "  max_sequence_length: 4096\n"
      "  init: normal\n"
      "  init_std: 0.01\n"
      "  router_init_std: 0.03\n"
      "run: {dir: \"runs/a \\\"b\\\" \\\\ \\u00e9\", device: cpu, seed: 77, resume: never,\n"
      "      init_from: models/a, export_every: 31,\n"
      "      graph: required, time_limit: 3h50m, failure_hours: 1000, verify_every: 41,\n"
      "      recompute_check_every: 42}\n"
      "parallel: {pipeline: 1, data: 1, context: 1, expert: 1, tensor: 1, expert_tensor: 1,\n"
      "           zero: 0, sequence_parallel: false, schedule: interleaved, chunks: 3,\n"
      "           stages: [0, 2, 1]}\n"
      "data: {train: [a.txt, \"b, c: #d.txt\"], validation: ['*.md'], held_out: 0.05,\n"
      "       tokenizer: byte, evaluate: [q.jsonl]}\n"
      "batch: {sequence_length: 33, micro_batch: 3, global_batch: 9}\n"
      "optimizer: {learning_rate: 0.1, beta1: 0.8, beta2: 0.99, eps: 1e-7, weight_decay: 0.01,\n"
      "            clip_norm: 0}\n"
      "schedule: {steps: 1000, warmup_steps: 17, decay: wsd, decay_steps: 19, min_ratio: 0.25}\n"
      "loss: {balance: 0.02, router_z: 0.004}\n"
      "precision: {compute: bf16}\n"
      "checkpoint: {every: 11, keep: 5, keep_every: 43}\n"
      "metrics: {every: 2, validate_every: 21, validate_batches: 22, sample_every: 23,\n"
      "          evaluate_every: 32,\n"
      "          sample_tokens: 24, sample_prompt: \"ROMEO:\\n\\ttab\\x01\",\n"
      "          sample_temperature: 0.5, trace: false}\n");
}

TEST(Config, EveryKeyReachesItsOwnMember) {
  const Config config = every_key_set();
  ModelConfig model;
  model.preset = "grok-2";
  model.vocab_size = 1000;
  model.num_layers = 3;
  model.d_model = 96;
  model.num_heads = 6;
  model.num_kv_heads = 2;
  model.head_dim = 24;
  model.ffn_dim = 160;
  model.num_experts = 7;
  model.experts_per_token = 3;
  model.dense_ffn_dim = 48;
  model.embedding_multiplier = 1.25;
  model.output_multiplier = 0.3;
  model.attention_multiplier = 0.2;
  model.attention_cap = 25.5;
  model.router_cap = 12;
  model.final_cap = 40;
  model.attention_temperature_len = 99;
  model.rope_theta = 5e5;
  model.tie_embeddings = false;
  model.norm_eps = 1e-6;
  model.pad_id = -1;
  model.max_sequence_length = 4096;
  model.init = InitScheme::normal;
  model.init_std = 0.01;
  model.router_init_std = 0.03;
  EXPECT_EQ(config.model, model);
  EXPECT_EQ(config.run,
            (RunConfig{.dir = "runs/a \"b\" \\ \xc3\xa9",
                       .device = DeviceChoice::cpu,
                       .seed = 77,
                       .resume = Resume::never,
                       .init_from = "models/a",
                       .export_every = 31,
                       .graph = GraphChoice::required,
                       .time_limit = (3 * 60 + 50) * 60,
                       .failure_hours = 1000,
                       .verify_every = 41,
                       .recompute_check_every = 42}));
  EXPECT_EQ(config.parallel.zero, 0);
  EXPECT_EQ(config.parallel.schedule, ScheduleKind::interleaved);
  EXPECT_EQ(config.parallel.chunks, 3);
  EXPECT_EQ(config.parallel.stages, (std::vector<std::int64_t>{0, 2, 1}));
  EXPECT_FALSE(config.parallel.sequence_parallel);
  EXPECT_EQ(config.data,
            (DataConfig{.train = {"a.txt", "b, c: #d.txt"},
                        .validation = {"*.md"},
                        .held_out = 0.05,
                        .tokenizer = "byte",
                        .evaluate = {"q.jsonl"}}));
  EXPECT_EQ(config.batch,
            (BatchConfig{.sequence_length = 33, .micro_batch = 3, .global_batch = 9}));
  EXPECT_EQ(config.optimizer,
            (OptimizerConfig{.learning_rate = 0.1,
                             .beta1 = 0.8,
                             .beta2 = 0.99,
                             .eps = 1e-7,
                             .weight_decay = 0.01,
                             .clip_norm = 0}));
  EXPECT_EQ(config.schedule,
            (ScheduleConfig{.steps = 1000,
                            .warmup_steps = 17,
                            .decay = Decay::wsd,
                            .decay_steps = 19,
                            .min_ratio = 0.25}));
  EXPECT_EQ(config.loss, (LossConfig{.balance = 0.02, .router_z = 0.004}));
  EXPECT_EQ(config.precision.compute, Precision::bf16);
  EXPECT_EQ(config.checkpoint, (CheckpointConfig{.every = 11, .keep = 5, .keep_every = 43}));
  EXPECT_EQ(config.metrics,
            (MetricsConfig{.every = 2,
                           .validate_every = 21,
                           .validate_batches = 22,
                           .evaluate_every = 32,
                           .sample_every = 23,
                           .sample_tokens = 24,
                           .sample_prompt = "ROMEO:\n\ttab\x01",
                           .sample_temperature = 0.5,
                           .trace = false}));
}

TEST(ToYaml, ReadsBackEqual) {
  for (const Config& config : {parse(kTiny),
                               every_key_set(),
                               parse("model: {preset: grok-1}\nschedule: {steps: 1}\n"),
                               parse(kTiny, {"run.resume=required", "schedule.decay=constant"}),
                               // neither is a short decimal
                               parse(kTiny, {"model.d_model=72", "optimizer.eps=1.0000001e-8"})}) {
    EXPECT_EQ(parse(to_yaml(config)), config) << to_yaml(config);
  }
}

TEST(ToYaml, HasEveryKeyOnce) {
  Config config = parse(kTiny, {"data.train=[a.txt]", "schedule.decay=wsd"});
  const std::string text = to_yaml(config);
  for (const Field& field : fields_of(config)) {
    const std::string line = "  " + std::string(field.key) + ": ";
    EXPECT_NE(text.find(line), std::string::npos) << field.path();
  }
  EXPECT_EQ(text.substr(0, text.find("  num_heads")),
            "model:\n"
            "  preset: \"\"\n"
            "  vocab_size: 512\n"
            "  num_layers: 2\n"
            "  d_model: 64\n");
}

TEST(Override, ReplacesTheFilesValue) {
  const Config config = parse(kTiny + "data: {train: [old.txt]}\nrun: {seed: 5}\n",
                              {"data.train=[a.txt, 'b c.txt']",
                               "data.validation=[]",
                               "run.seed=9",
                               "run.dir=runs/a=b",
                               "optimizer.learning_rate=3e-4",
                               "metrics.sample_prompt=\"a: b\\n\"",
                               "model.tie_embeddings=false"});
  EXPECT_EQ(config.data.train, (std::vector<std::string>{"a.txt", "b c.txt"}));
  EXPECT_TRUE(config.data.validation.empty());
  EXPECT_EQ(config.run.seed, 9);
  EXPECT_EQ(config.run.dir, "runs/a=b");
  EXPECT_EQ(config.optimizer.learning_rate, 3e-4);
  EXPECT_EQ(config.metrics.sample_prompt, "a: b\n");
  EXPECT_FALSE(config.model.tie_embeddings);
}

TEST(Overrides, TakeWordsOneByOneOrInAList) {
  const auto memory = [](const std::string& words) {
    return parse_config(kTiny, "tiny.yaml", {"memory.recompute=" + words}).memory;
  };
  EXPECT_TRUE(memory("auto").recompute_auto);
  EXPECT_EQ(memory("none"), (MemoryConfig{.recompute_auto = false}));
  EXPECT_EQ(memory("geglu").recompute, (RecomputeGroups{.geglu = true}));
  EXPECT_EQ(memory("[norm, attention, experts]").recompute,
            (RecomputeGroups{.norm = true, .attention = true, .experts = true}));
  for (const std::string words : {"auto", "none", "block", "[norm, geglu]"}) {
    const Config config = parse_config(kTiny, "tiny.yaml", {"memory.recompute=" + words});
    EXPECT_NE(to_yaml(config).find("recompute: " + words + "\n"), std::string::npos) << words;
    EXPECT_EQ(parse_config(to_yaml(config), "again.yaml", {}).memory, config.memory) << words;
  }
}

TEST(Overrides, TakeTimesInUnitsAndWords) {
  const auto seconds = [](const std::string& text) {
    return parse_config(kTiny, "tiny.yaml", {"run.time_limit=" + text}).run.time_limit;
  };
  EXPECT_EQ(seconds("auto"), kAutoTimeLimit);
  EXPECT_EQ(seconds("none"), 0);
  EXPECT_EQ(seconds("90s"), 90);
  EXPECT_EQ(seconds("1d2h3m4s"), ((24 + 2) * 60 + 3) * 60 + 4);
  for (const std::string text :
       {"3600", "h", "3h50", "5m1h", "1h1h", "0s", "366d", "-1h", "1.5h"}) {
    EXPECT_THROW(seconds(text), ConfigError) << text;
  }
  for (const std::string text : {"auto", "none", "3h50m", "1d"}) {
    const Config config = parse_config(kTiny, "tiny.yaml", {"run.time_limit=" + text});
    EXPECT_NE(to_yaml(config).find("  time_limit: " + text + "\n"), std::string::npos) << text;
  }
}

TEST(Overrides, TakeAWordForAnInterval) {
  const Config config = parse_config(kTiny, "tiny.yaml", {"checkpoint.every=auto"});
  EXPECT_EQ(config.checkpoint.every, kAutoInterval);
  EXPECT_NE(to_yaml(config).find("  every: auto\n"), std::string::npos);
  EXPECT_THROW(parse_config(kTiny, "tiny.yaml", {"checkpoint.every=-1"}), ConfigError);
  EXPECT_THROW(parse_config(kTiny, "tiny.yaml", {"checkpoint.every=often"}), ConfigError);
}

TEST(Overrides, TakeListsOfIntegers) {
  const auto parallel = [](const std::vector<std::string>& overrides) {
    return parse(kTiny, overrides).parallel;
  };
  const std::vector<std::string> two = {"parallel.schedule=zbv", "parallel.stages=[2,0]"};
  EXPECT_EQ(parallel(two).stages, (std::vector<std::int64_t>{2, 0}));
  EXPECT_TRUE(parallel({"parallel.stages=[]"}).stages.empty());
  EXPECT_TRUE(parallel({}).stages.empty());
  const Config config = parse(kTiny, two);
  EXPECT_NE(to_yaml(config).find("  stages: [2, 0]\n"), std::string::npos);
  EXPECT_NE(to_yaml(parse_config(kTiny, "tiny.yaml", {})).find("  stages: []\n"),
            std::string::npos);
  EXPECT_EQ(parse(to_yaml(config)).parallel, config.parallel);
  EXPECT_TRUE(parse(to_yaml(config), {"parallel.stages=[]"}).parallel.stages.empty());
}

// What a schedule is made for, unless the config says otherwise.
TEST(Schedules, HaveAsManyChunksAsTheyAreMadeFor) {
  const auto chunks = [](const std::string& schedule, const std::string& given) {
    return parse(kTiny, {"parallel.schedule=" + schedule, "parallel.chunks=" + given})
        .parallel.chunks;
  };
  EXPECT_EQ(parse_config(kTiny, "tiny.yaml", {}).parallel.chunks, 1);
  EXPECT_EQ(chunks("1f1b", "0"), 1);
  EXPECT_EQ(chunks("1f1b", "1"), 1);
  EXPECT_EQ(chunks("interleaved", "0"), 2);
  EXPECT_EQ(chunks("zb-h1", "0"), 1);
  EXPECT_EQ(chunks("zbv", "0"), 2);
  EXPECT_EQ(chunks("zbv", "2"), 2);
  for (const ScheduleRule& rule : kScheduleRules) {
    EXPECT_EQ(&rule_of(rule.kind), &rule) << rule.name;
  }
}

// The values that reference implementations ship.
TEST(Preset, Grok1IsTheReleasedModel) {
  const ModelConfig model = parse("model: {preset: grok-1}\nschedule: {steps: 1}\n").model;
  EXPECT_EQ(model.vocab_size, 131072);
  EXPECT_EQ(model.num_layers, 64);
  EXPECT_EQ(model.d_model, 48 * 128);
  EXPECT_EQ(model.num_heads, 48);
  EXPECT_EQ(model.num_kv_heads, 8);
  EXPECT_EQ(model.head_dim, 128);
  EXPECT_EQ(model.ffn_dim, 32768);
  EXPECT_EQ(model.num_experts, 8);
  EXPECT_EQ(model.experts_per_token, 2);
  EXPECT_EQ(model.dense_ffn_dim, 0);
  EXPECT_DOUBLE_EQ(model.embedding_multiplier, std::sqrt(6144.0));
  EXPECT_DOUBLE_EQ(model.output_multiplier, 1 / std::sqrt(3.0));
  EXPECT_DOUBLE_EQ(model.attention_multiplier, 1 / std::sqrt(128.0));
  EXPECT_EQ(model.attention_cap, 30);
  EXPECT_EQ(model.router_cap, 0);
  EXPECT_EQ(model.final_cap, 0);
  EXPECT_EQ(model.attention_temperature_len, 0);
  EXPECT_EQ(model.rope_theta, 10000);
  EXPECT_TRUE(model.tie_embeddings);
  EXPECT_EQ(model.norm_eps, 1e-5);
  EXPECT_EQ(model.pad_id, 0);
  EXPECT_EQ(model.max_sequence_length, 8192);
}

TEST(Preset, Grok2IsTheReleasedModel) {
  const ModelConfig model = parse("model: {preset: grok-2}\nschedule: {steps: 1}\n").model;
  EXPECT_EQ(model.vocab_size, 131072);
  EXPECT_EQ(model.num_layers, 64);
  EXPECT_EQ(model.d_model, 8192);
  EXPECT_EQ(model.num_heads, 64);
  EXPECT_EQ(model.num_kv_heads, 8);
  EXPECT_EQ(model.head_dim, 128);
  EXPECT_EQ(model.ffn_dim, 16384);
  EXPECT_EQ(model.num_experts, 8);
  EXPECT_EQ(model.experts_per_token, 2);
  EXPECT_EQ(model.dense_ffn_dim, 32768);
  EXPECT_DOUBLE_EQ(model.embedding_multiplier, std::sqrt(8192.0));
  EXPECT_EQ(model.output_multiplier, 0.5);
  EXPECT_DOUBLE_EQ(model.attention_multiplier, 1 / std::sqrt(128.0));
  EXPECT_EQ(model.attention_cap, 30);
  EXPECT_EQ(model.router_cap, 30);
  EXPECT_EQ(model.final_cap, 50);
  EXPECT_EQ(model.attention_temperature_len, 1024);
  // 1e6 stretched from 8192 to 131072 positions.
  const double pi = std::acos(-1.0);
  EXPECT_EQ(model.rope_theta,
            std::floor(std::pow(1e6, std::log(131072 / (2 * pi)) / std::log(8192 / (2 * pi)))));
  EXPECT_FALSE(model.tie_embeddings);
  EXPECT_EQ(model.norm_eps, 1e-5);
  EXPECT_EQ(model.pad_id, 0);
  EXPECT_EQ(model.max_sequence_length, 131072);
}

TEST(Preset, GivenKeysOverrideItAndItsMultipliersStay) {
  const std::string text =
      "model: {d_model: 64, num_layers: 2, preset: grok-1}\n"
      "schedule: {steps: 1}\n";
  const ModelConfig narrow = parse(text, {"model.head_dim=16"}).model;
  EXPECT_EQ(narrow.d_model, 64);
  EXPECT_EQ(narrow.num_layers, 2);
  EXPECT_EQ(narrow.num_heads, 48);
  EXPECT_DOUBLE_EQ(narrow.embedding_multiplier, std::sqrt(6144.0));
  EXPECT_DOUBLE_EQ(narrow.attention_multiplier, 1 / std::sqrt(128.0));
  // An argument may change the preset under the file's keys.
  const ModelConfig other = parse(text, {"model.preset=grok-2"}).model;
  EXPECT_EQ(other.d_model, 64);
  EXPECT_EQ(other.num_heads, 64);
  EXPECT_EQ(other.dense_ffn_dim, 32768);
  EXPECT_EQ(parse(kTiny, {"model.preset=''"}), parse(kTiny));
}

TEST(ResolveDevice, HonoursAnExplicitChoiceOrRefusesIt) {
  EXPECT_EQ(resolve_device(DeviceChoice::cpu), Device::cpu);
  if (device_available(Device::cuda)) {
    EXPECT_EQ(resolve_device(DeviceChoice::automatic), Device::cuda);
    EXPECT_EQ(resolve_device(DeviceChoice::cuda), Device::cuda);
    return;
  }
  EXPECT_EQ(resolve_device(DeviceChoice::automatic), Device::cpu);
  const std::string text = "run.device is cuda and no GPU can be used (" +
                           device_unavailable_reason() + "); set run.device to auto or cpu";
  EXPECT_EQ(test::error_text<PreflightError>(
                [] { parse_config(kTiny, "tiny.yaml", {"run.device=cuda"}); }),
            text);
}

TEST(ResolveCompute, FollowsTheDeviceUnlessTold) {
  EXPECT_EQ(resolve_compute(Precision::automatic, Device::cuda), DType::bf16);
  EXPECT_EQ(resolve_compute(Precision::automatic, Device::cpu), DType::f32);
  EXPECT_EQ(resolve_compute(Precision::bf16, Device::cpu), DType::bf16);
  EXPECT_EQ(resolve_compute(Precision::f32, Device::cuda), DType::f32);
}

struct DeviceLimit {
  std::vector<std::string> overrides;
  std::string message;
};

TEST(DeviceLimits, AreThoseOfTheGpusKernels) {
  const Sources sources{.name = "tiny.yaml", .places = {{"model.head_dim", "tiny.yaml:3:5"}}};
  const std::string why = " is not a multiple of 8 (the GPU reads 16 bytes at a time); use ";
  const DeviceLimit limits[] = {
      {{"model.head_dim=20"}, "tiny.yaml:3:5: model.head_dim 20" + why + "16 or 24"},
      {{"model.head_dim=4"}, "tiny.yaml:3:5: model.head_dim 4" + why + "8"},
      {{"model.head_dim=136"},
       "tiny.yaml:3:5: model.head_dim 136 is too large for the GPU (its kernels take at most 128); "
       "use at most 128"},
      {{"model.num_experts=129"},
       "tiny.yaml: model.num_experts 129 is too large for the GPU (its kernels take at most 128); "
       "use at most 128"},
      {{"model.d_model=68", "model.head_dim=16"}, "tiny.yaml: model.d_model 68" + why + "64 or 72"},
      {{"model.ffn_dim=100"}, "tiny.yaml: model.ffn_dim 100" + why + "96 or 104"},
      {{"model.dense_ffn_dim=4"}, "tiny.yaml: model.dense_ffn_dim 4" + why + "8"},
  };
  for (const DeviceLimit& limit : limits) {
    const Config config = parse(kTiny, limit.overrides);
    EXPECT_EQ(
        test::error_text<ConfigError>([&] { check_device_limits(config, Device::cuda, sources); }),
        limit.message + ", or run.device=cpu");
    EXPECT_NO_THROW(check_device_limits(config, Device::cpu, sources));
  }
  EXPECT_NO_THROW(check_device_limits(
      parse(kTiny, {"model.head_dim=128", "model.num_experts=128"}), Device::cuda, sources));
  EXPECT_NO_THROW(check_device_limits(
      parse(kTiny, {"model.ffn_dim=100", "precision.compute=f32"}), Device::cuda, sources));
}

}  // namespace
}  // namespace memphis
