// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <string>

#include <gtest/gtest.h>

namespace memphis::test {

// The text of the `Expected` that `body` throws; a failure of the test, and an empty text, if it
// throws nothing or something else.
template <class Expected>
std::string error_text(const std::function<void()>& body) {
  try {
    body();
  } catch (const Expected& error) {
    return error.what();
  } catch (const std::exception& error) {
    ADD_FAILURE() << "threw another error: " << error.what();
    return {};
  }
  ADD_FAILURE() << "threw nothing";
  return {};
}

// Holds if `text` reads `<what is wrong> (<why>); <what to do>`.
inline testing::AssertionResult follows_grammar(const std::string& text) {
  const std::size_t open = text.find(" (");
  const std::size_t close = text.rfind("); ");
  if (open == 0 || open == std::string::npos || close == std::string::npos || close <= open + 2 ||
      close + 3 >= text.size()) {
    return testing::AssertionFailure()
           << "\"" << text << "\" does not read <what is wrong> (<why>); <what to do>";
  }
  return testing::AssertionSuccess();
}

}  // namespace memphis::test
