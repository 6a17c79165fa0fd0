// SPDX-License-Identifier: Apache-2.0
#include "kernels/attention/attention.h"

#include <cmath>
#include <limits>
#include <span>

#include <gtest/gtest.h>
#include <omp.h>

#include "bench/attention/attention_cases.h"
#include "csrc/core/error.h"
#include "tests/kernels/attention/attention_naive.h"
#include "tests/kernels/attention/drawn_case.h"
#include "tests/support/finite_difference.h"
#include "tests/support/test_tensor.h"
#include "tests/support/tolerance.h"

namespace memphis::kernels {
namespace {

using test::AttentionCase;
using test::AttentionResult;
using test::close_to;
using test::finite;
using test::Method;
using test::naive;
using test::Target;
using test::TestTensor;

// One forward and one backward call of the op; the tensors stay for comparisons of bits.
struct Call {
  Call(const Target& target,
       const AttentionCase& shape,
       const std::vector<double>& qkv_values,
       const std::vector<double>& dout_values)
      : c(shape),
        stream(target.device),
        out({c.T(), c.N, c.H}, target.dtype, target.device),
        lse({c.B, c.N, c.S}, accumulation_dtype(target.dtype), target.device),
        dqkv({c.T(), c.C(), c.H}, target.dtype, target.device),
        delta({c.B, c.N, c.S}, accumulation_dtype(target.dtype), target.device),
        qkv({{c.T(), c.C(), c.H}, target.dtype}, target.device, qkv_values),
        dout({{c.T(), c.N, c.H}, target.dtype}, target.device, dout_values),
        position({{c.T()}, DType::i32}, target.device, c.positions()),
        key_valid({{c.T()}, DType::u8}, target.device, c.key_valid()),
        workspace(test::attention_workspace(backward_without_workspace(), target.device)) {}

  AttentionForward forward() const {
    return {.out_TNH = out.tensor,
            .lse_BNS = lse.tensor,
            .q_TNH = c.queries(qkv),
            .k_UGH = c.keys(qkv),
            .v_UGH = c.values(qkv),
            .position_T = position,
            .key_valid_U = c.pad != 0 ? key_valid.view() : TensorView{},
            .score = c.score()};
  }
  AttentionBackward backward() const {
    AttentionBackward op = backward_without_workspace();
    op.workspace_W = workspace;
    return op;
  }
  AttentionBackward backward_without_workspace() const {
    return {.dq_TNH = c.queries(dqkv.tensor),
            .dk_UGH = c.keys(dqkv.tensor),
            .dv_UGH = c.values(dqkv.tensor),
            .dout_TNH = dout,
            .out_TNH = out.tensor,
            .lse_BNS = lse.tensor,
            .q_TNH = c.queries(qkv),
            .k_UGH = c.keys(qkv),
            .v_UGH = c.values(qkv),
            .position_T = position,
            .key_valid_U = c.pad != 0 ? key_valid.view() : TensorView{},
            .delta_BNS = delta.tensor,
            .score = c.score()};
  }
  AttentionResult run() const {
    attention_forward(forward(), stream.view());
    attention_backward(backward(), stream.view());
    return {.out = out.tensor.values(stream.view()),
            .lse = lse.tensor.values(stream.view()),
            .dqkv = dqkv.tensor.values(stream.view())};
  }

  struct Output {
    Output(std::initializer_list<std::int64_t> dims, DType dtype, Device device)
        : tensor(TensorSpec(dims, dtype), device) {}
    TestTensor tensor;
  };

