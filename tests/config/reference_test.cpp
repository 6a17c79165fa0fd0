// SPDX-License-Identifier: Apache-2.0
#include "csrc/config/reference.h"

#include <string>

#include <gtest/gtest.h>

#include "csrc/config/schema.h"
#include "csrc/core/error.h"

namespace memphis::test {
namespace {

TEST(Reference, HasATextForEachKeyInTheOrderOfTheSchema) {
  Config config;
  const std::vector<Field> fields = fields_of(config);
  ASSERT_EQ(key_texts().size(), fields.size());
  for (std::size_t i = 0; i < fields.size(); ++i) {
    EXPECT_EQ(key_texts()[i].path, fields[i].path());
    EXPECT_FALSE(key_texts()[i].meaning.empty()) << fields[i].path();
  }
}

// A default that no config could give is derived, and says from what.
TEST(Reference, ADefaultOutsideOfItsRangeSaysWhatStandsForIt) {
  Config config;
  const std::vector<Field> fields = fields_of(config);
  for (std::size_t i = 0; i < fields.size(); ++i) {
    if (const Integer* integer = std::get_if<Integer>(&fields[i].target)) {
      EXPECT_TRUE(integer->required || *integer->value >= integer->low ||
                  !key_texts()[i].derived.empty())
          << fields[i].path();
    } else if (const Number* number = std::get_if<Number>(&fields[i].target)) {
      EXPECT_TRUE(*number->value > number->low ||
                  (*number->value == number->low && number->low_kind == Number::Low::at_least) ||
                  !key_texts()[i].derived.empty())
          << fields[i].path();
    }
  }
}

TEST(Reference, DescribesAKeyASectionOrAll) {
  const std::string key = describe_keys("batch.micro_batch");
  EXPECT_EQ(key.rfind("batch.micro_batch\n", 0), 0U) << key;
  EXPECT_NE(key.find("integer, 1 to 1048576, in sequences; default: 4"), std::string::npos) << key;
  const std::string stages = describe_keys("parallel.stages");
  EXPECT_NE(stages.find("list of integers, 0 to 4096 each, in layers; default: evenly"),
            std::string::npos)
      << stages;
  const std::string section = describe_keys("batch");
  EXPECT_NE(section.find("batch.global_batch"), std::string::npos);
  EXPECT_EQ(section.find("model.vocab_size"), std::string::npos);
  EXPECT_NE(describe_keys("").find("metrics.trace"), std::string::npos);
}

std::string refusal_of(const std::string& wanted) {
  try {
    describe_keys(wanted);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return {};
}

TEST(Reference, NamesTheKeyThatWasProbablyMeant) {
  EXPECT_NE(refusal_of("micro_batch").find("did you mean batch.micro_batch?"), std::string::npos);
  EXPECT_NE(refusal_of("batch.micro_bacth").find("did you mean batch.micro_batch?"),
            std::string::npos);
  EXPECT_NE(refusal_of("lr").find("did you mean optimizer.learning_rate?"), std::string::npos);
  EXPECT_NE(refusal_of("zzzzzzzzzz").find("the sections are model, run"), std::string::npos);
}

}  // namespace
}  // namespace memphis::test
