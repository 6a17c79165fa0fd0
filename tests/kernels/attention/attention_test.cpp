// SPDX-License-Identifier: Apache-2.0
#include "kernels/attention/attention.h"

#include <cmath>
#include <limits>
#include <span>

#include <gtest/gtest.h>
#include <omp.h>

#include "bench/attention/attention_cases.h"
#include "csrc/core/error.h"
#include "tests/support/finite_difference.h"
#include "tests/support/test_tensor.h"
#include "tests/support/tolerance.h"

namespace memphis::kernels {
namespace {

using test::AttentionCase;
using test::close_to;
using test::Target;
using test::TestTensor;

struct Result {
  std::vector<double> out;
  std::vector<double> lse;
  std::vector<double> dqkv;
};

double to_double(double value) {
  return value;
}

// Two ways to compute the same, of which neither rounds better: as the formulas stand, with
// probabilities rounded to T as in Grok-1's model.py, or as a tiled kernel must, which rounds a
// probability before it knows the sum (Dao 2022), has tanh from an exponential, and adds up the dot
// products from the other end. With one key dp - delta is 0 in the first and a rounding in the
// second.
enum class Method : std::uint8_t { formulas, tiled };

// The formulas, with the whole square of scores, in the accumulation type of T; stored values are
// rounded to T.
template <class T>
class Naive {
 public:
  using A = Accumulator<T>;

  Naive(Method method,
        const AttentionCase& shape,
        const std::vector<double>& qkv,
        const std::vector<double>& dout)
      : method_(method),
        c_(shape),
        qkv_(qkv),
        dout_(dout),
        position_(shape.positions()),
        valid_(shape.key_valid()) {
    result_.out.resize(static_cast<std::size_t>(c_.T() * c_.N * c_.H));
    result_.lse.resize(static_cast<std::size_t>(c_.B * c_.N * c_.S));
    std::vector<A> dqkv(qkv.size());
    for (std::int64_t b = 0; b < c_.B; ++b) {
      for (std::int64_t n = 0; n < c_.N; ++n) {
        for (std::int64_t t = 0; t < c_.S; ++t) {
          query(b, n, t, dqkv);
        }
      }
    }
    for (const A value : dqkv) {
      result_.dqkv.push_back(to_double(static_cast<T>(value)));
    }
  }

  const Result& result() const { return result_; }

 private:
  std::size_t at(std::int64_t b, std::int64_t t, std::int64_t head) const {
    return static_cast<std::size_t>(((b * c_.S + t) * c_.C() + head) * c_.H);
  }

  static A rounded(A value) { return static_cast<A>(static_cast<T>(value)); }

  A dot(const std::vector<double>& x, std::size_t i, const std::vector<double>& y, std::size_t j) {
    A sum = 0;
    const auto H = static_cast<std::size_t>(c_.H);
    for (std::size_t step = 0; step < H; ++step) {
      const std::size_t h = method_ == Method::formulas ? step : H - 1 - step;
      sum += static_cast<A>(x[i + h]) * static_cast<A>(y[j + h]);
    }
    return sum;
  }

  A tanh_of(A x) const {
    return method_ == Method::formulas ? std::tanh(x) : 1 - 2 / (std::exp(2 * x) + 1);
  }

