// SPDX-License-Identifier: Apache-2.0
#include "kernels/attention/gather_heads.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>

#include "csrc/core/parallel.h"
#include "kernels/attention/heads_check.h"
#include "kernels/check.h"
#include "kernels/or_null.h"
#include "kernels/visit.h"

namespace memphis::kernels {
namespace {

template <class E, class A = Accumulator<E>>
void gather_token(const GatherHeads& op, std::int64_t t, std::int64_t source, std::int64_t U) {
  const std::int64_t width = op.y_TCH.num_heads * op.y_TCH.width();
  E* const y = op.y_TCH.as<E>() + t * op.y_TCH.token_stride();
  const std::int64_t stride = op.x_UCH.token_stride();
  const E* const x = op.x_UCH.as<E>() + source * stride;
  if (op.num_parts == 1) {
    std::memcpy(y, x, static_cast<std::size_t>(width) * sizeof(E));
    return;
  }
  constexpr std::int64_t kColumns = 64;  // that are summed at a time
  for (std::int64_t first = 0; first < width; first += kColumns) {
    const std::int64_t count = std::min(kColumns, width - first);
    A total[kColumns] = {};
    for (std::int64_t p = 0; p < op.num_parts; ++p) {
      const E* const part = x + p * U * stride + first;
      for (std::int64_t i = 0; i < count; ++i) {
        total[i] += static_cast<A>(part[i]);
      }
    }
    for (std::int64_t i = 0; i < count; ++i) {
      y[first + i] = static_cast<E>(total[i]);
    }
  }
}

}  // namespace

void gather_heads(const GatherHeads& op, Stream stream) {
  const OpCheck check("gather_heads", stream);
  const TensorView& y = op.y_TCH.buffer_TCH;
  const TensorView& x = op.x_UCH.buffer_TCH;
  check.num_dims("y_TCH", y, 3);
  check.num_dims("x_UCH", x, 3);
  check.float_dtype("y_TCH", y.dtype);
  const std::int64_t T = y.dim(0);
  const std::int64_t H = y.dim(2);
  const std::int64_t num_heads = op.y_TCH.num_heads;
  check.condition(num_heads >= 1, [&] {
    return "y_TCH is " + std::to_string(num_heads) + " heads (a view has one at least)";
  });
  check_heads(check, "y_TCH", op.y_TCH, T, num_heads, H, y.dtype);
  check_heads(check, "x_UCH", op.x_UCH, x.dim(0), num_heads, H, y.dtype);
  check.condition(op.num_parts >= 1 && x.dim(0) % op.num_parts == 0, [&] {
    return "x_UCH has " + std::to_string(x.dim(0)) + " tokens, which are not " +
           std::to_string(op.num_parts) + " equal parts";
  });
  const std::int64_t U = x.dim(0) / op.num_parts;
  check.optional_tensor("source_T", op.source_T, {T}, DType::i32);
  check.condition(op.source_T.present() || U == T, [&] {
    return "y_TCH has " + std::to_string(T) + " tokens and a part of x_UCH " + std::to_string(U) +
           " (without source_T each is its own source); give as many, or source_T";
  });
  check.condition(stream.device == Device::cpu || H % 8 == 0, [&] {
    return "a head is " + std::to_string(H) + " wide (on cuda a multiple of 8)";
  });
  check.untouched(static_cast<double>(y.bytes()) *
                  (1 - static_cast<double>(op.y_TCH.num_heads) / static_cast<double>(y.dim(1))));
  if (T == 0) {
    return;
  }
  if (stream.device == Device::cuda) {
    return cuda::gather_heads(op, stream);
  }
  const auto* const source = or_null<std::int32_t>(op.source_T);
  for (std::int64_t t = 0; source != nullptr && t < T; ++t) {
    check.condition(source[t] >= 0 && source[t] < U, [&] {
      return "source_T[" + std::to_string(t) + "] is " + std::to_string(source[t]) +
             ", outside the " + std::to_string(U) + " tokens of a part";
    });
  }
  visit_float(y.dtype, [&]<class E>() {
    constexpr std::int64_t kGrain = 16;
    parallel_ranges(T, kGrain, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t t = begin; t < end; ++t) {
        gather_token<E>(op, t, source == nullptr ? t : source[t], U);
      }
    });
  });
}

}  // namespace memphis::kernels
