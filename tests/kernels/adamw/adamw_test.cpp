// SPDX-License-Identifier: Apache-2.0
#include "kernels/adamw/adamw.h"

#include <algorithm>
#include <cmath>

#include "bench/adamw/adamw_cases.h"
#include "kernels/visit.h"
#include "tests/support/op_test.h"

namespace memphis::test {
namespace {

using Values = std::vector<double>;

constexpr double kLearningRate = 0.01;
constexpr double kBeta1 = 0.9;
constexpr double kBeta2 = 0.95;
constexpr double kEps = 1e-8;

struct State {
  Values param;
  Values master;
  Values m;
  Values v;
};

struct Inputs {
  State before;
  Values grad;
  double norm;
};

Inputs draw(const AdamWCase& c, DType dtype) {
  const DType accumulation = accumulation_dtype(dtype);
  const std::int64_t n = std::max(c.num_parameters, kReferenceElements);
  Values v = random_normal(n, "v", 0.1);
  std::for_each(v.begin(), v.end(), [](double& value) { value *= value; });
  return {.before = {.param = Values(static_cast<std::size_t>(n), std::nan("")),
                     .master = rounded_to(accumulation, random_normal(n, "master")),
                     .m = rounded_to(accumulation, random_normal(n, "m", 0.1)),
                     .v = rounded_to(accumulation, v)},
          .grad = rounded_to(accumulation, random_normal(n, "grad", 0.1)),
          .norm = rounded_to(accumulation, {c.norm})[0]};
}

template <class T>
State naive(const AdamWCase& c, const Inputs& in) {
  using A = NaiveAccumulator<T>;
  State out = in.before;
  const auto a = [](auto value) { return static_cast<A>(value); };
  const Exact step = static_cast<Exact>(c.step);
  const A m_bias = a(1 - std::pow(static_cast<Exact>(kBeta1), step));
  const A v_bias = a(1 - std::pow(static_cast<Exact>(kBeta2), step));
  const A clip = c.clip_norm == 0 ? a(1) : std::min(a(1), a(c.clip_norm) / (a(in.norm) + a(1e-6)));
  for (std::size_t i = 0; i < in.grad.size(); ++i) {
    const A g = a(in.grad[i]) * clip;
    const A m = a(kBeta1) * a(in.before.m[i]) + a(1 - static_cast<Exact>(kBeta1)) * g;
    const A v = a(kBeta2) * a(in.before.v[i]) + a(1 - static_cast<Exact>(kBeta2)) * g * g;
    const A master = a(in.before.master[i]);
    const A moved = master - a(kLearningRate) * (m / m_bias / (std::sqrt(v / v_bias) + a(kEps)) +
                                                 a(c.weight_decay) * master);
    out.m[i] = static_cast<double>(m);
    out.v[i] = static_cast<double>(v);
    out.master[i] = static_cast<double>(moved);
    out.param[i] = static_cast<double>(static_cast<T>(moved));
  }
  return out;
}

State run(const AdamWCase& c, const Inputs& in, const Target& target) {
  const OwnedStream stream(target.device);
  const DType accumulation = accumulation_dtype(target.dtype);
  const TensorSpec kept({c.num_parameters}, accumulation);
  const TestTensor other({{c.num_parameters}, target.dtype}, target.device);
  const std::int64_t n = c.num_parameters;
  const TestTensor master(kept, target.device, first(n, in.before.master));
  const TestTensor m(kept, target.device, first(n, in.before.m));
  const TestTensor v(kept, target.device, first(n, in.before.v));
  const TestTensor grad(kept, target.device, first(n, in.grad));
  const TestTensor norm({{1}, accumulation}, target.device, {in.norm});
  const auto rates = kernels::adamw_rates(kLearningRate, kBeta1, kBeta2, c.step);
  const TestTensor rates_3({{3}, accumulation}, target.device, {rates.begin(), rates.end()});
  const TestTensor& param = c.in_place && target.dtype == accumulation ? master : other;
  kernels::adamw({.param_n = param,
                  .master_n = master,
                  .m_n = m,
                  .v_n = v,
                  .grad_n = grad,
                  .norm_1 = norm,
                  .rates_3 = rates_3,
                  .beta1 = kBeta1,
                  .beta2 = kBeta2,
                  .eps = kEps,
                  .weight_decay = c.weight_decay,
                  .clip_norm = c.clip_norm},
                 stream.view());
  return {.param = param.values(stream.view()),
          .master = master.values(stream.view()),
          .m = m.values(stream.view()),
          .v = v.values(stream.view())};
}

class AdamW : public OpTest<AdamWCase> {};
INSTANTIATE_TEST_SUITE_P(Cases, AdamW, on_all_targets(adamw_cases()), name_of_op_test<AdamWCase>);

TEST_P(AdamW, IsAsCloseAsNaive) {
  const DType dtype = target().dtype;
  const DType accumulation = accumulation_dtype(dtype);
  const Inputs in = draw(op_case(), dtype);
  const State exact = naive<Exact>(op_case(), in);
  State rounded;
  kernels::visit_float(dtype, [&]<class T>() { rounded = naive<T>(op_case(), in); });
  const State actual = run(op_case(), in, target());
  EXPECT_TRUE(close_to(
      extended(actual.m, rounded.m), exact.m, rounded.m, accumulation, kReferenceElements));
  EXPECT_TRUE(close_to(
      extended(actual.v, rounded.v), exact.v, rounded.v, accumulation, kReferenceElements));
  EXPECT_TRUE(close_to(extended(actual.master, rounded.master),
                       exact.master,
                       rounded.master,
                       accumulation,
                       kReferenceElements));
  EXPECT_EQ(actual.param, rounded_to(dtype, actual.master));
}

TEST_P(AdamW, LeavesAllAsItIsWhereTheNormIsNoNumber) {
  Inputs in = draw(op_case(), target().dtype);
  const std::int64_t n = op_case().num_parameters;
  for (const double norm :
       {std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN()}) {
    in.norm = norm;
    const State after = run(op_case(), in, target());
    EXPECT_EQ(after.master, first(n, in.before.master));
    EXPECT_EQ(after.m, first(n, in.before.m));
    EXPECT_EQ(after.v, first(n, in.before.v));
  }
}

TEST_P(AdamW, RepeatsItsBits) {
  const Inputs in = draw(op_case(), target().dtype);
  const State once = run(op_case(), in, target());
  const OneThread one_thread;
  const State again = run(op_case(), in, target());
  EXPECT_EQ(again.param, once.param);
  EXPECT_EQ(again.m, once.m);
  EXPECT_EQ(again.v, once.v);
}

// From zero moments the first step is lr in the direction against the gradient, whatever its size.
TEST(AdamWClosedForm, FirstStepHasTheLengthOfTheLearningRate) {
  const AdamWCase c{.name = "", .num_parameters = 3, .clip_norm = 0.0, .weight_decay = 0.0};
  const Inputs in{.before = {.param = {}, .master = {1, 1, 1}, .m = {0, 0, 0}, .v = {0, 0, 0}},
                  .grad = {1e-2, -5.0, 0.0},
                  .norm = 5.0};
  const State after = run(c, in, {Device::cpu, DType::f64});
  EXPECT_NEAR(after.param[0], 1 - kLearningRate, kLearningRate * kEps / 1e-2);
  EXPECT_NEAR(after.param[1], 1 + kLearningRate, kLearningRate * kEps);
  EXPECT_EQ(after.param[2], 1.0);
}

TEST(AdamWContract, NamesTheOperand) {
  const TestTensor param({{8}, DType::bf16}, Device::cpu);
  const TestTensor kept({{8}, DType::f32}, Device::cpu);
  const TestTensor norm({{1}, DType::f32}, Device::cpu);
  const TestTensor rates_3({{3}, DType::f32}, Device::cpu);
  const Stream stream;
  const kernels::AdamW good{.param_n = param,
                            .master_n = kept,
                            .m_n = kept,
                            .v_n = kept,
                            .grad_n = kept,
                            .norm_1 = norm,
                            .rates_3 = rates_3,
                            .beta1 = kBeta1,
                            .beta2 = kBeta2,
                            .eps = kEps,
                            .weight_decay = 0.1,
                            .clip_norm = 1.0};
  const auto changed = [&](auto member, auto value) {
    return [=] {
      kernels::AdamW bad = good;
      bad.*member = value;
      kernels::adamw(bad, stream);
    };
  };
  EXPECT_TRUE(
      rejects(changed(&kernels::AdamW::master_n, param.view()), "adamw: master_n is bf16[8]"));
  EXPECT_TRUE(rejects(changed(&kernels::AdamW::grad_n, norm.view()), "adamw: grad_n is f32[1]"));
  EXPECT_TRUE(rejects(changed(&kernels::AdamW::norm_1, kept.view()), "adamw: norm_1 is f32[8]"));
  EXPECT_TRUE(rejects(changed(&kernels::AdamW::v_n, TensorView{}), "adamw: v_n is absent"));
  EXPECT_TRUE(rejects(changed(&kernels::AdamW::rates_3, norm.view()), "adamw: rates_3 is f32[1]"));
  EXPECT_TRUE(rejects([] { kernels::adamw_rates(1e-3, 0.9, 0.95, 0); }, "adamw_rates: step is 0"));
  EXPECT_TRUE(rejects(changed(&kernels::AdamW::beta2, 1.0), "adamw: beta2 is 1"));
  EXPECT_TRUE(rejects(changed(&kernels::AdamW::clip_norm, -1.0), "adamw: clip_norm is -1"));
  TensorView elsewhere = kept;
  elsewhere.device = Device::cuda;
  EXPECT_TRUE(rejects(changed(&kernels::AdamW::m_n, elsewhere), "adamw: m_n is on cuda"));
}

}  // namespace
}  // namespace memphis::test