  void query(std::int64_t b, std::int64_t n, std::int64_t t, std::vector<A>& dqkv) {
    const std::int64_t g = n / (c_.N / c_.G);
    const auto S = static_cast<std::size_t>(c_.S);
    const auto H = static_cast<std::size_t>(c_.H);
    const std::size_t out_at = static_cast<std::size_t>(((b * c_.S + t) * c_.N + n) * c_.H);
    const std::size_t q_at = at(b, t, n);
    const double position = position_[static_cast<std::size_t>(b * c_.S + t)];
    const AttentionScore score = c_.score();
    const auto scale = static_cast<A>(score.scale);
    const auto cap = static_cast<A>(score.cap);
    const auto length = static_cast<A>(score.temperature_len);
    const A tau = length > 0 && static_cast<A>(position) > length
                      ? std::log2(static_cast<A>(position)) / std::log2(length)
                      : A{1};

    constexpr A kNone = -std::numeric_limits<A>::infinity();
    A maximum = kNone;
    const std::int64_t oldest = std::max<std::int64_t>(0, t - static_cast<std::int64_t>(position));
    // Keys from `first` on that the query may see: of many documents, few of the sequence's.
    auto first = static_cast<std::size_t>(oldest);
    auto end = static_cast<std::size_t>(t) + 1;
    std::vector<A> logit(end - first, kNone);
    std::vector<A> slope(end - first, A{0});
    for (std::int64_t s = oldest; s <= t; ++s) {
      const std::size_t i = static_cast<std::size_t>(s) - first;
      if (valid_[static_cast<std::size_t>(b * c_.S + s)] == 0) {
        continue;
      }
      const A x = scale * dot(qkv_, q_at, qkv_, at(b, s, c_.N + g));
      const A bent = cap > 0 ? tanh_of(x / cap) : A{0};
      logit[i] = tau * (cap > 0 ? cap * bent : x);
      slope[i] = tau * scale * (cap > 0 ? 1 - bent * bent : A{1});
      maximum = std::max(maximum, logit[i]);
    }
    const bool empty = maximum == kNone;
    if (empty) {
      first = 0;
      end = S;
      slope.assign(S, A{0});
    }
    std::vector<A> probability(end - first);
    A sum = 0;
    for (std::size_t i = 0; i < probability.size(); ++i) {
      probability[i] = empty ? A{1} : std::exp(logit[i] - maximum);
      sum += probability[i];
    }
    const A lse = empty ? kNone : maximum + std::log(sum);
    result_.lse[static_cast<std::size_t>((b * c_.N + n) * c_.S + t)] = static_cast<double>(lse);

    A delta = 0;
    for (std::size_t h = 0; h < H; ++h) {
      A value = 0;
      for (std::size_t s = first; s < end; ++s) {
        const A v = static_cast<A>(qkv_[at(b, static_cast<std::int64_t>(s), c_.N + c_.G + g) + h]);
        const A p = probability[s - first];
        value += method_ == Method::formulas ? rounded(p / sum) * v : rounded(p) * v / sum;
      }
      result_.out[out_at + h] = to_double(static_cast<T>(value));
      delta += static_cast<A>(dout_[out_at + h]) * rounded(value);
    }
    for (std::size_t s = first; s < end; ++s) {
      const std::size_t k_at = at(b, static_cast<std::int64_t>(s), c_.N + g);
      const std::size_t v_at = at(b, static_cast<std::int64_t>(s), c_.N + c_.G + g);
      // As the contract says: from lse, which has been rounded.
      const std::size_t i = s - first;
      const A p = empty ? A{1} / static_cast<A>(S) : std::exp(logit[i] - lse);
      const A weight = rounded(p);
      const A ds = rounded(p * (dot(dout_, out_at, qkv_, v_at) - delta) * slope[i]);
      for (std::size_t h = 0; h < H; ++h) {
        dqkv[v_at + h] += weight * static_cast<A>(dout_[out_at + h]);
        dqkv[q_at + h] += ds * static_cast<A>(qkv_[k_at + h]);
        dqkv[k_at + h] += ds * static_cast<A>(qkv_[q_at + h]);
      }
    }
  }

  Method method_;
  AttentionCase c_;
  std::vector<double> qkv_;
  std::vector<double> dout_;
  std::vector<double> position_;
  std::vector<double> valid_;
  Result result_;
};

Result naive(Method method,
             DType dtype,
             const AttentionCase& c,
             const std::vector<double>& qkv,
             const std::vector<double>& dout) {
  switch (dtype) {
    case DType::f64:
      return Naive<double>(method, c, qkv, dout).result();
    case DType::f32:
      return Naive<float>(method, c, qkv, dout).result();
    default:
      return Naive<bf16>(method, c, qkv, dout).result();
  }
}

// One forward and one backward call of the op; the tensors stay for comparisons of bits.
struct Call {
  Call(const Target& target,
       const AttentionCase& c,
       const std::vector<double>& qkv_values,
       const std::vector<double>& dout_values)
      : stream(target.device),
        out({c.T(), c.N, c.H}, target.dtype, target.device),
        lse({c.B, c.N, c.S}, accumulation_dtype(target.dtype), target.device),
        dqkv({c.T(), c.C(), c.H}, target.dtype, target.device),
        delta({c.B, c.N, c.S}, accumulation_dtype(target.dtype), target.device),
        qkv({{c.T(), c.C(), c.H}, target.dtype}, target.device, qkv_values),
        dout({{c.T(), c.N, c.H}, target.dtype}, target.device, dout_values),
        position({{c.T()}, DType::i32}, target.device, c.positions()),
        key_valid({{c.T()}, DType::u8}, target.device, c.key_valid()),
        score(c.score()),
        masked(c.pad != 0) {}

