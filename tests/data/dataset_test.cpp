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
    EXPECT_EQ(dataset.train, dataset.validation);
    EXPECT_EQ(dataset.train_range.begin, 0U);
    EXPECT_EQ(dataset.train_range.end, cut);
    EXPECT_EQ(dataset.validation_range.begin, cut);
    EXPECT_EQ(dataset.validation_range.end, 101U);
  }
}

TEST(Dataset, ValidationTextIsNotTrainedOn) {
  const test::TemporaryDirectory directory;
  directory.write("a.txt", std::string(30, 'a'));
  const std::string held = directory.write("b.txt", std::string(20, 'b'));
  DataConfig config = config_of({directory.path().string()}, 0.25);
  config.validation = {held};
  const Dataset dataset = open_dataset(config, 8, {});
  EXPECT_EQ(dataset.train_range.size(), 32U) << "all of a.txt and nothing of b.txt";
  EXPECT_EQ(dataset.validation_range.size(), 22U);
  EXPECT_NE(dataset.train->fingerprint(), dataset.validation->fingerprint());
}

TEST(Dataset, WithoutTrainingTextTheDefaultIsRead) {
  const test::TemporaryDirectory directory;
  directory.write("a.txt", "0123456789");
  const Dataset dataset = open_dataset(config_of({}, 0), 8, {directory.path().string()});
  EXPECT_EQ(dataset.train->num_tokens(), 12U);
  const std::string text =
      test::error_text<DataError>([] { open_dataset(config_of({}, 0), 8, {"/nowhere"}); });
  EXPECT_TRUE(test::follows_grammar(text));
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
