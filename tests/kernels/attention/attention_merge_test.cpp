// SPDX-License-Identifier: Apache-2.0
#include "kernels/attention/attention_merge.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include <gtest/gtest.h>

#include "bench/attention/attention_cases.h"
#include "csrc/core/error.h"
#include "kernels/attention/attention.h"
#include "tests/kernels/attention/attention_naive.h"
#include "tests/kernels/attention/drawn_case.h"
#include "tests/support/finite_difference.h"
#include "tests/support/op_test.h"
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

// Two calls that share the keys of each sequence out, runs of `run` to either in turn, for the
// queries of each sequence from `first_query` on. Where the first has all keys, they are at their
// own index.
struct PartsCase {
  AttentionCase shape;
  std::int64_t run;
  std::int64_t first_query = 0;
};

// Of [B, S, width], what lies at the positions that are picked.
template <class Pick>
std::vector<double> picked(const std::vector<double>& values,
                           const AttentionCase& c,
                           std::int64_t width,
                           const Pick& pick) {
  std::vector<double> result;
  for (std::int64_t i = 0; i < c.T() * width; ++i) {
    if (pick(i / width % c.S)) {
      result.push_back(values[static_cast<std::size_t>(i)]);
    }
  }
  return result;
}
// Heads [first, first + count) of [T, C, H].
std::vector<double> heads(const std::vector<double>& qkv,
                          const AttentionCase& c,
                          std::int64_t first,
                          std::int64_t count) {
  std::vector<double> result;
  for (std::int64_t i = 0; i < c.T() * c.C() * c.H; ++i) {
    const std::int64_t head = i / c.H % c.C();
    if (head >= first && head < first + count) {
      result.push_back(qkv[static_cast<std::size_t>(i)]);
    }
  }
  return result;
}
// Of [B, N, S].
std::vector<double> of_queries(const std::vector<double>& statistic,
                               const AttentionCase& c,
                               std::int64_t first_query) {
  std::vector<double> result;
  for (std::size_t i = 0; i < statistic.size(); ++i) {
    if (static_cast<std::int64_t>(i) % c.S >= first_query) {
      result.push_back(statistic[i]);
    }
  }
  return result;
}

