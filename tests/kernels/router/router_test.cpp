// SPDX-License-Identifier: Apache-2.0
#include "kernels/router/router.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <type_traits>
#include <utility>

#include "bench/router/router_cases.h"
#include "kernels/visit.h"
#include "tests/support/finite_difference.h"
#include "tests/support/op_test.h"

namespace memphis::test {
namespace {

using kernels::router_backward;
using kernels::router_balance;
using kernels::router_forward;
using Values = std::vector<double>;

constexpr float kBalanceScale = 0.75F;
constexpr float kZScale = 0.03125F;

// Inputs as the op sees them: rounded to the dtypes that they are stored in.
struct Inputs {
  Values x;
  Values weight;
  Values valid;
  Values dgates;
  Values dx;       // before the call
  Values dweight;  // before the call
};

Inputs draw(const RouterCase& c, DType dtype) {
  const DType sums = accumulation_dtype(dtype);
  const std::int64_t T = c.num_tokens();
  Inputs in;
  in.x = random_normal(T * c.width, "x");
  // Logits of standard deviation 1.5: probabilities that differ, none of them 0.
  const double stddev = 1.5 / std::sqrt(static_cast<double>(c.width));
  in.weight = random_normal(c.num_experts * c.width, "weight", stddev);
  if (c.mean != 0) {  // one column carries it
    for (std::int64_t t = 0; t < T; ++t) {
      in.x[static_cast<std::size_t>(t * c.width)] = 1.0;
    }
    for (std::int64_t e = 0; e < c.num_experts; ++e) {
      in.weight[static_cast<std::size_t>(e * c.width)] = c.mean;
    }
  }
  in.x = rounded_to(dtype, in.x);
  in.weight = rounded_to(sums, in.weight);
  for (std::int64_t t = 0; t < T; ++t) {
    const bool masked = c.masked && (t < c.sequence_length || t % 3 == 0);
    in.valid.push_back(masked ? 0.0 : 1.0);
  }
  in.dgates = rounded_to(sums, random_normal(T * c.num_choices, "dgates"));
  in.dx = rounded_to(dtype, random_normal(T * c.width, "dx"));
  in.dweight = rounded_to(sums, random_normal(c.num_experts * c.width, "dweight"));
  return in;
}

struct Results {
  Values logits;
  Values probs;
  Values gates;
  Values experts;
  Values counts;
  Values probs_sum;
  Values num_valid;
  Values balance;
  Values z;
  Values dx;
  Values dweight;
  // Sums of the terms' absolute values, of the exact ones: a token's gradient of logits adds up to 0,
  // so that of a row of dx or dweight nearly nothing may be left.
  Values dx_terms = {};
  Values dweight_terms = {};
};

template <class A>
std::vector<A> naive_softmax(const std::vector<A>& l) {
  const A largest = *std::max_element(l.begin(), l.end());
  std::vector<A> out;
  A sum = 0;
  for (const A value : l) {
    out.push_back(std::exp(value - largest));
    sum += out.back();
  }
  for (A& value : out) {
    value /= sum;
  }
  return out;
}

template <class T>
Results naive(const RouterCase& c, const Inputs& in) {
  using A = std::conditional_t<std::is_same_v<T, bf16>, float, T>;
  const auto size = [](std::int64_t n) { return static_cast<std::size_t>(n); };
  const std::size_t num_tokens = size(c.num_tokens());
  const std::size_t D = size(c.width);
  const std::size_t E = size(c.num_experts);
  const std::size_t K = size(c.num_choices);
  const std::size_t S = size(c.sequence_length);
  const std::size_t B = size(c.num_sequences);
  const A cap = c.cap;
  const auto at = [](const Values& values, std::size_t i) { return static_cast<A>(values[i]); };
  Results out;
  out.counts.assign(B * E, 0.0);
  out.probs_sum.assign(B * E, 0.0);
  std::vector<std::vector<A>> z(num_tokens, std::vector<A>(E));
  std::vector<std::vector<A>> capped = z;
  std::vector<std::vector<A>> probs = z;
  std::vector<A> lse(num_tokens);
  std::vector<A> lse_terms(num_tokens);

  for (std::size_t t = 0; t < num_tokens; ++t) {
    for (std::size_t e = 0; e < E; ++e) {
      A sum = 0;
      for (std::size_t d = 0; d < D; ++d) {
        sum += at(in.x, t * D + d) * at(in.weight, e * D + d);
      }
      z[t][e] = sum;
      capped[t][e] = cap > 0 ? cap * std::tanh(sum / cap) : sum;
      out.logits.push_back(static_cast<double>(sum));
    }
    probs[t] = naive_softmax(capped[t]);
    const A largest = *std::max_element(z[t].begin(), z[t].end());
    A sum = 0;
    for (const A logit : z[t]) {
      sum += std::exp(logit - largest);
    }
    lse[t] = largest + std::log(sum);
    lse_terms[t] = std::abs(largest) + std::log(sum);
    out.z.push_back(in.valid[t] != 0 ? static_cast<double>(lse[t] * lse[t]) : 0.0);
    std::vector<std::size_t> order(E);
    for (std::size_t e = 0; e < E; ++e) {
      out.probs.push_back(static_cast<double>(probs[t][e]));
      order[e] = e;
    }
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
      return probs[t][a] > probs[t][b];
    });
    for (std::size_t k = 0; k < K; ++k) {
      out.experts.push_back(static_cast<double>(order[k]));
      out.gates.push_back(static_cast<double>(probs[t][order[k]]));
      out.counts[t / S * E + order[k]] += in.valid[t];
    }
  }

