// SPDX-License-Identifier: Apache-2.0
//
// What the commands that read weights do with folders as users have them: of other programs, of
// another model, damaged, not finite.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/checkpoint/checksum.h"
#include "csrc/checkpoint/manifest.h"
#include "csrc/checkpoint/safetensors.h"
#include "csrc/core/file.h"
#include "csrc/core/json.h"
#include "csrc/data/tokenizer.h"
#include "tests/checkpoint/source.h"
#include "tests/support/process.h"
#include "tests/support/tiny_run.h"

namespace memphis::test {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

Ended run(const TemporaryDirectory& directory, std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), MEMPHIS_BINARY);
  return run_to_end(arguments, directory.path());
}

struct Tensor {
  std::vector<std::int64_t> shape;
  std::vector<float> values;
};
using Tensors = std::map<std::string, Tensor>;

// A run of a few steps and its export, which all tests here copy.
class ModelFolder : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    origin_ = std::make_unique<TemporaryDirectory>();
    const std::string config = origin_->write("tiny.yaml", tiny_yaml(*origin_));
    const Ended trained = run(*origin_,
                              {"train",
                               config,
                               "model.vocab_size=300",
                               "schedule.steps=4",
                               "schedule.warmup_steps=1",
                               "checkpoint.every=2"});
    ASSERT_EQ(trained.code, 0) << trained.error;
    const Ended exported =
        run(*origin_,
            {"export", (origin_->path() / "run").string(), (origin_->path() / "ex").string()});
    ASSERT_EQ(exported.code, 0) << exported.error;
  }
  static void TearDownTestSuite() { origin_.reset(); }

  ModelFolder() {
    fs::copy(origin_->path() / "ex", directory_.path() / "ex");
    tokens_ = directory_.write("tokens.json", R"({"tokens": [[1, 35, 40, 299, 60]]})");
  }

  std::string path(const std::string& name) const { return (directory_.path() / name).string(); }
  Ended command(const std::vector<std::string>& arguments) const {
    return run(directory_, arguments);
  }
  Ended logits(const std::string& out) const {
    return command({"logits", path("ex"), tokens_, path(out)});
  }
  Ended generate(const std::string& folder) const {
    return command({"generate", folder, "--prompt", "grok ", "--tokens", "4"});
  }
  std::string bytes(const std::string& name) const { return read_text(path(name)); }

  void edit_config(const std::function<void(Json&)>& edit) const {
    Json config = parse_json(bytes("ex/config.json")).value();
    edit(config);
    directory_.write("ex/config.json", config.dump());
  }
  static FileRecord edit_weights(const fs::path& file, const std::function<void(Tensors&)>& edit) {
    Tensors tensors;
    {
      const SafetensorsFile stored(file);
      for (const auto& [name, tensor] : stored.tensors()) {
        Tensor& copy = tensors[name];
        copy.shape = tensor.shape;
        copy.values.resize(tensor.num_bytes / sizeof(float));
        stored.read(name,
                    tensor.shape,
                    0,
                    static_cast<std::int64_t>(copy.values.size()),
                    DType::f32,
                    copy.values.data());
      }
    }
    edit(tensors);
    std::vector<TensorSource> sources;
    for (const auto& [name, tensor] : tensors) {
      sources.push_back(source<float>(name, tensor.shape, tensor.values, 4096));
    }
    fs::remove(file);
    return write_safetensors(file, sources);
  }
  void expect_refused_by_all_readers(int code, const std::string& part) const {
    for (const Ended& ended : {logits("refused.npy"),
                               generate(path("ex")),
                               command({"export", path("ex"), path("refused")})}) {
      EXPECT_EQ(ended.code, code) << ended.error;
      EXPECT_EQ(ended.out, "");
      EXPECT_NE(ended.error.find(part), std::string::npos) << ended.error << "\nlacks: " << part;
    }
    EXPECT_FALSE(fs::exists(path("refused.npy")));
    EXPECT_FALSE(fs::exists(path("refused")));
    EXPECT_FALSE(fs::exists(path("refused.tmp")));
  }

  static std::unique_ptr<TemporaryDirectory> origin_;
  TemporaryDirectory directory_;
  std::string tokens_;
};

std::unique_ptr<TemporaryDirectory> ModelFolder::origin_;

std::string hpcai_name(std::string name) {
  for (const auto& [from, to] : {std::pair<std::string, std::string>(".self_attn.", ".attn."),
                                 {".block_sparse_moe.", ".moe_block."},
                                 {".w1.", ".linear."},
                                 {".w3.", ".linear_v."},
                                 {".w2.", ".linear_1."},
                                 {"norm.weight", "norm.scale"}}) {
    const std::size_t at = name.find(from);
    if (at != std::string::npos) {
      name.replace(at, from.size(), to);
    }
  }
  return name;
}