void expect_whole(const Target& target, const PartsCase& parts) {
  const DType dtype = target.dtype;
  const Device device = target.device;
  const DType sums = accumulation_dtype(dtype);
  const AttentionCase& c = parts.shape;
  const std::int64_t first_query = parts.first_query;
  const std::int64_t num_queries = c.S - first_query;
  const std::int64_t T = c.B * num_queries;
  const auto is_query = [&](std::int64_t t) { return t >= first_query; };

  // The whole: of queries that are not there no gradient comes.
  const std::vector<double> qkv = test::rounded_to(dtype, c.qkv());
  std::vector<double> dout = test::rounded_to(dtype, c.dout());
  for (std::size_t i = 0; i < dout.size(); ++i) {
    const std::int64_t t = static_cast<std::int64_t>(i) / (c.N * c.H) % c.S;
    dout[i] = is_query(t) ? dout[i] : 0;
  }

  // Places count from anywhere, but where keys have none.
  const bool keys_have_places = parts.run < c.S;
  const std::int64_t offset = keys_have_places ? 7 : 0;
  std::vector<double> places;
  for (std::int64_t t = 0; t < c.T(); ++t) {
    places.push_back(static_cast<double>(t % c.S + offset * (1 + t / c.S)));  // of each sequence
  }
  const OwnedStream stream(device);
  const auto queries = heads(qkv, c, 0, c.N);
  const TestTensor q({{T, c.N, c.H}, dtype}, device, picked(queries, c, c.N * c.H, is_query));
  const TestTensor d({{T, c.N, c.H}, dtype}, device, picked(dout, c, c.N * c.H, is_query));
  const TestTensor position({{T}, DType::i32}, device, picked(c.positions(), c, 1, is_query));
  const TestTensor place({{T}, DType::i32}, device, picked(places, c, 1, is_query));
  const TestTensor part_out({{2, T, c.N, c.H}, dtype}, device);
  const TestTensor part_lse({{2, c.B, c.N, num_queries}, sums}, device);
  const TestTensor out({{T, c.N, c.H}, dtype}, device);
  const TestTensor lse({{c.B, c.N, num_queries}, sums}, device);
  const TestTensor delta({{c.B, c.N, num_queries}, sums}, device);

  struct Part {
    std::int64_t num_keys;
    TestTensor k;
    TestTensor v;
    TestTensor place;
    TestTensor valid;
  };
  std::vector<Part> of_keys;
  for (std::int64_t part = 0; part < 2; ++part) {
    const auto is_key = [&](std::int64_t s) { return s / parts.run % 2 == part; };
    std::int64_t num_keys = 0;
    for (std::int64_t s = 0; s < c.S; ++s) {
      num_keys += is_key(s) ? 1 : 0;
    }
    const std::int64_t U = c.B * num_keys;
    const auto width = c.G * c.H;
    const auto keys = picked(heads(qkv, c, c.N, c.G), c, width, is_key);
    const auto values = picked(heads(qkv, c, c.N + c.G, c.G), c, width, is_key);
    of_keys.push_back(
        {.num_keys = num_keys,
         .k = TestTensor({{U, c.G, c.H}, dtype}, device, keys),
         .v = TestTensor({{U, c.G, c.H}, dtype}, device, values),
         .place = TestTensor({{U}, DType::i32}, device, picked(places, c, 1, is_key)),
         .valid = TestTensor({{U}, DType::u8}, device, picked(c.key_valid(), c, 1, is_key))});
    const Part& mine = of_keys.back();
    attention_forward({.out_TNH = part_out.view().rows(part, 1).reshape({T, c.N, c.H}),
                       .lse_BNS = part_lse.view().rows(part, 1).reshape({c.B, c.N, num_queries}),
                       .q_TNH = q.view(),
                       .k_UGH = mine.k.view(),
                       .v_UGH = mine.v.view(),
                       .position_T = position,
                       .place_T = place,
                       .key_place_U = keys_have_places ? mine.place.view() : TensorView{},
                       .key_valid_U = c.pad != 0 ? mine.valid.view() : TensorView{},
                       .score = c.score()},
                      stream.view());
  }
  const TestTensor num_keys(
      {{2}, DType::i32},
      device,
      {static_cast<double>(of_keys[0].num_keys), static_cast<double>(of_keys[1].num_keys)});
  attention_merge({.out_TNH = out,
                   .lse_BNS = lse,
                   .part_out_PTNH = part_out,
                   .part_lse_PBNS = part_lse,
                   .num_keys_P = num_keys},
                  stream.view());

  AttentionResult actual = {.out = out.values(stream.view()),
                            .lse = lse.values(stream.view()),
                            .dqkv = std::vector<double>(qkv.size(), 0.0)};
  const auto at = [&](std::int64_t b, std::int64_t t, std::int64_t head, std::int64_t h) {
    return static_cast<std::size_t>(((b * c.S + t) * c.C() + head) * c.H + h);
  };
  for (std::int64_t part = 0; part < 2; ++part) {
    const Part& mine = of_keys[static_cast<std::size_t>(part)];
    const std::int64_t U = c.B * mine.num_keys;
    const TestTensor dq({{T, c.N, c.H}, dtype}, device);
    const TestTensor dk({{U, c.G, c.H}, dtype}, device);
    const TestTensor dv({{U, c.G, c.H}, dtype}, device);
    AttentionBackward op = {.dq_TNH = dq.view(),
                            .dk_UGH = dk.view(),
                            .dv_UGH = dv.view(),
                            .dout_TNH = d,
                            .out_TNH = out,
                            .lse_BNS = lse,
                            .q_TNH = q.view(),
                            .k_UGH = mine.k.view(),
                            .v_UGH = mine.v.view(),
                            .position_T = position,
                            .place_T = place,
                            .key_place_U = keys_have_places ? mine.place.view() : TensorView{},
                            .key_valid_U = c.pad != 0 ? mine.valid.view() : TensorView{},
                            .delta_BNS = delta,
                            .sequence_keys = c.S,
                            .score = c.score()};
    const TestTensor workspace = test::attention_workspace(op, device);
    op.workspace_W = workspace;
    attention_backward(op, stream.view());
    const auto collect = [&](const TestTensor& from,
                             std::int64_t first_head,
                             std::int64_t num_heads,
                             const auto& pick) {
      const std::vector<double> values = from.values(stream.view());
      std::size_t next = 0;
      for (std::int64_t i = 0; i < c.T() * num_heads * c.H; ++i) {
        const std::int64_t token = i / (num_heads * c.H);
        if (pick(token % c.S)) {
          const std::int64_t head = first_head + i / c.H % num_heads;
          actual.dqkv[at(token / c.S, token % c.S, head, i % c.H)] += values[next];
          ++next;
        }
      }
    };
    const auto is_key = [&](std::int64_t s) { return s / parts.run % 2 == part; };
    collect(dq, 0, c.N, is_query);
    collect(dk, c.N, c.G, is_key);
    collect(dv, c.N + c.G, c.G, is_key);
  }

  const auto of_queries_alone = [&](AttentionResult result) {
    result.out = picked(result.out, c, c.N * c.H, is_query);
    result.lse = of_queries(result.lse, c, first_query);
    return result;
  };
  const AttentionResult exact = of_queries_alone(test::exact_attention(target, c, qkv, dout));
  ASSERT_EQ(actual.lse.size(), exact.lse.size());
  for (std::size_t i = 0; i < exact.lse.size(); ++i) {
    EXPECT_EQ(std::isinf(actual.lse[i]), std::isinf(exact.lse[i])) << "lse of row " << i;
  }
  std::vector<AttentionResult> rough = test::naive_draws(dtype, c, qkv, dout, exact.lse.size());
  for (AttentionResult& each : rough) {
    each = of_queries_alone(std::move(each));
  }
  EXPECT_TRUE(
      close_to(actual.out, test::reference_of(exact, rough, &AttentionResult::out), dtype, c.H));
  EXPECT_TRUE(close_to(finite(actual.lse),
                       test::lse_reference(target, c, exact, rough),
                       accumulation_dtype(dtype),
                       static_cast<std::int64_t>(exact.lse.size())));
  EXPECT_TRUE(close_to(actual.dqkv, test::dqkv_reference(exact, rough), dtype, c.C() * c.H));
}

