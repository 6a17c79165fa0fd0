// SPDX-License-Identifier: Apache-2.0
#include "kernels/rope/rope.h"

#include <cmath>

#include <gtest/gtest.h>

#include "bench/rope/rope_cases.h"
#include "csrc/core/error.h"
#include "tests/support/finite_difference.h"
#include "tests/support/test_tensor.h"
#include "tests/support/tolerance.h"

namespace memphis::kernels {
namespace {

using test::close_to;
using test::RopeCase;
using test::Target;
using test::TestTensor;

// The formula with an angle of its own for every element, in the accumulation type of T. `sign` is
// -1 for the inverse.
template <class T>
std::vector<double> naive(const RopeCase& c, std::vector<double> x, double sign) {
  using A = Accumulator<T>;
  const std::vector<double> position = c.positions();
  for (std::int64_t t = 0; t < c.T; ++t) {
    for (std::int64_t head = 0; head < c.rotated; ++head) {
      for (std::int64_t j = 0; j < c.H / 2; ++j) {
        const double angle =
            position[static_cast<std::size_t>(t)] *
            std::pow(c.theta, -2.0 * static_cast<double>(j) / static_cast<double>(c.H));
        const auto cosine = static_cast<A>(std::cos(angle));
        const auto sine = static_cast<A>(sign * std::sin(angle));
        const auto at = static_cast<std::size_t>((t * c.C + head) * c.H + j);
        const std::size_t other = at + static_cast<std::size_t>(c.H / 2);
        const auto x1 = static_cast<A>(x[at]);
        const auto x2 = static_cast<A>(x[other]);
        x[at] = static_cast<double>(static_cast<T>(x1 * cosine - x2 * sine));
        x[other] = static_cast<double>(static_cast<T>(x2 * cosine + x1 * sine));
      }
    }
  }
  return x;
}

std::vector<double> naive(DType dtype, const RopeCase& c, std::vector<double> x, double sign) {
  switch (dtype) {
    case DType::f64:
      return naive<double>(c, std::move(x), sign);
    case DType::f32:
      return naive<float>(c, std::move(x), sign);
    default:
      return naive<bf16>(c, std::move(x), sign);
  }
}

struct Call {
  Call(const Target& target, const RopeCase& c, const std::vector<double>& values)
      : stream(target.device),
        x({{c.T, c.C, c.H}, target.dtype}, target.device, values),
        table({{c.S, c.H}, accumulation_dtype(target.dtype)}, target.device),
        position({{c.T}, DType::i32}, target.device, c.positions()),
        num_rotated_heads(c.rotated) {
    rope_table({.table_SH = table, .theta = c.theta}, stream.view());
  }

  std::vector<double> forward() const {
    rope_forward({.x_TCH = x,
                  .table_SH = table,
                  .position_T = position,
                  .num_rotated_heads = num_rotated_heads},
                 stream.view());
    return x.values(stream.view());
  }
  std::vector<double> backward() const {
    rope_backward({.dx_TCH = x,
                   .table_SH = table,
                   .position_T = position,
                   .num_rotated_heads = num_rotated_heads},
                  stream.view());
    return x.values(stream.view());
  }