TEST_F(ModelFolder, OtherNamesAndKeysOfTheSameModelGiveItsLogits) {
  ASSERT_EQ(logits("a.npy").code, 0);
  edit_weights(path("ex/model.safetensors"), [](Tensors& tensors) {
    tensors.erase("lm_head.weight");
    Tensors renamed;
    for (const auto& [name, tensor] : tensors) {
      renamed[hpcai_name(name)] = tensor;
    }
    tensors = renamed;
  });
  edit_config([](Json& config) {
    config["rope_parameters"] = {{"rope_theta", config["rope_theta"]}, {"rope_type", "default"}};
    config.erase("rope_theta");
    config["num_experts"] = config["num_local_experts"];
    config.erase("num_local_experts");
  });
  const Ended ended = logits("b.npy");
  ASSERT_EQ(ended.code, 0) << ended.error;
  EXPECT_EQ(bytes("a.npy"), bytes("b.npy"));

  // An export makes form B of it, beside a folder of this name that ends in a slash.
  ASSERT_EQ(command({"export", path("ex"), path("again") + "/"}).code, 0);
  ASSERT_EQ(command({"logits", path("again"), tokens_, path("c.npy")}).code, 0);
  EXPECT_EQ(bytes("a.npy"), bytes("c.npy"));
}

TEST_F(ModelFolder, AnotherConfigThanTheWeightsIsRefusedWithAllNames) {
  edit_config([](Json& config) { config["num_hidden_layers"] = 1; });
  expect_refused_by_all_readers(4, "holds 21 tensors that the config has no place for: ");
  expect_refused_by_all_readers(4, "model.layers.1.block_sparse_moe.experts.3.w3.weight");
  expect_refused_by_all_readers(4, "model.layers.1.post_moe_norm.weight");
  edit_config([](Json& config) { config["num_hidden_layers"] = 3; });
  expect_refused_by_all_readers(4, "lacks 21 tensors that the config asks for: ");
}

TEST_F(ModelFolder, WhatADownloadLeftIsNamed) {
  directory_.write("ex/model.safetensors",
                   "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 261336\n");
  expect_refused_by_all_readers(4, "is a Git LFS pointer to 261336 bytes");
  directory_.write("ex/config.json", "<!doctype html><title>401</title>");
  expect_refused_by_all_readers(4, "config.json is an HTML page");
}

TEST_F(ModelFolder, WeightsThatAreNotFiniteAreNamed) {
  edit_weights(path("ex/model.safetensors"),
               [](Tensors& tensors) { tensors["model.norm.weight"].values[3] = std::nanf(""); });
  const std::string part = "model.norm.weight (1 of 32, first [3] = nan)";
  for (const Ended& ended : {logits("nan.npy"), generate(path("ex"))}) {
    EXPECT_EQ(ended.code, 4) << ended.error;
    EXPECT_EQ(ended.out, "");
    EXPECT_NE(ended.error.find(part), std::string::npos) << ended.error;
  }
  EXPECT_FALSE(fs::exists(path("nan.npy")));
  // Whoever looks for what went wrong may want them in another form.
  const Ended exported = command({"export", path("ex"), path("copy")});
  EXPECT_EQ(exported.code, 0) << exported.error;
  EXPECT_NE(exported.error.find(part), std::string::npos) << exported.error;
}

TEST_F(ModelFolder, ARunDoesNotGoOnFromWeightsThatAreNotFinite) {
  fs::copy(origin_->path() / "run", path("run"), fs::copy_options::recursive);
  const fs::path newest = fs::path(path("run")) / "step-00000004";
  const FileRecord record = edit_weights(newest / "model.safetensors", [](Tensors& tensors) {
    tensors["model.norm.weight"].values[3] = INFINITY;
  });
  Manifest manifest = read_manifest(read_text(newest / "manifest.json"), "manifest.json");
  for (FileRecord& file : manifest.files) {
    if (file.name == record.name) {
      file = record;
    }
  }
  const std::string text = write_manifest(manifest);
  directory_.write("run/step-00000004/manifest.json", text);
  directory_.write("run/step-00000004/COMMIT", checksum_text(checksum_of(text)) + "\n");
  const Ended ended = command({"train",
                               (origin_->path() / "tiny.yaml").string(),
                               "model.vocab_size=300",
                               "schedule.steps=4",
                               "schedule.warmup_steps=1",
                               "run.dir=" + path("run")});
  EXPECT_EQ(ended.code, 4) << ended.error;
  EXPECT_NE(ended.error.find("model.norm.weight (1 of 32, first [3] = inf)"), std::string::npos)
      << ended.error;
  EXPECT_NE(ended.error.find("; move it out of the run directory"), std::string::npos);
}