  std::vector<A> num_valid(B);
  for (std::size_t b = 0; b < B; ++b) {
    for (std::size_t t = b * S; t < (b + 1) * S; ++t) {
      num_valid[b] += at(in.valid, t);
    }
    A sum = 0;
    for (std::size_t e = 0; e < E && num_valid[b] > 0; ++e) {
      A mean = 0;
      for (std::size_t t = b * S; t < (b + 1) * S; ++t) {
        mean += at(in.valid, t) * probs[t][e];
      }
      const A fraction = at(out.counts, b * E + e) / (num_valid[b] * static_cast<A>(K));
      sum += fraction * (mean / num_valid[b]);
      out.probs_sum[b * E + e] = static_cast<double>(mean);
    }
    out.num_valid.push_back(static_cast<double>(num_valid[b]));
    out.balance.push_back(static_cast<double>(static_cast<A>(E) * sum));
  }

  std::vector<A> dx(num_tokens * D);
  std::vector<A> dweight(E * D);
  std::vector<A> dx_terms(dx.size());
  std::vector<A> dweight_terms(dweight.size());
  for (std::size_t t = 0; t < num_tokens; ++t) {
    const std::size_t b = t / S;
    const bool valid = in.valid[t] != 0;
    std::vector<A> dprob(E);
    for (std::size_t e = 0; e < E && valid; ++e) {
      const A fraction = at(out.counts, b * E + e) / (num_valid[b] * static_cast<A>(K));
      dprob[e] = static_cast<A>(kBalanceScale) * static_cast<A>(E) * fraction / num_valid[b];
    }
    for (std::size_t k = 0; k < K; ++k) {
      dprob[static_cast<std::size_t>(out.experts[t * K + k])] += at(in.dgates, t * K + k);
    }
    A mean = 0;
    A mean_terms = 0;
    for (std::size_t e = 0; e < E; ++e) {
      mean += probs[t][e] * dprob[e];
      mean_terms += probs[t][e] * std::abs(dprob[e]);
    }
    const std::vector<A> uncapped = naive_softmax(z[t]);
    for (std::size_t e = 0; e < E; ++e) {
      const A ratio = cap > 0 ? capped[t][e] / cap : A{0};
      A dz = probs[t][e] * (dprob[e] - mean) * (1 - ratio * ratio);
      A terms = probs[t][e] * (std::abs(dprob[e]) + mean_terms) * (1 - ratio * ratio);
      if (valid) {
        const A of_z = static_cast<A>(kZScale) * 2 * uncapped[e];
        dz += of_z * lse[t];
        terms += of_z * lse_terms[t];
      }
      for (std::size_t d = 0; d < D; ++d) {
        dx[t * D + d] += dz * at(in.weight, e * D + d);
        dweight[e * D + d] += dz * at(in.x, t * D + d);
        dx_terms[t * D + d] += terms * std::abs(at(in.weight, e * D + d));
        dweight_terms[e * D + d] += terms * std::abs(at(in.x, t * D + d));
      }
    }
  }
  for (std::size_t i = 0; i < dx.size(); ++i) {
    const A before = c.accumulate ? at(in.dx, i) : A{0};
    out.dx.push_back(static_cast<double>(static_cast<T>(before + dx[i])));
    out.dx_terms.push_back(static_cast<double>(std::abs(before) + dx_terms[i]));
  }
  for (std::size_t i = 0; i < dweight.size(); ++i) {
    const A before = at(in.dweight, i);
    out.dweight.push_back(static_cast<double>(before + dweight[i]));
    out.dweight_terms.push_back(static_cast<double>(std::abs(before) + dweight_terms[i]));
  }
  return out;
}