  OwnedStream stream;
  TestTensor x;
  TestTensor table;
  TestTensor position;
  std::int64_t num_rotated_heads;
};

class RopeTargets : public testing::TestWithParam<std::tuple<Target, RopeCase>> {};

TEST_P(RopeTargets, MatchesTheFormula) {
  const auto& [target, c] = GetParam();
  if (const std::string reason = test::skip_reason(target); !reason.empty()) {
    GTEST_SKIP() << reason;
  }
  const std::vector<double> x = test::rounded_to(target.dtype, c.x());
  for (const double sign : {1.0, -1.0}) {
    SCOPED_TRACE(sign > 0 ? "forward" : "backward");
    const std::vector<double> exact = naive(DType::f64, c, x, sign);
    const Call call(target, c, x);
    const std::vector<double> actual = sign > 0 ? call.forward() : call.backward();
    if (target.dtype == DType::f64) {
      // Naive and op may round the two products of an element differently: each is off by a unit.
      EXPECT_LT(test::max_difference(actual, exact), 8 * test::rounding_unit(DType::f64));
    } else {
      const test::Reference reference{
          .exact = exact,
          .naive = test::draws_for(exact.size(), 1, [&, dtype = target.dtype](int draw) {
            return naive(dtype, c, test::perturbed(dtype, x, draw), sign);
          })};
      EXPECT_TRUE(close_to(actual, reference, target.dtype, c.H));
    }
    // What does not rotate keeps its bits.
    for (std::int64_t i = 0; i < c.T * c.C * c.H; ++i) {
      if (i / c.H % c.C >= c.rotated) {
        ASSERT_EQ(actual[static_cast<std::size_t>(i)], x[static_cast<std::size_t>(i)]);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All,
                         RopeTargets,
                         testing::Combine(testing::ValuesIn(test::all_targets()),
                                          testing::ValuesIn(test::rope_cases())),
                         [](const auto& instance) {
                           return name_of(std::get<0>(instance.param)) + "_" +
                                  std::get<1>(instance.param).name;
                         });

constexpr Target kDouble = {.device = Device::cpu, .dtype = DType::f64};

TEST(Rope, BackwardIsTheGradientOfForward) {
  const RopeCase c = {.name = "gradient", .T = 4, .C = 3, .rotated = 2, .H = 6, .S = 12};
  const std::vector<double> dy = test::random_normal(c.T * c.C * c.H, "dy");
  const auto weighted_output = [&](const std::vector<double>& x) {
    return test::dot(dy, Call(kDouble, c, x).forward());
  };
  constexpr double kStep = 0.5;  // of a linear function
  EXPECT_TRUE(test::is_gradient(Call(kDouble, c, dy).backward(), weighted_output, c.x(), kStep));
}

TEST(Rope, ScoresDependOnTheDistanceOfPositionsOnly) {
  // q and k of one content: their product at positions (p, p + 3) is the same for every p.
  const std::int64_t S = 64;
  const std::int64_t H = 16;
  const TestTensor table({{S, H}, DType::f64}, Device::cpu);
  rope_table({.table_SH = table, .theta = 10000.0}, {});
  const std::vector<double> content = test::random_normal(H, "content");
  std::vector<double> x;
  std::vector<double> positions;
  for (std::int64_t t = 0; t < S; ++t) {
    x.insert(x.end(), content.begin(), content.end());
    positions.push_back(static_cast<double>(t));
  }
  const TestTensor rotated({{S, 1, H}, DType::f64}, Device::cpu, x);
  const TestTensor position({{S}, DType::i32}, Device::cpu, positions);
  rope_forward(
      {.x_TCH = rotated, .table_SH = table, .position_T = position, .num_rotated_heads = 1}, {});
  const std::vector<double> y = rotated.values({});
  const auto score = [&](std::int64_t a, std::int64_t b) {
    double sum = 0;
    for (std::int64_t h = 0; h < H; ++h) {
      sum += y[static_cast<std::size_t>(a * H + h)] * y[static_cast<std::size_t>(b * H + h)];
    }
    return sum;
  };
  for (std::int64_t p = 1; p + 3 < S; ++p) {
    EXPECT_NEAR(score(p, p + 3), score(0, 3), 1e-12);
  }
  EXPECT_GT(std::abs(score(0, 4) - score(0, 3)), 1e-3);
}

TEST(Rope, RefusesOperandsOutsideTheContract) {
  const RopeCase c = {.name = "refused", .T = 2, .C = 2, .rotated = 1, .H = 8, .S = 4};
  const Call call(kDouble, c, c.x());
  const RopeForward good = {
      .x_TCH = call.x, .table_SH = call.table, .position_T = call.position, .num_rotated_heads = 1};
  RopeForward op = good;
  op.num_rotated_heads = 3;
  EXPECT_THROW(rope_forward(op, {}), ContractError);
  op = good;
  op.x_TCH = op.x_TCH.reshape({2, 16, 1});
  EXPECT_THROW(rope_forward(op, {}), ContractError);
  op = good;
  op.table_SH = op.table_SH.rows(0, 0);  // no position has a row
  EXPECT_THROW(rope_forward(op, {}), ContractError);
  EXPECT_THROW(rope_table({.table_SH = call.x}, {}), ContractError);
}

}  // namespace
}  // namespace memphis::kernels