// Finite weights, and a model that makes more of them than f32 holds.
TEST_F(ModelFolder, LogitsThatAreNotFiniteAreNotWritten) {
  edit_config([](Json& config) { config["output_multiplier_scale"] = 3e38; });
  for (const Ended& ended : {logits("inf.npy"), generate(path("ex"))}) {
    EXPECT_EQ(ended.code, 14) << ended.error;
    EXPECT_EQ(ended.out, "");
    EXPECT_NE(ended.error.find("are not finite"), std::string::npos) << ended.error;
  }
  EXPECT_FALSE(fs::exists(path("inf.npy")));
}

TEST_F(ModelFolder, TextIsMadeOfTheTokensThatTheFolderIsOf) {
  // A run and what was exported of it are of bytes, however large the vocabulary.
  EXPECT_EQ(generate((origin_->path() / "run").string()).code, 0);
  const Ended exported = generate(path("ex"));
  EXPECT_EQ(exported.code, 0) << exported.error;
  EXPECT_EQ(exported.out.rfind("grok ", 0), 0U);

  const std::string config = bytes("ex/config.json");
  edit_config([](Json& edited) { edited.erase("tokenizer_class"); });
  EXPECT_EQ(generate(path("ex")).out, exported.out);  // its tokenizer.json is that of bytes
  fs::remove(path("ex/tokenizer.json"));
  fs::remove(path("ex/tokenizer_config.json"));
  const auto expect_refused = [&](const std::string& part) {
    const Ended ended = generate(path("ex"));
    EXPECT_EQ(ended.code, 3) << ended.error;
    EXPECT_EQ(ended.out, "");
    EXPECT_NE(ended.error.find("has a vocabulary of 300 and " + part), std::string::npos)
        << ended.error;
    EXPECT_NE(ended.error.find("memphis logits"), std::string::npos) << ended.error;
  };
  expect_refused("no tokenizer");
  directory_.write("ex/tokenizer.json", "{\"model\": {\"type\": \"BPE\"}}");
  expect_refused("the tokenizer tokenizer.json");
  directory_.write("ex/tokenizer.model",
                   "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 22\n");
  expect_refused("the tokenizer tokenizer.json and tokenizer.model, which is a Git LFS pointer");
  directory_.write("ex/config.json", config);  // what it says of itself is of before that tokenizer
  expect_refused("the tokenizer tokenizer.json and tokenizer.model");
  // Whatever it is of, token ids have logits, and an export keeps its tokenizer.
  EXPECT_EQ(logits("a.npy").code, 0);
  ASSERT_EQ(command({"export", path("ex"), path("copy")}).code, 0);
  EXPECT_EQ(bytes("copy/tokenizer.json"), bytes("ex/tokenizer.json"));
}

// Weights know the ids that they were trained on, whatever kind of tokenizer those are of.
TEST_F(ModelFolder, ARunIsToldThatItsTokenizerIsNotThatOfTheWeights) {
  const std::string config = directory_.write("other.yaml", tiny_yaml(directory_));
  const std::string bpe = fs::absolute("tests/data/golden/gpt2.json").string();
  const std::string other = fs::absolute("tests/data/golden/o200k.json").string();
  const auto begin = [&](const std::string& run, std::vector<std::string> more) {
    more.insert(more.begin(),
                {"train",
                 config,
                 "run.dir=" + path(run),
                 "model.vocab_size=1024",
                 "model.pad_id=-1",
                 "schedule.steps=1",
                 "schedule.warmup_steps=0"});
    const Ended ended = command(more);
    EXPECT_EQ(ended.code, 0) << ended.error;
    return ended.error.find("its weights know other tokens") != std::string::npos;
  };
  begin("first", {"data.tokenizer=" + bpe});
  ASSERT_EQ(command({"export", path("first"), path("first-ex")}).code, 0);
  for (const char* from : {"first", "first-ex"}) {
    const std::string init = "run.init_from=" + path(from);
    const std::string run = std::string("from-") + from;
    EXPECT_FALSE(begin(run + "-same", {init, "data.tokenizer=" + bpe}));
    EXPECT_TRUE(begin(run + "-other", {init, "data.tokenizer=" + other}));
    EXPECT_TRUE(begin(run + "-byte", {init}));
  }
  // The same tokenizer in another file.
  directory_.write("first-ex/tokenizer.json", read_text(bpe) + "\n");
  EXPECT_FALSE(begin("again", {"run.init_from=" + path("first-ex"), "data.tokenizer=" + bpe}));
}

