// SPDX-License-Identifier: Apache-2.0
#include "kernels/attention/attention_merge.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>

#include "csrc/core/parallel.h"
#include "kernels/check.h"
#include "kernels/visit.h"

namespace memphis::kernels {
namespace {

// Row [t, n] of out.
template <class T, class A = Accumulator<T>>
void merge_row(const AttentionMerge& op, std::int64_t row) {
  constexpr A kNone = -std::numeric_limits<A>::infinity();
  const std::int64_t P = op.part_out_PTNH.dim(0);
  const std::int64_t rows = op.out_TNH.dim(0) * op.out_TNH.dim(1);
  const std::int64_t N = op.out_TNH.dim(1);
  const std::int64_t H = op.out_TNH.dim(2);
  const std::int64_t S = op.lse_BNS.dim(2);
  const std::int64_t t = row / N;
  const std::int64_t statistic = (t / S * N + row % N) * S + t % S;
  const A* const part_lse = op.part_lse_PBNS.as<A>() + statistic;
  const T* const part_out = op.part_out_PTNH.as<T>() + row * H;
  const auto* const num_keys = op.num_keys_P.as<std::int32_t>();
  T* const out = op.out_TNH.as<T>() + row * H;

  A maximum = kNone;
  for (std::int64_t p = 0; p < P; ++p) {
    maximum = std::max(maximum, part_lse[p * rows]);
  }
  const auto weight = [&](std::int64_t p) {
    return maximum == kNone ? static_cast<A>(num_keys[p]) : std::exp(part_lse[p * rows] - maximum);
  };
  A sum = 0;
  for (std::int64_t p = 0; p < P; ++p) {
    sum += weight(p);
  }
  constexpr std::int64_t kColumns = 32;  // that share the weights
  for (std::int64_t first = 0; first < H; first += kColumns) {
    const std::int64_t count = std::min(kColumns, H - first);
    A total[kColumns] = {};
    for (std::int64_t p = 0; p < P; ++p) {
      const A factor = weight(p);
      for (std::int64_t h = 0; h < count; ++h) {
        total[h] += factor * static_cast<A>(part_out[p * rows * H + first + h]);
      }
    }
    for (std::int64_t h = 0; h < count; ++h) {
      // Without keys in any part it is 0, as in each part.
      out[first + h] = static_cast<T>(sum > 0 ? total[h] / sum : A{0});
    }
  }
  op.lse_BNS.as<A>()[statistic] = maximum == kNone ? kNone : maximum + std::log(sum);
}

}  // namespace

void attention_merge(const AttentionMerge& op, Stream stream) {
  const OpCheck check("attention_merge", stream);
  check.num_dims("out_TNH", op.out_TNH, 3);
  check.num_dims("lse_BNS", op.lse_BNS, 3);
  check.num_dims("part_out_PTNH", op.part_out_PTNH, 4);
  const DType dtype = op.out_TNH.dtype;
  const std::int64_t P = op.part_out_PTNH.dim(0);
  const std::int64_t T = op.out_TNH.dim(0);
  const std::int64_t N = op.out_TNH.dim(1);
  const std::int64_t H = op.out_TNH.dim(2);
  const std::int64_t B = op.lse_BNS.dim(0);
  const std::int64_t S = op.lse_BNS.dim(2);
  check.float_dtype("out_TNH", dtype);
  check.tensor("out_TNH", op.out_TNH, {B * S, N, H}, dtype);
  check.tensor("lse_BNS", op.lse_BNS, {B, N, S}, accumulation_dtype(dtype));
  check.tensor("part_out_PTNH", op.part_out_PTNH, {P, T, N, H}, dtype);
  check.tensor("part_lse_PBNS", op.part_lse_PBNS, {P, B, N, S}, accumulation_dtype(dtype));
  check.tensor("num_keys_P", op.num_keys_P, {P}, DType::i32);
  check.condition(P >= 1, "there are no parts (a result over no keys is undefined); give one");
  check.condition(T * N <= std::numeric_limits<std::uint32_t>::max(), [&] {
    return std::to_string(T * N) + " rows (they are numbered in 32 bits); merge fewer at a time";
  });
  check.condition(stream.device == Device::cpu || H % 8 == 0, [&] {
    return "a head is " + std::to_string(H) + " wide (on cuda a multiple of 8)";
  });
  if (stream.device == Device::cuda) {
    return cuda::attention_merge(op, stream);
  }
  visit_float(dtype, [&]<class E>() {
    constexpr std::int64_t kGrain = 64;
    parallel_ranges(T * N, kGrain, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t row = begin; row < end; ++row) {
        merge_row<E>(op, row);
      }
    });
  });
}

}  // namespace memphis::kernels
