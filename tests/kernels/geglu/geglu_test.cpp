// SPDX-License-Identifier: Apache-2.0
#include "kernels/geglu/geglu.h"

#include <cmath>
#include <limits>
#include <type_traits>

#include "bench/geglu/geglu_cases.h"
#include "kernels/visit.h"
#include "tests/support/finite_difference.h"
#include "tests/support/op_test.h"

namespace memphis::test {
namespace {

using kernels::geglu_backward;
using kernels::geglu_forward;
using Values = std::vector<double>;

// Inputs as the op sees them: rounded to the dtypes that they are stored in.
struct Inputs {
  Values gate_up;
  Values gates;   // of ones where the case has none
  Values source;  // a permutation
  Values dy;
};

Inputs draw(const GegluCase& c, DType dtype) {
  const std::int64_t R = c.num_rows();
  Inputs in;
  // 2.5 wide: gelu's tails, its minimum near -0.75 and its middle are all met.
  in.gate_up = rounded_to(dtype, random_normal(R * 2 * c.width, "gate_up", 2.5));
  in.gates = rounded_to(accumulation_dtype(dtype), random_normal(R, "gates"));
  if (!c.gated) {
    in.gates.assign(in.gates.size(), 1.0);
  }
  for (std::int64_t r = 0; r < R; ++r) {
    in.source.push_back(static_cast<double>(R - 1 - r));
  }
  in.dy = rounded_to(dtype, random_normal(R * c.width, "dy"));
  return in;
}

struct Results {
  Values y;
  Values dgate_up;
  Values dgates;
};

template <class T>
Results naive(const GegluCase& c, const Inputs& in) {
  using A = std::conditional_t<std::is_same_v<T, bf16>, float, T>;
  const auto F = static_cast<std::size_t>(c.width);
  const auto R = static_cast<std::size_t>(c.num_rows());
  Results out{.y = Values(R * F), .dgate_up = Values(2 * R * F), .dgates = Values(R)};
  const A root = std::sqrt(static_cast<A>(2) / static_cast<A>(3.141592653589793238462643L));
  const A cubic = static_cast<A>(0.044715L);
  for (std::size_t r = 0; r < R; ++r) {
    const auto a = static_cast<std::size_t>(in.source[r]);
    const A scale = static_cast<A>(in.gates[a]);
    A dgate_sum = 0;
    for (std::size_t f = 0; f < F; ++f) {
      const A x = static_cast<A>(in.gate_up[r * 2 * F + f]);
      const A up = static_cast<A>(in.gate_up[r * 2 * F + F + f]);
      const A dy = static_cast<A>(in.dy[r * F + f]);
      const A t = std::tanh(root * (x + cubic * x * x * x));
      const A gelu = x / 2 * (1 + t);
      const A slope = (1 + t) / 2 + x / 2 * (1 - t * t) * root * (1 + 3 * cubic * x * x);
      out.y[r * F + f] = static_cast<double>(static_cast<T>(gelu * up * scale));
      out.dgate_up[r * 2 * F + f] = static_cast<double>(static_cast<T>(scale * dy * up * slope));
      out.dgate_up[r * 2 * F + F + f] = static_cast<double>(static_cast<T>(scale * dy * gelu));
      dgate_sum += dy * gelu * up;
    }
    out.dgates[a] = static_cast<double>(dgate_sum);
  }
  return out;
}

Results run(const GegluCase& c, const Inputs& in, const Target& target) {
  const OwnedStream stream(target.device);
  const DType sums = accumulation_dtype(target.dtype);
  const std::int64_t R = c.num_rows();
  const TestTensor y({{R, c.width}, target.dtype}, target.device);
  const TestTensor dy({{R, c.width}, target.dtype}, target.device, in.dy);
  const TestTensor gate_up({{R, 2 * c.width}, target.dtype}, target.device, in.gate_up);
  const TestTensor dgate_up({{R, 2 * c.width}, target.dtype}, target.device);
  const TestTensor gates({{c.num_tokens, c.num_choices}, sums}, target.device, in.gates);
  const TestTensor dgates({{c.num_tokens, c.num_choices}, sums}, target.device);
  const TestTensor source({{R}, DType::i32}, target.device, in.source);
  const auto if_gated = [&](const TestTensor& tensor) {
    return c.gated ? tensor.view() : TensorView{};
  };
  geglu_forward({.y_RF = y,
                 .gate_up_R2F = gate_up,
                 .gates_TK = if_gated(gates),
                 .source_R = if_gated(source)},
                stream.view());
  const TestTensor& gradient = c.in_place ? gate_up : dgate_up;
  geglu_backward({.dgate_up_R2F = gradient,
                  .dgates_TK = if_gated(dgates),
                  .dy_RF = dy,
                  .gate_up_R2F = gate_up,
                  .gates_TK = if_gated(gates),
                  .source_R = if_gated(source)},
                 stream.view());
  return {.y = y.values(stream.view()),
          .dgate_up = gradient.values(stream.view()),
          .dgates = c.gated ? dgates.values(stream.view()) : Values{}};
}

class Geglu : public OpTest<GegluCase> {};
INSTANTIATE_TEST_SUITE_P(Cases, Geglu, on_all_targets(geglu_cases()), name_of_op_test<GegluCase>);

TEST_P(Geglu, IsAsCloseAsNaive) {
  const GegluCase& c = op_case();
  const Inputs in = draw(c, target().dtype);
  const Results exact = naive<long double>(c, in);
  std::vector<Results> rough;
  kernels::visit_float(target().dtype, [&]<class T>() {
    rough = draws_for(exact.dgates.size(), 2, [&](int draw) {
      Inputs moved = in;
      moved.gate_up = perturbed(target().dtype, in.gate_up, draw);
      moved.dy = perturbed(target().dtype, in.dy, draw);
      return naive<T>(c, moved);
    });
  });
  const Results actual = run(c, in, target());
  const auto compare = [&](Values Results::*member, DType dtype, std::int64_t row_length) {
    return close_to(actual.*member, reference_of(exact, rough, member), dtype, row_length);
  };
  EXPECT_TRUE(compare(&Results::y, target().dtype, c.width));
  EXPECT_TRUE(compare(&Results::dgate_up, target().dtype, 2 * c.width));
  if (c.gated) {
    EXPECT_TRUE(compare(&Results::dgates, accumulation_dtype(target().dtype), c.num_rows()));
  }
}

TEST_P(Geglu, RepeatsItsBits) {
  const Inputs in = draw(op_case(), target().dtype);
  const Results first = run(op_case(), in, target());
  const OneThread one_thread;
  const Results second = run(op_case(), in, target());
  EXPECT_EQ(second.y, first.y);
  EXPECT_EQ(second.dgate_up, first.dgate_up);
  EXPECT_EQ(second.dgates, first.dgates);
}

TEST_P(Geglu, KeepsNan) {
  const GegluCase& c = op_case();
  if (c.num_rows() * c.width == 0) {
    return;
  }
  Inputs in = draw(c, target().dtype);
  in.gate_up[0] = std::numeric_limits<double>::quiet_NaN();
  const Results actual = run(c, in, target());
  EXPECT_TRUE(std::isnan(actual.y[0]));
  EXPECT_TRUE(std::isnan(actual.dgate_up[0]));
}

TEST(GegluGradient, IsTheDifferenceQuotient) {
  const GegluCase c{.name = "", .num_tokens = 2, .num_choices = 2, .width = 7};
  const Target target{Device::cpu, DType::f64};
  const Inputs in = draw(c, DType::f64);
  const Results actual = run(c, in, target);
  const auto loss = [&](Values Inputs::*member) {
    return [&, member](const Values& values) {
      Inputs moved = in;
      moved.*member = values;
      return dot(run(c, moved, target).y, in.dy);
    };
  };
  EXPECT_TRUE(is_gradient(actual.dgate_up, loss(&Inputs::gate_up), in.gate_up));
  EXPECT_TRUE(is_gradient(actual.dgates, loss(&Inputs::gates), in.gates));
}

TEST(GegluContract, NamesTheOperand) {
  const TestTensor y({{4, 8}, DType::f32}, Device::cpu);
  const TestTensor gate_up({{4, 16}, DType::f32}, Device::cpu);
  const TestTensor gates({{2, 2}, DType::f32}, Device::cpu);
  const TestTensor three_gates({{3, 1}, DType::f32}, Device::cpu);
  const TestTensor source({{4}, DType::i32}, Device::cpu);
  const Stream stream;
  kernels::GegluForward bad{.y_RF = y, .gate_up_R2F = y};
  EXPECT_TRUE(
      rejects([&] { geglu_forward(bad, stream); }, "geglu_forward: gate_up_R2F is f32[4, 8]"));
  bad.gate_up_R2F = gate_up;
  bad.gates_TK = gates;
  EXPECT_TRUE(
      rejects([&] { geglu_forward(bad, stream); }, "one of gates_TK and source_R is absent"));
  bad.gates_TK = three_gates;
  bad.source_R = source;
  EXPECT_TRUE(rejects([&] { geglu_forward(bad, stream); }, "gates_TK is f32[3, 1] for 4 rows"));
  const kernels::GegluBackward backward{.dgate_up_R2F = gate_up,
                                        .dy_RF = y,
                                        .gate_up_R2F = gate_up,
                                        .gates_TK = gates,
                                        .source_R = source};
  EXPECT_TRUE(rejects([&] { geglu_backward(backward, stream); },
                      "one of gates_TK and dgates_TK is absent"));
}

}  // namespace
}  // namespace memphis::test
