// SPDX-License-Identifier: Apache-2.0
#include "csrc/train/resume.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <spdlog/fmt/fmt.h>

#include "csrc/checkpoint/store.h"
#include "csrc/comm/solo.h"
#include "csrc/comm/threads.h"
#include "csrc/comm/together.h"
#include "csrc/core/error.h"
#include "csrc/core/file.h"
#include "csrc/optim/lr_schedule.h"
#include "csrc/train/trainer.h"
#include "kernels/matmul/matmul.h"
#include "tests/support/error_text.h"
#include "tests/support/tiny_run.h"

namespace memphis::test {
namespace {

namespace fs = std::filesystem;

// A run of 10 steps in directory/run, and jobs that would go on with it.
class Resume : public testing::Test {
 protected:
  using Overrides = std::vector<std::string>;

  // What a job of so many ranks ends with: its rank 0's error, or nothing.
  struct End {
    ExitCode code = ExitCode::done;
    std::string text;
  };
  End train(int num_ranks, Overrides overrides) {
    overrides.insert(overrides.end(), {"metrics.validate_every=0", "schedule.decay=constant"});
    End end;
    const std::string yaml = tiny_yaml(directory_);
    const auto job = [&](World& world) {
      Trainer trainer(
          parse_config(yaml, "tiny.yaml", overrides, Check::machine, num_ranks), {}, world);
      trainer.run();
    };
    run_threads(num_ranks, [&](World& world) {
      try {
        job(world);
      } catch (const Error& error) {
        if (world.rank() == 0) {
          end = {error.code(), error.what()};
        }
      }
    });
    return end;
  }

  fs::path run_dir() const { return directory_.path() / "run"; }

  // Every file there with its bytes, but for the lock.
  std::map<std::string, std::string> files() const {
    std::map<std::string, std::string> result;
    for (const auto& entry : fs::recursive_directory_iterator(run_dir())) {
      if (entry.is_regular_file() && entry.path().filename() != "lock") {
        result[entry.path().string()] = read_text(entry.path());
      }
    }
    return result;
  }

  Resumption compare(const Overrides& overrides, const std::string& products = {}) {
    const Config config = tiny_config(directory_, overrides);
    const std::unique_ptr<World> world = make_solo_world();
    const std::unique_ptr<Communicator> all = create_group_of_all(*world);
    const Dataset dataset = open_dataset(config.data, config.batch.sequence_length, {});
    const std::optional<Found> found = choose_checkpoint(run_dir(), config.run.resume);
    const Resumption resumption = compare_with_checkpoint(
        chosen_from(found->path, found->manifest), config, DType::f32, products, &dataset, *all);
    world->close();
    return resumption;
  }

  // Another config in the newest checkpoint, as if it had been written with it.
  void forge_config(const std::string& from, const std::string& to) const {
    const fs::path checkpoint = find_newest_valid(run_dir()).newest->path;
    Manifest manifest = read_manifest(read_text(checkpoint / kManifestName), "manifest.json");
    const std::size_t place = manifest.config.find(from);
    ASSERT_NE(place, std::string::npos) << manifest.config;
    manifest.config.replace(place, from.size(), to);
    const std::string text = write_manifest(manifest);
    std::ofstream(checkpoint / kManifestName) << text;
    std::ofstream(checkpoint / kMarkerName) << checksum_text(checksum_of(text)) << "\n";
  }