class AttentionParts : public testing::TestWithParam<std::tuple<Target, PartsCase>> {};

TEST_P(AttentionParts, AddUpToTheWhole) {
  const auto& [target, parts] = GetParam();
  if (const std::string reason = test::skip_reason(target); !reason.empty()) {
    GTEST_SKIP() << reason;
  }
  expect_whole(target, parts);
}

std::vector<PartsCase> parts_cases() {
  return {
      // The second part has no key at all.
      {.shape = {.name = "one_token", .B = 2, .S = 1, .N = 2, .G = 1, .H = 8}, .run = 1},
      {.shape = {.name = "halves", .B = 2, .S = 130, .N = 6, .G = 1, .H = 16}, .run = 65},
      // Documents that have keys in one part alone, and hidden ones.
      {.shape = {.name = "documents",
                 .B = 1,
                 .S = 150,
                 .N = 2,
                 .G = 2,
                 .H = 8,
                 .cap = 5,
                 .temperature_len = 16,
                 .documents = {1, 40, 1, 1, 60, 47},
                 .pad = 9},
       .run = 64},
      // Keys of both parts between each other, and none of the first queries.
      {.shape = {.name = "stripes", .B = 1, .S = 140, .N = 4, .G = 1, .H = 24, .cap = 0},
       .run = 3,
       .first_query = 75},
      // Hopper's tiles: queries that are the last of the keys, so that tiles of the two do not lie
      // side by side.
      {.shape = {.name = "hopper_suffix", .B = 1, .S = 300, .N = 4, .G = 1, .H = 128},
       .run = 300,
       .first_query = 200},
      // A part of one tile of keys, behind the first queries and before the last document.
      {.shape = {.name = "hopper_parts",
                 .B = 2,
                 .S = 280,
                 .N = 2,
                 .G = 1,
                 .H = 128,
                 .temperature_len = 16,
                 .documents = {100, 156, 24},
                 .pad = 7},
       .run = 128},
      // Tiles of Hopper's kernels, of which queries see all, some and none of the keys.
      {.shape = {.name = "hopper_halves", .B = 2, .S = 280, .N = 2, .G = 1, .H = 128}, .run = 140},
      {.shape = {.name = "hopper_stripes", .B = 1, .S = 300, .N = 6, .G = 1, .H = 128, .cap = 0},
       .run = 3,
       .first_query = 150},
  };
}

