// SPDX-License-Identifier: Apache-2.0
#include "kernels/attention/gather_heads.h"

#include <cstdint>
#include <ostream>
#include <string>
#include <tuple>
#include <vector>

#include <gtest/gtest.h>

#include "bench/attention/attention_cases.h"
#include "csrc/core/error.h"
#include "kernels/attention/attention.h"
#include "tests/kernels/attention/attention_naive.h"
#include "tests/support/op_test.h"
#include "tests/support/test_tensor.h"
#include "tests/support/tolerance.h"

namespace memphis::test {
namespace {

using kernels::attention_forward;
using kernels::gather_heads;
using kernels::GatherHeads;
using kernels::HeadsView;
using Values = std::vector<double>;

// Heads [x_first, x_first + heads) of x's x_heads to [y_first, y_first + heads) of y's.
struct HeadsCase {
  std::string name;
  std::int64_t tokens;   // of y
  std::int64_t sources;  // tokens of a part of x
  std::int64_t heads;
  std::int64_t width;
  std::int64_t y_heads;
  std::int64_t y_first;
  std::int64_t x_heads;
  std::int64_t x_first;
  std::int64_t parts = 1;
  bool ordered = true;  // has source_T
  bool tested = true;
};

std::vector<HeadsCase> heads_cases() {
  return {
      {"one", 1, 1, 1, 8, 1, 0, 1, 0},
      {"no_tokens", 0, 4, 2, 8, 2, 0, 2, 0},
      {"pack", 37, 37, 4, 16, 4, 0, 10, 6, 1, false},
      {"unpack", 37, 37, 4, 16, 10, 6, 4, 0, 1, false},
      {"reorder", 300, 300, 4, 24, 4, 0, 4, 0},
      {"some_of_many", 17, 129, 3, 8, 5, 1, 7, 4},
      {"sum_of_parts", 65, 65, 2, 40, 5, 3, 2, 0, 4, false},
      {"sum_reordered", 9, 33, 3, 128, 3, 0, 6, 2, 3},
      {"wide", 20, 20, 12, 128, 12, 0, 12, 0, 8, false},
      {"wide_copy", 11, 6, 9, 136, 9, 0, 9, 0},
      {"parts_of_two_turns", 13, 4, 5, 72, 5, 0, 5, 0, 6},
  };
}

class GatherHeadsTest : public OpTest<HeadsCase> {};

TEST_P(GatherHeadsTest, IsAsCloseAsNaive) {
  const HeadsCase& c = op_case();
  const auto [device, dtype] = std::pair(target().device, target().dtype);
  const OwnedStream stream(device);
  const std::int64_t x_tokens = c.parts * c.sources;
  const Values x = rounded_to(dtype, random_normal(x_tokens * c.x_heads * c.width, "x"));
  const Values before = rounded_to(dtype, random_normal(c.tokens * c.y_heads * c.width, "before"));
  Values source = random_integers(c.tokens, "source", 0, c.sources);
  const TestTensor x_UCH({{x_tokens, c.x_heads, c.width}, dtype}, device, x);
  const TestTensor y_TCH({{c.tokens, c.y_heads, c.width}, dtype}, device, before);
  const TestTensor source_T({{c.tokens}, DType::i32}, device, source);
  gather_heads({.y_TCH = HeadsView(y_TCH, c.y_first, c.heads),
                .x_UCH = HeadsView(x_UCH, c.x_first, c.heads),
                .source_T = c.ordered ? source_T.view() : TensorView{},
                .num_parts = c.parts},
               stream.view());
  const Values actual = y_TCH.values(stream.view());

  Values exact = before;
  Values naive = before;
  for (std::int64_t t = 0; t < c.tokens; ++t) {
    const std::int64_t s =
        c.ordered ? static_cast<std::int64_t>(source[static_cast<std::size_t>(t)]) : t;
    for (std::int64_t i = 0; i < c.heads * c.width; ++i) {
      long double sum = 0;
      double rounded = 0;
      for (std::int64_t p = 0; p < c.parts; ++p) {
        const double term = x[static_cast<std::size_t>(
            ((p * c.sources + s) * c.x_heads + c.x_first) * c.width + i)];
        sum += term;
        rounded = p == 0 ? term : rounded_to(accumulation_dtype(dtype), {rounded + term})[0];
      }
      const auto at = static_cast<std::size_t>((t * c.y_heads + c.y_first) * c.width + i);
      exact[at] = static_cast<double>(sum);
      naive[at] = rounded_to(dtype, {rounded})[0];
    }
  }
  if (c.parts == 1) {
    EXPECT_EQ(actual, exact);
    return;
  }
  EXPECT_EQ(actual, naive);  // the order of a sum is part of the contract
  EXPECT_TRUE(
      close_to(actual, Reference{.exact = exact, .naive = {naive}}, dtype, c.y_heads * c.width));
}

INSTANTIATE_TEST_SUITE_P(Cases,
                         GatherHeadsTest,
                         on_all_targets(heads_cases()),
                         name_of_op_test<HeadsCase>);

TEST(GatherHeads, RefusesWhatDoesNotFit) {
  const TestTensor x({{6, 4, 8}, DType::f32}, Device::cpu, Values(6 * 4 * 8, 1.0));
  const TestTensor y({{6, 4, 8}, DType::f32}, Device::cpu, Values(6 * 4 * 8, 1.0));
  const TestTensor narrow({{6, 4, 4}, DType::f32}, Device::cpu, Values(6 * 4 * 4, 1.0));
  const TestTensor few({{3, 4, 8}, DType::f32}, Device::cpu, Values(3 * 4 * 8, 1.0));
  const TestTensor beyond({{6}, DType::i32}, Device::cpu, {0, 1, 2, 3, 4, 6});
  const TestTensor below({{6}, DType::i32}, Device::cpu, {0, 1, 2, 3, 4, -1});
  const TestTensor wide({{6, 4, 8}, DType::f64}, Device::cpu, Values(6 * 4 * 8, 1.0));
  const std::vector<GatherHeads> wrong = {
      {.y_TCH = y.view(), .x_UCH = narrow.view()},
      {.y_TCH = y.view(), .x_UCH = wide.view()},
      {.y_TCH = y.view(), .x_UCH = few.view()},
      {.y_TCH = y.view(), .x_UCH = x.view(), .source_T = beyond},
      {.y_TCH = y.view(), .x_UCH = x.view(), .source_T = below},
      {.y_TCH = few.view(), .x_UCH = x.view(), .num_parts = 4},
      {.y_TCH = y.view(), .x_UCH = x.view(), .num_parts = 0},
      {.y_TCH = HeadsView(y, 2, 3), .x_UCH = HeadsView(x, 0, 3)},
      {.y_TCH = HeadsView(y, 0, 2), .x_UCH = HeadsView(x, 0, 3)},
      {.y_TCH = HeadsView(y, -1, 2), .x_UCH = HeadsView(x, 0, 2)}};
  for (std::size_t i = 0; i < wrong.size(); ++i) {
    EXPECT_THROW(gather_heads(wrong[i], {}), ContractError) << i;
  }
  gather_heads({.y_TCH = few.view(), .x_UCH = x.view(), .num_parts = 2}, {});
}

// What gathering keys relies on: a query has the bits that it has among all others, whichever of
// them its call has beside it.
class QueriesTest : public testing::TestWithParam<Target> {};

TEST_P(QueriesTest, OfARankHaveTheBitsOfAllOnes) {
  const auto [device, dtype] = std::pair(GetParam().device, GetParam().dtype);
  if (const std::string reason = skip_reason(GetParam()); !reason.empty()) {
    GTEST_SKIP() << reason;
  }
  AttentionCase c = {.name = "ranks", .B = 1, .S = 192, .N = 4, .G = 2, .H = 32};
  c.cap = 30;
  c.temperature_len = 20;
  c.documents = {37, 1, 90, 64};
  c.pad = 7;
  const Values qkv = rounded_to(dtype, c.qkv());
  const OwnedStream stream(device);
  const DType sums = accumulation_dtype(dtype);
  const TestTensor qkv_TCH({{c.T(), c.C(), c.H}, dtype}, device, qkv);
  const TestTensor valid({{c.T()}, DType::u8}, device, c.key_valid());
  const auto run = [&](const std::vector<std::int64_t>& places) {
    Values q;
    Values position;
    Values place;
    for (const std::int64_t t : places) {
      const auto begin = qkv.begin() + t * c.C() * c.H;
      q.insert(q.end(), begin, begin + c.N * c.H);
      position.push_back(c.positions()[static_cast<std::size_t>(t)]);
      place.push_back(static_cast<double>(t));
    }
    const auto T = static_cast<std::int64_t>(places.size());
    const TestTensor q_TNH({{T, c.N, c.H}, dtype}, device, q);
    const TestTensor position_T({{T}, DType::i32}, device, position);
    const TestTensor place_T({{T}, DType::i32}, device, place);
    const TestTensor out_TNH({{T, c.N, c.H}, dtype}, device);
    const TestTensor lse_BNS({{1, c.N, T}, sums}, device);
    attention_forward({.out_TNH = out_TNH,
                       .lse_BNS = lse_BNS,
                       .q_TNH = q_TNH.view(),
                       .k_UGH = {qkv_TCH, c.N, c.G},
                       .v_UGH = {qkv_TCH, c.N + c.G, c.G},
                       .position_T = position_T,
                       .place_T = place_T,
                       .key_valid_U = valid,
                       .score = c.score()},
                      stream.view());
    return out_TNH.values(stream.view());
  };
  std::vector<std::int64_t> all;
  for (std::int64_t t = 0; t < c.S; ++t) {
    all.push_back(t);
  }
  const Values whole = run(all);
  for (const std::int64_t context : {2, 4}) {
    for (std::int64_t rank = 0; rank < context; ++rank) {
      std::vector<std::int64_t> own;
      for (std::int64_t t = 0; t < c.S; ++t) {
        const std::int64_t piece = t * 2 * context / c.S;
        if (piece == rank || piece == 2 * context - 1 - rank) {
          own.push_back(t);
        }
      }
      const Values part = run(own);
      for (std::size_t i = 0; i < own.size(); ++i) {
        for (std::int64_t h = 0; h < c.N * c.H; ++h) {
          ASSERT_EQ(part[i * static_cast<std::size_t>(c.N * c.H) + static_cast<std::size_t>(h)],
                    whole[static_cast<std::size_t>(own[i] * c.N * c.H + h)])
              << "rank " << rank << " of " << context << ", token " << own[i];
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Targets,
                         QueriesTest,
                         testing::ValuesIn(all_targets()),
                         [](const auto& tested) { return name_of(tested.param); });

}  // namespace
}  // namespace memphis::test
