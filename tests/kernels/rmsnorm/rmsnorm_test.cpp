// SPDX-License-Identifier: Apache-2.0
#include "kernels/rmsnorm/rmsnorm.h"

#include <cmath>

#include "bench/rmsnorm/rmsnorm_cases.h"
#include "kernels/visit.h"
#include "tests/support/finite_difference.h"
#include "tests/support/op_test.h"

namespace memphis::test {
namespace {

using kernels::rmsnorm_backward;
using kernels::rmsnorm_forward;
using Values = std::vector<double>;

constexpr float kEps = 1e-5F;

// Inputs as the op sees them: rounded to the dtypes that they are stored in.
struct Inputs {
  Values x;
  Values weight;
  Values residual;  // empty: absent
  Values dy;
  Values dx;       // before the call
  Values dweight;  // before the call
};

Inputs draw(const RmsNormCase& c, DType dtype) {
  const std::int64_t n = c.num_tokens * c.width;
  Values x = random_normal(n, "x");
  for (std::size_t i = 0; i < x.size(); ++i) {
    // Rows of very different size: a norm that mixes them up is far off.
    x[i] *= 1.0 + static_cast<double>(static_cast<std::int64_t>(i) / c.width % 7);
  }
  Inputs in;
  in.x = rounded_to(dtype, x);
  in.weight = rounded_to(accumulation_dtype(dtype), random_normal(c.width, "weight"));
  in.residual = rounded_to(dtype, random_normal(c.residual ? n : 0, "residual"));
  in.dy = rounded_to(dtype, random_normal(n, "dy"));
  // In place dx starts as dy.
  in.dx = c.in_place ? in.dy : rounded_to(dtype, random_normal(n, "dx"));
  in.dweight = rounded_to(accumulation_dtype(dtype), random_normal(c.width, "dweight"));
  return in;
}

struct Forward {
  Values y;
  Values rrms;
};

template <class T>
Forward naive_forward(const RmsNormCase& c, const Inputs& in) {
  using A = NaiveAccumulator<T>;
  Forward out;
  const auto width = static_cast<std::size_t>(c.width);
  for (std::size_t begin = 0; begin < in.x.size(); begin += width) {
    A squares = 0;
    for (std::size_t i = begin; i < begin + width; ++i) {
      squares += static_cast<A>(in.x[i]) * static_cast<A>(in.x[i]);
    }
    const A rrms = 1 / std::sqrt(squares / static_cast<A>(c.width) + static_cast<A>(kEps));
    out.rrms.push_back(static_cast<double>(rrms));
    for (std::size_t i = begin; i < begin + width; ++i) {
      A y = static_cast<A>(in.x[i]) * rrms * static_cast<A>(in.weight[i - begin]);
      if (!in.residual.empty()) {
        y += static_cast<A>(in.residual[i]);
      }
      out.y.push_back(static_cast<double>(static_cast<T>(y)));
    }
  }
  return out;
}

struct Backward {
  Values dx;
  Values dweight;
};

template <class T>
Backward naive_backward(const RmsNormCase& c, const Inputs& in, const Values& rrms) {
  using A = NaiveAccumulator<T>;
  Backward out{.dx = {}, .dweight = in.dweight};
  const auto width = static_cast<std::size_t>(c.width);
  std::vector<A> dweight(width);
  for (std::size_t begin = 0; begin < in.x.size(); begin += width) {
    const A r = static_cast<A>(rrms[begin / width]);
    A dot = 0;
    for (std::size_t d = 0; d < width; ++d) {
      dot += static_cast<A>(in.x[begin + d]) *
             (static_cast<A>(in.weight[d]) * static_cast<A>(in.dy[begin + d]));
    }
    for (std::size_t d = 0; d < width; ++d) {
      const A x = static_cast<A>(in.x[begin + d]);
      const A dy = static_cast<A>(in.dy[begin + d]);
      A dx = r * (static_cast<A>(in.weight[d]) * dy) -
             x * (r * r * r * (dot / static_cast<A>(c.width)));
      if (c.accumulate) {
        dx += static_cast<A>(in.dx[begin + d]);
      }
      out.dx.push_back(static_cast<double>(static_cast<T>(dx)));
      dweight[d] += dy * (x * r);
    }
  }
  for (std::size_t d = 0; d < width; ++d) {
    out.dweight[d] = static_cast<double>(static_cast<A>(in.dweight[d]) + dweight[d]);
  }
  return out;
}

Forward run_forward(const RmsNormCase& c, const Inputs& in, const Target& target) {
  const OwnedStream stream(target.device);
  const TensorSpec rows({c.num_tokens, c.width}, target.dtype);
  const DType accumulation = accumulation_dtype(target.dtype);
  const TestTensor x(rows, target.device, in.x);
  const TestTensor y(rows, target.device);
  const TestTensor rrms({{c.num_tokens}, accumulation}, target.device);
  const TestTensor weight({{c.width}, accumulation}, target.device, in.weight);
  const TestTensor residual(rows, target.device, c.residual ? in.residual : in.x);
  const TensorView out = c.in_place ? x.view() : y.view();
  rmsnorm_forward({.y_TD = out,
                   .rrms_T = rrms,
                   .x_TD = x,
                   .weight_D = weight,
                   .residual_TD = c.residual ? residual.view() : TensorView{},
                   .eps = kEps},
                  stream.view());
  return {.y = (c.in_place ? x : y).values(stream.view()), .rrms = rrms.values(stream.view())};
}

Backward run_backward(const RmsNormCase& c,
                      const Inputs& in,
                      const Values& rrms_values,
                      const Target& target,
                      kernels::WeightGradient weight_gradient = kernels::WeightGradient::add) {
  const OwnedStream stream(target.device);
  const TensorSpec rows({c.num_tokens, c.width}, target.dtype);
  const DType accumulation = accumulation_dtype(target.dtype);
  const TestTensor dy(rows, target.device, in.dy);
  const TestTensor dx(rows, target.device, in.dx);
  const TestTensor x(rows, target.device, in.x);
  const TestTensor weight({{c.width}, accumulation}, target.device, in.weight);
  const TestTensor dweight({{c.width}, accumulation}, target.device, in.dweight);
  const TestTensor rrms({{c.num_tokens}, accumulation}, target.device, rrms_values);
  const TestTensor partial({{c.num_partials, c.width}, accumulation}, target.device);
  rmsnorm_backward({.dx_TD = c.in_place ? dy.view() : dx.view(),
                    .dweight_D = dweight,
                    .dy_TD = dy,
                    .x_TD = x,
                    .weight_D = weight,
                    .rrms_T = rrms,
                    .partial_PD = partial,
                    .accumulate = c.accumulate,
                    .weight_gradient = weight_gradient},
                   stream.view());
  return {.dx = (c.in_place ? dy : dx).values(stream.view()),
          .dweight = dweight.values(stream.view())};
}

class RmsNorm : public OpTest<RmsNormCase> {};
INSTANTIATE_TEST_SUITE_P(Cases,
                         RmsNorm,
                         on_all_targets(rmsnorm_cases()),
                         name_of_op_test<RmsNormCase>);

TEST_P(RmsNorm, ForwardIsAsCloseAsNaive) {
  const DType dtype = target().dtype;
  const Inputs in = draw(op_case(), dtype);
  const Forward exact = naive_forward<Exact>(op_case(), in);
  std::vector<Forward> naive;
  kernels::visit_float(dtype, [&]<class T>() {
    naive = draws_for(exact.rrms.size(), 1, [&](int draw) {
      Inputs moved = in;
      moved.x = perturbed(dtype, in.x, draw);
      return naive_forward<T>(op_case(), moved);
    });
  });
  const Forward actual = run_forward(op_case(), in, target());
  EXPECT_TRUE(close_to(actual.y, reference_of(exact, naive, &Forward::y), dtype, op_case().width));
  EXPECT_TRUE(close_to(
      actual.rrms, reference_of(exact, naive, &Forward::rrms), accumulation_dtype(dtype), 1));
}

TEST_P(RmsNorm, BackwardIsAsCloseAsNaive) {
  const Inputs in = draw(op_case(), target().dtype);
  const DType accumulation = accumulation_dtype(target().dtype);
  // All three start from the rrms that the forward pass would have stored.
  const Values rrms = rounded_to(accumulation, naive_forward<Exact>(op_case(), in).rrms);
  const Backward exact = naive_backward<Exact>(op_case(), in, rrms);
  std::vector<Backward> naive;
  kernels::visit_float(target().dtype, [&]<class T>() {
    naive = draws_for(in.weight.size(), 1, [&](int draw) {
      Inputs moved = in;
      moved.x = perturbed(target().dtype, in.x, draw);
      moved.dy = perturbed(target().dtype, in.dy, draw);
      return naive_backward<T>(op_case(), moved, rrms);
    });
  });
  const Backward actual = run_backward(op_case(), in, rrms, target());
  EXPECT_TRUE(close_to(
      actual.dx, reference_of(exact, naive, &Backward::dx), target().dtype, op_case().width));
  EXPECT_TRUE(close_to(actual.dweight,
                       reference_of(exact, naive, &Backward::dweight),
                       accumulation,
                       op_case().width));
}

TEST_P(RmsNorm, WritesTheDweightThatItWouldAddToZeros) {
  Inputs in = draw(op_case(), target().dtype);
  const Values rrms = naive_forward<Exact>(op_case(), in).rrms;
  in.dweight.assign(in.dweight.size(), 0.0);
  const Backward added = run_backward(op_case(), in, rrms, target());
  in.dweight.assign(in.dweight.size(), std::nan(""));
  const Backward written =
      run_backward(op_case(), in, rrms, target(), kernels::WeightGradient::write);
  EXPECT_EQ(written.dweight, added.dweight);
  EXPECT_EQ(written.dx, added.dx);
}

TEST_P(RmsNorm, RepeatsItsBits) {
  const Inputs in = draw(op_case(), target().dtype);
  const Forward first = run_forward(op_case(), in, target());
  const Backward first_backward = run_backward(op_case(), in, first.rrms, target());
  const OneThread one_thread;
  EXPECT_EQ(run_forward(op_case(), in, target()).y, first.y);
  const Backward second = run_backward(op_case(), in, first.rrms, target());
  EXPECT_EQ(second.dx, first_backward.dx);
  EXPECT_EQ(second.dweight, first_backward.dweight);
}

// Two norms one behind the other, in one call or in two.
struct Sandwich {
  Values y, rrms, next_y, next_rrms;
  Values dx, dy, dweight, next_dweight;
};

Sandwich run_sandwich(const RmsNormCase& c,
                      const Target& target,
                      bool at_once,
                      kernels::WeightGradient weight_gradient,
                      bool next_accumulates) {
  const OwnedStream stream(target.device);
  const DType sums = accumulation_dtype(target.dtype);
  const TensorSpec rows({c.num_tokens, c.width}, target.dtype);
  const TensorSpec row({c.width}, sums);
  const TensorSpec column({c.num_tokens}, sums);
  const TensorSpec runs({c.num_partials, c.width}, sums);
  const auto drawn = [&](const TensorSpec& spec, const char* name) {
    return TestTensor(
        spec, target.device, rounded_to(spec.dtype, random_normal(spec.num_elements(), name)));
  };
  const TestTensor x = drawn(rows, "x");
  const TestTensor residual = drawn(rows, "residual");
  const TestTensor weight = drawn(row, "weight");
  const TestTensor next_weight = drawn(row, "next weight");
  const TestTensor y(rows, target.device);
  const TestTensor next_y(rows, target.device);
  const TestTensor rrms(column, target.device);
  const TestTensor next_rrms(column, target.device);
  kernels::RmsNormForward forward = {.y_TD = y,
                                     .rrms_T = rrms,
                                     .x_TD = x,
                                     .weight_D = weight,
                                     .residual_TD = c.residual ? residual.view() : TensorView{},
                                     .eps = kEps};
  if (at_once) {
    forward.next = {.y_TD = next_y, .rrms_T = next_rrms, .weight_D = next_weight};
  }
  rmsnorm_forward(forward, stream.view());
  if (!at_once) {
    rmsnorm_forward(
        {.y_TD = next_y, .rrms_T = next_rrms, .x_TD = y, .weight_D = next_weight, .eps = kEps},
        stream.view());
  }

  const TestTensor dx = drawn(rows, "dx");
  // Where it is written nothing that was there may be seen.
  const TestTensor dy =
      next_accumulates
          ? drawn(rows, "dy")
          : TestTensor(rows,
                       target.device,
                       Values(static_cast<std::size_t>(rows.num_elements()), std::nan("")));
  const TestTensor next_dy = drawn(rows, "next dy");
  const TestTensor dweight = drawn(row, "dweight");
  const TestTensor next_dweight = drawn(row, "next dweight");
  const TestTensor partial(runs, target.device);
  const TestTensor next_partial(runs, target.device);
  kernels::RmsNormBackward backward = {.dx_TD = dx,
                                       .dweight_D = dweight,
                                       .dy_TD = dy,
                                       .x_TD = x,
                                       .weight_D = weight,
                                       .rrms_T = rrms,
                                       .partial_PD = partial,
                                       .accumulate = c.accumulate,
                                       .weight_gradient = weight_gradient};
  if (at_once) {
    backward.next = {.dweight_D = next_dweight,
                     .dy_TD = next_dy,
                     .x_TD = y,
                     .weight_D = next_weight,
                     .rrms_T = next_rrms,
                     .partial_PD = next_partial,
                     .accumulate = next_accumulates};
  } else {
    rmsnorm_backward({.dx_TD = dy,
                      .dweight_D = next_dweight,
                      .dy_TD = next_dy,
                      .x_TD = y,
                      .weight_D = next_weight,
                      .rrms_T = next_rrms,
                      .partial_PD = next_partial,
                      .accumulate = next_accumulates,
                      .weight_gradient = weight_gradient},
                     stream.view());
  }
  rmsnorm_backward(backward, stream.view());
  return {.y = y.values(stream.view()),
          .rrms = rrms.values(stream.view()),
          .next_y = next_y.values(stream.view()),
          .next_rrms = next_rrms.values(stream.view()),
          .dx = dx.values(stream.view()),
          .dy = dy.values(stream.view()),
          .dweight = dweight.values(stream.view()),
          .next_dweight = next_dweight.values(stream.view())};
}

void expect_same_sandwich(const RmsNormCase& c, const Target& target) {
  for (const auto& [how, accumulates] : {std::pair(kernels::WeightGradient::add, true),
                                         std::pair(kernels::WeightGradient::write, false)}) {
    const Sandwich apart = run_sandwich(c, target, false, how, accumulates);
    const Sandwich at_once = run_sandwich(c, target, true, how, accumulates);
    EXPECT_EQ(at_once.y, apart.y);
    EXPECT_EQ(at_once.rrms, apart.rrms);
    EXPECT_EQ(at_once.next_y, apart.next_y);
    EXPECT_EQ(at_once.next_rrms, apart.next_rrms);
    EXPECT_EQ(at_once.dx, apart.dx);
    EXPECT_EQ(at_once.dy, apart.dy);
    EXPECT_EQ(at_once.dweight, apart.dweight);
    EXPECT_EQ(at_once.next_dweight, apart.next_dweight);
  }
}

TEST_P(RmsNorm, WithTheNextHasTheBitsOfTwo) {
  expect_same_sandwich(op_case(), target());
}

// Of rows so wide that a block of the GPU has registers for one norm, and not for two: of more than
// 768 vectors of 16 bytes.
TEST(RmsNormSandwich, OfWideRowsHasTheBitsOfTwo) {
  for (const Target& target : all_targets()) {
    if (skip_reason(target).empty()) {
      const auto vector_width = static_cast<std::int64_t>(16 / size_of(target.dtype));
      expect_same_sandwich(
          {.name = "", .num_tokens = 3, .width = 769 * vector_width, .num_partials = 2}, target);
    }
  }
}

TEST(RmsNormGradient, IsTheDifferenceQuotient) {
  const RmsNormCase c{.name = "", .num_tokens = 3, .width = 5, .residual = true, .num_partials = 2};
  const Target target{Device::cpu, DType::f64};
  Inputs in = draw(c, DType::f64);
  in.dweight.assign(in.dweight.size(), 0.0);
  const Backward actual = run_backward(c, in, run_forward(c, in, target).rrms, target);
  const auto loss = [&](Values Inputs::*member) {
    return [&, member](const Values& values) {
      Inputs moved = in;
      moved.*member = values;
      return dot(run_forward(c, moved, target).y, in.dy);
    };
  };
  EXPECT_TRUE(is_gradient(actual.dx, loss(&Inputs::x), in.x));
  EXPECT_TRUE(is_gradient(actual.dweight, loss(&Inputs::weight), in.weight));
}

TEST(RmsNormContract, NamesTheOperand) {
  const TestTensor rows({{4, 8}, DType::f32}, Device::cpu);
  const TestTensor short_rows({{3, 8}, DType::f32}, Device::cpu);
  const TestTensor bf16_rows({{4, 8}, DType::bf16}, Device::cpu);
  const TestTensor rrms({{4}, DType::f32}, Device::cpu);
  const TestTensor weight({{8}, DType::f32}, Device::cpu);
  const Stream stream;
  const kernels::RmsNormForward good{
      .y_TD = rows, .rrms_T = rrms, .x_TD = rows, .weight_D = weight};
  EXPECT_NO_THROW(rmsnorm_forward(good, stream));
  auto bad = good;
  bad.x_TD = short_rows;
  EXPECT_TRUE(rejects([&] { rmsnorm_forward(bad, stream); }, "rmsnorm_forward: x_TD is f32[3, 8]"));
  bad = good;
  bad.residual_TD = bf16_rows;
  EXPECT_TRUE(rejects([&] { rmsnorm_forward(bad, stream); }, "residual_TD is bf16[4, 8]"));
  bad = good;
  bad.weight_D = TensorView{};
  EXPECT_TRUE(rejects([&] { rmsnorm_forward(bad, stream); }, "weight_D is absent"));
  bad = good;
  bad.rrms_T.device = Device::cuda;
  EXPECT_TRUE(rejects([&] { rmsnorm_forward(bad, stream); }, "rrms_T is on cuda"));
  bad = good;
  bad.y_TD.data = static_cast<char*>(bad.y_TD.data) + 4;
  EXPECT_TRUE(rejects([&] { rmsnorm_forward(bad, stream); }, "y_TD is not 16-byte aligned"));

  kernels::RmsNormBackward backward{.dx_TD = rows,
                                    .dweight_D = weight,
                                    .dy_TD = rows,
                                    .x_TD = rows,
                                    .weight_D = weight,
                                    .rrms_T = rrms,
                                    .partial_PD = TensorView{}};
  EXPECT_TRUE(rejects([&] { rmsnorm_backward(backward, stream); }, "partial_PD is absent"));
  bad = good;
  bad.next = {.y_TD = rows, .rrms_T = rrms, .weight_D = weight};
  EXPECT_TRUE(rejects([&] { rmsnorm_forward(bad, stream); }, "next.y_TD is y_TD"));
  const TestTensor other_rows({{4, 8}, DType::f32}, Device::cpu);
  bad.next = {.y_TD = other_rows, .rrms_T = rrms, .weight_D = rrms};
  EXPECT_TRUE(rejects([&] { rmsnorm_forward(bad, stream); }, "next.weight_D is f32[4]"));
  const TestTensor partials({{2, 8}, DType::f32}, Device::cpu);
  backward.partial_PD = partials;
  backward.next = {.dweight_D = weight,
                   .dy_TD = other_rows,
                   .x_TD = other_rows,
                   .weight_D = weight,
                   .rrms_T = rrms,
                   .partial_PD = partials};
  EXPECT_TRUE(rejects([&] { rmsnorm_backward(backward, stream); }, "dx_TD is dy_TD"));
  backward.next = {};
  const TestTensor no_partials({{0, 8}, DType::f32}, Device::cpu);
  backward.partial_PD = no_partials;
  EXPECT_TRUE(rejects([&] { rmsnorm_backward(backward, stream); }, "partial_PD has no rows"));
}

}  // namespace
}  // namespace memphis::test
