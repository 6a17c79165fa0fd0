// SPDX-License-Identifier: Apache-2.0
#include "kernels/matmul/matmul.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <tuple>
#include <vector>

#include <gtest/gtest.h>

#include "bench/matmul/matmul_cases.h"
#include "kernels/visit.h"
#include "tests/kernels/matmul/naive_product.h"
#include "tests/support/finite_difference.h"
#include "tests/support/op_test.h"
#include "tests/support/test_tensor.h"
#include "tests/support/tolerance.h"

namespace memphis::test {
namespace {

using kernels::matmul_backward;
using kernels::matmul_forward;
using Values = std::vector<double>;

struct Inputs {
  Values x;
  Values weight;
  Values dy;
  Values dx;  // what the outputs hold before
  Values dweight;

  Inputs(const MatmulCase& c, DType dtype)
      : x(rounded_to(dtype, random_normal(c.T * c.K, "x"))),
        weight(rounded_to(dtype, random_normal(c.N * c.K, "weight"))),
        dy(rounded_to(dtype, random_normal(c.T * c.N, "dy"))),
        dx(rounded_to(dtype, random_normal(c.T * c.K, "dx"))),
        dweight(rounded_to(accumulation_dtype(dtype), random_normal(c.N * c.K, "dweight"))) {}
};

class MatmulTest : public OpTest<MatmulCase> {
 protected:
  ProductWalk walk(ProductWalk (*product)(std::int64_t, std::int64_t, std::int64_t)) const {
    return product(op_case().T, op_case().N, op_case().K);
  }
  TestTensor tensor(std::int64_t rows, std::int64_t columns) const {
    return {{{rows, columns}, target().dtype}, target().device};
  }
  TestTensor tensor(std::int64_t rows, std::int64_t columns, const Values& values) const {
    return {{{rows, columns}, target().dtype}, target().device, values};
  }
  TestTensor sums(std::int64_t rows, std::int64_t columns, const Values& values) const {
    return {{{rows, columns}, accumulation_dtype(target().dtype)}, target().device, values};
  }
};

TEST_P(MatmulTest, ForwardIsTheProduct) {
  const auto& [name, T, N, K, tested] = op_case();
  const OwnedStream stream(target().device);
  const Inputs in(op_case(), target().dtype);
  const TestTensor x = tensor(T, K, in.x);
  const TestTensor weight = tensor(N, K, in.weight);
  const TestTensor y = tensor(T, N);
  matmul_forward({.y_TN = y, .x_TK = x, .weight_NK = weight}, stream.view());
  kernels::visit_float(target().dtype, [&]<class V>() {
    EXPECT_TRUE(is_product<V>(
        target().device, walk(forward_walk), y.values(stream.view()), in.x, in.weight));
  });
}

TEST_P(MatmulTest, BackwardWritesDxAndAddsToDweight) {
  const auto& [name, T, N, K, tested] = op_case();
  const OwnedStream stream(target().device);
  const Inputs in(op_case(), target().dtype);
  const TestTensor x = tensor(T, K, in.x);
  const TestTensor weight = tensor(N, K, in.weight);
  const TestTensor dy = tensor(T, N, in.dy);
  const TestTensor dx = tensor(T, K);  // NaN: it must not be read
  const TestTensor dweight = sums(N, K, in.dweight);
  matmul_backward({.dx_TK = dx, .dweight_NK = dweight, .dy_TN = dy, .x_TK = x, .weight_NK = weight},
                  stream.view());
  kernels::visit_float(target().dtype, [&]<class V>() {
    EXPECT_TRUE(
        is_product<V>(target().device, walk(dx_walk), dx.values(stream.view()), in.dy, in.weight));
    EXPECT_TRUE((is_product<V, Accumulator<V>>(target().device,
                                               walk(dweight_walk),
                                               dweight.values(stream.view()),
                                               in.dy,
                                               in.x,
                                               in.dweight)));
  });
}

TEST_P(MatmulTest, WritesTheDweightThatItWouldAddToZeros) {
  const auto& [name, T, N, K, tested] = op_case();
  const OwnedStream stream(target().device);
  const Inputs in(op_case(), target().dtype);
  const TestTensor x = tensor(T, K, in.x);
  const TestTensor dy = tensor(T, N, in.dy);
  const TestTensor added = sums(N, K, Values(in.dweight.size()));
  const TestTensor written(added.view().spec(), target().device);  // NaN: it must not be read
  matmul_backward({.dweight_NK = added, .dy_TN = dy, .x_TK = x}, stream.view());
  matmul_backward({.dweight_NK = written,
                   .dy_TN = dy,
                   .x_TK = x,
                   .weight_gradient = kernels::WeightGradient::write},
                  stream.view());
  EXPECT_EQ(written.values(stream.view()), added.values(stream.view()));
}

TEST_P(MatmulTest, DxIsAddedToWhenAsked) {
  const auto& [name, T, N, K, tested] = op_case();
  const OwnedStream stream(target().device);
  const Inputs in(op_case(), target().dtype);
  const TestTensor weight = tensor(N, K, in.weight);
  const TestTensor dy = tensor(T, N, in.dy);
  const TestTensor dx = tensor(T, K, in.dx);
  matmul_backward({.dx_TK = dx, .dy_TN = dy, .weight_NK = weight, .accumulate = true},
                  stream.view());
  kernels::visit_float(target().dtype, [&]<class V>() {
    EXPECT_TRUE(is_product<V>(
        target().device, walk(dx_walk), dx.values(stream.view()), in.dy, in.weight, in.dx));
  });
}

TEST_P(MatmulTest, AnAbsentOutputChangesNoBitOfTheOther) {
  const auto& [name, T, N, K, tested] = op_case();
  const OwnedStream stream(target().device);
  const Inputs in(op_case(), target().dtype);
  const TestTensor x = tensor(T, K, in.x);
  const TestTensor weight = tensor(N, K, in.weight);
  const TestTensor dy = tensor(T, N, in.dy);
  const TestTensor both_dx = tensor(T, K);
  const TestTensor both_dweight = sums(N, K, in.dweight);
  const TestTensor dx = tensor(T, K);
  const TestTensor dweight = sums(N, K, in.dweight);
  matmul_backward(
      {.dx_TK = both_dx, .dweight_NK = both_dweight, .dy_TN = dy, .x_TK = x, .weight_NK = weight},
      stream.view());
  matmul_backward({.dx_TK = dx, .dy_TN = dy, .weight_NK = weight}, stream.view());
  matmul_backward({.dweight_NK = dweight, .dy_TN = dy, .x_TK = x}, stream.view());
  EXPECT_EQ(dx.bytes(stream.view()), both_dx.bytes(stream.view()));
  EXPECT_EQ(dweight.bytes(stream.view()), both_dweight.bytes(stream.view()));
}

// Rows between runs keep what is in them, and a run's rows have the values that they have in one product
// of all: on the CPU the same bits.
TEST_P(MatmulTest, RunsOfRowsAreProductsOfTheirOwn) {
  const auto& [name, T, N, K, tested] = op_case();
  constexpr std::int64_t kRuns = 3;
  constexpr std::int64_t kReadGap = 8;  // rows of any width begin aligned
  constexpr std::int64_t kWrittenGap = 16;
  const std::int64_t rows = T / (8 * kRuns) * 8;
  if (rows == 0) {
    GTEST_SKIP() << "too few rows for three runs";
  }
  const OwnedStream stream(target().device);
  const Inputs in(op_case(), target().dtype);
  const kernels::RowRuns runs = {
      .count = kRuns, .read_step = rows + kReadGap, .written_step = rows + kWrittenGap};
  // Run r of `values` at r * step of a tensor of NaN.
  const auto spread = [&](const Values& values, std::int64_t width, std::int64_t gap) {
    Values result(static_cast<std::size_t>((kRuns * (rows + gap) - gap) * width), std::nan(""));
    for (std::int64_t r = 0; r < kRuns; ++r) {
      std::copy_n(values.begin() + r * rows * width,
                  rows * width,
                  result.begin() + r * (rows + gap) * width);
    }
    return result;
  };
  const auto expect_runs = [&](const Values& actual, const Values& whole, std::int64_t width) {
    const Values expected = spread(whole, width, kWrittenGap);
    ASSERT_EQ(actual.size(), expected.size());
    double largest = 0;
    for (const double value : whole) {
      largest = std::max(largest, std::abs(value));
    }
    // On a GPU another algorithm may take the product of a run: its sums round elsewhere.
    const double bound = target().device == Device::cpu
                             ? 0
                             : largest * rounding_unit(target().dtype) * std::sqrt(double(K + N));
    for (std::size_t i = 0; i < actual.size(); ++i) {
      if (std::isnan(expected[i])) {
        EXPECT_TRUE(std::isnan(actual[i])) << i << " lies between runs";
      } else {
        EXPECT_NEAR(actual[i], expected[i], bound) << i;
      }
    }
  };
  const std::int64_t all = kRuns * rows;
  const TestTensor weight = tensor(N, K, in.weight);
  const auto first = [&](const Values& values, std::int64_t width) {
    return Values(values.begin(), values.begin() + all * width);
  };
  {
    const TestTensor whole = tensor(all, N);
    const TestTensor x = tensor(all, K, first(in.x, K));
    matmul_forward({.y_TN = whole, .x_TK = x, .weight_NK = weight}, stream.view());
    const TestTensor y = tensor(all + (kRuns - 1) * kWrittenGap, N);
    const TestTensor apart = tensor(all + (kRuns - 1) * kReadGap, K, spread(in.x, K, kReadGap));
    matmul_forward({.y_TN = y, .x_TK = apart, .weight_NK = weight, .runs = runs}, stream.view());
    expect_runs(y.values(stream.view()), whole.values(stream.view()), N);
  }
  const TestTensor whole = tensor(all, K);
  const TestTensor dy = tensor(all, N, first(in.dy, N));
  matmul_backward({.dx_TK = whole, .dy_TN = dy, .weight_NK = weight}, stream.view());
  const TestTensor dx = tensor(all + (kRuns - 1) * kWrittenGap, K);
  const TestTensor apart = tensor(all + (kRuns - 1) * kReadGap, N, spread(in.dy, N, kReadGap));
  matmul_backward({.dx_TK = dx, .dy_TN = apart, .weight_NK = weight, .runs = runs}, stream.view());
  expect_runs(dx.values(stream.view()), whole.values(stream.view()), K);
}

INSTANTIATE_TEST_SUITE_P(Cases,
                         MatmulTest,
                         on_all_targets(matmul_cases()),
                         name_of_op_test<MatmulCase>);

class MatmulThreads : public testing::TestWithParam<DType> {};

TEST_P(MatmulThreads, BitsDoNotDependOnTheirNumber) {
  const MatmulCase c = {.name = "", .T = 1100, .N = 1160, .K = 136};
  const Inputs in(c, GetParam());
  const Stream stream;
  const auto tensor = [&](std::int64_t rows, std::int64_t columns, const Values& values) {
    return TestTensor({{rows, columns}, GetParam()}, Device::cpu, values);
  };
  const TestTensor x = tensor(c.T, c.K, in.x);
  const TestTensor weight = tensor(c.N, c.K, in.weight);
  const TestTensor dy = tensor(c.T, c.N, in.dy);
  const auto bits = [&] {
    const TestTensor y({{c.T, c.N}, GetParam()}, Device::cpu);
    const TestTensor dx({{c.T, c.K}, GetParam()}, Device::cpu);
    const TestTensor dweight({{c.N, c.K}, accumulation_dtype(GetParam())}, Device::cpu, in.dweight);
    matmul_forward({.y_TN = y, .x_TK = x, .weight_NK = weight}, stream);
    matmul_backward(
        {.dx_TK = dx, .dweight_NK = dweight, .dy_TN = dy, .x_TK = x, .weight_NK = weight}, stream);
    return std::tuple(y.bytes(stream), dx.bytes(stream), dweight.bytes(stream));
  };
  const auto of_all = bits();
  const OneThread one;
  EXPECT_EQ(of_all, bits());
}

// How a product is cut and which operands are copied follow from the widths, of which a gradient of a
// weight must not depend: its rows are those that it has beside eight more.
TEST_P(MatmulThreads, BitsDoNotDependOnTheWidth) {
  constexpr std::int64_t T = 300;
  constexpr std::int64_t K = 136;
  const Stream stream;
  const Values x = rounded_to(GetParam(), random_normal(T * K, "x"));
  const DType sums = accumulation_dtype(GetParam());
  for (const std::int64_t N : {120, 248, 256, 504, 512, 1024, 1160}) {
    const std::int64_t wide = N + 8;
    const Values dy_of_all = rounded_to(GetParam(), random_normal(T * wide, "dy"));
    Values dy;
    for (std::int64_t t = 0; t < T; ++t) {
      dy.insert(dy.end(), dy_of_all.begin() + t * wide, dy_of_all.begin() + t * wide + N);
    }
    const auto gradient = [&](std::int64_t rows, const Values& from) {
      const TestTensor dweight({{rows, K}, sums}, Device::cpu);
      matmul_backward({.dweight_NK = dweight,
                       .dy_TN = TestTensor({{T, rows}, GetParam()}, Device::cpu, from),
                       .x_TK = TestTensor({{T, K}, GetParam()}, Device::cpu, x)},
                      stream);
      return dweight.bytes(stream);
    };
    auto of_all = gradient(wide, dy_of_all);
    const auto own = gradient(N, dy);
    of_all.resize(own.size());
    EXPECT_EQ(own, of_all) << N;
  }
}

INSTANTIATE_TEST_SUITE_P(Dtypes,
                         MatmulThreads,
                         testing::Values(DType::f64, DType::f32, DType::bf16),
                         [](const auto& dtype) { return std::string(name_of(dtype.param)); });

TEST(MatmulGradient, AgreesWithFiniteDifferencesOfTheForward) {
  const MatmulCase c = {.name = "", .T = 3, .N = 4, .K = 5};
  const Inputs in(c, DType::f64);
  const Stream stream;
  const auto tensor = [](std::int64_t rows, std::int64_t columns, const Values& values) {
    return TestTensor({{rows, columns}, DType::f64}, Device::cpu, values);
  };
  // The scalar dy . y, whose gradients are what backward computes.
  const auto loss = [&](const Values& x_values, const Values& weight_values) {
    const TestTensor x = tensor(c.T, c.K, x_values);
    const TestTensor weight = tensor(c.N, c.K, weight_values);
    const TestTensor y({{c.T, c.N}, DType::f64}, Device::cpu);
    matmul_forward({.y_TN = y, .x_TK = x, .weight_NK = weight}, stream);
    return dot(y.values(stream), in.dy);
  };
  const TestTensor x = tensor(c.T, c.K, in.x);
  const TestTensor weight = tensor(c.N, c.K, in.weight);
  const TestTensor dy = tensor(c.T, c.N, in.dy);
  const TestTensor dx({{c.T, c.K}, DType::f64}, Device::cpu);
  const TestTensor dweight = tensor(c.N, c.K, Values(static_cast<std::size_t>(c.N * c.K)));
  matmul_backward({.dx_TK = dx, .dweight_NK = dweight, .dy_TN = dy, .x_TK = x, .weight_NK = weight},
                  stream);
  constexpr double kStep = 0.5;  // the loss is linear in each operand
  EXPECT_TRUE(is_gradient(
      dx.values(stream), [&](const Values& v) { return loss(v, in.weight); }, in.x, kStep));
  EXPECT_TRUE(is_gradient(
      dweight.values(stream), [&](const Values& v) { return loss(in.x, v); }, in.weight, kStep));
}

TEST(MatmulContract, RefusesOperandsThatDoNotFitAndNamesThem) {
  const auto f32 = [](std::initializer_list<std::int64_t> dims) {
    return TestTensor({dims, DType::f32}, Device::cpu);
  };
  const Stream stream;
  const TestTensor x = f32({4, 8});
  const TestTensor weight = f32({6, 8});
  const TestTensor y = f32({4, 6});
  const TestTensor narrow = f32({6, 7});
  EXPECT_TRUE(rejects([&] { matmul_forward({.y_TN = y, .x_TK = x, .weight_NK = narrow}, stream); },
                      "matmul_forward: weight_NK is f32[6, 7], expected f32[6, 8]"));
  EXPECT_TRUE(rejects(
      [&] { matmul_backward({.dweight_NK = weight, .dy_TN = y, .weight_NK = weight}, stream); },
      "matmul_backward: x_TK is absent, expected f32[4, 8]"));
  EXPECT_TRUE(rejects([&] { matmul_backward({.dx_TK = x, .dy_TN = y, .x_TK = x}, stream); },
                      "matmul_backward: weight_NK is absent, expected f32[6, 8]"));
}

TEST(MatmulContract, RefusesRunsThatDoNotFit) {
  const auto f32 = [](std::initializer_list<std::int64_t> dims) {
    return TestTensor({dims, DType::f32}, Device::cpu);
  };
  const Stream stream;
  const TestTensor x = f32({12, 8});
  const TestTensor weight = f32({6, 8});
  const TestTensor y = f32({12, 6});
  const TestTensor dweight = f32({6, 8});
  const auto with = [&](std::int64_t read_step, std::int64_t written_step) {
    return [&, read_step, written_step] {
      matmul_forward({.y_TN = y,
                      .x_TK = x,
                      .weight_NK = weight,
                      .runs = {.count = 2, .read_step = read_step, .written_step = written_step}},
                     stream);
    };
  };
  EXPECT_NO_THROW(with(8, 8)());
  EXPECT_TRUE(rejects(with(8, 6), "matmul_forward: runs of rows overlap, or are not as long"));
  EXPECT_TRUE(rejects(with(4, 4), "matmul_forward: runs of rows overlap, or are not as long"));
  EXPECT_TRUE(rejects(with(12, 12), "matmul_forward: runs of rows overlap, or are not as long"));
  EXPECT_TRUE(rejects(
      [&] {
        matmul_backward({.dweight_NK = dweight,
                         .dy_TN = y,
                         .x_TK = x,
                         .runs = {.count = 2, .read_step = 6, .written_step = 6}},
                        stream);
      },
      "matmul_backward: dweight takes all rows, and there are runs of them"));
}

TEST(MatmulContract, RefusesADweightThatWouldRoundTheSums) {
  const Stream stream;
  const auto bf16_tensor = [](std::initializer_list<std::int64_t> dims) {
    return TestTensor({dims, DType::bf16}, Device::cpu);
  };
  const TestTensor x = bf16_tensor({4, 8});
  const TestTensor dy = bf16_tensor({4, 6});
  const TestTensor dweight = bf16_tensor({6, 8});
  EXPECT_TRUE(
      rejects([&] { matmul_backward({.dweight_NK = dweight, .dy_TN = dy, .x_TK = x}, stream); },
              "matmul_backward: dweight_NK is bf16[6, 8], expected f32[6, 8]"));
}

// A line a shape, however often it is asked for, with the algorithm.
TEST(MatmulChoices, AreThoseOfTheShapesThatWereMultiplied) {
  const Target target{Device::cuda, DType::bf16};
  if (const std::string reason = skip_reason(target); !reason.empty()) {
    GTEST_SKIP() << reason;
  }
  if (device_info(Device::cuda).simulated) {
    GTEST_SKIP() << "a simulated GPU has no library that chooses";
  }
  const OwnedStream stream(target.device);
  const TestTensor x({{24, 64}, DType::bf16}, target.device, random_normal(24 * 64, "x"));
  const TestTensor weight({{40, 64}, DType::bf16}, target.device, random_normal(40 * 64, "w"));
  const TestTensor y({{24, 40}, DType::bf16}, target.device);
  const auto count = [] {
    const std::vector<std::string> lines = kernels::matmul_choices(Device::cuda);
    return std::count_if(lines.begin(), lines.end(), [](const std::string& line) {
      return line.rfind("tn 40x24x64 bf16 to bf16: algorithm ", 0) == 0;
    });
  };
  for (int i = 0; i < 2; ++i) {
    matmul_forward({.y_TN = y, .x_TK = x, .weight_NK = weight}, stream.view());
    EXPECT_EQ(count(), 1);
  }
  synchronize(stream.view());
}

}  // namespace
}  // namespace memphis::test