// One of `num_pieces` equal pieces of every sequence: what a rank holds that shares them with
// others.
struct Piece {
  const RouterCase& c;
  std::int64_t num_pieces;
  std::int64_t index;

  std::int64_t length() const { return c.sequence_length / num_pieces; }
  std::int64_t num_tokens() const { return c.num_sequences * length(); }
  // Calls move(token of the piece, token of all).
  template <class Move>
  void for_each_token(const Move& move) const {
    for (std::int64_t t = 0; t < num_tokens(); ++t) {
      move(t, t / length() * c.sequence_length + index * length() + t % length());
    }
  }
  // The piece's rows of `all`, which has `width` values a token.
  Values take(const Values& all, std::int64_t width) const {
    Values out(static_cast<std::size_t>(num_tokens() * width));
    for_each_token([&](std::int64_t own, std::int64_t whole) {
      std::copy_n(all.begin() + whole * width, width, out.begin() + own * width);
    });
    return out;
  }
  void put(Values& all, const Values& rows, std::int64_t width) const {
    all.resize(static_cast<std::size_t>(c.num_tokens() * width));
    for_each_token([&](std::int64_t own, std::int64_t whole) {
      std::copy_n(rows.begin() + own * width, width, all.begin() + whole * width);
    });
  }
};

// The operands of one piece.
struct PieceOperands {
  PieceOperands(const Piece& piece_, const Inputs& in, const Target& target)
      : piece(piece_),
        x({{T(), c().width}, target.dtype}, target.device, piece.take(in.x, c().width)),
        weight(weights(target), target.device, in.weight),
        valid({{T()}, DType::u8}, target.device, piece.take(in.valid, 1)),
        logits(per_expert(target), target.device),
        probs(per_expert(target), target.device),
        gates(per_choice(target), target.device),
        experts({{T(), c().num_choices}, DType::i32}, target.device),
        counts({{c().num_sequences, c().num_experts}, DType::i32}, target.device),
        probs_sum({{c().num_sequences, c().num_experts}, sums(target)}, target.device),
        num_valid({{c().num_sequences}, DType::i32}, target.device),
        z({{T()}, sums(target)}, target.device),
        dgates(per_choice(target), target.device, piece.take(in.dgates, c().num_choices)),
        dx({{T(), c().width}, target.dtype}, target.device, piece.take(in.dx, c().width)),
        dlogits(per_expert(target), target.device),
        partial({{c().num_partials, c().num_experts, c().width}, sums(target)}, target.device),
        loss_scales({{2}, sums(target)},
                    target.device,
                    {static_cast<double>(kBalanceScale), static_cast<double>(kZScale)}) {}