// In the tokens of the run, and by the bytes of the text.
TEST_F(ModelFolder, TextIsMeasuredByTheTokenizerOfTheRun) {
  const fs::path tokenizer = fs::absolute("tests/data/golden/gpt2.json");
  const std::string text = "grok routes every token to two experts.\n";
  const std::string config = directory_.write("bpe.yaml", tiny_yaml(directory_));
  const Ended trained = command({"train",
                                 config,
                                 "run.dir=" + path("bpe"),
                                 "data.tokenizer=" + tokenizer.string(),
                                 "model.vocab_size=1024",
                                 "model.pad_id=-1",
                                 "schedule.steps=1",
                                 "schedule.warmup_steps=0",
                                 "run.export_every=1"});
  ASSERT_EQ(trained.code, 0) << trained.error;
  const Ended ended = command({"evaluate", path("bpe"), directory_.write("a.txt", text), "--json"});
  ASSERT_EQ(ended.code, 0) << ended.error;
  const Json line = parse_json(ended.out).value();
  const auto opened = open_tokenizer(tokenizer.string());
  const SpecialTokens special = opened->special();
  const std::size_t around = (special.bos >= 0 ? 1U : 0U) + (special.eos >= 0 ? 1U : 0U);
  const std::size_t targets = opened->encode(text).size() + around - 1;
  EXPECT_EQ(line["tokens"], targets);
  EXPECT_EQ(line["bytes"], text.size());
  EXPECT_NEAR(line["bits_per_byte"].get<double>(),
              line["loss"].get<double>() * static_cast<double>(targets) / std::log(2) /
                  static_cast<double>(text.size()),
              1e-6);
  // An export, also one of the run itself, has the tokenizer, and so is measured alike.
  ASSERT_EQ(command({"export", path("bpe"), path("bpe-ex")}).code, 0);
  for (const char* exported : {"bpe-ex", "bpe/export/step-00000001"}) {
    EXPECT_EQ(bytes(std::string(exported) + "/tokenizer.json"), read_text(tokenizer));
    const Ended again = command({"evaluate", path(exported), path("a.txt"), "--json"});
    EXPECT_EQ(again.out, ended.out) << again.error;
  }
  // What is not UTF-8 is measured, and told with its place.
  directory_.write("latin.txt", std::string("caf\xE9 routes tokens, na\xEFve\n"));
  for (const char* model : {"bpe", "ex"}) {
    const Ended latin = command({"evaluate", path(model), path("latin.txt")});
    EXPECT_EQ(latin.code, 0) << latin.error;
    EXPECT_NE(latin.error.find(path("latin.txt") + ": 2 places are not UTF-8, the first at byte 3"),
              std::string::npos)
        << latin.error;
  }
  // Beside text, what is none is refused whatever the tokenizer.
  directory_.write("nul.txt", std::string(20, '\0'));
  directory_.write("empty.txt", "");
  for (const char* name : {"nul.txt", "empty.txt"}) {
    EXPECT_EQ(command({"evaluate", path("bpe"), path(name)}).code, 3) << name;
  }
}

