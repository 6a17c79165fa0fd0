// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/questions.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>
#include <sstream>

#include <spdlog/fmt/fmt.h>

#include "csrc/core/error.h"
#include "csrc/core/file.h"
#include "csrc/core/file_kind.h"
#include "csrc/core/json.h"
#include "csrc/data/tokenizer.h"

namespace memphis {
namespace {

bool is_space(char c) {
  return std::isspace(static_cast<unsigned char>(c)) != 0;
}

// One line of a file.
class QuestionLine {
 public:
  QuestionLine(const std::filesystem::path& file, std::int64_t number, const std::string& text)
      : file_(file), number_(number) {
    const std::optional<nlohmann::json> object = parse_json(text);
    if (!object || !object->is_object()) {
      fail("it is no JSON object");
    }
    object_ = *object;
  }

  Question question() const {
    Question question;
    question.context = text_of("ctx", field("ctx"));
    const nlohmann::json& endings = field("endings");
    if (!endings.is_array() || endings.size() < 2) {
      fail("`endings` is no list of two or more texts");
    }
    for (const nlohmann::json& ending : endings) {
      question.endings.push_back(joined(question.context, text_of("endings", ending)));
    }
    question.label = label(endings.size());
    question.place = fmt::format("{}:{}", file_.string(), number_);
    return question;
  }

 private:
  [[noreturn]] void fail(const std::string& problem) const {
    throw DataError(
        fmt::format("{}:{}: {} (a question is {{\"ctx\": \"...\", \"endings\": [\"...\", \"...\"], "
                    "\"label\": 0}} "
                    "on one line); correct the line",
                    file_.string(),
                    number_,
                    problem));
  }

  const nlohmann::json& field(const char* name) const {
    const auto found = object_.find(name);
    if (found == object_.end()) {
      fail(fmt::format("it has no `{}`", name));
    }
    return *found;
  }

  std::string text_of(const char* name, const nlohmann::json& value) const {
    if (!value.is_string() || value.get_ref<const std::string&>().empty()) {
      fail(fmt::format("`{}` has what is no text, or an empty one", name));
    }
    return value.get<std::string>();
  }

  static std::string joined(const std::string& context, const std::string& ending) {
    return is_space(context.back()) || is_space(ending.front()) ? ending : " " + ending;
  }

  std::int64_t label(std::size_t num_endings) const {
    const nlohmann::json& value = field("label");
    std::int64_t label = -1;
    if (value.is_number_integer()) {
      label = value.get<std::int64_t>();
    } else if (value.is_string()) {
      const auto& text = value.get_ref<const std::string&>();
      const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), label);
      label = error == std::errc() && end == text.data() + text.size() ? label : -1;
    }
    if (label < 0 || label >= static_cast<std::int64_t>(num_endings)) {
      fail(fmt::format("`label` is {} and there are {} endings, counted from 0",
                       value.dump(-1, ' ', true),
                       num_endings));
    }
    return label;
  }

  const std::filesystem::path& file_;
  std::int64_t number_;
  nlohmann::json object_;
};

}  // namespace

std::vector<Question> read_questions(const std::filesystem::path& file) {
  const std::string text = read_text(file);
  if (const auto kind = recognise(std::as_bytes(std::span<const char>(text)))) {
    throw DataError(describe(file, *kind));
  }
  std::vector<Question> questions;
  std::istringstream lines(text);
  std::int64_t number = 0;
  for (std::string line; std::getline(lines, line);) {
    ++number;
    if (!std::all_of(line.begin(), line.end(), is_space)) {
      questions.push_back(QuestionLine(file, number, line).question());
    }
  }
  if (questions.empty()) {
    throw DataError(file.string() +
                    " has no question (each is a line of JSON with ctx, endings and label); name "
                    "another file");
  }
  return questions;
}

QuestionWindows::QuestionWindows(const std::vector<Question>& questions,
                                 std::int64_t sequence_length,
                                 const Tokenizer* given) {
  const ByteTokenizer bytes;
  const Tokenizer& tokenizer = given == nullptr ? bytes : *given;
  const auto length = static_cast<std::size_t>(sequence_length);
  for (const Question& question : questions) {
    for (const std::string& ending : question.endings) {
      Window window;
      window.tokens = tokenizer.begin_document(question.context);
      window.first_target = window.tokens.size();
      tokenizer.append(ending, window.tokens);
      // The last token is a target alone.
      const std::size_t excess =
          window.tokens.size() > length + 1 ? window.tokens.size() - length - 1 : 0;
      if (excess >= window.first_target) {
        throw DataError(
            fmt::format("{}: it has an ending of {} tokens (a window has {}, and the token "
                        "before the ending is in it); shorten the ending, or use longer windows",
                        question.place,
                        window.tokens.size() - window.first_target,
                        length));
      }
      window.tokens.erase(window.tokens.begin(),
                          window.tokens.begin() + static_cast<std::ptrdiff_t>(excess));
      window.first_target -= excess;
      windows_.push_back(std::move(window));
    }
  }
}

std::int64_t QuestionWindows::sample(std::uint64_t index, const SampleView& out) const {
  std::fill(out.tokens_S.begin(), out.tokens_S.end(), ByteTokenizer::kPad);
  std::fill(out.targets_S.begin(), out.targets_S.end(), kNoTarget);
  for (std::size_t s = 0; s < out.position_S.size(); ++s) {
    out.position_S[s] = static_cast<std::int32_t>(s);
  }
  if (index >= windows_.size()) {
    return 0;
  }
  const Window& window = windows_[index];
  for (std::size_t t = 0; t + 1 < window.tokens.size(); ++t) {
    out.tokens_S[t] = window.tokens[t];
    if (t + 1 >= window.first_target) {
      out.targets_S[t] = window.tokens[t + 1];
    }
  }
  return static_cast<std::int64_t>(window.tokens.size() - window.first_target);
}

QuestionScores score_questions(const std::vector<Question>& questions,
                               std::span<const double> window_losses) {
  QuestionScores scores;
  std::size_t window = 0;
  std::int64_t right = 0;
  std::int64_t right_normalised = 0;
  for (const Question& question : questions) {
    std::size_t best = 0;
    std::size_t best_normalised = 0;
    const auto loss = [&](std::size_t i) { return window_losses[window + i]; };
    for (std::size_t i = 0; i < question.endings.size(); ++i) {
      if (!std::isfinite(loss(i))) {
        throw DivergedError(fmt::format(
            "{}: the loss of ending {}, counted from 0, is {} (what the weights compute "
            "is beyond the range of its type); use an older checkpoint, or compute in "
            "f32",
            question.place,
            i,
            loss(i)));
      }
    }
    const auto mean = [&](std::size_t i) {
      return loss(i) / static_cast<double>(question.endings[i].size());
    };
    for (std::size_t i = 1; i < question.endings.size(); ++i) {
      best = loss(i) < loss(best) ? i : best;
      best_normalised = mean(i) < mean(best_normalised) ? i : best_normalised;
    }
    right += static_cast<std::int64_t>(best) == question.label ? 1 : 0;
    right_normalised += static_cast<std::int64_t>(best_normalised) == question.label ? 1 : 0;
    window += question.endings.size();
  }
  const auto count = static_cast<double>(std::max<std::size_t>(questions.size(), 1));
  scores.num_questions = static_cast<std::int64_t>(questions.size());
  scores.accuracy = static_cast<double>(right) / count;
  scores.accuracy_normalised = static_cast<double>(right_normalised) / count;
  return scores;
}

}  // namespace memphis
