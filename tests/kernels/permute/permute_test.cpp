// SPDX-License-Identifier: Apache-2.0
#include "kernels/permute/permute.h"

#include <algorithm>
#include <numeric>
#include <type_traits>

#include "bench/permute/permute_cases.h"
#include "kernels/visit.h"
#include "tests/support/finite_difference.h"
#include "tests/support/op_test.h"

namespace memphis::test {
namespace {

using kernels::arrival_index;
using kernels::gather_choices;
using kernels::kPermuteChunks;
using kernels::permute;
using kernels::permute_index;
using kernels::spread_choices;
using kernels::unpermute;
using Values = std::vector<double>;

Values draw_experts(const PermuteCase& c) {
  Values experts = random_integers(c.num_rows(), "experts", 0, c.num_experts);
  if (c.only_expert >= 0) {
    experts.assign(experts.size(), static_cast<double>(c.only_expert));
  }
  return experts;
}

struct Index {
  Values slot;
  Values source;
  Values offsets;
};

// A stable sort by expert.
Index naive_index(const PermuteCase& c, const Values& experts) {
  Index out{.slot = Values(experts.size()),
            .source = Values(experts.size()),
            .offsets = Values(static_cast<std::size_t>(c.num_experts) + 1)};
  std::iota(out.source.begin(), out.source.end(), 0.0);
  const auto expert_of = [&](double a) { return experts[static_cast<std::size_t>(a)]; };
  std::stable_sort(out.source.begin(), out.source.end(), [&](double a, double b) {
    return expert_of(a) < expert_of(b);
  });
  for (std::size_t r = 0; r < out.source.size(); ++r) {
    out.slot[static_cast<std::size_t>(out.source[r])] = static_cast<double>(r);
  }
  for (std::size_t e = 0; e < out.offsets.size(); ++e) {
    out.offsets[e] = static_cast<double>(std::count_if(
        experts.begin(), experts.end(), [&](double x) { return x < static_cast<double>(e); }));
  }
  return out;
}

Index run_index(const PermuteCase& c, const Values& experts_values, Device device) {
  const OwnedStream stream(device);
  const TensorSpec choices({c.num_tokens, c.num_choices}, DType::i32);
  const TestTensor experts(choices, device, experts_values);
  const TestTensor slot(choices, device);
  const TestTensor source({{c.num_rows()}, DType::i32}, device);
  const TestTensor offsets({{c.num_experts + 1}, DType::i32}, device);
  const TestTensor chunk_counts({{kPermuteChunks, c.num_experts}, DType::i32}, device);
  permute_index({.slot_TK = slot,
                 .source_R = source,
                 .offsets_E1 = offsets,
                 .experts_TK = experts,
                 .chunk_counts_PE = chunk_counts},
                stream.view());
  return {.slot = slot.values(stream.view()),
          .source = source.values(stream.view()),
          .offsets = offsets.values(stream.view())};
}

Values run_permute(const PermuteCase& c,
                   const Values& x_values,
                   const Index& index,
                   const Target& target,
                   bool with_slots = false) {
  const OwnedStream stream(target.device);
  const TestTensor x({{c.num_tokens, c.width}, target.dtype}, target.device, x_values);
  const TestTensor rows({{c.num_rows(), c.width}, target.dtype}, target.device);
  const TestTensor source({{c.num_rows()}, DType::i32}, target.device, index.source);
  const TestTensor slot({{c.num_tokens, c.num_choices}, DType::i32}, target.device, index.slot);
  permute({.x_RD = rows,
           .x_TD = x,
           .source_R = source,
           .slot_TK = with_slots ? slot.view() : TensorView{},
           .scale = c.scale},
          stream.view());
  return rows.values(stream.view());
}

Values run_unpermute(const PermuteCase& c,
                     const Values& row_values,
                     const Values& before,
                     const Index& index,
                     const Target& target) {
  const OwnedStream stream(target.device);
  const TestTensor rows({{c.num_rows(), c.width}, target.dtype}, target.device, row_values);
  const TestTensor y({{c.num_tokens, c.width}, target.dtype}, target.device, before);
  const TestTensor slot({{c.num_tokens, c.num_choices}, DType::i32}, target.device, index.slot);
  unpermute({.y_TD = y, .y_RD = rows, .slot_TK = slot}, stream.view());
  return y.values(stream.view());
}

template <class T>
Values naive_permute(const PermuteCase& c, const Values& x, const Index& index) {
  using A = std::conditional_t<std::is_same_v<T, bf16>, float, T>;
  Values out;
  for (const double a : index.source) {
    const std::int64_t t = static_cast<std::int64_t>(a) / c.num_choices;
    for (std::int64_t d = 0; d < c.width; ++d) {
      const A value = static_cast<A>(x[static_cast<std::size_t>(t * c.width + d)]);
      out.push_back(static_cast<double>(static_cast<T>(static_cast<A>(c.scale) * value)));
    }
  }
  return out;
}

template <class T>
Values naive_unpermute(const PermuteCase& c,
                       const Values& rows,
                       const Values& before,
                       const Index& index) {
  using A = std::conditional_t<std::is_same_v<T, bf16>, float, T>;
  Values out = before;
  for (std::size_t i = 0; i < out.size(); ++i) {
    const auto width = static_cast<std::size_t>(c.width);
    const auto K = static_cast<std::size_t>(c.num_choices);
    A sum = 0;
    for (std::size_t k = 0; k < K; ++k) {
      const auto row = static_cast<std::size_t>(index.slot[i / width * K + k]);
      sum += static_cast<A>(rows[row * width + i % width]);
    }
    out[i] = static_cast<double>(static_cast<T>(sum));
  }
  return out;
}

class PermuteTest : public OpTest<PermuteCase> {
 protected:
  void SetUp() override {
    OpTest<PermuteCase>::SetUp();
    const PermuteCase& c = op_case();
    experts_ = draw_experts(c);
    index_ = naive_index(c, experts_);
    x_ = rounded_to(target().dtype, random_normal(c.num_tokens * c.width, "x"));
    rows_ = rounded_to(target().dtype, random_normal(c.num_rows() * c.width, "rows"));
  }
  Values experts_;
  Index index_;
  Values x_;
  Values rows_;
};
INSTANTIATE_TEST_SUITE_P(Cases,
                         PermuteTest,
                         on_all_targets(permute_cases()),
                         name_of_op_test<PermuteCase>);

TEST_P(PermuteTest, IndexIsAStableSortByExpert) {
  const Index actual = run_index(op_case(), experts_, target().device);
  EXPECT_EQ(actual.slot, index_.slot);
  EXPECT_EQ(actual.source, index_.source);
  EXPECT_EQ(actual.offsets, index_.offsets);
}

TEST_P(PermuteTest, IndexHoldsEveryAssignmentOnce) {
  const Index actual = run_index(op_case(), experts_, target().device);
  Values assignments = actual.source;
  std::sort(assignments.begin(), assignments.end());
  for (std::size_t a = 0; a < assignments.size(); ++a) {
    ASSERT_EQ(assignments[a], static_cast<double>(a));
    ASSERT_EQ(actual.source[static_cast<std::size_t>(actual.slot[a])], static_cast<double>(a));
  }
  EXPECT_TRUE(std::is_sorted(actual.offsets.begin(), actual.offsets.end()));
  EXPECT_EQ(actual.offsets.back(), static_cast<double>(op_case().num_rows()));
}

TEST_P(PermuteTest, MovesAreAsCloseAsNaive) {
  const PermuteCase& c = op_case();
  const DType dtype = target().dtype;
  Reference rows{.exact = naive_permute<long double>(c, x_, index_), .naive = {}};
  Reference tokens{.exact = naive_unpermute<long double>(c, rows_, x_, index_), .naive = {}};
  kernels::visit_float(dtype, [&]<class T>() {
    rows.naive = draws_for(rows.exact.size(), 1, [&](int draw) {
      return naive_permute<T>(c, perturbed(dtype, x_, draw), index_);
    });
    tokens.naive = draws_for(tokens.exact.size(), 1, [&](int draw) {
      return naive_unpermute<T>(c, perturbed(dtype, rows_, draw), x_, index_);
    });
  });
  const Values moved = run_permute(c, x_, index_, target());
  const Values sums = run_unpermute(c, rows_, x_, index_, target());
  if (c.scale == 1.0F) {
    EXPECT_EQ(moved, rows.naive.front());  // a copy
  } else {
    EXPECT_TRUE(close_to(moved, rows, dtype, c.width));
  }
  EXPECT_TRUE(close_to(sums, tokens, dtype, c.width));
}

TEST_P(PermuteTest, MovesTheSameBitsByTokenAsByRow) {
  const Values by_row = run_permute(op_case(), x_, index_, target());
  EXPECT_EQ(run_permute(op_case(), x_, index_, target(), true), by_row);
}

TEST_P(PermuteTest, RepeatsItsBits) {
  const PermuteCase& c = op_case();
  const Values moved = run_permute(c, x_, index_, target());
  const Values sums = run_unpermute(c, rows_, x_, index_, target());
  const OneThread one_thread;
  EXPECT_EQ(run_permute(c, x_, index_, target()), moved);
  EXPECT_EQ(run_unpermute(c, rows_, x_, index_, target()), sums);
}

// <permute x, y> = scale <x, unpermute y> for all x and y: but for that each move is the other's
// derivative.
TEST(PermuteGradient, EachMoveIsTheOthersTranspose) {
  const PermuteCase c{
      .name = "", .num_tokens = 13, .num_experts = 4, .num_choices = 3, .width = 5, .scale = 0.7F};
  const Target target{Device::cpu, DType::f64};
  const Index index = naive_index(c, draw_experts(c));
  const Values x = random_normal(c.num_tokens * c.width, "x");
  const Values y = random_normal(c.num_rows() * c.width, "y");
  const double through_rows = dot(run_permute(c, x, index, target), y);
  const double through_tokens =
      static_cast<double>(c.scale) * dot(x, run_unpermute(c, y, x, index, target));
  // Both are sums of R * D products that round once each.
  double size = 0;
  for (const double value : y) {
    size += std::abs(value);
  }
  EXPECT_NEAR(through_rows, through_tokens, 0x1p-52 * size * static_cast<double>(y.size()));
}

// -0 and subnormals included: with one choice the round trip moves bits.
TEST(PermuteRoundTrip, WithOneChoiceIsTheIdentity) {
  for (const Target& target : all_targets()) {
    if (!skip_reason(target).empty()) {
      continue;
    }
    for (const std::int64_t width : {1, 5, 64}) {
      const PermuteCase c{
          .name = "", .num_tokens = 50, .num_experts = 4, .num_choices = 1, .width = width};
      const OwnedStream stream(target.device);
      const Index index = run_index(c, draw_experts(c), target.device);
      Values values = random_normal(c.num_tokens * c.width, "x");
      values[0] = -0.0;
      values[1] = -1e-39;
      const TensorSpec spec({c.num_tokens, c.width}, target.dtype);
      const TestTensor x(spec, target.device, values);
      const TestTensor rows(spec, target.device);
      const TestTensor y(spec, target.device);
      const TestTensor source({{c.num_rows()}, DType::i32}, target.device, index.source);
      const TestTensor slot({{c.num_tokens, 1}, DType::i32}, target.device, index.slot);
      permute({.x_RD = rows, .x_TD = x, .source_R = source}, stream.view());
      unpermute({.y_TD = y, .y_RD = rows, .slot_TK = slot}, stream.view());
      EXPECT_EQ(y.bytes(stream.view()), x.bytes(stream.view())) << name_of(target);
      // The other way back: a dispatch by the inverse permutation.
      const TestTensor inverse({{c.num_rows()}, DType::i32}, target.device, index.slot);
      const TestTensor back({{c.num_tokens, width}, target.dtype}, target.device);
      permute({.x_RD = back, .x_TD = rows, .source_R = inverse}, stream.view());
      EXPECT_EQ(back.bytes(stream.view()), x.bytes(stream.view())) << name_of(target);
    }
  }
}

class ChoicesTest : public OpTest<ChoicesCase> {
 protected:
  DType sums() const { return accumulation_dtype(target().dtype); }
  std::int64_t num_chosen() const { return op_case().num_tokens * op_case().num_choices; }
  TensorSpec chosen(DType dtype) const {
    return {{op_case().num_tokens, op_case().num_choices}, dtype};
  }
  TensorSpec spread(DType dtype) const {
    return {{op_case().num_tokens, op_case().num_choices * op_case().copies}, dtype};
  }
};
INSTANTIATE_TEST_SUITE_P(Cases,
                         ChoicesTest,
                         on_all_targets(choices_cases()),
                         name_of_op_test<ChoicesCase>);

// Ranks in groups of `copies` take the next experts_per_rank experts, each rank a slice of them.
TEST_P(ChoicesTest, EveryChoiceGoesToAllRanksThatShareItsExpert) {
  const ChoicesCase& c = op_case();
  std::vector<std::vector<double>> slices_of(static_cast<std::size_t>(c.num_experts));
  double next = 0;
  for (std::int64_t share = 0; share < c.num_experts; share += c.experts_per_rank) {
    for (std::int64_t copy = 0; copy < c.copies; ++copy) {
      for (std::int64_t e = share; e < share + c.experts_per_rank; ++e) {
        slices_of[static_cast<std::size_t>(e)].push_back(next++);
      }
    }
  }
  const Values experts = random_integers(num_chosen(), "experts", 0, c.num_experts);
  const Values gates = rounded_to(sums(), random_normal(num_chosen(), "gates"));
  Values expected_experts;
  Values expected_gates;
  for (std::size_t a = 0; a < experts.size(); ++a) {
    const std::vector<double>& slices = slices_of[static_cast<std::size_t>(experts[a])];
    expected_experts.insert(expected_experts.end(), slices.begin(), slices.end());
    expected_gates.insert(expected_gates.end(), slices.size(), gates[a]);
  }
  const OwnedStream stream(target().device);
  const TestTensor chosen_experts(chosen(DType::i32), target().device, experts);
  const TestTensor chosen_gates(chosen(sums()), target().device, gates);
  const TestTensor spread_experts(spread(DType::i32), target().device);
  const TestTensor spread_gates(spread(sums()), target().device);
  spread_choices({.experts_TK = spread_experts,
                  .gates_TK = spread_gates,
                  .chosen_TK = chosen_experts,
                  .chosen_gates_TK = chosen_gates,
                  .copies = c.copies,
                  .experts_per_rank = c.experts_per_rank},
                 stream.view());
  EXPECT_EQ(spread_experts.values(stream.view()), expected_experts);
  EXPECT_EQ(spread_gates.values(stream.view()), expected_gates);
}

TEST_P(ChoicesTest, GradientsAreSummedInOrder) {
  const ChoicesCase& c = op_case();
  const Values terms = rounded_to(sums(), random_normal(num_chosen() * c.copies, "terms"));
  const OwnedStream stream(target().device);
  const TestTensor dspread(spread(sums()), target().device, terms);
  const TestTensor dgates(chosen(sums()), target().device);
  gather_choices({.dgates_TK = dgates, .dspread_TK = dspread, .copies = c.copies}, stream.view());
  Values expected;
  for (auto term = terms.begin(); term != terms.end(); term += c.copies) {
    double sum = *term;
    for (std::int64_t copy = 1; copy < c.copies; ++copy) {
      sum = rounded_to(sums(), {sum + term[copy]})[0];
    }
    expected.push_back(sum);
  }
  EXPECT_EQ(dgates.values(stream.view()), expected);
}

class ArrivalTest : public OpTest<ArrivalCase> {
 protected:
  // What each sender has for each expert of each rank; -7 is what a place holds that is not written.
  static constexpr double kUntouched = -7;

