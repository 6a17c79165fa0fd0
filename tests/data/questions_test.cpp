// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/questions.h"

#include <cmath>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/core/error.h"
#include "csrc/data/tokenizer.h"
#include "tests/support/error_text.h"
#include "tests/support/temporary_directory.h"

namespace memphis::test {
namespace {

class QuestionsTest : public testing::Test {
 protected:
  std::vector<Question> read(const std::string& text) {
    return read_questions(directory_.write("q.jsonl", text));
  }
  TemporaryDirectory directory_;
};

TEST_F(QuestionsTest, AreReadFromTheFieldsOfHellaSwag) {
  const std::vector<Question> questions = read(
      "{\"ind\": 4, \"ctx\": \"A man\", \"endings\": [\"sits.\", \" runs.\"], \"label\": 1}\r\n"
      "\n"
      "{\"label\": \"0\", \"ctx\": \"A \", \"endings\": [\"b\", \"c\", \"d\"]}");
  ASSERT_EQ(questions.size(), 2U);
  EXPECT_EQ(questions[0].context, "A man");
  EXPECT_EQ(questions[0].endings, (std::vector<std::string>{" sits.", " runs."}));
  EXPECT_EQ(questions[0].label, 1);
  EXPECT_EQ(questions[1].endings, (std::vector<std::string>{"b", "c", "d"}));
  EXPECT_EQ(questions[1].label, 0);
}

TEST_F(QuestionsTest, WhatIsNoneIsRefusedWithItsLine) {
  const std::string good = R"({"ctx": "a", "endings": ["b", "c"], "label": 0})"
                           "\n";
  const std::pair<std::string, std::string> rows[] = {
      {"", "is empty"},
      {"\n \n", "has no question"},
      {good + "{\"ctx\": \"a\", \"endings\": [\"b\", \"c\"], \"label\": 0",
       ":2: it is no JSON object"},
      {good + "[1]\n", ":2: it is no JSON object"},
      {good + "\n{\"endings\": [\"b\", \"c\"], \"label\": 0}", ":3: it has no `ctx`"},
      {R"({"ctx": "a", "label": 0})", ":1: it has no `endings`"},
      {R"({"ctx": "a", "endings": ["b", "c"]})", ":1: it has no `label`"},
      {R"({"ctx": "", "endings": ["b", "c"], "label": 0})", "`ctx` has what is no text"},
      {R"({"ctx": 3, "endings": ["b", "c"], "label": 0})", "`ctx` has what is no text"},
      {R"({"ctx": "a", "endings": ["b"], "label": 0})", "no list of two or more"},
      {R"({"ctx": "a", "endings": "bc", "label": 0})", "no list of two or more"},
      {R"({"ctx": "a", "endings": ["b", ""], "label": 0})", "`endings` has what is no text"},
      {R"({"ctx": "a", "endings": ["b", 7], "label": 0})", "`endings` has what is no text"},
      {R"({"ctx": "a", "endings": ["b", "c"], "label": 2})", "`label` is 2 and there are 2"},
      {R"({"ctx": "a", "endings": ["b", "c"], "label": -1})", "`label` is -1"},
      {R"({"ctx": "a", "endings": ["b", "c"], "label": ""})", "`label` is \"\""},
      {R"({"ctx": "a", "endings": ["b", "c"], "label": "1x"})", "`label` is \"1x\""},
      {R"({"ctx": "a", "endings": ["b", "c"], "label": null})", "`label` is null"},
  };
  for (const auto& [text, part] : rows) {
    const std::string error = error_text<DataError>([&] { read(text); });
    EXPECT_TRUE(follows_grammar(error)) << error;
    EXPECT_NE(error.find(part), std::string::npos) << error << "\nlacks " << part;
  }
}

TEST_F(QuestionsTest, EachEndingIsPredictedAfterItsContext) {
  const std::vector<Question> questions = {
      {.context = "ab", .endings = {" c", " def"}, .label = 0, .place = "q.jsonl:7"}};
  const auto token = [](char c) { return ByteTokenizer::token_of(static_cast<std::byte>(c)); };
  constexpr std::int64_t kLength = 6;
  const QuestionWindows windows(questions, kLength);
  ASSERT_EQ(windows.num_samples(), 2U);
  std::vector<std::int32_t> tokens(kLength);
  std::vector<std::int32_t> targets(kLength);
  std::vector<std::int32_t> positions(kLength);
  const SampleView view{.tokens_S = tokens, .targets_S = targets, .position_S = positions};
  EXPECT_EQ(windows.sample(0, view), 2);
  EXPECT_EQ(tokens,
            (std::vector<std::int32_t>{ByteTokenizer::kBos,
                                       token('a'),
                                       token('b'),
                                       token(' '),
                                       ByteTokenizer::kPad,
                                       ByteTokenizer::kPad}));
  EXPECT_EQ(targets,
            (std::vector<std::int32_t>{
                kNoTarget, kNoTarget, token(' '), token('c'), kNoTarget, kNoTarget}));
  EXPECT_EQ(windows.sample(1, view), 4);
  EXPECT_EQ(targets,
            (std::vector<std::int32_t>{
                kNoTarget, kNoTarget, token(' '), token('d'), token('e'), token('f')}));
  EXPECT_EQ(windows.sample(2, view), 0);
  EXPECT_EQ(targets, std::vector<std::int32_t>(kLength, kNoTarget));

  // Of a longer context the end stays, and at least one token of it.
  const QuestionWindows short_windows(questions, 4);
  tokens.resize(4);
  targets.resize(4);
  positions.resize(4);
  const SampleView short_view{.tokens_S = tokens, .targets_S = targets, .position_S = positions};
  EXPECT_EQ(short_windows.sample(1, short_view), 4);
  EXPECT_EQ(tokens, (std::vector<std::int32_t>{token('b'), token(' '), token('d'), token('e')}));
  const std::string error = error_text<DataError>([&] { QuestionWindows(questions, 3); });
  EXPECT_NE(error.find("q.jsonl:7: it has an ending of 4 tokens"), std::string::npos) << error;
}

TEST_F(QuestionsTest, LengthCountsInOneScoreAlone) {
  const std::vector<Question> questions = {
      {.context = "a", .endings = {" b", " long one"}, .label = 1},
      {.context = "a", .endings = {" b", " c", " d"}, .label = 2}};
  const std::vector<double> losses = {4, 9, 3, 3, 2.5};
  const QuestionScores scores = score_questions(questions, losses);
  EXPECT_EQ(scores.num_questions, 2);
  EXPECT_EQ(scores.accuracy, 0.5);             // 4 < 9, and 2.5 is least
  EXPECT_EQ(scores.accuracy_normalised, 1.0);  // 9 / 9 < 4 / 2
  EXPECT_EQ(score_questions(questions, std::vector<double>{1, 2, 3, 3, 3}).accuracy, 0);
}

// Of a tokenizer without a token for it a document begins with its text.
TEST_F(QuestionsTest, AWindowBeginsAsADocumentDoes) {
  const auto tokenizer = open_tokenizer("tests/data/golden/o200k.json");
  ASSERT_LT(tokenizer->special().bos, 0);
  const std::vector<Question> questions = {
      {.context = "every token", .endings = {" to two", " to one"}, .label = 0}};
  std::vector<std::int32_t> expected = tokenizer->encode("every token");
  const std::size_t num_context = expected.size();
  tokenizer->append(" to two", expected);
  constexpr std::int64_t kLength = 40;
  const QuestionWindows windows(questions, kLength, tokenizer.get());
  std::vector<std::int32_t> tokens(kLength);
  std::vector<std::int32_t> targets(kLength);
  std::vector<std::int32_t> positions(kLength);
  EXPECT_EQ(windows.sample(0, {.tokens_S = tokens, .targets_S = targets, .position_S = positions}),
            static_cast<std::int64_t>(expected.size() - num_context));
  for (std::size_t i = 0; i + 1 < expected.size(); ++i) {
    EXPECT_EQ(tokens[i], expected[i]) << i;
    EXPECT_EQ(targets[i], i + 1 < num_context ? kNoTarget : expected[i + 1]) << i;
  }
}

// No answer is better than it, and none is worse.
TEST_F(QuestionsTest, ALossThatIsNotFiniteIsNamed) {
  const std::vector<Question> questions = {
      {.context = "a", .endings = {" b", " c"}, .label = 1, .place = "q.jsonl:1"},
      {.context = "a", .endings = {" b", " c", " d"}, .label = 2, .place = "q.jsonl:3"}};
  for (const double loss : {std::nan(""), static_cast<double>(INFINITY)}) {
    const std::string error = error_text<DivergedError>([&] {
      (void)score_questions(questions, std::vector<double>{1, 2, 3, 4, loss});
    });
    EXPECT_TRUE(follows_grammar(error)) << error;
    EXPECT_NE(error.find("q.jsonl:3: the loss of ending 2"), std::string::npos) << error;
  }
}

}  // namespace
}  // namespace memphis::test