  TemporaryDirectory directory_;
};

const std::vector<std::string> kShort = {"schedule.steps=10", "checkpoint.every=5"};

std::vector<std::string> with(std::vector<std::string> overrides,
                              const std::vector<std::string>& more) {
  overrides.insert(overrides.end(), more.begin(), more.end());
  return overrides;
}

// In whatever layout it was written and is read, and however often it is tried.
TEST_F(Resume, RefusesTensorsOfAnotherModelByNameAndTouchesNothing) {
  struct Row {
    std::string change;
    std::vector<std::string> words;
  };
  const std::vector<Row> rows = {
      {"model.num_layers=1",
       {"no place for: ",
        "model.layers.1.self_attn.q_proj.weight,",
        "model.layers.1.block_sparse_moe.experts.3.w2.weight.m",
        "model.num_layers is 1 and was 2",
        "keep model.num_layers=2"}},
      {"model.num_layers=3", {"lacks ", "model.layers.2.post_moe_norm.weight.v"}},
      {"model.dense_ffn_dim=40", {"lacks ", "model.layers.0.mlp.down_proj.weight"}},
      {"model.tie_embeddings=false", {"lacks 3 tensors", "lm_head.weight, lm_head.weight.m"}},
      {"model.num_experts=2", {"no place for", "experts.3.w1.weight", "gate.weight has shape [4"}},
      {"model.ffn_dim=64", {"experts.{0..3}.w1.weight has shape [48, 32], not [64, 32]"}},
      {"model.vocab_size=260", {"embed_tokens.weight.m has shape [259, 32], not [260, 32]"}},
  };
  const std::vector<std::pair<int, std::vector<std::string>>> layouts = {
      {1, {}}, {4, {"parallel.tensor=2", "parallel.expert=2", "batch.micro_batch=2"}}};
  for (const auto& [writers, writer] : layouts) {
    fs::remove_all(run_dir());
    ASSERT_EQ(train(writers, with(writer, kShort)).text, "");
    fs::create_directory(run_dir() / "step-00000007.tmp");  // which a job would remove
    const auto before = files();
    for (const auto& [readers, reader] : layouts) {
      for (const Row& row : rows) {
        const End end =
            train(readers, with(reader, {"schedule.steps=20", "checkpoint.keep=1", row.change}));
        EXPECT_EQ(end.code, ExitCode::checkpoint) << row.change;
        for (const std::string& word : row.words) {
          EXPECT_NE(end.text.find(word), std::string::npos)
              << word << " of " << writers << " by " << readers << " in: " << end.text;
        }
        EXPECT_TRUE(follows_grammar(end.text));
        EXPECT_EQ(files(), before) << row.change;
        EXPECT_TRUE(fs::exists(run_dir() / "step-00000007.tmp"));
      }
    }
  }
}

TEST_F(Resume, RefusesWhatChangesTheArithmeticOrWhatIsHeldOut) {
  ASSERT_EQ(train(1, kShort).text, "");
  const auto before = files();
  for (const std::string change : {"model.rope_theta=20000",
                                   "model.attention_cap=0",
                                   "model.experts_per_token=1",
                                   "model.embedding_multiplier=1",
                                   "model.norm_eps=1e-6",
                                   "model.pad_id=-1",
                                   "data.held_out=0.2",
                                   "precision.compute=bf16"}) {
    for (const int num_ranks : {1, 2}) {
      const End end = train(num_ranks, {"schedule.steps=20", change});
      const std::string key = change.substr(0, change.find('='));
      EXPECT_EQ(end.code, ExitCode::config) << change;
      EXPECT_NE(end.text.find(key + " is "), std::string::npos) << end.text;
      EXPECT_NE(end.text.find("keep " + key + "="), std::string::npos) << end.text;
      EXPECT_TRUE(follows_grammar(end.text)) << end.text;
      EXPECT_EQ(files(), before) << change;
    }
  }
}

// Numbers of heads that leave every shape as it is.
TEST_F(Resume, RefusesOtherHeadsOfTheSameWidth) {
  ASSERT_EQ(train(1, kShort).text, "");
  const End end = train(
      1, {"schedule.steps=20", "model.num_heads=2", "model.num_kv_heads=1", "model.head_dim=16"});
  EXPECT_EQ(end.code, ExitCode::config);
  EXPECT_NE(end.text.find("model.head_dim is 16 and was 8"), std::string::npos) << end.text;
}

TEST_F(Resume, GoesOnWithALineForEachChangeThatIsAllowed) {
  ASSERT_EQ(train(1, kShort).text, "");
  EXPECT_TRUE(
      compare({"schedule.steps=10", "schedule.decay=constant", "metrics.every=3"}).said.empty());
  const Overrides now = {"optimizer.learning_rate=2e-3", "schedule.steps=20", "run.seed=700"};
  const Resumption resumption = compare(now);
  EXPECT_TRUE(resumption.refused.empty());
  ASSERT_EQ(resumption.said.size(), 4U);  // with the decay, which is cosine now
  const std::string seed = fmt::format("run.seed is 700 and was {}; ", test_seed());
  EXPECT_EQ(resumption.said[0].rfind(seed, 0), 0U) << resumption.said[0];
  const Config config = tiny_config(directory_, now);
  const auto expected = fmt::format(
      "optimizer.learning_rate is 0.002 and was 0.004; the learning rate of step 10 was {:.3e}, "
      "that "
      "of step 11 is {:.3e}",
      4e-3,
      learning_rate(config.schedule, config.optimizer.learning_rate, 11));
  EXPECT_EQ(resumption.said[1].rfind(expected, 0), 0U) << resumption.said[1];
  EXPECT_EQ(train(2, {"schedule.steps=12", "optimizer.beta2=0.9"}).text, "");
}

// Another processor, GPU or version rounds sums in another order.
TEST_F(Resume, SaysWhereProductsAreRoundedOtherwise) {
  ASSERT_EQ(train(1, kShort).text, "");
  const Overrides same = {"schedule.steps=10", "schedule.decay=constant", "metrics.every=3"};
  EXPECT_TRUE(compare(same, kernels::matmul_library(Device::cpu)).said.empty());
  const Resumption moved = compare(same, "cuBLASLt 12.8.4 on NVIDIA H100");
  EXPECT_TRUE(moved.refused.empty());
  ASSERT_EQ(moved.said.size(), 1U);
  EXPECT_EQ(
      moved.said[0].rfind("products are those of cuBLASLt 12.8.4 on NVIDIA H100 and were of " +
                              kernels::matmul_library(Device::cpu),
                          0),
      0U)
      << moved.said[0];
}

TEST_F(Resume, CarriesThePositionOverInTokensOrRefuses) {
  ASSERT_EQ(train(1, kShort).text, "");  // 10 steps of 8 samples of 32 tokens
  const Resumption shorter = compare({"schedule.steps=20", "batch.sequence_length=16"});
  EXPECT_TRUE(shorter.refused.empty());
  EXPECT_EQ(shorter.samples, 160U);
  const Resumption longer = compare({"schedule.steps=20", "batch.sequence_length=64"});
  EXPECT_EQ(longer.samples, 40U);
  const Resumption odd = compare({"schedule.steps=20", "batch.sequence_length=24"});
  ASSERT_EQ(odd.refused.size(), 1U);
  EXPECT_NE(odd.refused[0].why.find("token 2560"), std::string::npos) << odd.refused[0].why;
  EXPECT_EQ(odd.refused[0].keep, "batch.sequence_length=32 (or 20)") << "and not 32 twice";

  ASSERT_EQ(train(2, {"schedule.steps=11", "batch.sequence_length=16"}).text, "");
  EXPECT_EQ(find_newest_valid(run_dir()).newest->manifest.samples, 168);
}

TEST_F(Resume, RefusesAnotherTextWhereItsEndIsHeldOut) {
  const std::string other = directory_.write("other.txt", "and then " + tiny_text());
  const std::string same = directory_.write("moved/text.txt", tiny_text());
  const std::string more = directory_.write("more.txt", tiny_text() + "more");
  ASSERT_EQ(train(1, kShort).text, "");
  EXPECT_EQ(train(1, {"schedule.steps=11", "data.train=[" + same + "]"}).text, "");
  const End end = train(2, {"schedule.steps=20", "data.train=[" + other + "]"});
  EXPECT_EQ(end.code, ExitCode::config);
  EXPECT_NE(end.text.find("the training text is not that of the checkpoint"), std::string::npos);
  EXPECT_EQ(train(1, {"schedule.steps=11", "data.train=[" + other + "]"}).text, "") << "it is done";

  // With a text of its own to validate on, the training text may change, and that one may not.
  fs::remove_all(run_dir());
  const std::string validation = "data.validation=[" + more + "]";
  ASSERT_EQ(train(1, with(kShort, {validation})).text, "");
  EXPECT_EQ(train(1, {"schedule.steps=12", validation, "data.train=[" + other + "]"}).text, "");
  fs::rename(more, same);
  EXPECT_EQ(
      train(1,
            {"schedule.steps=13", "data.validation=[" + same + "]", "data.train=[" + other + "]"})
          .text,
      "");
  directory_.write("moved/text.txt", "something else");
  EXPECT_EQ(
      train(1,
            {"schedule.steps=14", "data.validation=[" + same + "]", "data.train=[" + other + "]"})
          .code,
      ExitCode::config);
}

// A key that came after the checkpoint has its default there.
TEST_F(Resume, ReadsTheConfigOfAnEarlierVersion) {
  ASSERT_EQ(train(1, kShort).text, "");
  forge_config("  rope_theta: 10000\n", "");
  EXPECT_TRUE(compare({"schedule.steps=10", "schedule.decay=constant"}).refused.empty());
  EXPECT_EQ(compare({"model.rope_theta=20000"}).refused.size(), 1U);
  EXPECT_EQ(train(1, {"schedule.steps=11"}).text, "");
  forge_config("  rope_theta: 10000\n", "  rope_base: 10000\n");
  const End end = train(1, {"schedule.steps=12"});
  EXPECT_EQ(end.code, ExitCode::checkpoint);
  EXPECT_NE(end.text.find("unknown key model.rope_base"), std::string::npos) << end.text;
}

TEST_F(Resume, RotationLeavesWhatAnotherConfigWrote) {
  ASSERT_EQ(train(1, with(kShort, {"model.attention_cap=0"})).text, "");
  const fs::path foreign = directory_.path() / "step-00000010";
  fs::rename(run_dir() / "step-00000010", foreign);
  fs::remove_all(run_dir());
  fs::create_directory(run_dir());
  ASSERT_EQ(train(1, {"schedule.steps=15", "checkpoint.every=5"}).text, "");
  fs::remove_all(run_dir() / "step-00000010");
  fs::rename(foreign, run_dir() / "step-00000010");
  ASSERT_EQ(train(2, {"schedule.steps=30", "checkpoint.every=5", "checkpoint.keep=1"}).text, "");
  EXPECT_TRUE(fs::exists(run_dir() / "step-00000010"));
  EXPECT_FALSE(fs::exists(run_dir() / "step-00000005"));
  EXPECT_FALSE(fs::exists(run_dir() / "step-00000025"));
  EXPECT_TRUE(fs::exists(run_dir() / "step-00000030"));
}

// The step that breaks the weights has a good loss, and its checkpoint comes before anybody knows.
TEST_F(Resume, ALossThatExplodesPushesNoHealthyCheckpointOut) {
  for (const int num_ranks : {1, 2}) {
    fs::remove_all(run_dir());
    ASSERT_EQ(train(num_ranks, kShort).text, "");
    const End end = train(num_ranks,
                          {"schedule.steps=200",
                           "checkpoint.every=1",
                           "checkpoint.background=never",
                           "checkpoint.keep=1",
                           "optimizer.learning_rate=100",
                           "optimizer.clip_norm=0"});
    ASSERT_EQ(end.code, ExitCode::diverged) << end.text;
    EXPECT_TRUE(follows_grammar(end.text)) << end.text;
    const std::string healthy = (run_dir() / "step-00000010").string();
    EXPECT_NE(end.text.find(healthy + " is the last checkpoint from before that"),
              std::string::npos)
        << end.text;
    EXPECT_TRUE(verify_checkpoint(healthy).manifest);
    EXPECT_EQ(newest_step(run_dir()), 11) << "no exploded weights are saved while the run goes on";

    // What it advises leads back to the healthy one.
    const std::size_t begin = end.text.find('`') + 1;
    const std::string command = end.text.substr(begin, end.text.find('`', begin) - begin);
    ASSERT_EQ(std::system(command.c_str()), 0) << command;
    EXPECT_EQ(newest_step(run_dir()), 10);
    EXPECT_EQ(train(num_ranks, {"schedule.steps=12"}).text, "");
    EXPECT_EQ(newest_step(run_dir()), 12);
  }
}

// The end of a run is saved as it is, and known for what it is afterwards.
// The level by which an explosion is told takes 16 losses: jobs of five steps know it all the same, and
// leave the manifest that one job leaves.
TEST_F(Resume, JobsOfFewStepsKnowTheLossesOfTheWholeRun) {
  const Overrides run = {"schedule.steps=40", "checkpoint.every=5", "checkpoint.keep=20"};
  const auto job = [&] { ASSERT_EQ(train(1, run).code, ExitCode::done); };
  const auto manifest = [&] { return read_text(run_dir() / checkpoint_name(40) / kManifestName); };
  const auto reference = [&](std::int64_t step) {
    const fs::path path = run_dir() / checkpoint_name(step) / kManifestName;
    return read_manifest(read_text(path), path).loss_reference;
  };
  job();
  const std::string whole = manifest();
  EXPECT_LT(reference(40), reference(20)) << "or this test shows nothing";
  EXPECT_LT(reference(20), reference(5));
  for (std::int64_t stop = 5; stop < 40; stop += 5) {
    // As if the job had been stopped there: it knows only what that checkpoint has.
    for (std::int64_t step = stop + 5; step <= 40; step += 5) {
      fs::remove_all(run_dir() / checkpoint_name(step));
    }
    job();
    EXPECT_EQ(manifest(), whole) << "stopped after step " << stop;
  }
}

TEST_F(Resume, AnExplodedEndIsSavedBesideTheHealthyOnes) {
  ASSERT_EQ(train(1, kShort).text, "");
  ASSERT_EQ(train(1,
                  {"schedule.steps=13",
                   "checkpoint.every=0",
                   "checkpoint.keep=1",
                   "optimizer.learning_rate=100",
                   "optimizer.clip_norm=0"})
                .text,
            "");
  const std::optional<Found> newest = find_newest_valid(run_dir()).newest;
  EXPECT_EQ(newest->manifest.step, 13);
  EXPECT_EQ(newest->manifest.exploded_at, 12);
  EXPECT_TRUE(fs::exists(run_dir() / "step-00000010"));
}

}  // namespace
}  // namespace memphis::test