  AttentionForward forward() const {
    return {.out_TNH = out.tensor,
            .lse_BNS = lse.tensor,
            .qkv_TCH = qkv,
            .position_T = position,
            .key_valid_T = masked ? key_valid.view() : TensorView{},
            .score = score};
  }
  AttentionBackward backward() const {
    return {.dqkv_TCH = dqkv.tensor,
            .dout_TNH = dout,
            .out_TNH = out.tensor,
            .lse_BNS = lse.tensor,
            .qkv_TCH = qkv,
            .position_T = position,
            .key_valid_T = masked ? key_valid.view() : TensorView{},
            .delta_BNS = delta.tensor,
            .score = score};
  }
  Result run() const {
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

  OwnedStream stream;
  Output out;
  Output lse;
  Output dqkv;
  Output delta;
  TestTensor qkv;
  TestTensor dout;
  TestTensor position;
  TestTensor key_valid;
  AttentionScore score;
  bool masked;
};

// -inf stands for a query without a key: it must be there exactly, and compares as 0 beside the
// rest.
std::vector<double> finite(std::vector<double> lse) {
  for (double& value : lse) {
    value = value == -std::numeric_limits<double>::infinity() ? 0 : value;
  }
  return lse;
}

class AttentionTargets : public testing::TestWithParam<std::tuple<Target, AttentionCase>> {};

TEST_P(AttentionTargets, MatchesTheFormulas) {
  const auto& [target, c] = GetParam();
  if (const std::string reason = test::skip_reason(target); !reason.empty()) {
    GTEST_SKIP() << reason;
  }
  const std::vector<double> qkv = test::rounded_to(target.dtype, c.qkv());
  const std::vector<double> dout = test::rounded_to(target.dtype, c.dout());
  const Result exact = naive(Method::formulas, DType::f64, c, qkv, dout);
  const Result actual = Call(target, c, qkv, dout).run();

  ASSERT_EQ(actual.lse.size(), exact.lse.size());
  for (std::size_t i = 0; i < exact.lse.size(); ++i) {
    EXPECT_EQ(std::isinf(actual.lse[i]), std::isinf(exact.lse[i])) << "lse of row " << i;
  }
  if (target.dtype == DType::f64) {
    // In f64 the naive version is the exact one, but for the rounding of sums of up to S + H terms
    // in another order, in each of a handful of products.
    const double bound = 8 * test::rounding_unit(DType::f64) * static_cast<double>(c.S + c.H);
    EXPECT_LT(test::max_difference(actual.out, exact.out), bound);
    EXPECT_LT(test::max_difference(finite(actual.lse), finite(exact.lse)), bound);
    EXPECT_LT(test::max_difference(actual.dqkv, exact.dqkv), bound);
    return;
  }
  const std::vector<Result> rough =
      test::draws_for(exact.lse.size(), 2, [&, dtype = target.dtype](int draw) {
        return naive(draw % 2 == 0 ? Method::formulas : Method::tiled,
                     dtype,
                     c,
                     test::perturbed(dtype, qkv, draw / 2),
                     test::perturbed(dtype, dout, draw / 2));
      });
  EXPECT_TRUE(
      close_to(actual.out, test::reference_of(exact, rough, &Result::out), target.dtype, c.H));
  // One row: a logarithm near 0 is no better known than a large one.
  test::Reference lse = test::reference_of(exact, rough, &Result::lse);
  lse.exact = finite(lse.exact);
  for (std::vector<double>& values : lse.naive) {
    values = finite(values);
  }
  const auto num_rows = static_cast<std::int64_t>(exact.lse.size());
  EXPECT_TRUE(close_to(finite(actual.lse), lse, DType::f32, num_rows));
  EXPECT_TRUE(close_to(
      actual.dqkv, test::reference_of(exact, rough, &Result::dqkv), target.dtype, c.C() * c.H));
}

INSTANTIATE_TEST_SUITE_P(All,
                         AttentionTargets,
                         testing::Combine(testing::ValuesIn(test::all_targets()),
                                          testing::ValuesIn(test::attention_cases())),
                         [](const auto& instance) {
                           return name_of(std::get<0>(instance.param)) + "_" +
                                  std::get<1>(instance.param).name;
                         });

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
  const Result result = Call(kDouble, c, qkv, dout).run();
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
  refuses([](AttentionForward& op) { op.score.cap = -1; });
  refuses([](AttentionForward& op) { op.score.temperature_len = 1; });
  refuses([](AttentionForward& op) { op.position_T = op.position_T.rows(0, 3); });
  refuses([](AttentionForward& op) { op.lse_BNS.dtype = DType::bf16; });
  refuses([](AttentionForward& op) { op.out_TNH = op.out_TNH.reshape({4, 1, 16}); });
  refuses([](AttentionForward& op) { op.qkv_TCH = op.qkv_TCH.reshape({4, 1, 32}); });
  AttentionBackward op = call.backward();
  op.delta_BNS = {};
  EXPECT_THROW(attention_backward(op, {}), ContractError);
}

}  // namespace
}  // namespace memphis::kernels
