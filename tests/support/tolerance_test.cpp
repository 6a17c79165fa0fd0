// SPDX-License-Identifier: Apache-2.0
#include "tests/support/tolerance.h"

#include <cmath>
#include <limits>
#include <numeric>
#include <string>
#include <tuple>
#include <vector>

#include "tests/support/test_tensor.h"

namespace memphis::test {
namespace {

using Values = std::vector<double>;

// A dtype, a number of elements, and about how large they are.
using Shape = std::tuple<DType, std::int64_t, double>;

class CloseTo : public testing::TestWithParam<Shape> {
 protected:
  const DType dtype = std::get<0>(GetParam());
  const std::int64_t size = std::get<1>(GetParam());
  // What the dtype holds, so that naive code can be without any error.
  const Values exact = rounded_to(dtype, random_normal(size, "exact", std::get<2>(GetParam())));
  const Reference lucky{.exact = exact, .naive = std::vector<Values>(kEnoughValues, exact)};
};
INSTANTIATE_TEST_SUITE_P(Shapes,
                         CloseTo,
                         testing::Combine(testing::Values(DType::f64, DType::f32, DType::bf16),
                                          testing::Values<std::int64_t>(1, 3, 40, 1000),
                                          testing::Values(1e-20, 1e-3, 1.0, 0.9999, 7e5)),
                         [](const auto& instance) {
                           return std::string(name_of(std::get<0>(instance.param))) + "_of_" +
                                  std::to_string(std::get<1>(instance.param)) + "_number_" +
                                  std::to_string(instance.index);
                         });

// What a correctly rounded op may do on another processor: every element one unit in the last place
// away from where a lucky naive version put it, up or down.
TEST_P(CloseTo, AUnitInTheLastPlacePassesHoweverLuckyNaiveWas) {
  for (const double direction : {1.0, -1.0}) {
    Values actual = exact;
    for (double& value : actual) {
      const double up = direction * ulp(dtype, value);
      // Below a power of two the spacing is half of that above it.
      value = rounded_to(dtype, {value + up})[0];
    }
    EXPECT_NE(actual, exact);
    EXPECT_TRUE(close_to(actual, lucky, dtype, size));
    EXPECT_TRUE(close_to(actual, lucky, dtype, 1));
  }
}

TEST_P(CloseTo, TwoBoundsDoNotPassWhereverTheyAre) {
  const Tolerance tolerance(lucky, dtype, size);
  for (std::size_t i = 0; i < exact.size(); i += 1 + exact.size() / 7) {
    for (const double sign : {1.0, -1.0}) {
      Values actual = exact;
      actual[i] += sign * 2 * tolerance.of_element(exact[i]);
      EXPECT_FALSE(close_to(actual, lucky, dtype, size)) << "element " << i;
    }
  }
}

TEST_P(CloseTo, NoBoundIsBelowAUnitInTheLastPlace) {
  const Tolerance tolerance(lucky, dtype, size);
  double largest = 0;
  for (const double value : exact) {
    EXPECT_GE(tolerance.of_element(value), ulp(dtype, value));
    largest = std::max(largest, ulp(dtype, value));
  }
  for (const double value : exact) {
    EXPECT_LE(tolerance.of_element(value), 2 * largest) << "nor is it a guess";
  }
}

TEST_P(CloseTo, NanDoesNotPass) {
  Values actual = exact;
  actual.back() = std::numeric_limits<double>::quiet_NaN();
  EXPECT_FALSE(close_to(actual, lucky, dtype, size));
  actual.back() = std::numeric_limits<double>::infinity();
  EXPECT_FALSE(close_to(actual, lucky, dtype, size));
}

// One naive result of few elements is refused, whatever it is compared with.
TEST_P(CloseTo, TooFewNaiveValuesAreRefused) {
  EXPECT_EQ(static_cast<bool>(close_to(exact, exact, exact, dtype, size)),
            exact.size() >= kEnoughValues);
  EXPECT_TRUE(close_to(exact, lucky, dtype, size));
}

TEST(Tolerance, TheUnitInTheLastPlaceIsTheSpacingOfItsDtype) {
  EXPECT_EQ(ulp(DType::f64, 1.0), 0x1p-52);
  EXPECT_EQ(ulp(DType::f64, -0x1.fffffffffffffp0), 0x1p-52);
  EXPECT_EQ(ulp(DType::f64, 2.0), 0x1p-51);
  EXPECT_EQ(ulp(DType::f32, 1.0), 0x1p-23);
  EXPECT_EQ(ulp(DType::f32, 0.75), 0x1p-24);
  EXPECT_EQ(ulp(DType::bf16, 1.0), 0x1p-7);
  EXPECT_EQ(ulp(DType::bf16, 300.0), 2.0);
  EXPECT_EQ(ulp(DType::f32, 0.0), std::numeric_limits<float>::denorm_min());
  EXPECT_EQ(ulp(DType::f64, 1.0), std::nextafter(1.0, 2.0) - 1.0);
}

TEST(Tolerance, ANaiveResultThatIsNotFiniteIsNoMeasure) {
  const Values exact(1000, 1.0);
  Values naive = exact;
  naive[7] = std::numeric_limits<double>::infinity();
  EXPECT_FALSE(close_to(exact, exact, naive, DType::f32, 1000));
  naive[7] = std::numeric_limits<double>::quiet_NaN();
  EXPECT_FALSE(close_to(exact, exact, naive, DType::f32, 1000));
}

TEST(Tolerance, SizesThatDifferAreRefused) {
  const Values exact(1000, 1.0);
  EXPECT_FALSE(close_to(Values(999, 1.0), exact, exact, DType::f32, 1000));
  EXPECT_FALSE(close_to(exact, exact, Values(999, 1.0), DType::f32, 1000));
  EXPECT_FALSE(close_to(Values{1.0}, Values{}, Values{}, DType::f32, 1));
  EXPECT_TRUE(close_to(Values{}, Values{}, Values{}, DType::f32, 1));
}

// Within the bound of the large row's elements, a row of small ones could be anything.
TEST(Tolerance, AWrongRowOfSmallValuesDoesNotHideBehindALargeOne) {
  Values exact = random_normal(2000, "exact");
  for (std::size_t i = 1000; i < 2000; ++i) {
    exact[i] *= 1e-9;
  }
  const Values naive = rounded_to(DType::f32, exact);
  Values actual = naive;
  EXPECT_TRUE(close_to(actual, exact, naive, DType::f32, 1000));
  for (std::size_t i = 1000; i < 2000; ++i) {
    actual[i] = -actual[i];
  }
  EXPECT_TRUE(close_to(actual, exact, naive, DType::f32, 2000));
  EXPECT_FALSE(close_to(actual, exact, naive, DType::f32, 1000));
}

template <class A>
double sum_of(const Values& values, bool from_the_end) {
  A sum = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    sum += static_cast<A>(values[from_the_end ? values.size() - 1 - i : i]);
  }
  return static_cast<double>(sum);
}

// One sum in f32, of terms that cancel: its error is many units of the result, or none. Sums in
// another order are as good, and pass; a term that is left out does not.
TEST(Tolerance, OfOneSumIsThatOfManyDraws) {
  int num_lucky = 0;
  for (std::uint64_t seed = 0; seed < 500; ++seed) {
    const Values terms = rounded_to(DType::f32, random_normal(200, "terms", 1.0, seed));
    const Reference reference{
        .exact = {sum_of<long double>(terms, false)},
        .naive = draws_for(1, 1, [&](int draw) {
          return Values{sum_of<float>(perturbed(DType::f32, terms, draw), false)};
        })};
    const double actual = sum_of<float>(terms, true);
    EXPECT_TRUE(close_to({actual}, reference, DType::f32, 1)) << "seed " << seed;
    EXPECT_FALSE(close_to({actual - 1e-3}, reference, DType::f32, 1)) << "seed " << seed;
    // The rule without draws.
    num_lucky += std::abs(actual - reference.exact[0]) >
                         2 * std::abs(reference.naive[0][0] - reference.exact[0]) +
                             rounding_unit(DType::f32) * std::abs(reference.exact[0])
                     ? 1
                     : 0;
  }
  EXPECT_GT(num_lucky, 50) << "one draw is not enough, or this test is too easy";
}

// Rows of differences of two numbers, all rounded alike; in the last row little is left of them. Where
// it happens to come out exact in the naive result, nothing is known of it but by its terms.
TEST(Tolerance, ARowThatCancelsIsHeldToItsTerms) {
  constexpr std::size_t kLength = 100;
  constexpr std::size_t kLast = 900;
  Reference reference{
      .exact = random_normal(1000, "exact"), .naive = {}, .terms = Values(1000, 10.0)};
  std::fill(reference.exact.begin() + kLast, reference.exact.end(), 1e-9);
  const auto rounded = [&](double by) {
    Values values = reference.exact;
    for (std::size_t i = 0; i < values.size(); ++i) {
      values[i] += (i % 2 == 0 ? by : -by) * ulp(DType::f32, 10.0);
    }
    return values;
  };
  reference.naive = {rounded(0.5)};
  std::copy_n(reference.exact.begin() + kLast, kLength, reference.naive[0].begin() + kLast);
  EXPECT_TRUE(close_to(rounded(-0.9), reference, DType::f32, kLength));
  EXPECT_FALSE(close_to(rounded(1.2), reference, DType::f32, kLength));
  Reference without = reference;
  without.terms.clear();
  EXPECT_FALSE(close_to(rounded(-0.9), without, DType::f32, kLength)) << "it is no test";
  without.terms.assign(999, 1.0);
  EXPECT_FALSE(close_to(reference.exact, without, DType::f32, kLength));
}

TEST(Tolerance, DrawsMoveByOneRoundingAndEachElsewhere) {
  const Values values = random_normal(64, "values");
  EXPECT_EQ(perturbed(DType::f32, values, 0), values);
  EXPECT_NE(perturbed(DType::f32, values, 1), perturbed(DType::f32, values, 2));
  int num_up = 0;
  for (int draw = 1; draw <= 100; ++draw) {
    const Values moved = perturbed(DType::bf16, values, draw);
    for (std::size_t i = 0; i < values.size(); ++i) {
      EXPECT_NEAR(std::abs(moved[i] / values[i] - 1), 0x1p-23, 0x1p-50);
      num_up += moved[i] / values[i] > 1 ? 1 : 0;
    }
  }
  // Of 6400 coins, within five standard deviations of half.
  EXPECT_NEAR(num_up, 3200, 5 * 40);
}

}  // namespace
}  // namespace memphis::test