  void SetUp() override {
    OpTest<ArrivalCase>::SetUp();
    const ArrivalCase& c = op_case();
    const std::int64_t all_experts = c.num_senders * c.num_experts;
    Values counts = random_integers(c.num_senders * all_experts, "counts", 0, c.most_rows + 1);
    for (std::int64_t sender = 0; sender < c.num_senders; ++sender) {
      sent_offsets_.push_back(0);
      for (std::int64_t e = 0; e < all_experts; ++e) {
        double& count = counts[static_cast<std::size_t>(sender * all_experts + e)];
        const std::int64_t local = e - c.rank * c.num_experts;
        if (local >= 0 && local < c.num_experts) {
          const bool none = (c.only_sender >= 0 && sender != c.only_sender) ||
                            (c.only_expert >= 0 && local != c.only_expert);
          count = none ? 0 : count;
          experts_.insert(
              experts_.end(), static_cast<std::size_t>(count), static_cast<double>(local));
        }
        sent_offsets_.push_back(sent_offsets_.back() + count);
      }
    }
  }

  Index run() const {
    const ArrivalCase& c = op_case();
    const Device device = target().device;
    const OwnedStream stream(device);
    const auto room = static_cast<std::int64_t>(experts_.size()) + kSpare - c.missing_places;
    const Values untouched(static_cast<std::size_t>(room), kUntouched);
    const TestTensor slot({{room}, DType::i32}, device, untouched);
    const TestTensor source({{room}, DType::i32}, device, untouched);
    const TestTensor offsets({{c.num_experts + 1}, DType::i32}, device);
    const TestTensor sent(
        {{c.num_senders, c.num_senders * c.num_experts + 1}, DType::i32}, device, sent_offsets_);
    arrival_index({.slot_R = slot,
                   .source_R = source,
                   .offsets_E1 = offsets,
                   .sent_offsets_PE1 = sent,
                   .rank = c.rank},
                  stream.view());
    return {.slot = slot.values(stream.view()),
            .source = source.values(stream.view()),
            .offsets = offsets.values(stream.view())};
  }

