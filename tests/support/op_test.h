// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <ostream>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

#include <gtest/gtest.h>
#include <omp.h>

#include "csrc/core/dtype.h"
#include "csrc/core/error.h"
#include "tests/support/error_text.h"
#include "tests/support/test_tensor.h"
#include "tests/support/tolerance.h"

namespace memphis::test {

// A test of an op that runs once for each case of its table on each target:
//   class RmsNorm : public OpTest<RmsNormCase> {};
//   INSTANTIATE_TEST_SUITE_P(Cases, RmsNorm, on_all_targets(rmsnorm_cases()), name_of_op_test<…>);
// A case has a `name` and says whether it is `tested`; the others are for the benchmark.
template <class Case>
class OpTest : public testing::TestWithParam<std::tuple<Case, Target>> {
 protected:
  void SetUp() override {
    const std::string reason = skip_reason(target());
    if (!reason.empty()) {
      GTEST_SKIP() << reason;
    }
  }
  const Case& op_case() const { return std::get<0>(this->GetParam()); }
  const Target& target() const { return std::get<1>(this->GetParam()); }
};

// The type of a naive reference that is to be exact: eleven bits more than the f64 that it judges.
using Exact = long double;

// The type in which a naive reference for the storage type T computes.
template <class T>
using NaiveAccumulator = std::conditional_t<std::is_same_v<T, Exact>, Exact, Accumulator<T>>;

// The largest error of a few elements says little about a dtype: all of them may be exact by luck.
// An op whose elements do not see each other draws at least this many, and runs on the first of
// them.
constexpr std::int64_t kReferenceElements = 1024;

inline std::vector<double> first(std::int64_t count, const std::vector<double>& values) {
  return {values.begin(), values.begin() + count};
}

// `actual`, and the naive values where the op was not run.
inline std::vector<double> extended(std::vector<double> actual, const std::vector<double>& naive) {
  actual.insert(
      actual.end(), naive.begin() + static_cast<std::int64_t>(actual.size()), naive.end());
  return actual;
}

// What GoogleTest prints for a case and a target.
template <class Case>
requires requires(const Case& c) {
  c.tested;
}
void PrintTo(const Case& c, std::ostream* out) {
  *out << c.name;
}
inline void PrintTo(const Target& target, std::ostream* out) {
  *out << name_of(target);
}

template <class Case>
auto on_all_targets(const std::vector<Case>& cases) {
  std::vector<Case> tested;
  for (const Case& c : cases) {
    if (c.tested) {
      tested.push_back(c);
    }
  }
  return testing::Combine(testing::ValuesIn(tested), testing::ValuesIn(all_targets()));
}

template <class Case>
std::string name_of_op_test(const testing::TestParamInfo<std::tuple<Case, Target>>& info) {
  return std::get<0>(info.param).name + "_" + name_of(std::get<1>(info.param));
}

// One OpenMP thread for as long as it lives: with it an op must repeat the bits it gives without.
class OneThread {
 public:
  OneThread() : before_(omp_get_max_threads()) { omp_set_num_threads(1); }
  ~OneThread() { omp_set_num_threads(before_); }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  int before_;
};

// Holds if `call` throws a ContractError whose message contains `text`.
inline testing::AssertionResult rejects(const std::function<void()>& call,
                                        const std::string& text) {
  const std::string message = error_text<ContractError>(call);
  return message.find(text) != std::string::npos
             ? testing::AssertionSuccess()
             : testing::AssertionFailure() << "\"" << message << "\" lacks \"" << text << "\"";
}

}  // namespace memphis::test
