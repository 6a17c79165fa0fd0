// SPDX-License-Identifier: Apache-2.0
#include "kernels/grouped_matmul/grouped_matmul.h"

#include <algorithm>
#include <array>
#include <limits>

#include <gtest/gtest.h>

#include "bench/grouped_matmul/grouped_matmul_cases.h"
#include "kernels/visit.h"
#include "tests/kernels/drawn_routing.h"
#include "tests/kernels/matmul/naive_product.h"
#include "tests/support/finite_difference.h"
#include "tests/support/op_test.h"
#include "tests/support/test_tensor.h"
#include "tests/support/tolerance.h"

namespace memphis::test {
namespace {

using kernels::grouped_matmul_backward;
using kernels::grouped_matmul_forward;
using Values = std::vector<double>;

Values offsets_of(const GroupedMatmulCase& c) {
  Values offsets = {0};
  for (const std::int64_t count : c.counts) {
    offsets.push_back(offsets.back() + static_cast<double>(count));
  }
  return offsets;
}

struct Inputs {
  Values x;
  Values weight;
  Values dy;
  Values dweight;  // what the output holds before

  Inputs(const GroupedMatmulCase& c, DType dtype)
      : x(rounded_to(dtype, random_normal(c.R() * c.K, "x"))),
        weight(rounded_to(dtype, random_normal(c.E() * c.N * c.K, "weight"))),
        dy(rounded_to(dtype, random_normal(c.R() * c.N, "dy"))),
        dweight(
            rounded_to(accumulation_dtype(dtype), random_normal(c.E() * c.N * c.K, "dweight"))) {}
};

// Elements [begin, begin + count) of `values`.
Values part(const Values& values, std::int64_t begin, std::int64_t count) {
  return {values.begin() + begin, values.begin() + begin + count};
}

class GroupedMatmulTest : public OpTest<GroupedMatmulCase> {
 protected:
  void SetUp() override {
    OpTest::SetUp();
    const bool tensor_cores = target().device == Device::cuda && target().dtype == DType::bf16;
    if (!IsSkipped() && tensor_cores && !fits_tensor_cores(op_case())) {
      GTEST_SKIP() << "widths that are no multiple of 8 are refused on the GPU in bf16";
    }
  }
  TestTensor tensor(const TensorSpec& spec) const { return {spec, target().device}; }
  TestTensor tensor(const TensorSpec& spec, const Values& values) const {
    return {spec, target().device, values};
  }
  TensorSpec rows_of(std::int64_t width) const { return {{op_case().R(), width}, target().dtype}; }
  TensorSpec weights(DType dtype) const {
    return {{op_case().E(), op_case().N, op_case().K}, dtype};
  }
  TestTensor offsets() const {
    return tensor({{op_case().E() + 1}, DType::i32}, offsets_of(op_case()));
  }
  // Holds forward to each expert's product.
  void expect_products() const;
  // Calls check(expert, first row, rows): each expert is held to its own tolerance.
  template <class Check>
  void for_each_expert(const Check& check) const {
    std::int64_t first_row = 0;
    for (std::int64_t e = 0; e < op_case().E(); ++e) {
      SCOPED_TRACE("expert " + std::to_string(e));
      const std::int64_t rows = op_case().counts[static_cast<std::size_t>(e)];
      check(e, first_row, rows);
      first_row += rows;
    }
  }
};

void GroupedMatmulTest::expect_products() const {
  const std::int64_t N = op_case().N;
  const std::int64_t K = op_case().K;
  const OwnedStream stream(target().device);
  const Inputs in(op_case(), target().dtype);
  const TestTensor x = tensor(rows_of(K), in.x);
  const TestTensor weight = tensor(weights(target().dtype), in.weight);
  const TestTensor y = tensor(rows_of(N));
  const TestTensor ends = offsets();
  grouped_matmul_forward({.y_RN = y, .x_RK = x, .weight_ENK = weight, .offsets_E1 = ends},
                         stream.view());
  const Values actual = y.values(stream.view());
  kernels::visit_float(target().dtype, [&]<class V>() {
    for_each_expert([&](std::int64_t e, std::int64_t first, std::int64_t rows) {
      EXPECT_TRUE(is_product<V>(target().device,
                                forward_walk(rows, N, K),
                                part(actual, first * N, rows * N),
                                part(in.x, first * K, rows * K),
                                part(in.weight, e * N * K, N * K)));
    });
  });
}

TEST_P(GroupedMatmulTest, ForwardIsEachExpertsProduct) {
  expect_products();
}

TEST_P(GroupedMatmulTest, BackwardWritesDxAndAddsToDweight) {
  const std::int64_t N = op_case().N;
  const std::int64_t K = op_case().K;
  const OwnedStream stream(target().device);
  const Inputs in(op_case(), target().dtype);
  const TestTensor x = tensor(rows_of(K), in.x);
  const TestTensor weight = tensor(weights(target().dtype), in.weight);
  const TestTensor dy = tensor(rows_of(N), in.dy);
  const TestTensor dx = tensor(rows_of(K));  // NaN: it must not be read
  const TestTensor dweight = tensor(weights(accumulation_dtype(target().dtype)), in.dweight);
  const TestTensor ends = offsets();
  grouped_matmul_backward({.dx_RK = dx,
                           .dweight_ENK = dweight,
                           .dy_RN = dy,
                           .x_RK = x,
                           .weight_ENK = weight,
                           .offsets_E1 = ends},
                          stream.view());
  const Values actual_dx = dx.values(stream.view());
  const Values actual_dweight = dweight.values(stream.view());
  kernels::visit_float(target().dtype, [&]<class V>() {
    for_each_expert([&](std::int64_t e, std::int64_t first, std::int64_t rows) {
      const Values expert_dy = part(in.dy, first * N, rows * N);
      const Values before = part(in.dweight, e * N * K, N * K);
      const Values after = part(actual_dweight, e * N * K, N * K);
      EXPECT_TRUE(is_product<V>(target().device,
                                dx_walk(rows, N, K),
                                part(actual_dx, first * K, rows * K),
                                expert_dy,
                                part(in.weight, e * N * K, N * K)));
      EXPECT_TRUE((is_product<V, Accumulator<V>>(target().device,
                                                 dweight_walk(rows, N, K),
                                                 after,
                                                 expert_dy,
                                                 part(in.x, first * K, rows * K),
                                                 before)));
      if (rows == 0) {
        EXPECT_EQ(after, before) << "an empty expert's dweight changed";
      }
    });
  });
}

TEST_P(GroupedMatmulTest, WritesTheDweightThatItWouldAddToZeros) {
  const OwnedStream stream(target().device);
  const Inputs in(op_case(), target().dtype);
  const TensorSpec sums = weights(accumulation_dtype(target().dtype));
  const TestTensor x = tensor(rows_of(op_case().K), in.x);
  const TestTensor dy = tensor(rows_of(op_case().N), in.dy);
  const TestTensor added = tensor(sums, Values(in.dweight.size()));
  const TestTensor written = tensor(sums);  // NaN: it must not be read
  const TestTensor ends = offsets();
  kernels::GroupedMatmulBackward op = {
      .dweight_ENK = added, .dy_RN = dy, .x_RK = x, .offsets_E1 = ends};
  grouped_matmul_backward(op, stream.view());
  op.dweight_ENK = written;
  op.weight_gradient = kernels::WeightGradient::write;
  grouped_matmul_backward(op, stream.view());
  EXPECT_EQ(test::without_subnormals(written.values(stream.view())),
            test::without_subnormals(added.values(stream.view())));
}

TEST_P(GroupedMatmulTest, AnAbsentOutputChangesNoBitOfTheOther) {
  const std::int64_t N = op_case().N;
  const std::int64_t K = op_case().K;
  const OwnedStream stream(target().device);
  const Inputs in(op_case(), target().dtype);
  const TensorSpec sums = weights(accumulation_dtype(target().dtype));
  const TestTensor x = tensor(rows_of(K), in.x);
  const TestTensor weight = tensor(weights(target().dtype), in.weight);
  const TestTensor dy = tensor(rows_of(N), in.dy);
  const TestTensor both_dx = tensor(rows_of(K));
  const TestTensor both_dweight = tensor(sums, in.dweight);
  const TestTensor dx = tensor(rows_of(K));
  const TestTensor dweight = tensor(sums, in.dweight);
  const TestTensor ends = offsets();
  grouped_matmul_backward({.dx_RK = both_dx,
                           .dweight_ENK = both_dweight,
                           .dy_RN = dy,
                           .x_RK = x,
                           .weight_ENK = weight,
                           .offsets_E1 = ends},
                          stream.view());
  grouped_matmul_backward({.dx_RK = dx, .dy_RN = dy, .weight_ENK = weight, .offsets_E1 = ends},
                          stream.view());
  grouped_matmul_backward({.dweight_ENK = dweight, .dy_RN = dy, .x_RK = x, .offsets_E1 = ends},
                          stream.view());
  EXPECT_EQ(dx.bytes(stream.view()), both_dx.bytes(stream.view()));
  EXPECT_EQ(dweight.bytes(stream.view()), both_dweight.bytes(stream.view()));
}

// There are fewer beside a collective.
TEST_P(GroupedMatmulTest, BitsDoNotDependOnTheMultiprocessorsThatAreFree) {
  if (target().device == Device::cpu) {
    GTEST_SKIP() << "a processor has none";
  }
  const std::int64_t N = op_case().N;
  const std::int64_t K = op_case().K;
  const OwnedStream stream(target().device);
  const Inputs in(op_case(), target().dtype);
  const TensorSpec sums = weights(accumulation_dtype(target().dtype));
  const TestTensor x = tensor(rows_of(K), in.x);
  const TestTensor weight = tensor(weights(target().dtype), in.weight);
  const TestTensor dy = tensor(rows_of(N), in.dy);
  const TestTensor ends = offsets();
  const auto bits = [&] {
    const TestTensor y = tensor(rows_of(N));
    const TestTensor dx = tensor(rows_of(K));
    const TestTensor dweight = tensor(sums, in.dweight);
    grouped_matmul_forward({.y_RN = y, .x_RK = x, .weight_ENK = weight, .offsets_E1 = ends},
                           stream.view());
    grouped_matmul_backward({.dx_RK = dx,
                             .dweight_ENK = dweight,
                             .dy_RN = dy,
                             .x_RK = x,
                             .weight_ENK = weight,
                             .offsets_E1 = ends},
                            stream.view());
    return std::array{
        y.bytes(stream.view()), dx.bytes(stream.view()), dweight.bytes(stream.view())};
  };
  const auto all_free = bits();
  *stream.view().held_elsewhere = 8;
  EXPECT_EQ(bits(), all_free);
  *stream.view().held_elsewhere = 1000;  // more than there are
  EXPECT_EQ(bits(), all_free);
}

// A tile that an expert's rows do not fill has rows of the next one.
TEST_P(GroupedMatmulTest, NanStaysInItsExpert) {
  const std::int64_t N = op_case().N;
  const std::int64_t K = op_case().K;
  const OwnedStream stream(target().device);
  const Inputs clean(op_case(), target().dtype);
  const TestTensor ends = offsets();
  const TestTensor weight = tensor(weights(target().dtype), clean.weight);
  const auto run = [&](const Inputs& in) {
    const TestTensor x = tensor(rows_of(K), in.x);
    const TestTensor dy = tensor(rows_of(N), in.dy);
    const TestTensor y = tensor(rows_of(N));
    const TestTensor dx = tensor(rows_of(K));
    const TestTensor dweight = tensor(weights(accumulation_dtype(target().dtype)), in.dweight);
    grouped_matmul_forward({.y_RN = y, .x_RK = x, .weight_ENK = weight, .offsets_E1 = ends},
                           stream.view());
    grouped_matmul_backward({.dx_RK = dx,
                             .dweight_ENK = dweight,
                             .dy_RN = dy,
                             .x_RK = x,
                             .weight_ENK = weight,
                             .offsets_E1 = ends},
                            stream.view());
    return std::array{
        y.values(stream.view()), dx.values(stream.view()), dweight.values(stream.view())};
  };
  const auto expected = run(clean);
  for (const std::int64_t odd : {0, 1}) {
    Inputs in = clean;
    for_each_expert([&](std::int64_t e, std::int64_t first, std::int64_t rows) {
      if (e % 2 == odd) {
        std::fill_n(in.x.begin() + first * K, rows * K, std::numeric_limits<double>::quiet_NaN());
        std::fill_n(in.dy.begin() + first * N, rows * N, std::numeric_limits<double>::quiet_NaN());
      }
    });
    const auto actual = run(in);
    for_each_expert([&](std::int64_t e, std::int64_t first, std::int64_t rows) {
      if (e % 2 != odd) {
        EXPECT_EQ(part(actual[0], first * N, rows * N), part(expected[0], first * N, rows * N));
        EXPECT_EQ(part(actual[1], first * K, rows * K), part(expected[1], first * K, rows * K));
        EXPECT_EQ(part(actual[2], e * N * K, N * K), part(expected[2], e * N * K, N * K));
      }
    });
  }
}

TEST_P(GroupedMatmulTest, BitsDoNotDependOnTheNumberOfThreads) {
  if (target().device != Device::cpu) {
    GTEST_SKIP() << "threads are the CPU's";
  }
  const Stream stream;
  const Inputs in(op_case(), target().dtype);
  const TestTensor x = tensor(rows_of(op_case().K), in.x);
  const TestTensor weight = tensor(weights(target().dtype), in.weight);
  const TestTensor dy = tensor(rows_of(op_case().N), in.dy);
  const TestTensor ends = offsets();
  const auto bits = [&] {
    const TestTensor y = tensor(rows_of(op_case().N));
    const TestTensor dx = tensor(rows_of(op_case().K));
    const TestTensor dweight = tensor(weights(accumulation_dtype(target().dtype)), in.dweight);
    grouped_matmul_forward({.y_RN = y, .x_RK = x, .weight_ENK = weight, .offsets_E1 = ends},
                           stream);
    grouped_matmul_backward({.dx_RK = dx,
                             .dweight_ENK = dweight,
                             .dy_RN = dy,
                             .x_RK = x,
                             .weight_ENK = weight,
                             .offsets_E1 = ends},
                            stream);
    return std::tuple(y.bytes(stream), dx.bytes(stream), dweight.bytes(stream));
  };
  const auto of_all = bits();
  const OneThread one;
  EXPECT_EQ(of_all, bits());
}

auto cases_of(bool cpu_tiles, bool hopper_tiles) {
  std::vector<GroupedMatmulCase> cases = grouped_matmul_cases();
  std::erase_if(cases, [&](const GroupedMatmulCase& c) {
    return c.cpu_tiles != cpu_tiles || c.hopper_tiles != hopper_tiles;
  });
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Cases,
                         GroupedMatmulTest,
                         on_all_targets(cases_of(false, false)),
                         name_of_op_test<GroupedMatmulCase>);
INSTANTIATE_TEST_SUITE_P(HopperTiles,
                         GroupedMatmulTest,
                         testing::Combine(testing::ValuesIn(cases_of(false, true)),
                                          testing::Values(Target{Device::cuda, DType::bf16})),
                         name_of_op_test<GroupedMatmulCase>);
INSTANTIATE_TEST_SUITE_P(Drawn,
                         GroupedMatmulTest,
                         testing::Combine(testing::ValuesIn(drawn_cases("grouped_matmul",
                                                                        &GroupedMatmulCase::N,
                                                                        &GroupedMatmulCase::K)),
                                          testing::Values(Target{Device::cuda, DType::bf16})),
                         name_of_op_test<GroupedMatmulCase>);
INSTANTIATE_TEST_SUITE_P(CpuTiles,
                         GroupedMatmulTest,
                         testing::Combine(testing::ValuesIn(cases_of(true, false)),
                                          testing::Values(Target{Device::cpu, DType::f64},
                                                          Target{Device::cpu, DType::f32},
                                                          Target{Device::cpu, DType::bf16})),
                         name_of_op_test<GroupedMatmulCase>);

// More than the sixteen tiles down that the GPU takes before the next across.
class GroupedMatmulManyTiles : public GroupedMatmulTest {};

TEST_P(GroupedMatmulManyTiles, ForwardIsEachExpertsProduct) {
  expect_products();
}

INSTANTIATE_TEST_SUITE_P(Cases,
                         GroupedMatmulManyTiles,
                         on_all_targets(std::vector<GroupedMatmulCase>{
                             {.name = "many_tiles", .counts = {3, 2060}, .N = 136, .K = 8}}),
                         name_of_op_test<GroupedMatmulCase>);

TEST(GroupedMatmulGradient, AgreesWithFiniteDifferencesOfTheForward) {
  const GroupedMatmulCase c = {.name = "", .counts = {2, 0, 3}, .N = 3, .K = 4};
  const Inputs in(c, DType::f64);
  const Stream stream;
  const auto tensor = [](std::initializer_list<std::int64_t> dims, const Values& values) {
    return TestTensor({dims, DType::f64}, Device::cpu, values);
  };
  const TestTensor ends({{c.E() + 1}, DType::i32}, Device::cpu, offsets_of(c));
  // The scalar dy . y, whose gradients are what backward computes.
  const auto loss = [&](const Values& x_values, const Values& weight_values) {
    const TestTensor x = tensor({c.R(), c.K}, x_values);
    const TestTensor weight = tensor({c.E(), c.N, c.K}, weight_values);
    const TestTensor y({{c.R(), c.N}, DType::f64}, Device::cpu);
    grouped_matmul_forward({.y_RN = y, .x_RK = x, .weight_ENK = weight, .offsets_E1 = ends},
                           stream);
    return dot(y.values(stream), in.dy);
  };
  const TestTensor x = tensor({c.R(), c.K}, in.x);
  const TestTensor weight = tensor({c.E(), c.N, c.K}, in.weight);
  const TestTensor dy = tensor({c.R(), c.N}, in.dy);
  const TestTensor dx({{c.R(), c.K}, DType::f64}, Device::cpu);
  const TestTensor dweight = tensor({c.E(), c.N, c.K}, Values(in.dweight.size()));
  grouped_matmul_backward({.dx_RK = dx,
                           .dweight_ENK = dweight,
                           .dy_RN = dy,
                           .x_RK = x,
                           .weight_ENK = weight,
                           .offsets_E1 = ends},
                          stream);
  constexpr double kStep = 0.5;  // the loss is linear in each operand
  EXPECT_TRUE(is_gradient(
      dx.values(stream), [&](const Values& v) { return loss(v, in.weight); }, in.x, kStep));
  EXPECT_TRUE(is_gradient(
      dweight.values(stream), [&](const Values& v) { return loss(in.x, v); }, in.weight, kStep));
}

class GroupedMatmulContract : public testing::Test {
 protected:
  static TestTensor f32(std::initializer_list<std::int64_t> dims) {
    return {{dims, DType::f32}, Device::cpu};
  }
  static TestTensor i32(const Values& values) {
    return {{{static_cast<std::int64_t>(values.size())}, DType::i32}, Device::cpu, values};
  }
};

TEST_F(GroupedMatmulContract, RefusesOperandsThatDoNotFitAndNamesThem) {
  const Stream stream;
  const TestTensor x = f32({5, 8});
  const TestTensor y = f32({5, 6});
  const TestTensor weight = f32({2, 6, 8});
  const TestTensor ends = i32({0, 2, 5});
  const TestTensor one_expert = i32({0, 5});
  EXPECT_TRUE(rejects(
      [&] {
        grouped_matmul_forward(
            {.y_RN = y, .x_RK = x, .weight_ENK = weight, .offsets_E1 = one_expert}, stream);
      },
      "grouped_matmul_forward: offsets_E1 is i32[2], expected i32[3]"));
  EXPECT_TRUE(rejects(
      [&] {
        grouped_matmul_backward({.dx_RK = x, .dy_RN = y, .x_RK = x, .offsets_E1 = ends}, stream);
      },
      "grouped_matmul_backward: weight_ENK is absent, expected f32[2, 6, 8]"));
  EXPECT_TRUE(rejects(
      [&] {
        grouped_matmul_backward({.dweight_ENK = weight, .dy_RN = y, .offsets_E1 = ends}, stream);
      },
      "grouped_matmul_backward: x_RK is absent, expected f32[5, 8]"));
}

TEST_F(GroupedMatmulContract, RefusesOffsetsThatDoNotDivideTheRows) {
  const Stream stream;
  const TestTensor x = f32({5, 8});
  const TestTensor y = f32({5, 6});
  const TestTensor weight = f32({2, 6, 8});
  for (const Values& values : {Values{0, 2, 4}, Values{0, 6, 5}, Values{1, 2, 5}}) {
    const TestTensor ends = i32(values);
    EXPECT_TRUE(rejects(
        [&] {
          grouped_matmul_forward({.y_RN = y, .x_RK = x, .weight_ENK = weight, .offsets_E1 = ends},
                                 stream);
        },
        "offsets_E1 does not ascend from 0 to the 5 rows"));
  }
}

TEST_F(GroupedMatmulContract, RefusesWidthsThatTheTensorCoresCannotLoad) {
  const Target target = {Device::cuda, DType::bf16};
  const std::string reason = skip_reason(target);
  if (!reason.empty()) {
    GTEST_SKIP() << reason;
  }
  const OwnedStream stream(target.device);
  const TestTensor x({{5, 8}, target.dtype}, target.device);
  const TestTensor y({{5, 6}, target.dtype}, target.device);
  const TestTensor weight({{2, 6, 8}, target.dtype}, target.device);
  const TestTensor ends({{3}, DType::i32}, target.device, {0, 2, 5});
  EXPECT_TRUE(rejects(
      [&] {
        grouped_matmul_forward({.y_RN = y, .x_RK = x, .weight_ENK = weight, .offsets_E1 = ends},
                               stream.view());
      },
      "N 6 and K 8 are not both multiples of 8"));
}

}  // namespace
}  // namespace memphis::test
