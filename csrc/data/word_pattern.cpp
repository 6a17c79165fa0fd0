// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/word_pattern.h"

#include <array>
#include <new>
#include <optional>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <spdlog/fmt/fmt.h>

#include "csrc/core/error.h"
#include "csrc/data/utf8.h"

namespace memphis {
namespace {

// Unicode's White_Space: PCRE2's \s has U+180E, too.
constexpr std::string_view kSpaces = R"(\p{Z}\t-\r\x{85})";

// With White_Space for \s and \S. Within a class \S cannot be spelt as a part of it.
std::string with_white_space(std::string_view pattern) {
  std::string result;
  bool in_class = false;
  for (std::size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if (c != '\\' || i + 1 == pattern.size()) {
      if (c == '[' && !in_class) {
        in_class = true;
        result += c;
        // A bracket that closes may stand first, as itself.
        for (const char first : {'^', ']'}) {
          if (i + 1 < pattern.size() && pattern[i + 1] == first) {
            result += pattern[++i];
          }
        }
        continue;
      }
      in_class = in_class && c != ']';
      result += c;
      continue;
    }
    const char next = pattern[++i];
    if (next == 's') {
      result += in_class ? std::string(kSpaces) : fmt::format("[{}]", kSpaces);
    } else if (next == 'S' && !in_class) {
      result += fmt::format("[^{}]", kSpaces);
    } else {
      result += {c, next};
    }
  }
  return result;
}

std::string message_of(int code) {
  std::array<PCRE2_UCHAR, 256> text{};
  pcre2_get_error_message(code, text.data(), text.size());
  return reinterpret_cast<const char*>(text.data());
}

// What a thread matches with: room for the result, and a stack for compiled patterns.
struct Scratch {
  // Alternatives that give back much need more than the 32 KiB that a thread has otherwise.
  static constexpr std::size_t kFirstStack = std::size_t{64} << 10U;
  static constexpr std::size_t kMostStack = std::size_t{64} << 20U;

  pcre2_match_data* data = pcre2_match_data_create(1, nullptr);
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  pcre2_jit_stack* stack = pcre2_jit_stack_create(kFirstStack, kMostStack, nullptr);

  Scratch() {
    if (data == nullptr || context == nullptr) {
      throw std::bad_alloc();
    }
    if (stack != nullptr) {
      pcre2_jit_stack_assign(context, nullptr, stack);
    }
    // A text may be as long as it likes: the limits are for patterns of strangers.
    pcre2_set_match_limit(context, UINT32_MAX);
    pcre2_set_depth_limit(context, UINT32_MAX);
  }
  ~Scratch() {
    pcre2_match_data_free(data);
    pcre2_match_context_free(context);
    if (stack != nullptr) {
      pcre2_jit_stack_free(stack);
    }
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
};

}  // namespace

struct WordPattern::Code {
  pcre2_code* code = nullptr;
  bool compiled = false;  // to machine code

  ~Code() { pcre2_code_free(code); }
};

WordPattern::WordPattern(std::string_view pattern) : code_(std::make_unique<Code>()) {
  const std::string text = with_white_space(pattern);
  int error = 0;
  PCRE2_SIZE offset = 0;
  code_->code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(text.data()),
                              text.size(),
                              PCRE2_UTF | PCRE2_UCP,
                              &error,
                              &offset,
                              nullptr);
  if (code_->code == nullptr) {
    throw DataError("the tokenizer's pattern " + std::string(pattern) +
                    " is no regular expression (" + message_of(error) + ", behind " +
                    text.substr(0, offset) + "); correct it");
  }
  code_->compiled = pcre2_jit_compile(code_->code, PCRE2_JIT_COMPLETE) == 0;
}

WordPattern::~WordPattern() = default;
WordPattern::WordPattern(WordPattern&& other) noexcept = default;
WordPattern& WordPattern::operator=(WordPattern&& other) noexcept = default;

WordPattern::Match WordPattern::find(std::string_view text, std::size_t from) const {
  thread_local Scratch scratch;
  const auto* const subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  while (from < text.size()) {
    int found = code_->compiled
                    ? pcre2_jit_match(
                          code_->code, subject, text.size(), from, 0, scratch.data, scratch.context)
                    : PCRE2_ERROR_JIT_STACKLIMIT;
    if (found == PCRE2_ERROR_JIT_STACKLIMIT) {
      // The interpreter keeps what it may go back to on the heap.
      found = pcre2_match(code_->code,
                          subject,
                          text.size(),
                          from,
                          PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT,
                          scratch.data,
                          scratch.context);
    }
    if (found == PCRE2_ERROR_NOMATCH) {
      break;
    }
    if (found < 0) {
      throw DataError("the tokenizer's pattern fails on a text of " + std::to_string(text.size()) +
                      " bytes (" + message_of(found) + "); split the text");
    }
    const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(scratch.data);
    if (ends[1] > ends[0]) {
      return {ends[0], ends[1]};
    }
    // An empty match: what lies behind the next character may be one that is not.
    from = ends[1] < text.size() ? ends[1] + utf8_unit(text.substr(ends[1])).bytes : text.size();
  }
  return {text.size(), text.size()};
}

}  // namespace memphis