  kernels::RouterForward forward() const {
    return {.logits_TE = logits,
            .probs_TE = probs,
            .gates_TK = gates,
            .experts_TK = experts,
            .counts_BE = counts,
            .probs_sum_BE = probs_sum,
            .valid_B = num_valid,
            .z_T = z,
            .x_TD = x,
            .weight_ED = weight,
            .valid_T = mask(),
            .cap = c().cap};
  }
  kernels::RouterBackward backward(const TestTensor& dweight,
                                   const TestTensor& all_counts,
                                   const TestTensor& all_valid) const {
    return {.dx_TD = dx,
            .dweight_ED = dweight,
            .dlogits_TE = dlogits,
            .partial_PED = partial,
            .dgates_TK = dgates,
            .logits_TE = logits,
            .probs_TE = probs,
            .experts_TK = experts,
            .counts_BE = all_counts,
            .valid_B = all_valid,
            .x_TD = x,
            .weight_ED = weight,
            .loss_scales_2 = loss_scales,
            .valid_T = mask(),
            .cap = c().cap,
            .accumulate = c().accumulate};
  }

  const Piece piece;
  TestTensor x, weight, valid, logits, probs, gates, experts, counts, probs_sum, num_valid, z;
  TestTensor dgates, dx, dlogits, partial, loss_scales;

 private:
  const RouterCase& c() const { return piece.c; }
  std::int64_t T() const { return piece.num_tokens(); }
  TensorView mask() const { return c().masked ? valid.view() : TensorView{}; }
  static DType sums(const Target& target) { return accumulation_dtype(target.dtype); }
  TensorSpec weights(const Target& target) const {
    return {{c().num_experts, c().width}, sums(target)};
  }
  TensorSpec per_expert(const Target& target) const {
    return {{T(), c().num_experts}, sums(target)};
  }
  TensorSpec per_choice(const Target& target) const {
    return {{T(), c().num_choices}, sums(target)};
  }
};

// The ops on each piece, with what is summed over a sequence summed over its pieces in between.
Results run(const RouterCase& c,
            const Inputs& in,
            const Target& target,
            std::int64_t num_pieces = 1,
            kernels::WeightGradient of_first = kernels::WeightGradient::add) {
  const OwnedStream stream(target.device);
  const DType sums = accumulation_dtype(target.dtype);
  const TensorSpec per_sequence({c.num_sequences, c.num_experts}, sums);
  std::vector<PieceOperands> pieces;
  Results out;
  out.counts.assign(static_cast<std::size_t>(per_sequence.num_elements()), 0.0);
  out.probs_sum = out.counts;
  out.num_valid.assign(static_cast<std::size_t>(c.num_sequences), 0.0);
  const auto add = [&](Values& sum, const TestTensor& term) {
    const Values values = term.values(stream.view());
    std::transform(sum.begin(), sum.end(), values.begin(), sum.begin(), std::plus<>());
  };
  for (std::int64_t i = 0; i < num_pieces; ++i) {
    const PieceOperands& o = pieces.emplace_back(Piece{c, num_pieces, i}, in, target);
    router_forward(o.forward(), stream.view());
    add(out.counts, o.counts);
    add(out.probs_sum, o.probs_sum);
    add(out.num_valid, o.num_valid);
  }
  const TestTensor counts(
      {{c.num_sequences, c.num_experts}, DType::i32}, target.device, out.counts);
  const TestTensor probs_sum(per_sequence, target.device, out.probs_sum);
  const TestTensor num_valid({{c.num_sequences}, DType::i32}, target.device, out.num_valid);
  const TestTensor balance({{c.num_sequences}, sums}, target.device);
  router_balance({.balance_B = balance,
                  .counts_BE = counts,
                  .probs_sum_BE = probs_sum,
                  .valid_B = num_valid,
                  .experts_per_token = c.num_choices},
                 stream.view());
  out.balance = balance.values(stream.view());
  const TestTensor dweight({{c.num_experts, c.width}, sums}, target.device, in.dweight);
  for (const PieceOperands& o : pieces) {
    kernels::RouterBackward backward = o.backward(dweight, counts, num_valid);
    backward.weight_gradient = &o == &pieces.front() ? of_first : kernels::WeightGradient::add;
    router_backward(backward, stream.view());
    const auto put = [&](Values& all, const TestTensor& rows, std::int64_t width) {
      o.piece.put(all, rows.values(stream.view()), width);
    };
    put(out.logits, o.logits, c.num_experts);
    put(out.probs, o.probs, c.num_experts);
    put(out.gates, o.gates, c.num_choices);
    put(out.experts, o.experts, c.num_choices);
    put(out.z, o.z, 1);
    put(out.dx, o.dx, c.width);
  }
  out.dweight = dweight.values(stream.view());
  return out;
}

