// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

#include "bench/attention/attention_cases.h"
#include "csrc/core/dtype.h"
#include "tests/support/op_test.h"
#include "tests/support/test_tensor.h"
#include "tests/support/tolerance.h"

// Attention as its formulas stand, what the tests of attention hold it to.
namespace memphis::test {

using kernels::AttentionScore;

struct AttentionResult {
  std::vector<double> out;
  std::vector<double> lse;
  std::vector<double> dqkv;
  // What the terms of dqkv come to without their signs. A query that sees one key as good as alone
  // has gradients of which nearly nothing is left: dp - delta cancels.
  std::vector<double> dqkv_terms = {};
};

inline double to_double(Exact value) {
  return static_cast<double>(value);
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
class NaiveAttention {
 public:
  using A = NaiveAccumulator<T>;

  // `least_slope`: that of the cap's bend which terms are of at least.
  NaiveAttention(Method method,
                 const AttentionCase& shape,
                 const std::vector<double>& qkv,
                 const std::vector<double>& dout,
                 double least_slope = 0)
      : method_(method),
        least_slope_(static_cast<A>(least_slope)),
        c_(shape),
        qkv_(qkv),
        dout_(dout),
        position_(shape.positions()),
        valid_(shape.key_valid()) {
    result_.out.resize(static_cast<std::size_t>(c_.T() * c_.N * c_.H));
    result_.lse.resize(static_cast<std::size_t>(c_.B * c_.N * c_.S));
    result_.dqkv_terms.resize(qkv.size());
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

  const AttentionResult& result() const { return result_; }

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
    std::vector<A> slope_terms = slope;
    for (std::int64_t s = oldest; s <= t; ++s) {
      const std::size_t i = static_cast<std::size_t>(s) - first;
      if (valid_[static_cast<std::size_t>(b * c_.S + s)] == 0) {
        continue;
      }
      const A x = scale * dot(qkv_, q_at, qkv_, at(b, s, c_.N + g));
      const A bent = cap > 0 ? tanh_of(x / cap) : A{0};
      logit[i] = tau * (cap > 0 ? cap * bent : x);
      slope[i] = tau * scale * (cap > 0 ? 1 - bent * bent : A{1});
      slope_terms[i] = std::max(slope[i], tau * scale * least_slope_);
      maximum = std::max(maximum, logit[i]);
    }
    const bool empty = maximum == kNone;
    if (empty) {
      first = 0;
      end = S;
      slope.assign(S, A{0});
      slope_terms = slope;
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
    A delta_terms = 0;
    for (std::size_t h = 0; h < H; ++h) {
      A value = 0;
      A value_terms = 0;
      for (std::size_t s = first; s < end; ++s) {
        const A v = static_cast<A>(qkv_[at(b, static_cast<std::int64_t>(s), c_.N + c_.G + g) + h]);
        const A p = probability[s - first];
        value += method_ == Method::formulas ? rounded(p / sum) * v : rounded(p) * v / sum;
        value_terms += p * std::abs(v) / sum;
      }
      result_.out[out_at + h] = to_double(static_cast<T>(value));
      const A d = static_cast<A>(dout_[out_at + h]);
      delta += d * rounded(value);
      delta_terms += std::abs(d) * value_terms;
    }
    for (std::size_t s = first; s < end; ++s) {
      const std::size_t k_at = at(b, static_cast<std::int64_t>(s), c_.N + g);
      const std::size_t v_at = at(b, static_cast<std::int64_t>(s), c_.N + c_.G + g);
      // As the contract says: from lse, which has been rounded.
      const std::size_t i = s - first;
      const A p = empty ? A{1} / static_cast<A>(S) : std::exp(logit[i] - lse);
      const A weight = rounded(p);
      const A ds = rounded(p * (dot(dout_, out_at, qkv_, v_at) - delta) * slope[i]);
      A terms = delta_terms;
      for (std::size_t h = 0; h < H; ++h) {
        terms += std::abs(static_cast<A>(dout_[out_at + h]) * static_cast<A>(qkv_[v_at + h]));
      }
      terms *= p * slope_terms[i];
      for (std::size_t h = 0; h < H; ++h) {
        const A d = static_cast<A>(dout_[out_at + h]);
        const A k = static_cast<A>(qkv_[k_at + h]);
        const A q = static_cast<A>(qkv_[q_at + h]);
        dqkv[v_at + h] += weight * d;
        dqkv[q_at + h] += ds * k;
        dqkv[k_at + h] += ds * q;
        add_terms(v_at + h, weight * d);
        add_terms(q_at + h, terms * k);
        add_terms(k_at + h, terms * q);
      }
    }
  }

  void add_terms(std::size_t i, A term) { result_.dqkv_terms[i] += to_double(std::abs(term)); }

  Method method_;
  A least_slope_;
  AttentionCase c_;
  std::vector<double> qkv_;
  std::vector<double> dout_;
  std::vector<double> position_;
  std::vector<double> valid_;
  AttentionResult result_;
};

inline AttentionResult naive(Method method,
                             DType dtype,
                             const AttentionCase& c,
                             const std::vector<double>& qkv,
                             const std::vector<double>& dout) {
  switch (dtype) {
    case DType::f64:
      return NaiveAttention<double>(method, c, qkv, dout).result();
    case DType::f32:
      return NaiveAttention<float>(method, c, qkv, dout).result();
    default:
      return NaiveAttention<bf16>(method, c, qkv, dout).result();
  }
}

// Whether the cap's bend is that of kernels/device/soft_cap.h: off by less than kBend, absolute.
inline bool has_approximate_cap(const Target& target, const AttentionCase& c) {
  return target.device == Device::cuda && target.dtype == DType::bf16 && c.cap > 0;
}
constexpr double kBend = 0x1p-20;

// The result that those of `target` are held to, in a wider type. A slope 1 - tanh^2 that is off by
// 2 kBend is off by no more than others beside the slope of which that is a rounding.
inline AttentionResult exact_attention(const Target& target,
                                       const AttentionCase& c,
                                       const std::vector<double>& qkv,
                                       const std::vector<double>& dout) {
  if (target.dtype == DType::f64) {
    return NaiveAttention<Exact>(Method::formulas, c, qkv, dout).result();
  }
  const double least_slope =
      has_approximate_cap(target, c) ? 2 * kBend / rounding_unit(target.dtype) : 0;
  return NaiveAttention<double>(Method::formulas, c, qkv, dout, least_slope).result();
}

// Naive results, as many as tell how such code rounds: more where nothing is rounded to bf16, which
// makes many errors of each sum's one. `num_rows`, of the lse that are compared: the fewest values.
inline std::vector<AttentionResult> naive_draws(DType dtype,
                                                const AttentionCase& c,
                                                const std::vector<double>& qkv,
                                                const std::vector<double>& dout,
                                                std::size_t num_rows) {
  return draws_for(num_rows, dtype == DType::bf16 ? 2 : 6, [&](int draw) {
    return naive(draw % 2 == 0 ? Method::formulas : Method::tiled,
                 dtype,
                 c,
                 perturbed(dtype, qkv, draw / 2),
                 perturbed(dtype, dout, draw / 2));
  });
}

inline std::vector<AttentionResult> naive_draws(DType dtype,
                                                const AttentionCase& c,
                                                const std::vector<double>& qkv,
                                                const std::vector<double>& dout) {
  return naive_draws(dtype, c, qkv, dout, static_cast<std::size_t>(c.B * c.N * c.S));
}

// Of the gradients, whose rows are those of a token.
inline Reference dqkv_reference(const AttentionResult& exact,
                                const std::vector<AttentionResult>& rough) {
  Reference reference = reference_of(exact, rough, &AttentionResult::dqkv);
  reference.terms = exact.dqkv_terms;
  return reference;
}

// -inf stands for a query without a key: it must be there exactly, and compares as 0 beside the
// rest.
inline std::vector<double> finite(std::vector<double> lse) {
  for (double& value : lse) {
    value = value == -std::numeric_limits<double>::infinity() ? 0 : value;
  }
  return lse;
}

// Of the rows' statistics, which are one row: a logarithm near 0 is no better known than a large one.
inline Reference lse_reference(const Target& target,
                               const AttentionCase& c,
                               const AttentionResult& exact,
                               const std::vector<AttentionResult>& rough) {
  Reference reference = reference_of(exact, rough, &AttentionResult::lse);
  if (has_approximate_cap(target, c)) {
    double temperature = 1;
    if (c.temperature_len > 0) {
      const std::vector<double> positions = c.positions();
      const double farthest = *std::max_element(positions.begin(), positions.end());
      temperature =
          std::max(1.0, std::log2(farthest) / std::log2(static_cast<double>(c.temperature_len)));
    }
    std::vector<double>& bent = reference.naive.emplace_back(exact.lse);
    for (double& lse : bent) {
      lse += static_cast<double>(c.cap) * temperature * kBend;
    }
  }
  reference.exact = finite(reference.exact);
  for (std::vector<double>& values : reference.naive) {
    values = finite(values);
  }
  return reference;
}

// Filled with what is no number, as kernels may not count on anything there.
inline TestTensor attention_workspace(const kernels::AttentionBackward& op, Device device) {
  const std::size_t bytes = kernels::attention_backward_workspace_bytes(op, device);
  return {
      {{static_cast<std::int64_t>(bytes)}, DType::u8}, device, std::vector<double>(bytes, 255.0)};
}

// The cases on all targets, but those of Hopper's tiles, `hopper...`, where such kernels are: on
// others they are shapes like any, and take minutes to simulate.
template <class Case, class Name>
std::vector<std::tuple<Target, Case>> on_attention_targets(const std::vector<Case>& cases,
                                                           const Name& name_of_case) {
  std::vector<std::tuple<Target, Case>> result;
  for (const Target& target : all_targets()) {
    const bool has_tiles = target.device == Device::cuda && target.dtype == DType::bf16;
    for (const Case& c : cases) {
      if (has_tiles || !std::string(std::invoke(name_of_case, c)).starts_with("hopper")) {
        result.emplace_back(target, c);
      }
    }
  }
  return result;
}

}  // namespace memphis::test
