// SPDX-License-Identifier: Apache-2.0
//
// The op is three others in one: it is held to their bits, and they to double-precision naive code.
#include "kernels/experts/experts.h"

#include <cmath>

#include <gtest/gtest.h>
#include <omp.h>

#include "bench/experts/experts_operands.h"
#include "kernels/geglu/geglu.h"
#include "kernels/grouped_matmul/grouped_matmul.h"
#include "tests/kernels/drawn_routing.h"
#include "tests/support/op_test.h"

namespace memphis::test {
namespace {

class ExpertsTest : public OpTest<ExpertsCase> {
 protected:
  void SetUp() override {
    OpTest::SetUp();
    const bool tensor_cores = target().device == Device::cuda && target().dtype == DType::bf16;
    if (!IsSkipped() && tensor_cores && (op_case().D % 8 != 0 || op_case().F % 8 != 0)) {
      GTEST_SKIP() << "widths that are no multiple of 8 are refused on the GPU in bf16";
    }
  }
};

void forward_in_three(const ExpertsOperands& o, Stream stream) {
  kernels::grouped_matmul_forward(
      {.y_RN = o.gate_up, .x_RK = o.x, .weight_ENK = o.up_weight, .offsets_E1 = o.offsets}, stream);
  kernels::geglu_forward(
      {.y_RF = o.hidden, .gate_up_R2F = o.gate_up, .gates_TK = o.gates, .source_R = o.source},
      stream);
  kernels::grouped_matmul_forward(
      {.y_RN = o.y, .x_RK = o.hidden, .weight_ENK = o.down_weight, .offsets_E1 = o.offsets},
      stream);
}

void backward_in_three(const ExpertsOperands& o, Stream stream) {
  kernels::grouped_matmul_backward({.dx_RK = o.dhidden,
                                    .dweight_ENK = o.ddown_weight,
                                    .dy_RN = o.dy,
                                    .x_RK = o.hidden,
                                    .weight_ENK = o.down_weight,
                                    .offsets_E1 = o.offsets},
                                   stream);
  kernels::geglu_backward({.dgate_up_R2F = o.gate_up,
                           .dgates_TK = o.dgates,
                           .dy_RF = o.dhidden,
                           .gate_up_R2F = o.gate_up,
                           .gates_TK = o.gates,
                           .source_R = o.source},
                          stream);
  kernels::grouped_matmul_backward({.dx_RK = o.dx,
                                    .dweight_ENK = o.dup_weight,
                                    .dy_RN = o.gate_up,
                                    .x_RK = o.x,
                                    .weight_ENK = o.up_weight,
                                    .offsets_E1 = o.offsets},
                                   stream);
}

// What the gradients of the expert gates are sums of, and how well a sum in f32 can be known.
testing::AssertionResult are_sums(const ExpertsCase& c,
                                  const std::vector<double>& dgates,
                                  const std::vector<double>& dhidden,
                                  const std::vector<double>& gate_up) {
  const auto R = static_cast<std::size_t>(c.R());
  const auto F = static_cast<std::size_t>(c.F);
  struct Sums {
    std::vector<double> values;
    std::vector<double> sizes;  // without regard to sign: a sum may leave little of its terms
  };
  const auto sum = [&]<class T>(const std::vector<double>& dy, const std::vector<double>& gates) {
    Sums sums{.values = std::vector<double>(R), .sizes = std::vector<double>(R)};
    for (std::size_t r = 0; r < R; ++r) {
      T total = 0;
      T size = 0;
      for (std::size_t f = 0; f < F; ++f) {
        const T x = static_cast<T>(gates[r * 2 * F + f]);
        const T u = std::sqrt(static_cast<T>(2 / 3.141592653589793238L)) *
                    (x + static_cast<T>(0.044715L) * x * x * x);
        const T term = static_cast<T>(dy[r * F + f]) * (x / 2 * (1 + std::tanh(u))) *
                       static_cast<T>(gates[r * 2 * F + F + f]);
        total += term;
        size += std::abs(term);
      }
      sums.values[R - 1 - r] = static_cast<double>(total);  // source is reversed
      sums.sizes[R - 1 - r] = static_cast<double>(size);
    }
    return sums;
  };
  const Sums exact = sum.template operator()<Exact>(dhidden, gate_up);
  const auto rough = [&](int draw) {
    const auto moved = [&](const std::vector<double>& values) {
      return perturbed(DType::bf16, values, draw);
    };
    return sum.template operator()<float>(moved(dhidden), moved(gate_up)).values;
  };
  Reference reference{.exact = exact.values, .naive = draws_for(R, 1, rough), .terms = exact.sizes};
  // The exponential and the reciprocal of the special-function unit are off by up to 2^-22 and 2^-23 of
  // themselves (PTX ISA, ex2.approx and rcp.approx), and so is each term (kernels/geglu/gelu_gpu.h).
  std::vector<double>& bent = reference.naive.emplace_back(reference.exact);
  for (std::size_t r = 0; r < R; ++r) {
    bent[r] += std::ldexp(reference.terms[r], -22);
  }
  return close_to(dgates, reference, DType::f32, 1);
}

TEST_P(ExpertsTest, HasTheBitsOfTheThreeOps) {
  const OwnedStream stream(target().device);
  const ExpertsOperands fused(op_case(), target());
  const ExpertsOperands apart(op_case(), target());
  const auto same = [&](const TestTensor& a, const TestTensor& b) {
    return a.bytes(stream.view()) == b.bytes(stream.view());
  };
  kernels::experts_forward(fused.forward(), stream.view());
  forward_in_three(apart, stream.view());
  EXPECT_TRUE(same(fused.gate_up, apart.gate_up));
  EXPECT_TRUE(same(fused.hidden, apart.hidden));
  EXPECT_TRUE(same(fused.y, apart.y));

  const std::vector<double> gate_up = apart.gate_up.values(stream.view());
  kernels::experts_backward(fused.backward(), stream.view());
  backward_in_three(apart, stream.view());
  EXPECT_TRUE(same(fused.dx, apart.dx));
  EXPECT_TRUE(same(fused.gate_up, apart.gate_up));
  if (target().device == Device::cuda && target().dtype == DType::bf16) {  // in parts, on Hopper
    EXPECT_TRUE(are_sums(op_case(),
                         fused.dgates.values(stream.view()),
                         apart.dhidden.values(stream.view()),
                         gate_up));
  } else {
    EXPECT_TRUE(same(fused.dgates, apart.dgates));
  }
  EXPECT_TRUE(same(fused.dup_weight, apart.dup_weight));
  EXPECT_TRUE(same(fused.ddown_weight, apart.ddown_weight));
}

TEST_P(ExpertsTest, ForwardWithoutTheLastProductHasTheBitsOfTheOthers) {
  const OwnedStream stream(target().device);
  const ExpertsOperands whole(op_case(), target());
  const ExpertsOperands part(op_case(), target());
  const auto untouched = part.y.bytes(stream.view());
  kernels::experts_forward(whole.forward(), stream.view());
  kernels::ExpertsForward op = part.forward();
  op.y_RD = {};
  kernels::experts_forward(op, stream.view());
  EXPECT_EQ(whole.gate_up.bytes(stream.view()), part.gate_up.bytes(stream.view()));
  EXPECT_EQ(whole.hidden.bytes(stream.view()), part.hidden.bytes(stream.view()));
  EXPECT_EQ(part.y.bytes(stream.view()), untouched);
}

TEST_P(ExpertsTest, BackwardInTwoPartsHasTheBitsOfOne) {
  const OwnedStream stream(target().device);
  const ExpertsOperands together(op_case(), target());
  const ExpertsOperands apart(op_case(), target());
  const auto same = [&](const TestTensor& a, const TestTensor& b) {
    return a.bytes(stream.view()) == b.bytes(stream.view());
  };
  kernels::experts_forward(together.forward(), stream.view());
  kernels::experts_backward(together.backward(), stream.view());

  kernels::experts_forward(apart.forward(), stream.view());
  const auto up_before = apart.dup_weight.bytes(stream.view());
  const auto down_before = apart.ddown_weight.bytes(stream.view());
  kernels::experts_backward(apart.backward_inputs(), stream.view());
  EXPECT_TRUE(same(together.dx, apart.dx));
  EXPECT_TRUE(same(together.dgates, apart.dgates));
  EXPECT_TRUE(same(together.gate_up, apart.gate_up));
  EXPECT_EQ(apart.dup_weight.bytes(stream.view()), up_before);
  EXPECT_EQ(apart.ddown_weight.bytes(stream.view()), down_before);

  const auto dx_before = apart.dx.bytes(stream.view());
  kernels::experts_backward_weights(apart.backward_weights(), stream.view());
  EXPECT_TRUE(same(together.dup_weight, apart.dup_weight));
  EXPECT_TRUE(same(together.ddown_weight, apart.ddown_weight));
  EXPECT_EQ(apart.dx.bytes(stream.view()), dx_before);
  EXPECT_TRUE(same(together.gate_up, apart.gate_up)) << "is read by a later call, too";
}

TEST_P(ExpertsTest, WritesTheGradientsOfTheWeightsThatItWouldAddToZeros) {
  const OwnedStream stream(target().device);
  const ExpertsOperands o(op_case(), target());
  const TensorSpec up = o.dup_weight.view().spec();
  const TensorSpec down = o.ddown_weight.view().spec();
  const auto zeros = [&](const TensorSpec& spec) {
    return TestTensor(
        spec, target().device, std::vector<double>(static_cast<std::size_t>(spec.num_elements())));
  };
  const TestTensor added_up = zeros(up);
  const TestTensor added_down = zeros(down);
  const TestTensor written_up(up, target().device);  // NaN: they must not be read
  const TestTensor written_down(down, target().device);
  const TestTensor later_up(up, target().device);
  const TestTensor later_down(down, target().device);

  kernels::ExpertsBackward op = o.backward();
  op.dgate_up_weight_EFD = added_up;
  op.ddown_weight_EDF = added_down;
  kernels::experts_forward(o.forward(), stream.view());
  kernels::experts_backward(op, stream.view());
  op.dgate_up_weight_EFD = written_up;
  op.ddown_weight_EDF = written_down;
  op.weight_gradient = kernels::WeightGradient::write;
  kernels::experts_forward(o.forward(), stream.view());  // backward used gate_up up
  kernels::experts_backward(op, stream.view());
  kernels::ExpertsBackwardWeights later = o.backward_weights();
  later.dgate_up_weight_EFD = later_up;
  later.ddown_weight_EDF = later_down;
  later.weight_gradient = kernels::WeightGradient::write;
  kernels::experts_backward_weights(later, stream.view());

  const auto values = [&](const TestTensor& sums) {
    return test::without_subnormals(sums.values(stream.view()));
  };
  EXPECT_EQ(values(written_up), values(added_up));
  EXPECT_EQ(values(written_down), values(added_down));
  EXPECT_EQ(values(later_up), values(added_up));
  EXPECT_EQ(values(later_down), values(added_down));
}

TEST_P(ExpertsTest, BitsDoNotDependOnTheNumberOfThreads) {
  if (target().device != Device::cpu) {
    GTEST_SKIP() << "threads are the CPU's";
  }
  const OwnedStream stream(target().device);
  const ExpertsOperands one(op_case(), target());
  const ExpertsOperands many(op_case(), target());
  const int threads = omp_get_max_threads();
  omp_set_num_threads(1);
  kernels::experts_forward(one.forward(), stream.view());
  kernels::experts_backward(one.backward(), stream.view());
  omp_set_num_threads(3);
  kernels::experts_forward(many.forward(), stream.view());
  kernels::experts_backward(many.backward(), stream.view());
  omp_set_num_threads(threads);
  EXPECT_EQ(one.y.bytes(stream.view()), many.y.bytes(stream.view()));
  EXPECT_EQ(one.dx.bytes(stream.view()), many.dx.bytes(stream.view()));
  EXPECT_EQ(one.dup_weight.bytes(stream.view()), many.dup_weight.bytes(stream.view()));
  EXPECT_EQ(one.ddown_weight.bytes(stream.view()), many.ddown_weight.bytes(stream.view()));
  // A second time, alone.
  omp_set_num_threads(1);
  kernels::experts_backward_weights(one.backward_weights(), stream.view());
  omp_set_num_threads(3);
  kernels::experts_backward_weights(many.backward_weights(), stream.view());
  omp_set_num_threads(threads);
  EXPECT_EQ(one.dup_weight.bytes(stream.view()), many.dup_weight.bytes(stream.view()));
  EXPECT_EQ(one.ddown_weight.bytes(stream.view()), many.ddown_weight.bytes(stream.view()));
}

auto cases_of(bool cpu_tiles, bool hopper_tiles) {
  std::vector<ExpertsCase> cases = experts_cases();
  std::erase_if(cases, [&](const ExpertsCase& c) {
    return c.cpu_tiles != cpu_tiles || c.hopper_tiles != hopper_tiles;
  });
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Cases,
                         ExpertsTest,
                         on_all_targets(cases_of(false, false)),
                         name_of_op_test<ExpertsCase>);
INSTANTIATE_TEST_SUITE_P(HopperTiles,
                         ExpertsTest,
                         testing::Combine(testing::ValuesIn(cases_of(false, true)),
                                          testing::Values(Target{Device::cuda, DType::bf16})),
                         name_of_op_test<ExpertsCase>);
INSTANTIATE_TEST_SUITE_P(
    Drawn,
    ExpertsTest,
    testing::Combine(testing::ValuesIn(drawn_cases("experts", &ExpertsCase::D, &ExpertsCase::F)),
                     testing::Values(Target{Device::cuda, DType::bf16})),
    name_of_op_test<ExpertsCase>);
INSTANTIATE_TEST_SUITE_P(CpuTiles,
                         ExpertsTest,
                         testing::Combine(testing::ValuesIn(cases_of(true, false)),
                                          testing::Values(Target{Device::cpu, DType::f64},
                                                          Target{Device::cpu, DType::f32},
                                                          Target{Device::cpu, DType::bf16})),
                         name_of_op_test<ExpertsCase>);

TEST(ExpertsContract, NamesTheOperandThatIsWrong) {
  const Target target{Device::cpu, DType::f32};
  const ExpertsOperands o(experts_cases()[3], target);
  kernels::ExpertsForward op = o.forward();
  op.hidden_RF = o.y;
  EXPECT_NE(error_text<ContractError>([&] { kernels::experts_forward(op, {}); }).find("hidden_RF"),
            std::string::npos);
  kernels::ExpertsForward unsorted = o.forward();
  const TestTensor offsets({{7}, DType::i32}, Device::cpu, {0, 5, 3, 5, 5, 14, 14});
  unsorted.offsets_E1 = offsets;
  EXPECT_NE(error_text<ContractError>([&] {
              kernels::experts_forward(unsorted, {});
            }).find("does not ascend"),
            std::string::npos);
}

TEST(ExpertsContract, GradientsOfBothWeightsOrOfNeither) {
  const ExpertsOperands o(experts_cases()[3], {Device::cpu, DType::f32});
  kernels::ExpertsBackward only_up = o.backward();
  only_up.ddown_weight_EDF = {};
  EXPECT_TRUE(rejects([&] { kernels::experts_backward(only_up, {}); }, "ddown_weight_EDF"));
  kernels::ExpertsBackward only_down = o.backward();
  only_down.dgate_up_weight_EFD = {};
  EXPECT_TRUE(rejects([&] { kernels::experts_backward(only_down, {}); }, "dgate_up_weight_EFD"));

  kernels::ExpertsBackwardWeights weights = o.backward_weights();
  weights.dgate_up_weight_EFD = {};
  EXPECT_TRUE(
      rejects([&] { kernels::experts_backward_weights(weights, {}); }, "dgate_up_weight_EFD"));
  weights = o.backward_weights();
  weights.dgate_up_R2F = o.hidden;
  EXPECT_TRUE(rejects([&] { kernels::experts_backward_weights(weights, {}); }, "dgate_up_R2F"));
}

}  // namespace
}  // namespace memphis::test
