// SPDX-License-Identifier: Apache-2.0
#include "kernels/embedding/embedding.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "bench/embedding/embedding_cases.h"
#include "kernels/visit.h"
#include "tests/support/finite_difference.h"
#include "tests/support/op_test.h"

namespace memphis::test {
namespace {

using Values = std::vector<double>;

struct Inputs {
  Values tokens;
  Values weight;
  Values dy;
  Values dweight;  // before the call
};

Inputs draw(const EmbeddingCase& c, DType dtype) {
  return {.tokens = random_integers(c.num_tokens, "tokens", 0, c.vocab_size),
          .weight = rounded_to(dtype, random_normal(c.vocab_size * c.width, "weight")),
          .dy = rounded_to(dtype, random_normal(c.num_tokens * c.width, "dy")),
          .dweight = rounded_to(accumulation_dtype(dtype),
                                random_normal(c.vocab_size * c.width, "dweight"))};
}

template <class T>
Values naive_forward(const EmbeddingCase& c, const Inputs& in) {
  using A = NaiveAccumulator<T>;
  Values y;
  for (const double token : in.tokens) {
    for (std::int64_t d = 0; d < c.width; ++d) {
      const auto i = static_cast<std::size_t>(static_cast<std::int64_t>(token) * c.width + d);
      y.push_back(static_cast<double>(
          static_cast<T>(static_cast<A>(in.weight[i]) * static_cast<A>(c.multiplier))));
    }
  }
  return y;
}

template <class T>
Values naive_backward(const EmbeddingCase& c, const Inputs& in) {
  using A = NaiveAccumulator<T>;
  Values dweight = in.dweight;
  for (std::size_t i = 0; i < in.dy.size(); ++i) {
    const std::size_t width = static_cast<std::size_t>(c.width);
    const std::size_t j = static_cast<std::size_t>(in.tokens[i / width]) * width + i % width;
    const A product = static_cast<A>(c.multiplier) * static_cast<A>(in.dy[i]);
    dweight[j] = static_cast<double>(static_cast<A>(dweight[j]) + product);
  }
  return dweight;
}

Values run_forward(const EmbeddingCase& c, const Inputs& in, const Target& target) {
  const OwnedStream stream(target.device);
  const TestTensor y({{c.num_tokens, c.width}, target.dtype}, target.device);
  const TestTensor weight({{c.vocab_size, c.width}, target.dtype}, target.device, in.weight);
  const TestTensor tokens({{c.num_tokens}, DType::i32}, target.device, in.tokens);
  kernels::embedding_forward(
      {.y_TD = y, .weight_VD = weight, .tokens_T = tokens, .multiplier = c.multiplier},
      stream.view());
  return y.values(stream.view());
}

Values run_backward(const EmbeddingCase& c,
                    const Inputs& in,
                    const Target& target,
                    kernels::WeightGradient weight_gradient = kernels::WeightGradient::add) {
  const OwnedStream stream(target.device);
  const TestTensor dweight(
      {{c.vocab_size, c.width}, accumulation_dtype(target.dtype)}, target.device, in.dweight);
  const TestTensor dy({{c.num_tokens, c.width}, target.dtype}, target.device, in.dy);
  const TestTensor tokens({{c.num_tokens}, DType::i32}, target.device, in.tokens);
  const TestTensor order({{c.num_tokens}, DType::i32}, target.device);
  kernels::embedding_backward({.dweight_VD = dweight,
                               .dy_TD = dy,
                               .tokens_T = tokens,
                               .order_T = order,
                               .multiplier = c.multiplier,
                               .weight_gradient = weight_gradient},
                              stream.view());
  return dweight.values(stream.view());
}

class Embedding : public OpTest<EmbeddingCase> {};
INSTANTIATE_TEST_SUITE_P(Cases,
                         Embedding,
                         on_all_targets(embedding_cases()),
                         name_of_op_test<EmbeddingCase>);

TEST_P(Embedding, ForwardIsAsCloseAsNaive) {
  const Inputs in = draw(op_case(), target().dtype);
  Reference reference{.exact = naive_forward<Exact>(op_case(), in), .naive = {}};
  kernels::visit_float(target().dtype, [&]<class T>() {
    reference.naive = draws_for(reference.exact.size(), 1, [&](int draw) {
      Inputs moved = in;
      moved.weight = perturbed(target().dtype, in.weight, draw);
      return naive_forward<T>(op_case(), moved);
    });
  });
  EXPECT_TRUE(
      close_to(run_forward(op_case(), in, target()), reference, target().dtype, op_case().width));
}

TEST_P(Embedding, BackwardIsAsCloseAsNaive) {
  const Inputs in = draw(op_case(), target().dtype);
  Reference reference{.exact = naive_backward<Exact>(op_case(), in), .naive = {}};
  kernels::visit_float(target().dtype, [&]<class T>() {
    reference.naive = draws_for(reference.exact.size(), 1, [&](int draw) {
      Inputs moved = in;
      moved.dy = perturbed(target().dtype, in.dy, draw);
      return naive_backward<T>(op_case(), moved);
    });
  });
  EXPECT_TRUE(close_to(run_backward(op_case(), in, target()),
                       reference,
                       accumulation_dtype(target().dtype),
                       op_case().width));
}

// Ranks that share the vocabulary out, in shards that grow with the rank, some of them empty.
std::int64_t first_row(std::int64_t rank, std::int64_t num_ranks, std::int64_t vocab_size) {
  return vocab_size * rank * (rank + 1) / (num_ranks * (num_ranks + 1));
}

// The sum of the ranks' outputs, and their rows of the gradient one after the other.
struct Split {
  Values y;
  Values dweight;
};

Split run_split(const EmbeddingCase& c,
                const Inputs& in,
                const Target& target,
                std::int64_t num_ranks,
                kernels::WeightGradient weight_gradient = kernels::WeightGradient::add) {
  const OwnedStream stream(target.device);
  const TestTensor tokens({{c.num_tokens}, DType::i32}, target.device, in.tokens);
  const TestTensor dy({{c.num_tokens, c.width}, target.dtype}, target.device, in.dy);
  const TestTensor order({{c.num_tokens}, DType::i32}, target.device);
  Split split{.y = Values(in.dy.size(), 0.0), .dweight = {}};
  for (std::int64_t rank = 0; rank < num_ranks; ++rank) {
    const std::int64_t begin = first_row(rank, num_ranks, c.vocab_size);
    const std::int64_t end = first_row(rank + 1, num_ranks, c.vocab_size);
    const auto part = [&](const Values& whole) {
      return Values(whole.begin() + begin * c.width, whole.begin() + end * c.width);
    };
    const TensorSpec rows({end - begin, c.width}, target.dtype);
    const TestTensor y({{c.num_tokens, c.width}, target.dtype}, target.device);
    const TestTensor weight(rows, target.device, part(in.weight));
    kernels::embedding_forward({.y_TD = y,
                                .weight_VD = weight,
                                .tokens_T = tokens,
                                .multiplier = c.multiplier,
                                .vocab_begin = begin,
                                .vocab_size = c.vocab_size},
                               stream.view());
    const Values own_y = y.values(stream.view());
    for (std::size_t i = 0; i < own_y.size(); ++i) {
      split.y[i] += own_y[i];
    }
    const TestTensor dweight({{end - begin, c.width}, accumulation_dtype(target.dtype)},
                             target.device,
                             part(in.dweight));
    kernels::embedding_backward({.dweight_VD = dweight,
                                 .dy_TD = dy,
                                 .tokens_T = tokens,
                                 .order_T = order,
                                 .multiplier = c.multiplier,
                                 .vocab_begin = begin,
                                 .vocab_size = c.vocab_size,
                                 .weight_gradient = weight_gradient},
                                stream.view());
    const Values own_dweight = dweight.values(stream.view());
    split.dweight.insert(split.dweight.end(), own_dweight.begin(), own_dweight.end());
  }
  return split;
}

TEST_P(Embedding, OfASplitVocabularyIsTheWholesToTheBit) {
  const Inputs in = draw(op_case(), target().dtype);
  const Values y = run_forward(op_case(), in, target());
  const Values dweight = run_backward(op_case(), in, target());
  for (const std::int64_t num_ranks : {1, 2, 3}) {
    const Split split = run_split(op_case(), in, target(), num_ranks);
    EXPECT_EQ(split.y, y) << num_ranks << " ranks";
    EXPECT_EQ(split.dweight, dweight) << num_ranks << " ranks";
  }
}

TEST_P(Embedding, WritesTheDweightThatItWouldAddToZeros) {
  Inputs in = draw(op_case(), target().dtype);
  in.dweight.assign(in.dweight.size(), 0.0);
  const Values added = run_backward(op_case(), in, target());
  in.dweight.assign(in.dweight.size(), std::nan(""));
  constexpr kernels::WeightGradient kWrite = kernels::WeightGradient::write;
  EXPECT_EQ(run_backward(op_case(), in, target(), kWrite), added);
  EXPECT_EQ(run_split(op_case(), in, target(), 3, kWrite).dweight, added);
}

TEST_P(Embedding, RepeatsItsBits) {
  const Inputs in = draw(op_case(), target().dtype);
  const Values first = run_backward(op_case(), in, target());
  const OneThread one_thread;
  EXPECT_EQ(run_backward(op_case(), in, target()), first);
}

class EmbeddingTokens : public testing::TestWithParam<Target> {
 protected:
  void SetUp() override {
    const std::string reason = skip_reason(GetParam());
    if (!reason.empty()) {
      GTEST_SKIP() << reason;
    }
  }
};
INSTANTIATE_TEST_SUITE_P(Ids,
                         EmbeddingTokens,
                         testing::ValuesIn(all_targets()),
                         [](const auto& instance) { return name_of(instance.param); });

// Of rows [3, 8) of a vocabulary of 12, the first and the last, those beside them, and, where the
// device does not refuse them, ids that are no token's.
TEST_P(EmbeddingTokens, AtTheEdgesOfAShardAreOneRanks) {
  const OwnedStream stream(GetParam().device);
  constexpr std::int64_t kBegin = 3;
  constexpr std::int64_t kRows = 5;
  constexpr std::int64_t kVocabulary = 12;
  Values ids = {3, 7, 2, 8, 0, 11};
  if (GetParam().device == Device::cuda) {
    ids.insert(ids.end(), {-1.0, static_cast<double>(kVocabulary), 2147483647.0, -2147483648.0});
  }
  const auto num_tokens = static_cast<std::int64_t>(ids.size());
  for (const std::int64_t width : {3, 16}) {  // element by element, and in vectors
    const TensorSpec rows({kRows, width}, GetParam().dtype);
    const Values weights = rounded_to(GetParam().dtype, random_normal(kRows * width, "weight"));
    const TestTensor tokens({{num_tokens}, DType::i32}, GetParam().device, ids);
    const TestTensor weight(rows, GetParam().device, weights);
    const TestTensor y({{num_tokens, width}, GetParam().dtype}, GetParam().device);
    kernels::embedding_forward({.y_TD = y,
                                .weight_VD = weight,
                                .tokens_T = tokens,
                                .vocab_begin = kBegin,
                                .vocab_size = kVocabulary},
                               stream.view());
    const TestTensor dy({{num_tokens, width}, GetParam().dtype},
                        GetParam().device,
                        Values(static_cast<std::size_t>(num_tokens * width), 1.0));
    const TestTensor order({{num_tokens}, DType::i32}, GetParam().device);
    const TestTensor dweight({{kRows, width}, accumulation_dtype(GetParam().dtype)},
                             GetParam().device,
                             Values(static_cast<std::size_t>(kRows * width), 5.0));
    kernels::embedding_backward({.dweight_VD = dweight,
                                 .dy_TD = dy,
                                 .tokens_T = tokens,
                                 .order_T = order,
                                 .vocab_begin = kBegin,
                                 .vocab_size = kVocabulary},
                                stream.view());
    const auto W = static_cast<std::size_t>(width);
    Values expected_y(ids.size() * W, 0.0);
    std::copy_n(weights.begin(), W, expected_y.begin());
    std::copy_n(weights.end() - width, W, expected_y.begin() + width);
    EXPECT_EQ(y.values(stream.view()), expected_y);
    Values expected_dweight(static_cast<std::size_t>(kRows) * W, 5.0);
    std::fill_n(expected_dweight.begin(), W, 6.0);
    std::fill_n(expected_dweight.end() - width, W, 6.0);
    EXPECT_EQ(dweight.values(stream.view()), expected_dweight);
  }
}

TEST(EmbeddingGradient, IsTheDifferenceQuotient) {
  const EmbeddingCase c{
      .name = "", .num_tokens = 6, .width = 3, .vocab_size = 4, .multiplier = 2.5F};
  const Target target{Device::cpu, DType::f64};
  Inputs in = draw(c, DType::f64);
  in.dweight.assign(in.dweight.size(), 0.0);
  const auto loss = [&](const Values& weight) {
    Inputs moved = in;
    moved.weight = weight;
    return dot(run_forward(c, moved, target), in.dy);
  };
  EXPECT_TRUE(is_gradient(run_backward(c, in, target), loss, in.weight));
}

TEST(EmbeddingContract, NamesTheOperand) {
  const TestTensor rows({{4, 8}, DType::f32}, Device::cpu);
  const TestTensor narrow({{4, 8}, DType::bf16}, Device::cpu);
  const TestTensor tokens({{4}, DType::i32}, Device::cpu, {0, 1, 2, 3});
  const TestTensor wide_tokens({{4}, DType::i64}, Device::cpu, {0, 1, 2, 3});
  const TestTensor order({{4}, DType::i32}, Device::cpu);
  const Stream stream;
  const auto forward = [&](TensorView y, TensorView weight, TensorView tokens_T) {
    return [=] {
      kernels::embedding_forward({.y_TD = y, .weight_VD = weight, .tokens_T = tokens_T}, stream);
    };
  };
  const auto backward = [&, order_T = order.view()](
                            TensorView dweight, TensorView dy, TensorView tokens_T) {
    return [=] {
      kernels::embedding_backward(
          {.dweight_VD = dweight, .dy_TD = dy, .tokens_T = tokens_T, .order_T = order_T}, stream);
    };
  };
  EXPECT_TRUE(rejects(forward(rows, narrow, tokens), "embedding_forward: weight_VD is bf16[4, 8]"));
  EXPECT_TRUE(rejects(forward(rows, rows, wide_tokens), "embedding_forward: tokens_T is i64[4]"));
  EXPECT_TRUE(rejects(backward(narrow, rows, tokens), "embedding_backward: dweight_VD is bf16"));
  EXPECT_TRUE(rejects(backward(rows, {}, tokens), "embedding_backward: dy_TD is absent"));
  TensorView elsewhere = rows;
  elsewhere.device = Device::cuda;
  EXPECT_TRUE(rejects(forward(rows, elsewhere, tokens), "weight_VD is on cuda"));
}

TEST(EmbeddingContract, RefusesATokenOutsideTheVocabularyAndWritesNothing) {
  const Stream stream;
  const TestTensor y({{2, 4}, DType::f32}, Device::cpu, Values(8, 5.0));
  const TestTensor weight({{3, 4}, DType::f32}, Device::cpu, Values(12, 1.0));
  const TestTensor order({{2}, DType::i32}, Device::cpu);
  for (const double bad : {-1.0, 3.0}) {
    const TestTensor tokens({{2}, DType::i32}, Device::cpu, {0, bad});
    EXPECT_TRUE(rejects(
        [&] {
          kernels::embedding_forward({.y_TD = y, .weight_VD = weight, .tokens_T = tokens}, stream);
        },
        "embedding_forward: tokens_T[1] is "));
    EXPECT_TRUE(rejects(
        [&] {
          kernels::embedding_backward(
              {.dweight_VD = weight, .dy_TD = y, .tokens_T = tokens, .order_T = order}, stream);
        },
        "embedding_backward: tokens_T[1] is "));
  }
  EXPECT_EQ(y.values(stream), Values(8, 5.0));
  EXPECT_EQ(weight.values(stream), Values(12, 1.0));
}

// Which of the whole vocabulary's tokens a shard takes, and what it makes of the rest.
TEST(EmbeddingContract, ChecksTokensOfAShardAgainstTheWholeVocabulary) {
  const Stream stream;
  const TestTensor y({{2, 4}, DType::f32}, Device::cpu, Values(8, 5.0));
  const TestTensor weight({{3, 4}, DType::f32}, Device::cpu, Values(12, 1.0));
  const TestTensor order({{2}, DType::i32}, Device::cpu);
  const auto calls = [&](const TestTensor& tokens, std::int64_t begin, std::int64_t size) {
    return std::pair(
        [&, begin, size] {
          kernels::embedding_forward({.y_TD = y,
                                      .weight_VD = weight,
                                      .tokens_T = tokens,
                                      .vocab_begin = begin,
                                      .vocab_size = size},
                                     stream);
        },
        [&, begin, size] {
          kernels::embedding_backward({.dweight_VD = weight,
                                       .dy_TD = y,
                                       .tokens_T = tokens,
                                       .order_T = order,
                                       .vocab_begin = begin,
                                       .vocab_size = size},
                                      stream);
        });
  };
  for (const double bad : {-1.0, 9.0}) {
    const TestTensor tokens({{2}, DType::i32}, Device::cpu, {0, bad});
    const auto [forward, backward] = calls(tokens, 4, 9);
    EXPECT_TRUE(rejects(forward, "embedding_forward: tokens_T[1] is "));
    EXPECT_TRUE(rejects(backward, "embedding_backward: tokens_T[1] is "));
  }
  const TestTensor tokens({{2}, DType::i32}, Device::cpu, {0, 6});
  const std::vector<std::pair<std::int64_t, std::int64_t>> no_shards = {
      {-1, 9}, {7, 9}, {0, 2}, {1, 0}};
  for (const auto& [begin, size] : no_shards) {
    const auto [forward, backward] = calls(tokens, begin, size);
    EXPECT_TRUE(rejects(forward, "are not rows of a vocabulary of"));
    EXPECT_TRUE(rejects(backward, "are not rows of a vocabulary of"));
  }
  EXPECT_EQ(y.values(stream), Values(8, 5.0));
  EXPECT_EQ(weight.values(stream), Values(12, 1.0));

  calls(tokens, 4, 9).first();
  EXPECT_EQ(y.values(stream), (Values{0, 0, 0, 0, 1, 1, 1, 1}));
  calls(tokens, 4, 9).second();
  EXPECT_EQ(weight.values(stream), (Values{1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2}));
}

}  // namespace
}  // namespace memphis::test