class Router : public OpTest<RouterCase> {
 protected:
  void expect_close(const Inputs& in, const Results& actual) const;
};
INSTANTIATE_TEST_SUITE_P(Cases,
                         Router,
                         on_all_targets(router_cases()),
                         name_of_op_test<RouterCase>);

// What results are held to. Of a case with one sequence these are hundreds of naive results, which
// all tests and devices share.
struct Naive {
  Results exact;
  std::vector<Results> rough;
};

const Naive& naive_of(const RouterCase& c, DType dtype, const Inputs& in) {
  static std::map<std::pair<std::string, DType>, Naive> known;
  const auto [entry, is_new] = known.try_emplace({c.name, dtype});
  if (is_new) {
    entry->second.exact = naive<long double>(c, in);
    kernels::visit_float(dtype, [&]<class T>() {
      // The fewest are the balance losses, one a sequence.
      entry->second.rough = draws_for(entry->second.exact.balance.size(), 2, [&](int draw) {
        Inputs moved = in;
        moved.x = perturbed(dtype, in.x, draw);
        moved.weight = perturbed(dtype, in.weight, draw);
        moved.dgates = perturbed(dtype, in.dgates, draw);
        return naive<T>(c, moved);
      });
    });
  }
  return entry->second;
}

// `in` is what `draw` gives for the case.
void Router::expect_close(const Inputs& in, const Results& actual) const {
  const RouterCase& c = op_case();
  const auto& [exact, rough] = naive_of(c, target().dtype, in);
  EXPECT_EQ(actual.experts, exact.experts);
  EXPECT_EQ(actual.counts, exact.counts);
  EXPECT_EQ(actual.num_valid, exact.num_valid);
  const DType sums = accumulation_dtype(target().dtype);
  const auto compare = [&](Values Results::*member, DType dtype, std::int64_t row_length) {
    return close_to(actual.*member, reference_of(exact, rough, member), dtype, row_length);
  };
  EXPECT_TRUE(compare(&Results::logits, sums, c.num_experts));
  EXPECT_TRUE(compare(&Results::probs, sums, c.num_experts));
  EXPECT_TRUE(compare(&Results::gates, sums, c.num_choices));
  // A sum of n positive terms may be off by (n - 1) roundings in any order (Higham 2002, section 4.2).
  const auto compare_sum =
      [&](Values Results::*member, std::int64_t num_terms, std::int64_t row_length) {
        Reference reference = reference_of(exact, rough, member);
        Values summed = exact.*member;
        for (double& value : summed) {
          value *= 1 + static_cast<double>(num_terms) * rounding_unit(sums);
        }
        reference.naive.push_back(std::move(summed));
        return close_to(actual.*member, reference, sums, row_length);
      };
  EXPECT_TRUE(compare_sum(&Results::probs_sum, c.sequence_length, c.num_experts));
  EXPECT_TRUE(compare_sum(&Results::balance, c.num_tokens() + c.num_experts, c.num_sequences));
  EXPECT_TRUE(compare(&Results::z, sums, c.num_tokens()));
  const auto compare_gradient = [&](Values Results::*member, Values Results::*terms, DType dtype) {
    Reference reference = reference_of(exact, rough, member);
    reference.terms = exact.*terms;
    return close_to(actual.*member, reference, dtype, c.width);
  };
  EXPECT_TRUE(compare_gradient(&Results::dx, &Results::dx_terms, target().dtype));
  EXPECT_TRUE(compare_gradient(&Results::dweight, &Results::dweight_terms, sums));
}

