// SPDX-License-Identifier: Apache-2.0
#include "kernels/global_norm/global_norm.h"

#include <cmath>

#include "bench/global_norm/global_norm_cases.h"
#include "tests/support/op_test.h"

namespace memphis::test {
namespace {

using Values = std::vector<double>;

template <class T>
Values naive_norm(const Values& x) {
  using A = NaiveAccumulator<T>;
  A squares = 0;
  for (const double value : x) {
    squares += static_cast<A>(value) * static_cast<A>(value);
  }
  return {static_cast<double>(std::sqrt(squares))};
}

template <class T>
Values naive_sum(const Values& x, double before, double scale) {
  using A = NaiveAccumulator<T>;
  A sum = 0;
  for (const double value : x) {
    sum += static_cast<A>(value);
  }
  return {static_cast<double>(static_cast<A>(before) + static_cast<A>(scale) * sum)};
}

Values run_norm(const GlobalNormCase& c, const Values& values, const Target& target) {
  const OwnedStream stream(target.device);
  const TestTensor x({{c.num_elements}, target.dtype}, target.device, values);
  const TestTensor norm({{1}, target.dtype}, target.device);
  const TestTensor partial({{c.num_partials}, DType::f64}, target.device);
  kernels::global_norm({.norm_1 = norm, .x_n = x, .partial_P = partial}, stream.view());
  return norm.values(stream.view());
}

Values run_sum(const GlobalNormCase& c, const Values& values, float scale, const Target& target) {
  const OwnedStream stream(target.device);
  const TestTensor x({{c.num_elements}, target.dtype}, target.device, values);
  const double nan = std::nan("");  // what is not added to must not be read
  const TestTensor total({{1}, target.dtype}, target.device, {c.accumulate ? 2.5 : nan});
  const TestTensor factor({{1}, target.dtype}, target.device, {static_cast<double>(scale)});
  // A scale of 1 is left out.
  kernels::sum_all({.total_1 = total,
                    .x_n = x,
                    .scale_1 = scale == 1.0F ? TensorView{} : factor.view(),
                    .accumulate = c.accumulate},
                   stream.view());
  return total.values(stream.view());
}

class GlobalNorm : public OpTest<GlobalNormCase> {
 protected:
  // Gradients, losses and statistics are f32 where a model is bf16.
  const Target kept{target().device, accumulation_dtype(target().dtype)};
  const Values x = rounded_to(kept.dtype, random_normal(op_case().num_elements, "x", 3.0));