  AttentionCase c;
  OwnedStream stream;
  Output out;
  Output lse;
  Output dqkv;
  Output delta;
  TestTensor qkv;
  TestTensor dout;
  TestTensor position;
  TestTensor key_valid;
  TestTensor workspace;
};

void expect_formulas(const Target& target, const AttentionCase& c) {
  const std::vector<double> qkv = test::rounded_to(target.dtype, c.qkv());
  const std::vector<double> dout = test::rounded_to(target.dtype, c.dout());
  const AttentionResult exact = test::exact_attention(target, c, qkv, dout);
  const AttentionResult actual = Call(target, c, qkv, dout).run();

  ASSERT_EQ(actual.lse.size(), exact.lse.size());
  for (std::size_t i = 0; i < exact.lse.size(); ++i) {
    EXPECT_EQ(std::isinf(actual.lse[i]), std::isinf(exact.lse[i])) << "lse of row " << i;
  }
  const std::vector<AttentionResult> rough = test::naive_draws(target.dtype, c, qkv, dout);
  EXPECT_TRUE(close_to(
      actual.out, test::reference_of(exact, rough, &AttentionResult::out), target.dtype, c.H));
  EXPECT_TRUE(close_to(finite(actual.lse),
                       test::lse_reference(target, c, exact, rough),
                       accumulation_dtype(target.dtype),
                       static_cast<std::int64_t>(exact.lse.size())));
  EXPECT_TRUE(close_to(actual.dqkv, test::dqkv_reference(exact, rough), target.dtype, c.C() * c.H));
}

class AttentionTargets : public testing::TestWithParam<std::tuple<Target, AttentionCase>> {};

TEST_P(AttentionTargets, MatchesTheFormulas) {
  const auto& [target, c] = GetParam();
  if (const std::string reason = test::skip_reason(target); !reason.empty()) {
    GTEST_SKIP() << reason;
  }
  expect_formulas(target, c);
}

// As where a text goes on by a token at a time: one query of each sequence, which has all of its keys.
TEST_P(AttentionTargets, EachQueryAloneMatchesTheFormulas) {
  const auto& [target, c] = GetParam();
  if (const std::string reason = test::skip_reason(target); !reason.empty()) {
    GTEST_SKIP() << reason;
  }
  const std::vector<double> qkv = test::rounded_to(target.dtype, c.qkv());
  const Call all(target, c, qkv, c.dout());
  const std::vector<double> positions = c.positions();
  const std::int64_t row = c.N * c.H;
  // The others are as they should be. On the GPU, which may be simulated, six of them.
  const AttentionResult exact = test::exact_attention(target, c, qkv, c.dout());
  std::vector<double> out = exact.out;
  std::vector<double> lse = exact.lse;
  const std::int64_t stride = target.device == Device::cpu ? 1 : std::max<std::int64_t>(1, c.S / 5);
  for (std::int64_t t = c.S - 1; t >= 0; t -= stride) {
    std::vector<double> query;
    std::vector<double> position;
    std::vector<double> place;
    for (std::int64_t b = 0; b < c.B; ++b) {
      const auto from = qkv.begin() + (b * c.S + t) * c.C() * c.H;
      query.insert(query.end(), from, from + row);
      position.push_back(positions[static_cast<std::size_t>(b * c.S + t)]);
      place.push_back(static_cast<double>(t));
    }
    const TestTensor q({{c.B, c.N, c.H}, target.dtype}, target.device, query);
    const TestTensor p({{c.B}, DType::i32}, target.device, position);
    const TestTensor at({{c.B}, DType::i32}, target.device, place);
    const TestTensor one_out(TensorSpec({c.B, c.N, c.H}, target.dtype), target.device);
    const TestTensor one_lse(TensorSpec({c.B, c.N, 1}, accumulation_dtype(target.dtype)),
                             target.device);
    AttentionForward op = all.forward();
    op.out_TNH = one_out;
    op.lse_BNS = one_lse;
    op.q_TNH = q.view();
    op.position_T = p;
    op.place_T = at;
    attention_forward(op, all.stream.view());
    const std::vector<double> row_out = one_out.values(all.stream.view());
    const std::vector<double> row_lse = one_lse.values(all.stream.view());
    for (std::int64_t b = 0; b < c.B; ++b) {
      std::copy_n(row_out.begin() + b * row, row, out.begin() + (b * c.S + t) * row);
      for (std::int64_t n = 0; n < c.N; ++n) {
        lse[static_cast<std::size_t>((b * c.N + n) * c.S + t)] =
            row_lse[static_cast<std::size_t>(b * c.N + n)];
      }
    }
  }
  const std::vector<AttentionResult> rough = test::naive_draws(target.dtype, c, qkv, c.dout());
  EXPECT_TRUE(
      close_to(out, test::reference_of(exact, rough, &AttentionResult::out), target.dtype, c.H));
  EXPECT_TRUE(close_to(finite(lse),
                       test::lse_reference(target, c, exact, rough),
                       accumulation_dtype(target.dtype),
                       static_cast<std::int64_t>(lse.size())));
}

INSTANTIATE_TEST_SUITE_P(All,
                         AttentionTargets,
                         testing::ValuesIn(test::on_attention_targets(test::attention_cases(),
                                                                      &AttentionCase::name)),
                         [](const auto& instance) {
                           return name_of(std::get<0>(instance.param)) + "_" +
                                  std::get<1>(instance.param).name;
                         });

class DrawnAttention : public testing::TestWithParam<int> {};

TEST_P(DrawnAttention, MatchesTheFormulasOnCuda) {
  constexpr Target kTarget = {.device = Device::cuda, .dtype = DType::bf16};
  if (const std::string reason = test::skip_reason(kTarget); !reason.empty()) {
    GTEST_SKIP() << reason;
  }
  const AttentionCase c = test::CaseDraw("drawn " + std::to_string(GetParam())).attention();
  SCOPED_TRACE(test::description_of(c));
  expect_formulas(kTarget, c);
}

INSTANTIATE_TEST_SUITE_P(cuda, DrawnAttention, testing::Range(0, 6));

// Where kernels want a workspace, those that do without take over.
TEST(Attention, GradientsNeedNoWorkspace) {
  constexpr Target kGpu = {.device = Device::cuda, .dtype = DType::bf16};
  if (const std::string reason = test::skip_reason(kGpu); !reason.empty()) {
    GTEST_SKIP() << reason;
  }
  const AttentionCase c = {
      .name = "no_workspace", .B = 1, .S = 140, .N = 2, .G = 1, .H = 128, .document = 90};
  const std::vector<double> qkv = test::rounded_to(kGpu.dtype, c.qkv());
  const std::vector<double> dout = test::rounded_to(kGpu.dtype, c.dout());
  const Call call(kGpu, c, qkv, dout);
  attention_forward(call.forward(), call.stream.view());
  attention_backward(call.backward_without_workspace(), call.stream.view());
  const AttentionResult exact = test::exact_attention(kGpu, c, qkv, dout);
  const std::vector<AttentionResult> rough = test::naive_draws(kGpu.dtype, c, qkv, dout);
  EXPECT_TRUE(close_to(call.dqkv.tensor.values(call.stream.view()),
                       test::dqkv_reference(exact, rough),
                       kGpu.dtype,
                       c.C() * c.H));
}

constexpr Target kDouble = {.device = Device::cpu, .dtype = DType::f64};
constexpr Target kSingle = {.device = Device::cpu, .dtype = DType::f32};

TEST(Attention, BackwardIsTheGradientOfForward) {
  const AttentionCase cases[] = {
      {.name = "capped", .B = 1, .S = 6, .N = 2, .G = 1, .H = 4, .cap = 2},
      {.name = "all",
       .B = 2,
       .S = 9,
       .N = 2,
       .G = 1,
       .H = 3,
       .cap = 3,
       .temperature_len = 2,
       .document = 5,
       .pad = 4},
      {.name = "plain", .B = 1, .S = 7, .N = 2, .G = 2, .H = 2, .cap = 0}};
  for (const AttentionCase& c : cases) {
    SCOPED_TRACE(c.name);
    const std::vector<double> qkv = test::random_normal(c.T() * c.C() * c.H, "qkv", 0.8);
    const std::vector<double> dout = c.dout();
    const auto weighted_output = [&](const std::vector<double>& x) {
      const Call call(kDouble, c, x, dout);
      attention_forward(call.forward(), call.stream.view());
      return test::dot(dout, call.out.tensor.values(call.stream.view()));
    };
    EXPECT_TRUE(test::is_gradient(Call(kDouble, c, qkv, dout).run().dqkv, weighted_output, qkv));
  }
}

TEST(Attention, QueryWithoutKeyTakesTheMeanOfAllValues) {
  AttentionCase c = {.name = "masked", .B = 2, .S = 45, .N = 2, .G = 1, .H = 8};
  c.pad = 1;  // no key at all
  const std::vector<double> qkv = c.qkv();
  const std::vector<double> dout = c.dout();
  const AttentionResult result = Call(kDouble, c, qkv, dout).run();
  for (std::int64_t b = 0; b < c.B; ++b) {
    for (std::int64_t h = 0; h < c.H; ++h) {
      double mean = 0;
      double dmean = 0;
      double largest = 0;
      for (std::int64_t s = 0; s < c.S; ++s) {
        mean += qkv[static_cast<std::size_t>((((b * c.S + s) * c.C()) + c.N + c.G) * c.H + h)] /
                static_cast<double>(c.S);
        for (std::int64_t n = 0; n < c.N; ++n) {
          largest = std::max(
              {largest,
               std::abs(
                   qkv[static_cast<std::size_t>(((b * c.S + s) * c.C() + c.N + c.G) * c.H + h)]),
               std::abs(dout[static_cast<std::size_t>(((b * c.S + s) * c.N + n) * c.H + h)])});
          dmean += dout[static_cast<std::size_t>(((b * c.S + s) * c.N + n) * c.H + h)] /
                   static_cast<double>(c.S);
        }
      }
      // Sums of S terms of at most largest / S, each of three roundings, there and here.
      const double bound =
          2 * test::rounding_unit(DType::f64) * static_cast<double>(c.S + 3) * largest;
      for (std::int64_t t = 0; t < c.S; ++t) {
        const auto token = static_cast<std::size_t>((b * c.S + t) * c.C() * c.H + h);
        const auto width = static_cast<std::size_t>(c.H);
        EXPECT_NEAR(
            result.out[static_cast<std::size_t>((b * c.S + t) * c.N * c.H + h)], mean, bound);
        EXPECT_EQ(result.dqkv[token], 0) << "dq";
        EXPECT_EQ(result.dqkv[token + 2 * width], 0) << "dk";
        EXPECT_NEAR(result.dqkv[token + 3 * width], dmean, static_cast<double>(c.N) * bound);
      }
    }
  }
}

TEST(Attention, LaterTokensAndOtherDocumentsDoNotMatter) {
  const AttentionCase c = {
      .name = "causal", .B = 1, .S = 90, .N = 2, .G = 1, .H = 16, .document = 40};
  std::vector<double> qkv = c.qkv();
  const std::vector<double> before = Call(kSingle, c, qkv, c.dout()).run().out;
  // Everything but tokens 40 to 60, which lie in the second document and see nothing else.
  const auto token = static_cast<std::size_t>(c.C() * c.H);
  for (std::size_t i = 0; i < qkv.size(); ++i) {
    if (i / token < 40 || i / token > 60) {
      qkv[i] = 7.0 - qkv[i];
    }
  }
  const std::vector<double> after = Call(kSingle, c, qkv, c.dout()).run().out;
  const auto row = static_cast<std::size_t>(c.N * c.H);
  for (std::size_t i = 40 * row; i < 61 * row; ++i) {
    EXPECT_EQ(before[i], after[i]) << "token " << i / row;
  }
}

TEST(Attention, BitsDoNotDependOnTheNumberOfThreads) {
  const int num_threads = omp_get_max_threads();
  for (const AttentionCase& c : test::attention_cases()) {
    const Call one(kSingle, c, c.qkv(), c.dout());
    const Call two(kSingle, c, c.qkv(), c.dout());
    omp_set_num_threads(1);
    one.run();
    omp_set_num_threads(2);
    two.run();
    EXPECT_EQ(one.out.tensor.bytes({}), two.out.tensor.bytes({})) << c.name;
    EXPECT_EQ(one.lse.tensor.bytes({}), two.lse.tensor.bytes({})) << c.name;
    EXPECT_EQ(one.dqkv.tensor.bytes({}), two.dqkv.tensor.bytes({})) << c.name;
  }
  omp_set_num_threads(num_threads);
}

TEST(Attention, RefusesOperandsOutsideTheContract) {
  const AttentionCase c = {.name = "refused", .B = 1, .S = 4, .N = 2, .G = 1, .H = 8};
  const Call call(kSingle, c, c.qkv(), c.dout());
  const auto refuses = [&](auto change) {
    AttentionForward op = call.forward();
    change(op);
    EXPECT_THROW(attention_forward(op, {}), ContractError);
  };
  refuses([](AttentionForward& op) { op.score.scale = 0; });
  refuses([](AttentionForward& op) { op.score.scale = -1; });
  refuses([](AttentionForward& op) { op.score.cap = -1; });
  refuses([](AttentionForward& op) { op.score.temperature_len = 1; });
  refuses([](AttentionForward& op) { op.position_T = op.position_T.rows(0, 3); });
  refuses([](AttentionForward& op) { op.lse_BNS.dtype = DType::bf16; });
  refuses([](AttentionForward& op) { op.out_TNH = op.out_TNH.reshape({4, 1, 16}); });
  refuses([](AttentionForward& op) { op.q_TNH = op.q_TNH.buffer_TCH.reshape({4, 1, 32}); });
  refuses([](AttentionForward& op) { op.k_UGH.first_head = 4; });
  refuses([](AttentionForward& op) { op.k_UGH.first_head = -1; });
  refuses([](AttentionForward& op) { op.v_UGH.num_heads = 2; });
  refuses([](AttentionForward& op) { op.k_UGH.num_heads = op.v_UGH.num_heads = 0; });
  refuses([](AttentionForward& op) { op.v_UGH = op.v_UGH.buffer_TCH.rows(0, 3); });
  refuses([](AttentionForward& op) { op.place_T = op.position_T.rows(0, 3); });
  refuses([](AttentionForward& op) { op.key_place_U = op.position_T.rows(0, 3); });
  const auto refuses_backward = [&](auto change) {
    AttentionBackward op = call.backward();
    change(op);
    EXPECT_THROW(attention_backward(op, {}), ContractError);
  };
  refuses_backward([](AttentionBackward& op) { op.delta_BNS = {}; });
  refuses_backward([](AttentionBackward& op) { op.dq_TNH.num_heads = 1; });
  refuses_backward([](AttentionBackward& op) { op.dk_UGH.first_head = 4; });
  refuses_backward([](AttentionBackward& op) { op.sequence_keys = 3; });
  refuses_backward([](AttentionBackward& op) { op.workspace_W = op.position_T; });
}

}  // namespace
}  // namespace memphis::kernels