TEST_P(Router, IsAsCloseAsNaive) {
  const Inputs in = draw(op_case(), target().dtype);
  expect_close(in, run(op_case(), in, target()));
}

// What is said of a token is the same bits; what is summed over a sequence rounds elsewhere.
TEST_P(Router, PiecesOfSequencesAreAsCloseAsNaive) {
  const RouterCase& c = op_case();
  const Inputs in = draw(c, target().dtype);
  const Results whole = run(c, in, target());
  for (const std::int64_t num_pieces : {2, 4}) {
    if (c.sequence_length % num_pieces != 0) {
      continue;
    }
    SCOPED_TRACE(std::to_string(num_pieces) + " pieces");
    const Results pieces = run(c, in, target(), num_pieces);
    EXPECT_EQ(pieces.logits, whole.logits);
    EXPECT_EQ(pieces.probs, whole.probs);
    EXPECT_EQ(pieces.z, whole.z);
    expect_close(in, pieces);
  }
}

TEST_P(Router, RowsAreDistributionsAndGatesTheirLargest) {
  const RouterCase& c = op_case();
  const Results actual = run(c, draw(c, target().dtype), target());
  const auto E = static_cast<std::size_t>(c.num_experts);
  const auto K = static_cast<std::size_t>(c.num_choices);
  const double unit = rounding_unit(accumulation_dtype(target().dtype));
  for (std::size_t t = 0; t * E < actual.probs.size(); ++t) {
    double sum = 0;
    for (std::size_t e = 0; e < E; ++e) {
      sum += actual.probs[t * E + e];
    }
    // Every probability rounds once and is divided by a sum of E - 1 roundings.
    EXPECT_NEAR(sum, 1.0, unit * static_cast<double>(E + 1));
    std::vector<double> sorted(actual.probs.begin() + static_cast<std::ptrdiff_t>(t * E),
                               actual.probs.begin() + static_cast<std::ptrdiff_t>((t + 1) * E));
    std::sort(sorted.rbegin(), sorted.rend());
    for (std::size_t k = 0; k < K; ++k) {
      EXPECT_EQ(actual.gates[t * K + k], sorted[k]);
      const auto expert = static_cast<std::size_t>(actual.experts[t * K + k]);
      EXPECT_EQ(actual.gates[t * K + k], actual.probs[t * E + expert]);
    }
  }
}

TEST_P(Router, WritesTheDweightThatItWouldAddToZeros) {
  Inputs in = draw(op_case(), target().dtype);
  in.dweight.assign(in.dweight.size(), 0.0);
  const Results added = run(op_case(), in, target());
  in.dweight.assign(in.dweight.size(), std::numeric_limits<double>::quiet_NaN());
  const Results written = run(op_case(), in, target(), 1, kernels::WeightGradient::write);
  EXPECT_EQ(written.dweight, added.dweight);
  EXPECT_EQ(written.dx, added.dx);
}

TEST_P(Router, RepeatsItsBits) {
  const Inputs in = draw(op_case(), target().dtype);
  const Results first = run(op_case(), in, target());
  const OneThread one_thread;
  const Results second = run(op_case(), in, target());
  EXPECT_EQ(second.probs, first.probs);
  EXPECT_EQ(second.balance, first.balance);
  EXPECT_EQ(second.dx, first.dx);
  EXPECT_EQ(second.dweight, first.dweight);
}

TEST_P(Router, EqualProbabilitiesGoToTheLowerIndexAndAreBalanced) {
  const RouterCase& c = op_case();
  Inputs in = draw(c, target().dtype);
  in.weight.assign(in.weight.size(), 0.0);
  in.valid.assign(in.valid.size(), 1.0);
  const Results actual = run(c, in, target());
  const auto K = static_cast<std::size_t>(c.num_choices);
  for (std::size_t i = 0; i < actual.experts.size(); ++i) {
    EXPECT_EQ(actual.experts[i], static_cast<double>(i % K));
  }
  const double unit = rounding_unit(accumulation_dtype(target().dtype));
  for (const double balance : actual.balance) {
    // Uniform probabilities balance to 1 whatever the counts; the sum over the tokens rounds each.
    const auto roundings = static_cast<double>(c.sequence_length + c.num_experts + 6);
    EXPECT_NEAR(balance, c.sequence_length == 0 ? 0.0 : 1.0, unit * roundings);
  }
}