INSTANTIATE_TEST_SUITE_P(All,
                         AttentionParts,
                         testing::ValuesIn(test::on_attention_targets(
                             parts_cases(), [](const PartsCase& c) { return c.shape.name; })),
                         [](const auto& instance) {
                           return name_of(std::get<0>(instance.param)) + "_" +
                                  std::get<1>(instance.param).shape.name;
                         });

// Results of attention that are but drawn, in any number of parts.
struct MergeCase {
  std::string name;
  std::int64_t P;
  std::int64_t B;
  std::int64_t S;
  std::int64_t N;
  std::int64_t H;
  bool tested = true;
};

class AttentionMergeCases : public test::OpTest<MergeCase> {};

TEST_P(AttentionMergeCases, AreAsCloseAsNaive) {
  const MergeCase& c = op_case();
  const auto [device, dtype] = target();
  const DType sums = accumulation_dtype(dtype);
  const std::int64_t T = c.B * c.S;
  const std::int64_t rows = T * c.N;
  const auto part_out =
      test::rounded_to(dtype, test::random_normal(c.P * rows * c.H, "part_out " + c.name));
  auto part_lse = test::rounded_to(sums, test::random_normal(c.P * rows, "part_lse " + c.name, 3));
  std::vector<double> num_keys;
  for (std::int64_t p = 0; p < c.P; ++p) {
    num_keys.push_back(static_cast<double>(p % 3));
    for (std::int64_t i = 0; i < rows; ++i) {
      // Some queries see no key in this part, some in none, and some of all sums are far below 0.
      double& lse = part_lse[static_cast<std::size_t>(p * rows + i)];
      lse = i % 7 == 6 || (i + p) % 5 == 4 ? -INFINITY : i % 3 == 2 ? lse - 200 : lse;
    }
  }
  const OwnedStream stream(device);
  const TestTensor out({{T, c.N, c.H}, dtype}, device);
  const TestTensor lse({{c.B, c.N, c.S}, sums}, device);
  attention_merge({.out_TNH = out,
                   .lse_BNS = lse,
                   .part_out_PTNH = TestTensor({{c.P, T, c.N, c.H}, dtype}, device, part_out),
                   .part_lse_PBNS = TestTensor({{c.P, c.B, c.N, c.S}, sums}, device, part_lse),
                   .num_keys_P = TestTensor({{c.P}, DType::i32}, device, num_keys)},
                  stream.view());

  const auto merged = [&]<class A>(A /*type*/) {
    AttentionResult result = {.out = std::vector<double>(static_cast<std::size_t>(rows * c.H)),
                              .lse = std::vector<double>(static_cast<std::size_t>(rows)),
                              .dqkv = {}};
    for (std::int64_t row = 0; row < rows; ++row) {
      const std::int64_t t = row / c.N;
      const std::int64_t statistic = (t / c.S * c.N + row % c.N) * c.S + t % c.S;
      const auto lse_of = [&](std::int64_t p) {
        return static_cast<A>(part_lse[static_cast<std::size_t>(p * rows + statistic)]);
      };
      A largest = -INFINITY;
      for (std::int64_t p = 0; p < c.P; ++p) {
        largest = std::max(largest, lse_of(p));
      }
      const auto weight = [&](std::int64_t p) {
        return std::isinf(largest) ? static_cast<A>(num_keys[static_cast<std::size_t>(p)])
                                   : std::exp(lse_of(p) - largest);
      };
      A sum = 0;
      for (std::int64_t p = 0; p < c.P; ++p) {
        sum += weight(p);
      }
      result.lse[static_cast<std::size_t>(statistic)] =
          static_cast<double>(std::isinf(largest) ? largest : largest + std::log(sum));
      for (std::int64_t h = 0; h < c.H; ++h) {
        A total = 0;
        for (std::int64_t p = 0; p < c.P; ++p) {
          total += weight(p) *
                   static_cast<A>(part_out[static_cast<std::size_t>((p * rows + row) * c.H + h)]);
        }
        result.out[static_cast<std::size_t>(row * c.H + h)] =
            static_cast<double>(sum > 0 ? total / sum : A{0});
      }
    }
    return result;
  };
  const AttentionResult exact = merged(0.0L);
  AttentionResult naive = dtype == DType::f64 ? merged(0.0) : merged(0.0F);
  naive.out = test::rounded_to(dtype, naive.out);
  const std::vector<double> actual_lse = lse.values(stream.view());
  for (std::size_t i = 0; i < exact.lse.size(); ++i) {
    EXPECT_EQ(std::isinf(actual_lse[i]), std::isinf(exact.lse[i])) << "lse of row " << i;
  }
  EXPECT_TRUE(close_to(out.values(stream.view()), exact.out, naive.out, dtype, c.H));
  const std::vector<double> exact_lse = finite(exact.lse);
  EXPECT_TRUE(close_to(finite(actual_lse),
                       exact_lse,
                       finite(naive.lse),
                       sums,
                       static_cast<std::int64_t>(exact_lse.size())));
}

