// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "csrc/data/loader.h"
#include "csrc/data/tokenizer.h"

// Multiple-choice questions: which of several endings a model finds most probable after a context.
namespace memphis {

struct Question {
  std::string context;
  std::vector<std::string> endings;  // as they follow the context, with the space between
  std::int64_t label = 0;            // the right one
  std::string place = {};            // file and line, of messages
};

// The questions of a jsonl file with the fields of HellaSwag: `ctx`, a text, `endings`, a list of two
// or more texts, and `label`, the number of the right one, which may be written as text. Other fields
// are passed over, and so are lines of white space. An ending begins with a space unless it or the end
// of the context has white space there.
//
// Errors      DataError, naming file and line, for anything else, and for a file without a question.
std::vector<Question> read_questions(const std::filesystem::path& file);

// A window for each ending of each question, question by question: a document that begins with the
// context, and the ending, of which each token is a target. Of a context that is too long the
// beginning falls out. A sample as the loaders give them.
//
// Errors      DataError where an ending alone fills a window.
class QuestionWindows {
 public:
  QuestionWindows(const std::vector<Question>& questions,
                  std::int64_t sequence_length,
                  const Tokenizer* tokenizer = nullptr);  // null: of bytes

  std::uint64_t num_samples() const { return windows_.size(); }
  // Those from num_samples on are all padding. Returns the number of targets.
  std::int64_t sample(std::uint64_t index, const SampleView& out) const;

 private:
  struct Window {
    std::vector<std::int32_t> tokens;
    std::size_t first_target = 0;  // the token that is the first one
  };
  std::vector<Window> windows_;
};

struct QuestionScores {
  std::int64_t num_questions = 0;
  double accuracy = 0;             // by the ending's probability
  double accuracy_normalised = 0;  // by its mean log-probability a byte, of which length is no part
};

// From the cross entropy of each window, in nats, all of its targets together. Of endings that are
// equally good the first is the answer.
//
// Errors      DivergedError, naming question and ending, where a loss is not finite: no answer is
//             better than it, and none is worse.
QuestionScores score_questions(const std::vector<Question>& questions,
                               std::span<const double> window_losses);

}  // namespace memphis
