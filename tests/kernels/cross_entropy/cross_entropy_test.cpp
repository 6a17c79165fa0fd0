// SPDX-License-Identifier: Apache-2.0
#include "kernels/cross_entropy/cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <utility>

#include "bench/cross_entropy/cross_entropy_cases.h"
#include "kernels/visit.h"
#include "tests/support/finite_difference.h"
#include "tests/support/op_test.h"

namespace memphis::test {
namespace {

using kernels::cross_entropy;
using Values = std::vector<double>;

constexpr float kGradScale = 0.37F;

// Inputs as the op sees them: rounded to the dtypes that they are stored in.
struct Inputs {
  Values logits;
  Values targets;  // every fifth row counts nothing
};

Inputs draw(const CrossEntropyCase& c, DType dtype) {
  Inputs in;
  in.logits = random_normal(c.num_tokens * c.vocab_size, "logits", 3.0);
  for (double& logit : in.logits) {
    logit += c.mean;
  }
  in.logits = rounded_to(dtype, in.logits);
  in.targets = random_integers(c.num_tokens, "targets", 0, c.vocab_size);
  for (std::size_t t = 4; t < in.targets.size(); t += 5) {
    in.targets[t] = -1;
  }
  return in;
}

struct Results {
  Values loss;
  Values dlogits;
  Values dlogits_terms = {};  // without regard to sign, of the exact ones
};

enum class Wanted : std::uint8_t { losses, all };

// `by_lse`: probabilities are e^(l - logsumexp), which is all that ranks know of each other's
// columns.
template <class T>
Results naive(const CrossEntropyCase& c,
              const Inputs& in,
              bool by_lse = false,
              Wanted wanted = Wanted::all) {
  using A = std::conditional_t<std::is_same_v<T, bf16>, float, T>;
  const auto V = static_cast<std::size_t>(c.vocab_size);
  Results out{.loss = Values(in.targets.size()),
              .dlogits = Values(in.logits.size()),
              .dlogits_terms = Values(std::is_same_v<T, Exact> ? in.logits.size() : 0)};
  const A multiplier = c.multiplier;
  const A cap = c.cap;
  for (std::size_t t = 0; t < in.targets.size(); ++t) {
    if (in.targets[t] < 0) {
      continue;
    }
    std::vector<A> l(V);
    for (std::size_t v = 0; v < V; ++v) {
      const A scaled = multiplier * static_cast<A>(in.logits[t * V + v]);
      l[v] = cap > 0 ? cap * std::tanh(scaled / cap) : scaled;
    }
    const A largest = *std::max_element(l.begin(), l.end());
    A sum = 0;
    for (const A value : l) {
      sum += std::exp(value - largest);
    }
    const auto target = static_cast<std::size_t>(in.targets[t]);
    out.loss[t] = static_cast<double>(largest + std::log(sum) - l[target]);
    for (std::size_t v = 0; v < V && wanted == Wanted::all; ++v) {
      const A prob =
          by_lse ? std::exp(l[v] - (largest + std::log(sum))) : std::exp(l[v] - largest) / sum;
      const A slope = cap > 0 ? 1 - (l[v] / cap) * (l[v] / cap) : A{1};
      const A hit = v == target ? A{1} : A{0};
      const auto scaled = [&](A difference) {
        return static_cast<A>(kGradScale) * (difference * multiplier * slope);
      };
      out.dlogits[t * V + v] = static_cast<double>(static_cast<T>(scaled(prob - hit)));
      if constexpr (std::is_same_v<T, Exact>) {
        out.dlogits_terms[t * V + v] = static_cast<double>(scaled(prob + hit));
      }
    }
  }
  return out;
}

Results run(const CrossEntropyCase& c, const Inputs& in, const Target& target) {
  const OwnedStream stream(target.device);
  const TensorSpec rows({c.num_tokens, c.vocab_size}, target.dtype);
  const TestTensor logits(rows, target.device, in.logits);
  const TestTensor dlogits(rows, target.device);
  const TestTensor targets({{c.num_tokens}, DType::i32}, target.device, in.targets);
  const TestTensor loss({{c.num_tokens}, accumulation_dtype(target.dtype)}, target.device);
  const TestTensor grad_scale(
      {{1}, accumulation_dtype(target.dtype)}, target.device, {static_cast<double>(kGradScale)});
  const TestTensor& gradient = c.in_place ? logits : dlogits;
  cross_entropy({.loss_T = loss,
                 .dlogits_TV = c.gradient ? gradient.view() : TensorView{},
                 .logits_TV = logits,
                 .targets_T = targets,
                 .grad_scale_1 = c.gradient ? grad_scale.view() : TensorView{},
                 .multiplier = c.multiplier,
                 .cap = c.cap},
                stream.view());
  return {.loss = loss.values(stream.view()),
          .dlogits = c.gradient ? gradient.values(stream.view()) : Values{}};
}

bool has_nan(const Values& values) {
  return std::any_of(values.begin(), values.end(), [](double x) { return std::isnan(x); });
}

// The same by ranks that share the columns out, the more the higher the rank, at least one each.
Results run_split(const CrossEntropyCase& c,
                  const Inputs& in,
                  const Target& target,
                  int num_ranks) {
  const OwnedStream stream(target.device);
  const DType sums = accumulation_dtype(target.dtype);
  const TestTensor targets({{c.num_tokens}, DType::i32}, target.device, in.targets);
  const auto V = static_cast<std::size_t>(c.vocab_size);
  const auto T = static_cast<std::size_t>(c.num_tokens);
  const auto begin_of = [&](int rank) {
    const auto r = static_cast<std::size_t>(rank);
    const auto P = static_cast<std::size_t>(num_ranks);
    return std::max(r, V * r * (r + 1) / (P * (P + 1)));
  };
  const auto columns = [&](int rank) {
    Values result;
    for (std::size_t t = 0; t < T; ++t) {
      const auto row = in.logits.begin() + static_cast<std::ptrdiff_t>(t * V);
      result.insert(result.end(),
                    row + static_cast<std::ptrdiff_t>(begin_of(rank)),
                    row + static_cast<std::ptrdiff_t>(begin_of(rank + 1)));
    }
    return result;
  };
  const auto spec_of = [&](int rank) {
    return TensorSpec(
        {c.num_tokens, static_cast<std::int64_t>(begin_of(rank + 1) - begin_of(rank))},
        target.dtype);
  };
  Values lse;
  Values target_logits;
  for (int rank = 0; rank < num_ranks; ++rank) {
    const TestTensor logits(spec_of(rank), target.device, columns(rank));
    const TestTensor own_lse({{c.num_tokens}, sums}, target.device);
    const TestTensor own_target({{c.num_tokens}, sums}, target.device);
    kernels::cross_entropy_shard({.lse_T = own_lse,
                                  .target_T = own_target,
                                  .logits_TV = logits,
                                  .targets_T = targets,
                                  .multiplier = c.multiplier,
                                  .cap = c.cap,
                                  .vocab_begin = static_cast<std::int64_t>(begin_of(rank))},
                                 stream.view());
    const Values rank_lse = own_lse.values(stream.view());
    const Values rank_target = own_target.values(stream.view());
    lse.insert(lse.end(), rank_lse.begin(), rank_lse.end());
    target_logits.insert(target_logits.end(), rank_target.begin(), rank_target.end());
  }
  const TensorSpec table({num_ranks, c.num_tokens}, sums);
  const TestTensor all_lse(table, target.device, lse);
  const TestTensor all_target(table, target.device, target_logits);
  const TestTensor joined_lse({{c.num_tokens}, sums}, target.device);
  const TestTensor joined_target({{c.num_tokens}, sums}, target.device);
  kernels::cross_entropy_join(
      {.lse_T = joined_lse, .target_T = joined_target, .lse_PT = all_lse, .target_PT = all_target},
      stream.view());
  if (num_ranks == 1) {
    EXPECT_EQ(joined_lse.values(stream.view()), lse);
    EXPECT_EQ(joined_target.values(stream.view()), target_logits);
  }
  for (std::size_t t = 4; t < T; t += 5) {  // counts nothing
    EXPECT_EQ(joined_target.values(stream.view())[t], 0.0);
  }
  const TestTensor grad_scale({{1}, sums}, target.device, {static_cast<double>(kGradScale)});
  Results results{.loss = {}, .dlogits = Values(c.gradient ? in.logits.size() : 0)};
  for (int rank = 0; rank < num_ranks; ++rank) {
    const TestTensor logits(spec_of(rank), target.device, columns(rank));
    const TestTensor dlogits(spec_of(rank), target.device);
    const TestTensor loss({{c.num_tokens}, sums}, target.device);
    const TestTensor& gradient = c.in_place ? logits : dlogits;
    kernels::cross_entropy_gradient({.loss_T = loss,
                                     .dlogits_TV = c.gradient ? gradient.view() : TensorView{},
                                     .logits_TV = logits,
                                     .targets_T = targets,
                                     .lse_T = joined_lse,
                                     .target_T = joined_target,
                                     .grad_scale_1 = c.gradient ? grad_scale.view() : TensorView{},
                                     .multiplier = c.multiplier,
                                     .cap = c.cap,
                                     .vocab_begin = static_cast<std::int64_t>(begin_of(rank))},
                                    stream.view());
    const Values own_loss = loss.values(stream.view());
    if (rank > 0 && !has_nan(own_loss)) {
      EXPECT_EQ(own_loss, results.loss) << "rank " << rank;
    }
    results.loss = own_loss;
    const Values own = c.gradient ? gradient.values(stream.view()) : Values{};
    const std::size_t width = begin_of(rank + 1) - begin_of(rank);
    for (std::size_t i = 0; i < own.size(); ++i) {
      results.dlogits[i / width * V + begin_of(rank) + i % width] = own[i];
    }
  }
  return results;
}

class CrossEntropy : public OpTest<CrossEntropyCase> {
 protected:
  // Naive results, of which the first have gradients: there are many more of these than losses.
  template <class ByLse>
  std::vector<Results> draws(const Results& exact,
                             const Inputs& in,
                             int least,
                             const ByLse& by_lse) const {
    const std::size_t num_gradients = exact.dlogits.size();
    std::vector<Results> rough;
    kernels::visit_float(target().dtype, [&]<class T>() {
      rough = draws_for(exact.loss.size(), least, [&](int draw) {
        Inputs moved = in;
        moved.logits = perturbed(target().dtype, in.logits, draw);
        const bool enough =
            draw >= least && static_cast<std::size_t>(draw) * num_gradients >= kEnoughValues;
        Results one =
            naive<T>(op_case(), moved, by_lse(draw), enough ? Wanted::losses : Wanted::all);
        if (enough) {
          one.dlogits.clear();
        }
        return one;
      });
    });
    return rough;
  }