// Whatever becomes of the file that data.tokenizer names, and with the pattern that is not in it.
TEST_F(ModelFolder, ARunKeepsItsTokenizer) {
  const std::string ranks = read_text("tests/data/golden/gpt2.tiktoken");
  const std::string tokenizer = directory_.write("own.tiktoken", ranks);
  const std::string pattern = R"(\s+|[^\s]{1,3})";
  const std::string config = directory_.write("own.yaml", tiny_yaml(directory_));
  const auto train = [&](const std::string& steps) {
    return command({"train",
                    config,
                    "run.dir=" + path("own"),
                    "data.tokenizer=" + tokenizer,
                    "data.tokenizer_pattern=" + pattern,
                    "model.vocab_size=1024",
                    "model.pad_id=-1",
                    "schedule.steps=" + steps,
                    "schedule.warmup_steps=0"});
  };
  const Ended trained = train("1");
  ASSERT_EQ(trained.code, 0) << trained.error;
  const std::string text = directory_.write("a.txt", "grok routes every token to two experts.\n");
  const auto losses = [&](const std::string& model) {
    const Ended ended = command({"evaluate", model, text, "--json"});
    EXPECT_EQ(ended.code, 0) << ended.error;
    return ended.out;
  };
  const std::string measured = losses(path("own"));
  const auto opened = open_tokenizer(tokenizer, pattern);
  fs::remove(tokenizer);
  EXPECT_EQ(losses(path("own")), measured);
  ASSERT_EQ(command({"export", path("own"), path("own-ex")}).code, 0);
  EXPECT_EQ(losses(path("own-ex")), measured);
  const auto exported = open_tokenizer(path("own-ex"));
  EXPECT_EQ(exported->fingerprint(), opened->fingerprint());
  EXPECT_EQ(exported->encode("routes every"), opened->encode("routes every"));
  const Ended went_on = train("2");
  EXPECT_EQ(went_on.code, 0) << went_on.error;
  EXPECT_NE(went_on.error.find("what the run kept of it is read"), std::string::npos)
      << went_on.error;
  // Another one in its place is told by its fingerprint.
  directory_.write("own.tiktoken", ranks + "eHh4eHh4eA== 900\n");
  const Ended refused = train("3");
  EXPECT_EQ(refused.code, 2) << refused.error;
  EXPECT_NE(refused.error.find("the tokenizer is not that of the checkpoint"), std::string::npos)
      << refused.error;
  EXPECT_NE(refused.error.find(path("own/tokenizer")), std::string::npos) << refused.error;
}

// What a text is made of is asked for in many ways, and is the same text.
TEST_F(ModelFolder, TextIsTheSameHoweverItIsAskedFor) {
  const auto text = [&](std::vector<std::string> more) {
    more.insert(more.begin(), {"generate", path("ex"), "--tokens", "40", "--temperature", "0"});
    const Ended ended = command(more);
    EXPECT_EQ(ended.code, 0) << ended.error;
    return ended.out;
  };
  const std::string alone = text({"--prompt", "grok "});
  EXPECT_GT(alone.size(), 20U);
  EXPECT_EQ(text({"--prompt", "grok ", "--no-cache"}), alone);
  EXPECT_EQ(text({"--prompt", "grok ", "--top-k", "1"}), alone);
  const std::string several =
      text({"--prompts", directory_.write("prompts.txt", "token\ngrok \n\n"), "--batch", "2"});
  std::istringstream lines(several);
  std::vector<Json> objects;
  for (std::string line; std::getline(lines, line);) {
    objects.push_back(parse_json(line).value());
  }
  ASSERT_EQ(objects.size(), 3U);
  EXPECT_EQ(objects[1]["prompt"].get<std::string>() + objects[1]["text"].get<std::string>() + "\n",
            alone);
  const std::string cut = alone.substr(9, 3);
  EXPECT_EQ(text({"--prompt", "grok ", "--stop", cut}), alone.substr(0, alone.find(cut, 5)) + "\n");
  for (const std::vector<std::string>& wrong : std::vector<std::vector<std::string>>{
           {}, {"--prompt", "a", "--interactive"}, {"--prompt", "a", "--stop", ""}}) {
    std::vector<std::string> arguments = {"generate", path("ex")};
    arguments.insert(arguments.end(), wrong.begin(), wrong.end());
    EXPECT_EQ(command(arguments).code, 2);
  }
}