// One of more tokens than the largest block of the GPU sums at a time.
TEST(RouterSums, HaveAllTokensOfALongSequence) {
  const RouterCase c{.name = "",
                     .num_sequences = 1,
                     .sequence_length = 8200,
                     .width = 8,
                     .num_experts = 2,
                     .num_choices = 1};
  for (const Target& target : all_targets()) {
    if (target.dtype != DType::bf16 || !skip_reason(target).empty()) {
      continue;
    }
    SCOPED_TRACE(name_of(target));
    const OwnedStream stream(target.device);
    const PieceOperands o(Piece{c, 1, 0}, draw(c, target.dtype), target);
    router_forward(o.forward(), stream.view());
    const Values experts = o.experts.values(stream.view());
    const Values probs = o.probs.values(stream.view());
    Values counts(2);
    Values sums(2);
    for (std::size_t t = 0; t < experts.size(); ++t) {
      counts[static_cast<std::size_t>(experts[t])] += 1;
      sums[0] += probs[2 * t];
      sums[1] += probs[2 * t + 1];
    }
    EXPECT_EQ(o.counts.values(stream.view()), counts);
    EXPECT_EQ(o.num_valid.values(stream.view()), Values{8200});
    const Values actual = o.probs_sum.values(stream.view());
    for (std::size_t e = 0; e < 2; ++e) {  // as many roundings as tokens, in any order
      EXPECT_NEAR(actual[e], sums[e], sums[e] * 8200 * rounding_unit(DType::f32));
    }
  }
}

// A NaN is seen in the gates, and the experts are still experts: what follows indexes by them.
TEST_P(Router, KeepsNanAndValidExperts) {
  const RouterCase& c = op_case();
  if (c.num_tokens() == 0) {
    return;
  }
  Inputs in = draw(c, target().dtype);
  in.x[0] = std::numeric_limits<double>::quiet_NaN();
  const Results actual = run(c, in, target());
  EXPECT_TRUE(std::isnan(actual.logits[0]));
  for (std::size_t k = 0; k < static_cast<std::size_t>(c.num_choices); ++k) {
    EXPECT_TRUE(std::isnan(actual.gates[k]));
    EXPECT_EQ(actual.experts[k], static_cast<double>(k));
  }
  EXPECT_TRUE(std::isnan(actual.dx[0]));
}

// The counts do not change under a small step, so the op's own losses are what backward derives.
TEST(RouterGradient, IsTheDifferenceQuotient) {
  for (const float cap : {0.0F, 1.5F}) {
    for (const bool masked : {false, true}) {
      const RouterCase c{.name = "",
                         .num_sequences = 2,
                         .sequence_length = 4,
                         .width = 5,
                         .num_experts = 4,
                         .num_choices = 2,
                         .cap = cap,
                         .masked = masked,
                         .num_partials = 3};
      const Target target{Device::cpu, DType::f64};
      Inputs in = draw(c, DType::f64);
      in.dweight.assign(in.dweight.size(), 0.0);
      const Results actual = run(c, in, target);
      const auto loss = [&](Values Inputs::*member) {
        return [&, member](const Values& values) {
          Inputs moved = in;
          moved.*member = values;
          const Results r = run(c, moved, target);
          EXPECT_EQ(r.experts, actual.experts);
          return dot(r.gates, in.dgates) + dot(r.balance, Values(r.balance.size(), kBalanceScale)) +
                 dot(r.z, Values(r.z.size(), kZScale));
        };
      };
      EXPECT_TRUE(is_gradient(actual.dx, loss(&Inputs::x), in.x));
      EXPECT_TRUE(is_gradient(actual.dweight, loss(&Inputs::weight), in.weight));
    }
  }
}