  static constexpr std::int64_t kSpare = 5;
  Values sent_offsets_;
  Values experts_;  // of the rows in the order in which they arrive
};
INSTANTIATE_TEST_SUITE_P(Cases,
                         ArrivalTest,
                         on_all_targets(arrival_cases()),
                         name_of_op_test<ArrivalCase>);

// The order is that of a stable sort of the rows as they arrive, and nothing else is written.
TEST_P(ArrivalTest, IsAStableSortByExpert) {
  const Index expected = naive_index({.name = "",
                                      .num_tokens = static_cast<std::int64_t>(experts_.size()),
                                      .num_experts = op_case().num_experts,
                                      .num_choices = 1,
                                      .width = 1},
                                     experts_);
  const Index actual = run();
  EXPECT_EQ(actual.offsets, expected.offsets);
  const std::size_t room = actual.slot.size();
  Values slot(room, kUntouched);
  Values source(room, kUntouched);
  for (std::size_t arrived = 0; arrived < experts_.size(); ++arrived) {
    const auto place = static_cast<std::size_t>(expected.slot[arrived]);
    if (arrived < room && place < room) {
      slot[arrived] = static_cast<double>(place);
      source[place] = static_cast<double>(arrived);
    }
  }
  EXPECT_EQ(actual.slot, slot);
  EXPECT_EQ(actual.source, source);
}

TEST(ArrivalContract, NamesTheOperand) {
  const TestTensor slot({{4}, DType::i32}, Device::cpu);
  const TestTensor source({{4}, DType::i32}, Device::cpu);
  const TestTensor offsets({{3}, DType::i32}, Device::cpu);
  const TestTensor sent({{2, 5}, DType::i32}, Device::cpu, {0, 1, 2, 3, 4, 0, 1, 3, 2, 4});
  const Stream stream;
  const kernels::ArrivalIndex falling{.slot_R = slot,
                                      .source_R = source,
                                      .offsets_E1 = offsets,
                                      .sent_offsets_PE1 = sent,
                                      .rank = 1};
  EXPECT_TRUE(rejects([&] { arrival_index(falling, stream); },
                      "offsets of rank 1 fall from 3 to 2 at expert 2"));
  kernels::ArrivalIndex bad = falling;
  bad.rank = 2;
  EXPECT_TRUE(rejects([&] { arrival_index(bad, stream); }, "rank is 2 of 2"));
  bad = falling;
  bad.source_R = offsets;
  EXPECT_TRUE(rejects([&] { arrival_index(bad, stream); }, "source_R is i32[3]"));
  bad = falling;
  bad.offsets_E1 = slot;
  EXPECT_TRUE(rejects([&] { arrival_index(bad, stream); },
                      "sent_offsets_PE1 is i32[2, 5], expected i32[2, 7]"));
}

TEST(ChoicesContract, NamesTheOperand) {
  const TestTensor chosen({{2, 2}, DType::i32}, Device::cpu, {0, 1, -3, 2});
  const TestTensor chosen_gates({{2, 2}, DType::f32}, Device::cpu, {1, 2, 3, 4});
  const TestTensor experts({{2, 4}, DType::i32}, Device::cpu);
  const TestTensor gates({{2, 4}, DType::f32}, Device::cpu);
  const Stream stream;
  const kernels::SpreadChoices negative{.experts_TK = experts,
                                        .gates_TK = gates,
                                        .chosen_TK = chosen,
                                        .chosen_gates_TK = chosen_gates,
                                        .copies = 2,
                                        .experts_per_rank = 2};
  EXPECT_TRUE(rejects([&] { spread_choices(negative, stream); }, "expert -3 of assignment 2"));
  kernels::SpreadChoices bad = negative;
  bad.copies = 3;
  EXPECT_TRUE(rejects([&] { spread_choices(bad, stream); }, "experts_TK is i32[2, 4]"));
  bad.copies = 0;
  EXPECT_TRUE(rejects([&] { spread_choices(bad, stream); }, "copies is 0"));
  bad = negative;
  bad.experts_per_rank = 0;
  EXPECT_TRUE(rejects([&] { spread_choices(bad, stream); }, "experts_per_rank is 0"));
  EXPECT_TRUE(rejects(
      [&] {
        gather_choices({.dgates_TK = chosen_gates, .dspread_TK = gates, .copies = 4}, stream);
      },
      "dspread_TK is f32[2, 4], expected f32[2, 8]"));
}

TEST(PermuteContract, NamesTheOperand) {
  const TestTensor experts({{2, 2}, DType::i32}, Device::cpu, {0, 1, 3, 2});
  const TestTensor slot({{2, 2}, DType::i32}, Device::cpu);
  const TestTensor source({{4}, DType::i32}, Device::cpu);
  const TestTensor offsets({{4}, DType::i32}, Device::cpu);
  const TestTensor chunk_counts({{kPermuteChunks, 3}, DType::i32}, Device::cpu);
  const Stream stream;
  kernels::PermuteIndex bad{.slot_TK = slot,
                            .source_R = source,
                            .offsets_E1 = offsets,
                            .experts_TK = experts,
                            .chunk_counts_PE = chunk_counts};
  EXPECT_TRUE(rejects([&] { permute_index(bad, stream); }, "expert 3 of assignment 2"));
  const TestTensor negative({{2, 2}, DType::i32}, Device::cpu, {0, 1, 2, -1});
  bad.experts_TK = negative;
  EXPECT_TRUE(rejects([&] { permute_index(bad, stream); }, "expert -1 of assignment 3"));
  bad.offsets_E1 = source.view().rows(0, 3);
  EXPECT_TRUE(rejects([&] { permute_index(bad, stream); }, "offsets_E1 is i32[3]"));

  const TestTensor x({{3, 8}, DType::f32}, Device::cpu);
  const TestTensor rows({{4, 8}, DType::f32}, Device::cpu);
  EXPECT_TRUE(rejects([&] { permute({.x_RD = rows, .x_TD = x, .source_R = source}, stream); },
                      "4 rows for 3 tokens"));
  const TestTensor tokens({{2, 8}, DType::f32}, Device::cpu);
  EXPECT_TRUE(rejects(
      [&] {
        permute({.x_RD = rows,
                 .x_TD = tokens,
                 .source_R = source,
                 .slot_TK = slot.view().reshape({1, 4})},
                stream);
      },
      "slot_TK is i32[1, 4], expected i32[2, 2]"));
  EXPECT_TRUE(rejects([&] { unpermute({.y_TD = x, .y_RD = rows, .slot_TK = slot}, stream); },
                      "y_RD is f32[4, 8], expected f32[6, 8]"));
}

}  // namespace
}  // namespace memphis::test