// Each line goes on with the text so far, as one prompt does that holds all of it, and an empty line
// begins anew. Each text has draws of its own.
TEST_F(ModelFolder, ATalkGoesOnWithItsText) {
  const auto talk = [&](const std::string& lines, std::vector<std::string> more) {
    directory_.write("lines.txt", lines);
    more.insert(more.begin(), {MEMPHIS_BINARY, "generate", path("ex"), "--interactive"});
    std::vector<std::string> arguments = {
        "/bin/sh", "-c", "exec \"$@\" < " + path("lines.txt"), "sh"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const Ended ended = run_to_end(arguments, directory_.path());
    EXPECT_EQ(ended.code, 0) << ended.error;
    return ended.out;
  };
  const auto text = [&](const std::string& prompt, std::vector<std::string> more) {
    more.insert(more.begin(), {"generate", path("ex"), "--prompt", prompt});
    const Ended ended = command(more);
    EXPECT_EQ(ended.code, 0) << ended.error;
    EXPECT_EQ(ended.out.rfind(prompt, 0), 0U) << ended.out;
    return ended.out.substr(
        std::min(prompt.size(), ended.out.size()));  // with a line end behind it
  };
  const std::vector<std::string> best = {"--tokens", "12", "--temperature", "0"};
  const std::string first = text("grok ", best);
  const std::string begun = "grok " + first.substr(0, first.size() - 1);
  const std::string second = text(begun + "to two", best);
  const std::string other = text("token", best);
  EXPECT_EQ(talk("grok \nto two\n\ntoken\n", best), first + second + other);
  EXPECT_EQ(talk("grok ", best), first) << "a last line without an end";
  EXPECT_EQ(talk("", best), "");
  // A stop text is none of what a talk goes on with.
  std::vector<std::string> stopped = best;
  const std::string stop = first.substr(4, 3);
  stopped.insert(stopped.end(), {"--stop", stop});
  const std::string cut = first.substr(0, first.find(stop));
  EXPECT_EQ(talk("grok \nto two\n", stopped), cut + "\n" + text("grok " + cut + "to two", stopped));
  const std::vector<std::string> drawn = {"--tokens", "12", "--temperature", "2", "--seed", "5"};
  std::vector<std::string> next = drawn;
  next.back() = "6";
  EXPECT_EQ(talk("grok \n\ngrok \n", drawn), text("grok ", drawn) + text("grok ", next));
}

// However many are made at a time, each prompt has its text, its number of tokens and its end, in the
// order of the prompts.
TEST_F(ModelFolder, ABatchIsItsPromptsOneByOne) {
  directory_.write("prompts.txt", "token\r\ngrok \n\nto two experts of many\nto\n");
  const auto texts = [&](const std::string& batch, std::vector<std::string> more) {
    more.insert(more.begin(),
                {"generate",
                 path("ex"),
                 "--prompts",
                 path("prompts.txt"),
                 "--batch",
                 batch,
                 "--tokens",
                 "25"});
    const Ended ended = command(more);
    EXPECT_EQ(ended.code, 0) << ended.error;
    return ended.out;
  };
  const std::vector<std::string> warm = {"--temperature", "0.7"};
  const std::string alone = texts("1", warm);
  std::istringstream lines(alone);
  std::vector<Json> objects;
  for (std::string line; std::getline(lines, line);) {
    objects.push_back(parse_json(line).value());
  }
  const std::vector<std::string> prompts = {"token", "grok ", "", "to two experts of many", "to"};
  ASSERT_EQ(objects.size(), prompts.size());
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    EXPECT_EQ(objects[i]["prompt"], prompts[i]);
    const std::string end = objects[i]["end"];
    EXPECT_TRUE(end == "length" ? objects[i]["tokens"] == 25 : end == "document") << alone;
  }
  for (const char* batch : {"2", "8"}) {
    EXPECT_EQ(texts(batch, warm), alone) << batch;
  }
  EXPECT_EQ(texts("1", {"--temperature", "0.7", "--no-cache"}), alone);
  // Several prompts of the command line likewise.
  EXPECT_EQ(command({"generate",
                     path("ex"),
                     "--prompt",
                     "token",
                     "--prompt",
                     "grok ",
                     "--tokens",
                     "25",
                     "--temperature",
                     "0.7"})
                .out,
            alone.substr(0, alone.find('\n', alone.find('\n') + 1) + 1));
  // One that ends by a stop text says so, and its tokens, of bytes, are those that were made.
  const auto most_probable = [&](const std::vector<std::string>& more) {
    std::vector<std::string> arguments = {"--temperature", "0"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    std::vector<Json> result;
    std::istringstream stream(texts("3", arguments));
    for (std::string line; std::getline(stream, line);) {
      result.push_back(parse_json(line).value());
    }
    EXPECT_EQ(result.size(), prompts.size());
    return result;
  };
  const std::vector<Json> plain = most_probable({});
  const std::string stop = plain.at(1)["text"].get<std::string>().substr(6, 2);
  const std::vector<Json> stopped = most_probable({"--stop", stop});
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    const std::string text = plain.at(i)["text"];
    if (!std::all_of(text.begin(), text.end(), [](char c) { return c > 0; })) {
      EXPECT_NE(i, 1U) << "the one that the stop text is of, " << text;
      continue;  // JSON has not its bytes
    }
    const std::size_t at = text.find(stop);
    EXPECT_EQ(stopped.at(i)["text"], text.substr(0, at)) << i;
    if (at != std::string::npos) {
      EXPECT_EQ(stopped.at(i)["end"], "stop");
      EXPECT_EQ(stopped.at(i)["tokens"], at + stop.size());
    }
  }
}

