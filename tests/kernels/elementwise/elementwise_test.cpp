// SPDX-License-Identifier: Apache-2.0
#include "kernels/elementwise/elementwise.h"

#include <algorithm>
#include <cmath>

#include "bench/elementwise/elementwise_cases.h"
#include "kernels/visit.h"
#include "tests/support/finite_difference.h"
#include "tests/support/op_test.h"

namespace memphis::test {
namespace {

using Values = std::vector<double>;

Values draw(const ElementwiseCase& c, DType dtype, std::string_view name) {
  return rounded_to(dtype, random_normal(std::max(c.num_rows * c.width, kReferenceElements), name));
}

std::int64_t count(const ElementwiseCase& c) {
  return c.num_rows * c.width;
}

TensorSpec spec_of(const ElementwiseCase& c, DType dtype) {
  return {{c.num_rows, c.width}, dtype};
}

// y_i = map(a_i, b_i), computed in the accumulator of T and stored as Out.
template <class T, class Out, class Map>
Values naive_map(const Values& a, const Values& b, const Map& map) {
  using A = NaiveAccumulator<T>;
  Values y;
  for (std::size_t i = 0; i < a.size(); ++i) {
    y.push_back(
        static_cast<double>(static_cast<Out>(map(static_cast<A>(a[i]), static_cast<A>(b[i])))));
  }
  return y;
}

template <class A>
A naive_soft_cap(const ElementwiseCase& c, A x) {
  const A scaled = static_cast<A>(c.scale) * x;
  const A cap = static_cast<A>(c.cap);
  return c.cap == 0.0F ? scaled : cap * std::tanh(scaled / cap);
}

Values run_soft_cap(const ElementwiseCase& c, const Target& target, DType out, const Values& in) {
  const OwnedStream stream(target.device);
  const TestTensor x(spec_of(c, target.dtype), target.device, first(count(c), in));
  const TestTensor other(spec_of(c, out), target.device);
  const TestTensor& y = c.in_place && out == target.dtype ? x : other;
  kernels::soft_cap_forward({.y = y, .x = x, .scale = c.scale, .cap = c.cap}, stream.view());
  return y.values(stream.view());
}

Values run_soft_cap_backward(const ElementwiseCase& c,
                             const Target& target,
                             const Values& dy_values,
                             const Values& y_values) {
  const OwnedStream stream(target.device);
  const TestTensor dy(spec_of(c, target.dtype), target.device, first(count(c), dy_values));
  const TestTensor y(spec_of(c, target.dtype), target.device, first(count(c), y_values));
  const TestTensor other(spec_of(c, target.dtype), target.device);
  const TestTensor& dx = c.in_place ? dy : other;
  kernels::soft_cap_backward({.dx = dx, .dy = dy, .y = y, .scale = c.scale, .cap = c.cap},
                             stream.view());
  return dx.values(stream.view());
}

class Elementwise : public OpTest<ElementwiseCase> {
 protected:
  const DType dtype = std::get<1>(GetParam()).dtype;
  const Values a = draw(op_case(), dtype, "a");
  const Values b = draw(op_case(), dtype, "b");