  // What the roundings of a row's logits, scaled and capped, come to at most.
  Values logit_roundings(const Inputs& in) const {
    const auto V = static_cast<std::size_t>(op_case().vocab_size);
    const auto cap = static_cast<double>(op_case().cap);
    Values roundings(in.targets.size());
    for (std::size_t i = 0; i < in.logits.size(); ++i) {
      const double scaled = std::abs(in.logits[i]) * static_cast<double>(op_case().multiplier);
      roundings[i / V] = std::max(roundings[i / V], cap > 0 ? std::min(cap, scaled) : scaled);
    }
    for (double& rounding : roundings) {
      rounding *= rounding_unit(accumulation_dtype(target().dtype));
    }
    return roundings;
  }

  void expect_close(const Results& actual,
                    const Results& exact,
                    const Inputs& in,
                    const std::vector<Results>& rough) const {
    Reference losses = reference_of(exact, rough, &Results::loss);
    if (target().device == Device::cuda && target().dtype == DType::bf16 && op_case().cap > 0) {
      // The cap's bend is off by less than 2^-20 there (kernels/device/soft_cap.h): in the target's
      // logit, and once more in the logarithm of the sum.
      Values& bent = losses.naive.emplace_back(exact.loss);
      for (std::size_t t = 0; t < bent.size(); ++t) {
        bent[t] += in.targets[t] < 0 ? 0.0 : std::ldexp(static_cast<double>(op_case().cap), -20);
      }
    }
    // The logarithm of the sum and the target's logit are rounded before one is taken from the other.
    const Values roundings = logit_roundings(in);
    Values& rounded = losses.naive.emplace_back(exact.loss);
    for (std::size_t t = 0; t < rounded.size(); ++t) {
      rounded[t] += in.targets[t] < 0 ? 0.0 : roundings[t];
    }
    EXPECT_TRUE(
        close_to(actual.loss, losses, accumulation_dtype(target().dtype), op_case().num_tokens));
    if (op_case().gradient) {
      Reference gradients = reference_of(exact, rough, &Results::dlogits);
      std::erase_if(gradients.naive, [](const Values& values) { return values.empty(); });
      // Where the target is all but certain, little is left of its probability less 1.
      gradients.terms = exact.dlogits_terms;
      // A probability is off by what its logit is, beside the probability.
      Values& moved = gradients.naive.emplace_back(exact.dlogits);
      const auto V = static_cast<std::size_t>(op_case().vocab_size);
      for (std::size_t i = 0; i < moved.size(); ++i) {
        moved[i] += roundings[i / V] * std::abs(exact.dlogits_terms[i]);
      }
      EXPECT_TRUE(close_to(actual.dlogits, gradients, target().dtype, op_case().vocab_size));
    }
  }
};
INSTANTIATE_TEST_SUITE_P(Cases,
                         CrossEntropy,
                         on_all_targets(cross_entropy_cases()),
                         name_of_op_test<CrossEntropyCase>);

TEST_P(CrossEntropy, IsAsCloseAsNaive) {
  const CrossEntropyCase& c = op_case();
  const Inputs in = draw(c, target().dtype);
  const Results exact = naive<long double>(c, in);
  const std::vector<Results> rough = draws(exact, in, 2, [](int /*draw*/) { return false; });
  expect_close(run(c, in, target()), exact, in, rough);
}

TEST_P(CrossEntropy, OfSplitColumnsIsAsCloseAsNaive) {
  const CrossEntropyCase& c = op_case();
  const Inputs in = draw(c, target().dtype);
  const Results exact = naive<long double>(c, in);
  // Both ways to a probability are as good.
  const std::vector<Results> rough = draws(exact, in, 4, [](int draw) { return draw % 2 == 0; });
  for (const int num_ranks : {1, 2, 3}) {
    if (num_ranks > c.vocab_size) {
      continue;
    }
    SCOPED_TRACE(std::to_string(num_ranks) + " ranks");
    expect_close(run_split(c, in, target(), num_ranks), exact, in, rough);
  }
}

TEST_P(CrossEntropy, RepeatsItsBits) {
  const Inputs in = draw(op_case(), target().dtype);
  const Results first = run(op_case(), in, target());
  const OneThread one_thread;
  const Results second = run(op_case(), in, target());
  EXPECT_EQ(second.loss, first.loss);
  EXPECT_EQ(second.dlogits, first.dlogits);
}

TEST_P(CrossEntropy, OfSplitColumnsRepeatsItsBits) {
  const CrossEntropyCase& c = op_case();
  const Inputs in = draw(c, target().dtype);
  const Results first = run_split(c, in, target(), 2);
  const OneThread one_thread;
  const Results second = run_split(c, in, target(), 2);
  EXPECT_EQ(second.loss, first.loss);
  EXPECT_EQ(second.dlogits, first.dlogits);
}

// A NaN logit must reach the loss even where it is not the maximum, and a row that counts nothing
// must not pass it on.
TEST_P(CrossEntropy, KeepsNanOfRowsThatCount) {
  const CrossEntropyCase& c = op_case();
  if (c.num_tokens < 5) {
    return;
  }
  const auto V = static_cast<std::size_t>(c.vocab_size);
  Inputs in = draw(c, target().dtype);
  in.logits[0 * V + 1] = std::numeric_limits<double>::quiet_NaN();
  in.logits[4 * V + 1] = std::numeric_limits<double>::quiet_NaN();
  for (const Results& actual : {run(c, in, target()), run_split(c, in, target(), 2)}) {
    EXPECT_TRUE(std::isnan(actual.loss[0]));
    EXPECT_EQ(actual.loss[4], 0.0);
    if (c.gradient) {
      EXPECT_TRUE(std::isnan(actual.dlogits[0]));
      EXPECT_TRUE(std::isnan(actual.dlogits[V - 1]));
      EXPECT_EQ(actual.dlogits[4 * V + 1], 0.0);
    }
  }
}

// Masked logits of -inf have probability 0, wherever in the row they lie.
TEST_P(CrossEntropy, MinusInfinityHasNoProbability) {
  const CrossEntropyCase& c = op_case();
  if (c.num_tokens == 0 || c.cap > 0) {
    return;
  }
  Inputs in = draw(c, target().dtype);
  in.targets[0] = static_cast<double>(c.vocab_size - 1);
  for (std::int64_t v = 0; v < c.vocab_size / 2; ++v) {
    in.logits[static_cast<std::size_t>(v)] = -std::numeric_limits<double>::infinity();
  }
  // Of two or three ranks, the first has nothing but masked columns.
  for (const Results& actual :
       {run(c, in, target()),
        run_split(c, in, target(), 1),
        run_split(c, in, target(), 2),
        run_split(c, in, target(), std::min<int>(3, static_cast<int>(c.vocab_size)))}) {
    EXPECT_TRUE(std::isfinite(actual.loss[0]));
    if (c.gradient) {
      EXPECT_EQ(actual.dlogits[0], 0.0);
      EXPECT_FALSE(has_nan(actual.dlogits));
    }
  }
}

class CrossEntropyTargets : public testing::TestWithParam<Target> {
 protected:
  void SetUp() override {
    const std::string reason = skip_reason(GetParam());
    if (!reason.empty()) {
      GTEST_SKIP() << reason;
    }
  }
};
INSTANTIATE_TEST_SUITE_P(Ids,
                         CrossEntropyTargets,
                         testing::ValuesIn(all_targets()),
                         [](const auto& instance) { return name_of(instance.param); });

constexpr double kLargestId = std::numeric_limits<std::int32_t>::max();

// Of the rows that lie beside one whose target is no token, none notices.
TEST_P(CrossEntropyTargets, JustOutsideOfTheVocabularyHaveNoLogit) {
  for (const std::int64_t vocab_size : {9, 64}) {  // element by element, and in vectors
    const CrossEntropyCase c{.name = "", .num_tokens = 7, .vocab_size = vocab_size};
    Inputs in = draw(c, GetParam().dtype);
    const auto V = static_cast<double>(vocab_size);
    in.targets = {V - 1, 0, 3, 0, -1, V - 1, 2};
    const Results good = run(c, in, GetParam());
    EXPECT_TRUE(std::isfinite(good.loss[0]) && std::isfinite(good.loss[1]));
    EXPECT_EQ(good.loss[4], 0.0);
    for (const std::size_t bad_row : {std::size_t{2}, std::size_t{6}}) {  // the last one is a bound
      for (const double bad : {V, V + 1, kLargestId}) {
        in.targets = {V - 1, 0, 3, 0, -1, V - 1, 2};
        in.targets[bad_row] = bad;
        if (GetParam().device == Device::cpu) {
          EXPECT_TRUE(rejects([&] { run(c, in, GetParam()); }, "is not below the vocabulary's"));
          continue;
        }
        const Results actual = run(c, in, GetParam());
        EXPECT_TRUE(std::isnan(actual.loss[bad_row])) << "target " << bad;
        for (std::size_t t = 0; t < in.targets.size(); ++t) {
          for (std::size_t v = 0; t != bad_row && v < static_cast<std::size_t>(V); ++v) {
            const std::size_t i = t * static_cast<std::size_t>(V) + v;
            EXPECT_EQ(actual.dlogits[i], good.dlogits[i]) << "row " << t;
          }
          EXPECT_TRUE(t == bad_row || actual.loss[t] == good.loss[t]) << "row " << t;
        }
      }
    }
  }
}

TEST_P(CrossEntropyTargets, AtTheEdgesOfAShardAreOneRanks) {
  const OwnedStream stream(GetParam().device);
  const DType sums = accumulation_dtype(GetParam().dtype);
  constexpr std::int64_t kBegin = 3;
  for (const std::int64_t width : {5, 32}) {
    const auto end = static_cast<double>(kBegin + width);
    // Ids of this rank's first and last column, of those beside them, of none, and past them all.
    const Values ids = {kBegin, end - 1, kBegin - 1, end, 0, -1, -1000, kLargestId};
    const auto T = static_cast<std::int64_t>(ids.size());
    const TensorSpec rows({T, width}, GetParam().dtype);
    const Values values = rounded_to(GetParam().dtype, random_normal(T * width, "shard"));
    const TestTensor logits(rows, GetParam().device, values);
    const TestTensor targets({{T}, DType::i32}, GetParam().device, ids);
    const TestTensor lse({{T}, sums}, GetParam().device);
    const TestTensor target({{T}, sums}, GetParam().device);
    kernels::cross_entropy_shard({.lse_T = lse,
                                  .target_T = target,
                                  .logits_TV = logits,
                                  .targets_T = targets,
                                  .vocab_begin = kBegin},
                                 stream.view());
    const Values found = target.values(stream.view());
    const auto W = static_cast<std::size_t>(width);
    // In bf16 a GPU keeps logits as powers of two on the way, and so rounds by one unit.
    const bool rounds = GetParam().device == Device::cuda && GetParam().dtype == DType::bf16;
    const Values wanted = {values[0], values[2 * W - 1], 0, 0, 0, 0, 0, 0};
    for (std::size_t t = 0; t < wanted.size(); ++t) {
      EXPECT_NEAR(found[t], wanted[t], rounds && wanted[t] != 0 ? ulp(sums, wanted[t]) : 0)
          << "row " << t;
    }

    const auto gradient_of = [&](const Values& of_ids) {
      const TestTensor of_targets({{T}, DType::i32}, GetParam().device, of_ids);
      const TestTensor loss({{T}, sums}, GetParam().device);
      const TestTensor dlogits(rows, GetParam().device);
      const TestTensor one({{1}, sums}, GetParam().device, {1.0});
      kernels::cross_entropy_gradient({.loss_T = loss,
                                       .dlogits_TV = dlogits,
                                       .logits_TV = logits,
                                       .targets_T = of_targets,
                                       .lse_T = lse,
                                       .target_T = target,
                                       .grad_scale_1 = one,
                                       .vocab_begin = kBegin},
                                      stream.view());
      const Values losses = loss.values(stream.view());
      for (std::size_t t = 0; t < losses.size(); ++t) {
        EXPECT_EQ(losses[t] == 0.0, of_ids[t] < 0) << "row " << t;
      }
      return dlogits.values(stream.view());
    };
    // With an id of another rank's in each row there are probabilities alone.
    const Values probabilities = gradient_of(Values(ids.size(), 1000.0));
    const Values actual = gradient_of(ids);
    for (std::size_t t = 0; t < ids.size(); ++t) {
      for (std::size_t v = 0; v < W; ++v) {
        const std::size_t i = t * W + v;
        if (ids[t] < 0) {
          EXPECT_EQ(actual[i], 0.0) << "row " << t;
        } else if (ids[t] == static_cast<double>(kBegin + static_cast<std::int64_t>(v))) {
          // Both are rounded, and lie below 1.
          EXPECT_NEAR(actual[i], probabilities[i] - 1, 2 * rounding_unit(GetParam().dtype));
        } else {
          EXPECT_EQ(actual[i], probabilities[i]) << "row " << t << ", column " << v;
        }
      }
    }
  }
}

TEST(CrossEntropyGradient, IsTheDifferenceQuotient) {
  for (const float cap : {0.0F, 2.0F}) {
    const CrossEntropyCase c{.name = "", .num_tokens = 6, .vocab_size = 9, .cap = cap};
    const Target target{Device::cpu, DType::f64};
    const Inputs in = draw(c, DType::f64);
    const auto loss = [&](const Values& logits) {
      const Values losses = run(c, {.logits = logits, .targets = in.targets}, target).loss;
      return dot(losses, Values(losses.size(), kGradScale));
    };
    EXPECT_TRUE(is_gradient(run(c, in, target).dlogits, loss, in.logits));
  }
}

TEST(CrossEntropyContract, NamesTheOperand) {
  const TestTensor logits({{2, 8}, DType::f32}, Device::cpu, Values(16, 0.5));
  const TestTensor loss({{2}, DType::f32}, Device::cpu);
  const TestTensor targets({{2}, DType::i32}, Device::cpu, {7, 8});
  const Stream stream;
  kernels::CrossEntropy bad{.loss_T = loss, .logits_TV = logits, .targets_T = targets};
  EXPECT_TRUE(rejects([&] { cross_entropy(bad, stream); }, "target 8 of row 1"));
  bad.cap = -1.0F;
  EXPECT_TRUE(rejects([&] { cross_entropy(bad, stream); }, "cap is -1"));
  bad.cap = 0.0F;
  bad.targets_T = loss;
  EXPECT_TRUE(rejects([&] { cross_entropy(bad, stream); }, "targets_T is f32[2]"));
  bad.targets_T = targets;
  bad.dlogits_TV = logits;
  EXPECT_TRUE(rejects([&] { cross_entropy(bad, stream); }, "grad_scale_1 is absent"));
  bad.grad_scale_1 = loss;
  EXPECT_TRUE(rejects([&] { cross_entropy(bad, stream); }, "grad_scale_1 is f32[2]"));
}

TEST(CrossEntropyContract, NamesTheOperandOfASplitVocabulary) {
  const TestTensor logits({{2, 8}, DType::f32}, Device::cpu, Values(16, 0.5));
  const TestTensor sums({{2}, DType::f32}, Device::cpu, {1, 2});
  const TestTensor wide_sums({{2}, DType::f64}, Device::cpu, {1, 2});
  const TestTensor table({{3, 2}, DType::f32}, Device::cpu, Values(6, 1.0));
  const TestTensor no_rows({{0, 2}, DType::f32}, Device::cpu);
  const TestTensor narrow({{3, 2}, DType::bf16}, Device::cpu, Values(6, 1.0));
  const TestTensor targets({{2}, DType::i32}, Device::cpu, {7, 1000});  // past this shard
  const Stream stream;

  using kernels::CrossEntropyShard;
  const CrossEntropyShard shard{
      .lse_T = sums, .target_T = sums, .logits_TV = logits, .targets_T = targets};
  const auto shard_rejects = [&](auto CrossEntropyShard::*member, auto value, const char* text) {
    CrossEntropyShard bad = shard;
    bad.*member = value;
    return rejects([&] { cross_entropy_shard(bad, stream); }, text);
  };
  cross_entropy_shard(shard, stream);
  EXPECT_TRUE(shard_rejects(&CrossEntropyShard::cap, -1.0F, "cross_entropy_shard: cap is -1"));
  EXPECT_TRUE(shard_rejects(&CrossEntropyShard::lse_T, wide_sums.view(), "lse_T is f64[2]"));
  EXPECT_TRUE(shard_rejects(&CrossEntropyShard::target_T, wide_sums.view(), "target_T is f64[2]"));
  EXPECT_TRUE(shard_rejects(&CrossEntropyShard::targets_T, sums.view(), "targets_T is f32[2]"));
  EXPECT_TRUE(
      shard_rejects(&CrossEntropyShard::vocab_begin, std::int64_t{-1}, "8 columns from -1"));

  using kernels::CrossEntropyJoin;
  const CrossEntropyJoin join{.lse_T = sums, .target_T = sums, .lse_PT = table, .target_PT = table};
  const auto join_rejects =
      [&](TensorView CrossEntropyJoin::*member, const TestTensor& value, const char* text) {
        CrossEntropyJoin bad = join;
        bad.*member = value;
        return rejects([&] { cross_entropy_join(bad, stream); }, text);
      };
  EXPECT_TRUE(
      join_rejects(&CrossEntropyJoin::lse_T, wide_sums, "cross_entropy_join: lse_T is f64"));
  EXPECT_TRUE(join_rejects(&CrossEntropyJoin::target_T, table, "target_T is f32[3, 2]"));
  EXPECT_TRUE(join_rejects(&CrossEntropyJoin::lse_PT, narrow, "lse_PT is bf16[3, 2]"));
  EXPECT_TRUE(join_rejects(&CrossEntropyJoin::lse_PT, no_rows, "lse_PT has no rows"));
  EXPECT_TRUE(join_rejects(&CrossEntropyJoin::target_PT, narrow, "target_PT is bf16[3, 2]"));

  using kernels::CrossEntropyGradient;
  const CrossEntropyGradient gradient{
      .loss_T = sums, .logits_TV = logits, .targets_T = targets, .lse_T = sums, .target_T = sums};
  const auto gradient_rejects =
      [&](TensorView CrossEntropyGradient::*member, const TestTensor& value, const char* text) {
        CrossEntropyGradient bad = gradient;
        bad.*member = value;
        return rejects([&] { cross_entropy_gradient(bad, stream); }, text);
      };
  EXPECT_TRUE(gradient_rejects(
      &CrossEntropyGradient::loss_T, wide_sums, "cross_entropy_gradient: loss_T is f64"));
  EXPECT_TRUE(gradient_rejects(&CrossEntropyGradient::lse_T, wide_sums, "lse_T is f64"));
  EXPECT_TRUE(
      gradient_rejects(&CrossEntropyGradient::dlogits_TV, table, "dlogits_TV is f32[3, 2]"));
  EXPECT_TRUE(
      gradient_rejects(&CrossEntropyGradient::dlogits_TV, logits, "grad_scale_1 is absent"));
}

}  // namespace
}  // namespace memphis::test