  // One value comes of it all: of so many inputs that are as good as one another.
  template <class Naive>
  Reference reference(double exact, const Naive& naive) const {
    return {.exact = {exact}, .naive = draws_for(1, 1, [&](int draw) {
                                return naive(perturbed(kept.dtype, x, draw));
                              })};
  }
};
INSTANTIATE_TEST_SUITE_P(Cases,
                         GlobalNorm,
                         on_all_targets(global_norm_cases()),
                         name_of_op_test<GlobalNormCase>);

TEST_P(GlobalNorm, IsAsCloseAsNaive) {
  const Reference expected = reference(naive_norm<Exact>(x)[0], [&](const Values& moved) {
    return kept.dtype == DType::f64 ? naive_norm<double>(moved) : naive_norm<float>(moved);
  });
  EXPECT_TRUE(close_to(run_norm(op_case(), x, kept), expected, kept.dtype, 1));
}

TEST_P(GlobalNorm, SumIsAsCloseAsNaive) {
  const double before = op_case().accumulate ? 2.5 : 0.0;
  const double scale = 0.125;
  const Reference expected =
      reference(naive_sum<Exact>(x, before, scale)[0], [&](const Values& moved) {
        return kept.dtype == DType::f64 ? naive_sum<double>(moved, before, scale)
                                        : naive_sum<float>(moved, before, scale);
      });
  EXPECT_TRUE(close_to(run_sum(op_case(), x, 0.125F, kept), expected, kept.dtype, 1));
}

TEST_P(GlobalNorm, RepeatsItsBits) {
  const Values norm = run_norm(op_case(), x, kept);
  const Values sum = run_sum(op_case(), x, 0.3F, kept);
  const OneThread one_thread;
  EXPECT_EQ(run_norm(op_case(), x, kept), norm);
  EXPECT_EQ(run_sum(op_case(), x, 0.3F, kept), sum);
}

// As many as there are partial sums, which are more than a block has threads. The norm of ones is
// exact up to its root.
class GlobalNormRuns : public testing::TestWithParam<Target> {};

TEST_P(GlobalNormRuns, AllAreInTheSum) {
  const std::string reason = skip_reason(GetParam());
  if (!reason.empty()) {
    GTEST_SKIP() << reason;
  }
  const GlobalNormCase c{.name = "", .num_elements = kernels::kGlobalNormPartials * 1024 - 5};
  const Values ones(static_cast<std::size_t>(c.num_elements), 1.0);
  const float norm = std::sqrt(static_cast<float>(c.num_elements));
  EXPECT_EQ(run_norm(c, ones, GetParam()), Values{norm});
}

INSTANTIATE_TEST_SUITE_P(Targets,
                         GlobalNormRuns,
                         testing::Values(Target{Device::cpu, DType::f32},
                                         Target{Device::cuda, DType::f32}),
                         [](const auto& tested) { return name_of(tested.param); });

// Squares of f32 beyond 2^64 are infinite in f32; a run's sum must not be.
TEST(GlobalNormRange, SquaresDoNotOverflowOnTheCpu) {
  const GlobalNormCase c{.name = "", .num_elements = 2};
  EXPECT_EQ(run_norm(c, {0x3p70, 0x4p70}, {Device::cpu, DType::f32}), Values{0x5p70});
}

TEST(GlobalNormRange, NanIsNotLost) {
  const GlobalNormCase c{.name = "", .num_elements = 100, .num_partials = 7};
  Values x(100, 1.0);
  x[41] = std::nan("");
  EXPECT_TRUE(std::isnan(run_norm(c, x, {Device::cpu, DType::f32})[0]));
}

TEST(GlobalNormContract, NamesTheOperand) {
  const TestTensor x({{8}, DType::f32}, Device::cpu);
  const TestTensor rows({{2, 4}, DType::f32}, Device::cpu);
  const TestTensor narrow({{8}, DType::bf16}, Device::cpu);
  const TestTensor one({{1}, DType::f32}, Device::cpu);
  const TestTensor partial({{4}, DType::f64}, Device::cpu);
  const TestTensor no_partials({{0}, DType::f64}, Device::cpu);
  const Stream stream;
  const auto norm = [&](TensorView norm_1, TensorView x_n, TensorView partial_P) {
    return [=] {
      kernels::global_norm({.norm_1 = norm_1, .x_n = x_n, .partial_P = partial_P}, stream);
    };
  };
  EXPECT_TRUE(rejects(norm(one, rows, partial), "global_norm: x_n is f32[2, 4]"));
  EXPECT_TRUE(rejects(norm(one, narrow, partial), "global_norm: x_n is bf16[8]"));
  EXPECT_TRUE(rejects(norm(x, x, partial), "global_norm: norm_1 is f32[8]"));
  EXPECT_TRUE(rejects(norm(one, x, x), "global_norm: partial_P is f32[8]"));
  EXPECT_TRUE(rejects(norm(one, x, no_partials), "global_norm: partial_P is empty"));
  EXPECT_TRUE(rejects([&] { kernels::sum_all({.total_1 = partial, .x_n = x}, stream); },
                      "sum_all: total_1 is f64[4]"));
  TensorView elsewhere = x;
  elsewhere.device = Device::cuda;
  EXPECT_TRUE(rejects([&] { kernels::sum_all({.total_1 = one, .x_n = elsewhere}, stream); },
                      "sum_all: x_n is on cuda"));
}

}  // namespace
}  // namespace memphis::test