INSTANTIATE_TEST_SUITE_P(
    All,
    AttentionMergeCases,
    test::on_all_targets(std::vector<MergeCase>{
        // Fewer parts than are read at once, as many, one more, and several times as many.
        {.name = "two", .P = 2, .B = 2, .S = 67, .N = 3, .H = 128},
        {.name = "four", .P = 4, .B = 2, .S = 110, .N = 2, .H = 64},
        {.name = "five", .P = 5, .B = 3, .S = 21, .N = 6, .H = 72},
        {.name = "twelve", .P = 12, .B = 1, .S = 181, .N = 2, .H = 128},
        {.name = "one", .P = 1, .B = 1, .S = 450, .N = 1, .H = 8},
        // Columns that the lanes of a warp pass in more than one turn.
        {.name = "wide", .P = 3, .B = 2, .S = 99, .N = 2, .H = 264},
    }),
    test::name_of_op_test<MergeCase>);

class DrawnAttentionParts : public testing::TestWithParam<int> {};

TEST_P(DrawnAttentionParts, AddUpToTheWholeOnCuda) {
  constexpr Target kTarget = {.device = Device::cuda, .dtype = DType::bf16};
  if (const std::string reason = test::skip_reason(kTarget); !reason.empty()) {
    GTEST_SKIP() << reason;
  }
  test::CaseDraw draw("drawn parts " + std::to_string(GetParam()));
  PartsCase parts = {.shape = draw.attention(), .run = 0};
  const AttentionCase& c = parts.shape;
  parts.run = draw.one_of<std::int64_t>({1, 5, 64, 100, 128, c.S});
  parts.first_query = draw.once_in(2) ? 0 : c.S - draw.tokens(1, c.S);
  SCOPED_TRACE(test::description_of(c) + ", run " + std::to_string(parts.run) + " first_query " +
               std::to_string(parts.first_query));
  expect_whole(kTarget, parts);
}

INSTANTIATE_TEST_SUITE_P(cuda, DrawnAttentionParts, testing::Range(0, 4));

TEST(AttentionMerge, RefusesOperandsOutsideTheContract) {
  const TestTensor out({{4, 2, 8}, DType::f32}, Device::cpu);
  const TestTensor lse({{2, 2, 2}, DType::f32}, Device::cpu);
  const TestTensor part_out({{3, 4, 2, 8}, DType::f32}, Device::cpu);
  const TestTensor part_lse({{3, 2, 2, 2}, DType::f32}, Device::cpu);
  const TestTensor num_keys({{3}, DType::i32}, Device::cpu, {1, 1, 1});
  const auto refuses = [&](auto change) {
    AttentionMerge op = {.out_TNH = out,
                         .lse_BNS = lse,
                         .part_out_PTNH = part_out,
                         .part_lse_PBNS = part_lse,
                         .num_keys_P = num_keys};
    change(op);
    EXPECT_THROW(attention_merge(op, {}), ContractError);
  };
  refuses([](AttentionMerge& op) { op.part_out_PTNH = op.part_out_PTNH.rows(0, 2); });
  refuses([](AttentionMerge& op) { op.part_lse_PBNS = op.part_lse_PBNS.rows(0, 2); });
  refuses([](AttentionMerge& op) { op.num_keys_P = op.num_keys_P.rows(0, 2); });
  refuses([](AttentionMerge& op) { op.lse_BNS = op.lse_BNS.reshape({2, 4, 1}); });
  refuses([](AttentionMerge& op) { op.out_TNH = op.out_TNH.reshape({4, 1, 16}); });
  refuses([](AttentionMerge& op) {
    op.part_out_PTNH = op.part_out_PTNH.rows(0, 0);
    op.part_lse_PBNS = op.part_lse_PBNS.rows(0, 0);
    op.num_keys_P = op.num_keys_P.rows(0, 0);
  });
}

}  // namespace
}  // namespace memphis::kernels