// What is wrong is told in the words of the command that was given.
TEST_F(ModelFolder, CommandsNameTheirOwnOptions) {
  directory_.write("a.jsonl", "{\"body\": \"a\"}\n");
  const auto expect = [&](const std::vector<std::string>& arguments, const std::string& part) {
    const Ended ended = command(arguments);
    EXPECT_EQ(ended.code, 3) << ended.error;
    EXPECT_NE(ended.error.find(part), std::string::npos) << ended.error << "\nlacks: " << part;
    for (const char* other : {"train on", "data.field", "data.tokenizer "}) {
      EXPECT_EQ(ended.error.find(other), std::string::npos) << ended.error;
    }
  };
  const std::string bpe = fs::absolute("tests/data/golden/gpt2.json").string();
  expect({"tokenize", path("a.jsonl"), "--tokenizer", bpe, "--output", path("out")},
         "set --field to");
  directory_.write("a.txt", "text");
  for (const auto& [options, part] : std::vector<std::pair<std::vector<std::string>, std::string>>{
           {{path("a.txt"), "--tokenizer", "byte", "--pattern", "("},
            "--pattern has no tiktoken file"},
           {{path("a.txt"), "--tokenizer", "byte", "--field", "body"},
            "--field has nothing to be of"},
           {{path("a.jsonl"),
             "--tokenizer",
             "byte",
             "--prompt-field",
             "body",
             "--response-field",
             "body"},
            "--prompt-field and --response-field are both body"}}) {
    std::vector<std::string> arguments = {"tokenize", "--output", path("out")};
    arguments.insert(arguments.end(), options.begin(), options.end());
    const Ended ended = command(arguments);
    EXPECT_EQ(ended.code, 2) << ended.error;
    EXPECT_NE(ended.error.find(part), std::string::npos) << ended.error;
  }
  directory_.write("empty.json", "");
  expect({"tokenize", path("a.jsonl"), "--tokenizer", path("empty.json"), "--output", path("out")},
         "the tokenizer " + path("empty.json") + " is empty");
  directory_.write("table.parquet", std::string("PAR1\0\0\0\0PAR1", 12));
  expect({"evaluate", path("ex"), path("table.parquet")},
         "cannot use " + path("table.parquet") + " (it holds");
  expect({"tokenize", path("table.parquet"), "--tokenizer", bpe, "--output", path("out")},
         "cannot use " + path("table.parquet") + " (it holds");
}

// Answers to questions of a model that has none.
TEST_F(ModelFolder, QuestionsOfLossesThatAreNotFiniteHaveNoAnswer) {
  edit_config([](Json& config) { config["output_multiplier_scale"] = 3e38; });
  const std::string good = R"({"ctx": "a", "endings": ["b", "c"], "label": 0})";
  directory_.write("q.jsonl", good + "\n" + good + "\n");
  directory_.write("a.txt", "grok routes");
  const Ended asked = command({"evaluate", path("ex"), path("q.jsonl")});
  EXPECT_EQ(asked.code, 14) << asked.error;
  EXPECT_EQ(asked.out, "");
  EXPECT_NE(asked.error.find("q.jsonl:1: the loss of ending 0"), std::string::npos) << asked.error;
  const Ended measured = command({"evaluate", path("ex"), path("a.txt")});
  EXPECT_EQ(measured.code, 14) << measured.error;
}

