// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/dataset.h"

#include <gtest/gtest.h>

#include "csrc/core/error.h"
#include "tests/support/error_text.h"
#include "tests/support/temporary_directory.h"

namespace memphis {
namespace {

DataConfig config_of(std::vector<std::string> train, double held_out) {
  DataConfig config;
  config.train = std::move(train);
  config.held_out = held_out;
  return config;
}

TEST(Dataset, TheEndOfTrainingTextIsHeldOut) {
  const test::TemporaryDirectory directory;
  const std::string file = directory.write("a.txt", std::string(99, 'x'));  // 101 tokens
  for (const auto& [held_out, cut] : {std::pair{0.25, 75U}, {0.5, 50U}, {0.0, 101U}}) {
    const Dataset dataset = open_dataset(config_of({file}, held_out), 8, {});
    EXPECT_EQ(dataset.validation.size(), held_out > 0 ? 1U : 0U);
    EXPECT_EQ(dataset.sources[0].range.begin, 0U);
    EXPECT_EQ(dataset.sources[0].range.end, cut);
    if (held_out > 0) {
      EXPECT_EQ(dataset.validation[0].stream, dataset.sources[0].stream);
      EXPECT_EQ(dataset.validation[0].range.begin, cut);
      EXPECT_EQ(dataset.validation[0].range.end, 101U);
    }
  }
}

TEST(Dataset, ValidationTextIsNotTrainedOn) {
  const test::TemporaryDirectory directory;
  directory.write("a.txt", std::string(30, 'a'));
  const std::string held = directory.write("b.txt", std::string(20, 'b'));
  DataConfig config = config_of({directory.path().string()}, 0.25);
  config.validation = {held};
  const Dataset dataset = open_dataset(config, 8, {});
  EXPECT_EQ(dataset.sources[0].range.size(), 32U) << "all of a.txt and nothing of b.txt";
  EXPECT_EQ(dataset.validation[0].range.size(), 22U);
  EXPECT_NE(dataset.sources[0].stream->fingerprint(), dataset.validation[0].stream->fingerprint());
}

TEST(Dataset, WithoutTrainingTextTheDefaultIsRead) {
  const test::TemporaryDirectory directory;
  directory.write("a.txt", "0123456789");
  const Dataset dataset = open_dataset(config_of({}, 0), 8, {directory.path().string()});
  EXPECT_EQ(dataset.sources[0].stream->num_tokens(), 12U);
  const std::string text =
      test::error_text<DataError>([] { open_dataset(config_of({}, 0), 8, {"/nowhere"}); });
  EXPECT_TRUE(test::follows_grammar(text));
  const std::string no_default =
      test::error_text<ConfigError>([] { open_dataset(config_of({}, 0), 8, {}); });
  EXPECT_TRUE(test::follows_grammar(no_default));
}

TEST(Dataset, TooLittleTextIsAnErrorWithTheNumbers) {
  const test::TemporaryDirectory directory;
  const std::string file = directory.write("a.txt", "0123456789");  // 12 tokens
  EXPECT_NO_THROW(open_dataset(config_of({file}, 0), 11, {}));
  const std::string text =
      test::error_text<DataError>([&] { open_dataset(config_of({file}, 0), 12, {}); });
  EXPECT_TRUE(test::follows_grammar(text));
  EXPECT_NE(text.find("holds 12 of the 13 tokens"), std::string::npos) << text;

  directory.write("none/binary", std::string("\0", 1));
  const std::string none = (directory.path() / "none").string();
  const std::string no_text =
      test::error_text<DataError>([&] { open_dataset(config_of({none}, 0), 12, {}); });
  EXPECT_NE(no_text.find("holds 0 of the 13 tokens"), std::string::npos) << no_text;
}

TEST(Dataset, MuchThatIsPassedOverIsAWarningWithItsShare) {
  const test::TemporaryDirectory directory;
  directory.write("small.txt", std::string(2000, 'x'));
  const std::string big = directory.write("big.txt", std::string(4999, 'x') + '\0');
  const Dataset dataset = open_dataset(config_of({directory.path().string()}, 0), 8, {});
  ASSERT_EQ(dataset.warnings.size(), 1U);
  EXPECT_EQ(dataset.warnings[0],
            "data.train: passed over 1 of 2 files, 5000 of 7000 bytes (71.4 %): " + big +
                " (its byte 4999 is NUL, so it is not text; 5000 bytes)");
  directory.write("small.txt", std::string(1'000'000, 'x'));
  EXPECT_TRUE(open_dataset(config_of({directory.path().string()}, 0), 8, {}).warnings.empty())
      << "half a per cent is said in the log alone";
}

TEST(Dataset, NothingButOtherFormatsIsAnErrorThatNamesThem) {
  const test::TemporaryDirectory directory;
  directory.write("a.gz", "\x1F\x8B\x08...");
  directory.write("b.pdf", "%PDF-1.4");
  const std::string text = test::error_text<DataError>(
      [&] { open_dataset(config_of({directory.path().string()}, 0), 8, {}); });
  EXPECT_TRUE(test::follows_grammar(text));
  EXPECT_NE(text.find("holds 0 of the 9 tokens"), std::string::npos) << text;
  EXPECT_NE(text.find("gzip"), std::string::npos) << text;
  EXPECT_NE(text.find("PDF"), std::string::npos) << text;
}

TEST(Dataset, AFileThatBothListsNameIsRefused) {
  const test::TemporaryDirectory directory;
  const std::string file = directory.write("a.txt", std::string(99, 'x'));
  DataConfig config = config_of({file}, 0.25);
  config.validation = {(directory.path() / "." / "a.txt").string()};
  const std::string text = test::error_text<ConfigError>([&] { open_dataset(config, 8, {}); });
  EXPECT_TRUE(test::follows_grammar(text));
  EXPECT_NE(text.find(file), std::string::npos) << text;
}

TEST(Dataset, ACopyOfAValidationTextIsAWarning) {
  const test::TemporaryDirectory directory;
  directory.write("train/a.txt", std::string(30, 'a'));
  directory.write("train/copy.txt", std::string(20, 'b'));
  directory.write("held/b.txt", std::string(20, 'b'));
  directory.write("held/c.txt", std::string(20, 'c'));
  DataConfig config = config_of({(directory.path() / "train").string()}, 0.25);
  config.validation = {(directory.path() / "held").string()};
  const Dataset dataset = open_dataset(config, 8, {});
  ASSERT_EQ(dataset.warnings.size(), 1U);
  EXPECT_NE(dataset.warnings[0].find("50.0 % of its bytes"), std::string::npos)
      << dataset.warnings[0];
  EXPECT_NE(dataset.warnings[0].find("train/copy.txt"), std::string::npos) << dataset.warnings[0];
}

TEST(Dataset, TextThatIsNotUtf8IsAWarning) {
  const test::TemporaryDirectory directory;
  const std::string file = directory.write("a.txt", "caf\xE9 et th\xE9, \xE0 la carte");
  const Dataset dataset = open_dataset(config_of({file}, 0), 8, {});
  ASSERT_EQ(dataset.warnings.size(), 1U);
  EXPECT_NE(dataset.warnings[0].find("iconv"), std::string::npos) << dataset.warnings[0];
}

TEST(Dataset, RunDirIsNotTrainedOn) {
  const test::TemporaryDirectory directory;
  directory.write("a.txt", std::string(99, 'x'));
  const std::string root = directory.path().string();
  const auto fingerprint = [&] {
    return open_dataset(config_of({root}, 0), 8, {}, root + "/runs/x").fingerprint;
  };
  const std::string before = fingerprint();
  directory.write("runs/x/config.yaml", "run:\n");
  directory.write("runs/x/metrics.jsonl", "{}\n");
  EXPECT_EQ(fingerprint(), before);
}

TEST(Dataset, AValidationPartWithNothingToPredictIsAnError) {
  const test::TemporaryDirectory directory;
  const std::string file = directory.write("a.txt", "0123456789");
  const std::string text =
      test::error_text<DataError>([&] { open_dataset(config_of({file}, 0.01), 4, {}); });
  EXPECT_TRUE(test::follows_grammar(text));
  EXPECT_NE(text.find("holds 1 of the 2 tokens"), std::string::npos) << text;
}

}  // namespace
}  // namespace memphis