TEST(RouterContract, NamesTheOperand) {
  const TensorSpec per_expert({6, 4}, DType::f32);
  const TestTensor x({{6, 8}, DType::f32}, Device::cpu, Values(48, 0.5));
  const TestTensor weight({{4, 8}, DType::f32}, Device::cpu, Values(32, 0.5));
  const TestTensor logits(per_expert, Device::cpu);
  const TestTensor probs(per_expert, Device::cpu);
  const TestTensor gates({{6, 2}, DType::f32}, Device::cpu);
  const TestTensor experts({{6, 2}, DType::i32}, Device::cpu);
  const TestTensor five_experts({{6, 5}, DType::i32}, Device::cpu);
  const TestTensor counts({{2, 4}, DType::i32}, Device::cpu);
  const TestTensor four_sequences({{4, 4}, DType::i32}, Device::cpu);
  const TestTensor probs_sum({{2, 4}, DType::f32}, Device::cpu);
  const TestTensor num_valid({{2}, DType::i32}, Device::cpu);
  const TestTensor balance({{2}, DType::f32}, Device::cpu);
  const TestTensor z({{6}, DType::f32}, Device::cpu);
  const Stream stream;
  const kernels::RouterForward good{.logits_TE = logits,
                                    .probs_TE = probs,
                                    .gates_TK = gates,
                                    .experts_TK = experts,
                                    .counts_BE = counts,
                                    .probs_sum_BE = probs_sum,
                                    .valid_B = num_valid,
                                    .z_T = z,
                                    .x_TD = x,
                                    .weight_ED = weight};
  EXPECT_NO_THROW(router_forward(good, stream));
  auto bad = good;
  bad.experts_TK = five_experts;
  EXPECT_TRUE(rejects([&] { router_forward(bad, stream); }, "5 experts per token of 4"));
  bad = good;
  bad.counts_BE = four_sequences;
  EXPECT_TRUE(rejects([&] { router_forward(bad, stream); }, "6 tokens in 4 sequences"));
  bad = good;
  bad.cap = -30.0F;
  EXPECT_TRUE(rejects([&] { router_forward(bad, stream); }, "cap is -30"));
  bad = good;
  bad.valid_T = z;
  EXPECT_TRUE(rejects([&] { router_forward(bad, stream); }, "valid_T is f32[6]"));
  const TestTensor no_partials({{0, 4, 8}, DType::f32}, Device::cpu);
  const TestTensor partial({{1, 4, 8}, DType::f32}, Device::cpu);
  const TestTensor loss_scales({{2}, DType::f32}, Device::cpu);
  const kernels::RouterBackward backward{.dx_TD = x,
                                         .dweight_ED = weight,
                                         .dlogits_TE = probs,
                                         .partial_PED = no_partials,
                                         .dgates_TK = gates,
                                         .logits_TE = logits,
                                         .probs_TE = probs,
                                         .experts_TK = experts,
                                         .counts_BE = counts,
                                         .valid_B = num_valid,
                                         .x_TD = x,
                                         .weight_ED = weight,
                                         .loss_scales_2 = loss_scales};
  EXPECT_TRUE(rejects([&] { router_backward(backward, stream); }, "partial_PED has no rows"));
  kernels::RouterBackward unscaled = backward;
  unscaled.partial_PED = partial;
  unscaled.loss_scales_2 = balance.view().rows(0, 1);
  EXPECT_TRUE(rejects([&] { router_backward(unscaled, stream); }, "loss_scales_2 is f32[1]"));
  kernels::RouterBalance balances{.balance_B = balance,
                                  .counts_BE = counts,
                                  .probs_sum_BE = probs_sum,
                                  .valid_B = num_valid,
                                  .experts_per_token = 5};
  EXPECT_TRUE(rejects([&] { router_balance(balances, stream); }, "5 experts per token of 4"));
  balances.experts_per_token = 2;
  EXPECT_NO_THROW(router_balance(balances, stream));
  balances.valid_B = balance;
  EXPECT_TRUE(rejects([&] { router_balance(balances, stream); }, "valid_B is f32[2]"));
}

}  // namespace
}  // namespace memphis::test