  // `actual` is as close as the naive version of `map` storing in the target's dtype.
  template <class Map>
  testing::AssertionResult close_to_map(const Values& actual, const Map& map) const {
    const Values exact = naive_map<Exact, Exact>(a, b, map);
    Values naive;
    kernels::visit_float(dtype, [&]<class T>() { naive = naive_map<T, T>(a, b, map); });
    return close_to(extended(actual, naive), exact, naive, dtype, kReferenceElements);
  }
};
INSTANTIATE_TEST_SUITE_P(Cases,
                         Elementwise,
                         on_all_targets(elementwise_cases()),
                         name_of_op_test<ElementwiseCase>);

TEST_P(Elementwise, AddIsAsCloseAsNaive) {
  const ElementwiseCase& c = op_case();
  const OwnedStream stream(target().device);
  const TestTensor a_tensor(spec_of(c, dtype), target().device, first(count(c), a));
  const TestTensor b_tensor(spec_of(c, dtype), target().device, first(count(c), b));
  const TestTensor other(spec_of(c, dtype), target().device);
  const TestTensor& y = c.in_place ? b_tensor : other;
  kernels::add({.y = y, .a = a_tensor, .b = b_tensor, .scale = c.scale}, stream.view());
  EXPECT_TRUE(close_to_map(y.values(stream.view()), [&]<class A>(A a_i, A b_i) {
    return static_cast<A>(c.scale) * (a_i + b_i);
  }));
}

TEST_P(Elementwise, ScaleIsAsCloseAsNaive) {
  const ElementwiseCase& c = op_case();
  const OwnedStream stream(target().device);
  const TestTensor x(spec_of(c, dtype), target().device, first(count(c), a));
  const TestTensor other(spec_of(c, dtype), target().device);
  const TestTensor& y = c.in_place ? x : other;
  kernels::scale({.y = y, .x = x, .scale = c.scale}, stream.view());
  EXPECT_TRUE(close_to_map(y.values(stream.view()), [&]<class A>(A x_i, A /*unused*/) {
    return static_cast<A>(c.scale) * x_i;
  }));
}

TEST_P(Elementwise, SoftCapIsAsCloseAsNaive) {
  const auto map = [&]<class A>(A x_i, A /*unused*/) { return naive_soft_cap<A>(op_case(), x_i); };
  EXPECT_TRUE(close_to_map(run_soft_cap(op_case(), target(), dtype, a), map));

  const DType wide = accumulation_dtype(dtype);
  const Values exact = naive_map<Exact, Exact>(a, b, map);
  Values naive;
  kernels::visit_float(dtype, [&]<class T>() { naive = naive_map<T, Accumulator<T>>(a, b, map); });
  const Values actual = run_soft_cap(op_case(), target(), wide, a);
  EXPECT_TRUE(close_to(extended(actual, naive), exact, naive, wide, kReferenceElements));
}

TEST_P(Elementwise, SoftCapBackwardIsAsCloseAsNaive) {
  const ElementwiseCase& c = op_case();
  EXPECT_TRUE(close_to_map(run_soft_cap_backward(c, target(), a, b), [&]<class A>(A dy, A y) {
    const A ratio = c.cap == 0.0F ? A{0} : y / static_cast<A>(c.cap);
    return static_cast<A>(c.scale) * dy * (1 - ratio * ratio);
  }));
}

TEST_P(Elementwise, ConvertRoundsOnceAndWidensExactly) {
  const ElementwiseCase& c = op_case();
  const OwnedStream stream(target().device);
  for (const DType out : {DType::bf16, DType::f32, DType::f64}) {
    if (out == DType::f64 && target().device == Device::cuda) {
      continue;
    }
    const TestTensor x(spec_of(c, dtype), target().device, first(count(c), a));
    const TestTensor y(spec_of(c, out), target().device);
    kernels::convert({.y = y, .x = x}, stream.view());
    EXPECT_EQ(y.values(stream.view()), rounded_to(out, first(count(c), a)))
        << "to " << name_of(out);
  }
}

TEST(SoftCapGradient, IsTheDifferenceQuotient) {
  const Target target{Device::cpu, DType::f64};
  for (const float cap : {0.0F, 2.0F}) {
    const ElementwiseCase c{.name = "", .num_rows = 1, .width = 9, .scale = 1.5F, .cap = cap};
    const Values x = first(count(c), draw(c, DType::f64, "x"));
    const Values dy = first(count(c), draw(c, DType::f64, "dy"));
    const auto forward = [&](const Values& values) {
      return run_soft_cap(c, target, DType::f64, values);
    };
    EXPECT_TRUE(is_gradient(
        run_soft_cap_backward(c, target, dy, forward(x)),
        [&](const Values& values) { return dot(forward(values), dy); },
        x));
  }
}

TEST(ElementwiseContract, NamesTheOperand) {
  const TestTensor y({{4, 8}, DType::f32}, Device::cpu);
  const TestTensor flat({{32}, DType::f32}, Device::cpu);
  const TestTensor narrow({{4, 8}, DType::bf16}, Device::cpu);
  const TestTensor integers({{4, 8}, DType::i32}, Device::cpu);
  const Stream stream;
  EXPECT_TRUE(rejects([&] { kernels::add({.y = y, .a = y, .b = flat}, stream); },
                      "add: b is f32[32] beside an output f32[4, 8]"));
  EXPECT_TRUE(
      rejects([&] { kernels::add({.y = y, .a = narrow, .b = y}, stream); }, "add: a is bf16"));
  EXPECT_TRUE(rejects([&] { kernels::scale({.y = y, .x = {}, .scale = 1.0F}, stream); },
                      "scale: x is absent"));
  EXPECT_TRUE(rejects([&] { kernels::soft_cap_forward({.y = narrow, .x = y}, stream); },
                      "soft_cap_forward: y is bf16"));
  EXPECT_TRUE(rejects([&] { kernels::soft_cap_forward({.y = y, .x = y, .cap = -1.0F}, stream); },
                      "cap is -1"));
  EXPECT_TRUE(rejects([&] { kernels::soft_cap_backward({.dx = y, .dy = y, .y = narrow}, stream); },
                      "soft_cap_backward: y is bf16"));
  EXPECT_TRUE(
      rejects([&] { kernels::convert({.y = y, .x = integers}, stream); }, "convert: x is i32"));
  TensorView elsewhere = y;
  elsewhere.device = Device::cuda;
  EXPECT_TRUE(rejects([&] { kernels::convert({.y = y, .x = elsewhere}, stream); },
                      "convert: x is on cuda"));
}

}  // namespace
}  // namespace memphis::test