// The same from logits: what a program that knows nothing of losses makes of the model.
TEST_F(ModelFolder, LossesAreThoseOfTheLogits) {
  const std::string text = "grok routes every token";
  Json row = {1};
  for (const char c : text) {
    row.push_back(c + 3);
  }
  const std::string tokens = directory_.write("text.json", Json{{"tokens", {row}}}.dump());
  ASSERT_EQ(command({"logits", path("ex"), tokens, path("l.npy")}).code, 0);
  const std::string npy = bytes("l.npy");
  const std::size_t V = 300;
  std::vector<float> logits(row.size() * V);
  std::memcpy(logits.data(),
              npy.data() + npy.size() - logits.size() * sizeof(float),
              logits.size() * sizeof(float));
  const auto nats = [&](std::size_t position, int token) {
    double sum = 0;
    for (std::size_t v = 0; v < V; ++v) {
      sum += std::exp(static_cast<double>(logits[position * V + v]));
    }
    return std::log(sum) -
           static_cast<double>(logits[position * V + static_cast<std::size_t>(token)]);
  };
  double total = nats(text.size(), 2);  // the end of the document
  for (std::size_t t = 0; t < text.size(); ++t) {
    total += nats(t, text[t] + 3);
  }
  const Ended ended = command({"evaluate", path("ex"), directory_.write("a.txt", text), "--json"});
  ASSERT_EQ(ended.code, 0) << ended.error;
  const Json line = parse_json(ended.out).value();
  const auto targets = static_cast<double>(text.size() + 1);
  EXPECT_NEAR(line["loss"].get<double>(), total / targets, 1e-5);
  EXPECT_NEAR(line["bits_per_byte"].get<double>(),
              total / std::log(2) / static_cast<double>(text.size()),
              2e-5);
  EXPECT_NEAR(line["perplexity"].get<double>(), std::exp(total / targets), 1e-2);
  EXPECT_EQ(line["tokens"], text.size() + 1);

  // Of two endings the one that costs less is the answer.
  const double routes = nats(4, ' ' + 3) + nats(5, 'r' + 3);
  directory_.write("q.jsonl", R"({"ctx": "grok", "endings": ["r", "\u00e9"], "label": 0})");
  const Ended asked = command({"evaluate", path("ex"), path("q.jsonl"), "--json"});
  ASSERT_EQ(asked.code, 0) << asked.error;
  EXPECT_LT(routes, 20);
  EXPECT_EQ(parse_json(asked.out).value()["accuracy"], 1.0);
  // What is wrong with the last file is known before the first is measured.
  directory_.write("bad.jsonl", "{}");
  const Ended refused = command({"evaluate", path("ex"), path("a.txt"), path("bad.jsonl")});
  EXPECT_EQ(refused.code, 3) << refused.error;
  EXPECT_EQ(refused.out, "");
  EXPECT_NE(refused.error.find("bad.jsonl:1: it has no `ctx`"), std::string::npos) << refused.error;
}

// An export of an export, in files of whatever size, has its tensors and so its bytes.
TEST_F(ModelFolder, AnExportIsCutWhereItIsAskedTo) {
  ASSERT_EQ(command({"export", path("ex"), path("cut"), "--shard-size", "40KB"}).code, 0);
  EXPECT_TRUE(fs::exists(path("cut/model.safetensors.index.json")));
  EXPECT_FALSE(fs::exists(path("cut/model.safetensors")));
  ASSERT_EQ(command({"export", path("cut"), path("whole")}).code, 0);
  for (const std::string name : {"model.safetensors", "config.json", "generation_config.json"}) {
    EXPECT_EQ(bytes("whole/" + name), bytes("ex/" + name)) << name;
  }
  const Ended ended = command({"export", path("ex"), path("none"), "--shard-size", "5 cakes"});
  EXPECT_EQ(ended.code, 2) << ended.error;
  EXPECT_NE(ended.error.find("--shard-size 5 cakes is no size"), std::string::npos) << ended.error;
}

// Positions take memory, and a model's limit may be far beyond the text that is asked for.
TEST_F(ModelFolder, TextIsMadeWhateverLengthTheConfigAllows) {
  edit_config([](Json& config) { config["max_position_embeddings"] = 1 << 30U; });
  const Ended far = generate(path("ex"));
  EXPECT_EQ(far.code, 0) << far.error;
  edit_config([](Json& config) { config.erase("max_position_embeddings"); });
  EXPECT_EQ(generate(path("ex")).out, far.out);
}

// What was asked for by name is not read past its checksums; what a run falls back to is said.
TEST_F(ModelFolder, ADamagedCheckpointIsRefusedOrPassedOverByName) {
  fs::copy(origin_->path() / "run", path("run"), fs::copy_options::recursive);
  const std::string newest = "run/step-00000004";
  std::string weights = bytes(newest + "/model.safetensors");
  char& last = weights[weights.size() - 3];
  last = static_cast<char>(last ^ 1);
  directory_.write(newest + "/model.safetensors", weights);
  const Ended named = generate(path(newest));
  EXPECT_EQ(named.code, 4) << named.error;
  EXPECT_NE(named.error.find("is no valid checkpoint"), std::string::npos) << named.error;
  const Ended fallen_back = generate(path("run"));
  EXPECT_EQ(fallen_back.code, 0) << fallen_back.error;
  EXPECT_NE(fallen_back.error.find("skipping " + path(newest)), std::string::npos)
      << fallen_back.error;
}

TEST_F(ModelFolder, AnExportTouchesNothingThatIsThere) {
  directory_.write("out.tmp/notes", "mine");
  const Ended ended = command({"export", path("ex"), path("out")});
  EXPECT_EQ(ended.code, 4) << ended.error;
  EXPECT_NE(ended.error.find("out.tmp is there (another export is at work, or was killed)"),
            std::string::npos)
      << ended.error;
  EXPECT_EQ(bytes("out.tmp/notes"), "mine");
}

}  // namespace
}  // namespace memphis::test
