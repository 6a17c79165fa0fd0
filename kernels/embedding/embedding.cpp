// SPDX-License-Identifier: Apache-2.0
#include "kernels/embedding/embedding.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>

#include "csrc/core/parallel.h"
#include "kernels/check.h"
#include "kernels/visit.h"

namespace memphis::kernels {
namespace {

// Elements of a thread's piece of the forward pass: some 10 us, far above the cost of handing it
// out.
constexpr std::int64_t kGrain = 32768;
// Columns of a thread's piece of the backward pass: eight cache lines of f32 a position, and pieces
// enough for the cores of a small machine at a D of 256.
constexpr std::int64_t kColumns = 128;

// Rows [vocab_begin, vocab_begin + num_rows) of the whole vocabulary, whose size is returned.
std::int64_t check_vocabulary(const OpCheck& check,
                              std::int64_t num_rows,
                              std::int64_t vocab_begin,
                              std::int64_t vocab_size) {
  const std::int64_t whole = vocab_size == 0 ? num_rows : vocab_size;
  check.condition(vocab_begin >= 0 && vocab_begin + num_rows <= whole, [&] {
    return "rows " + std::to_string(vocab_begin) + " to " + std::to_string(vocab_begin + num_rows) +
           " are not rows of a vocabulary of " + std::to_string(whole) +
           " (each rank has some of them); pass vocab_begin and vocab_size of the whole";
  });
  return whole;
}

// Of a table's rows, what no token of so many can have.
double bytes_of_other_rows(const TensorView& table, std::int64_t num_tokens) {
  const std::int64_t rows = table.dim(0);
  return rows == 0 ? 0.0
                   : static_cast<double>(table.bytes()) *
                         static_cast<double>(std::max<std::int64_t>(rows - num_tokens, 0)) /
                         static_cast<double>(rows);
}

std::int64_t check(const OpCheck& check, const EmbeddingForward& op) {
  check.num_dims("y_TD", op.y_TD, 2);
  check.num_dims("weight_VD", op.weight_VD, 2);
  check.float_dtype("y_TD", op.y_TD.dtype);
  const std::int64_t num_tokens = op.y_TD.dim(0);
  const std::int64_t width = op.y_TD.dim(1);
  check.tensor("y_TD", op.y_TD, {num_tokens, width}, op.y_TD.dtype);
  check.tensor("weight_VD", op.weight_VD, {op.weight_VD.dim(0), width}, op.y_TD.dtype);
  check.untouched(bytes_of_other_rows(op.weight_VD, num_tokens));
  check.tensor("tokens_T", op.tokens_T, {num_tokens}, DType::i32);
  return check_vocabulary(check, op.weight_VD.dim(0), op.vocab_begin, op.vocab_size);
}

std::int64_t check(const OpCheck& check, const EmbeddingBackward& op) {
  check.num_dims("dweight_VD", op.dweight_VD, 2);
  check.num_dims("dy_TD", op.dy_TD, 2);
  check.condition(op.dy_TD.dim(0) <= std::numeric_limits<std::int32_t>::max(), [&] {
    return std::to_string(op.dy_TD.dim(0)) +
           " tokens (their order is of 32 bits); give fewer at a time";
  });
  check.float_dtype("dy_TD", op.dy_TD.dtype);
  const std::int64_t num_tokens = op.dy_TD.dim(0);
  const std::int64_t width = op.dy_TD.dim(1);
  const std::int64_t vocab_size = op.dweight_VD.dim(0);
  check.tensor(
      "dweight_VD", op.dweight_VD, {vocab_size, width}, accumulation_dtype(op.dy_TD.dtype));
  check.tensor("dy_TD", op.dy_TD, {num_tokens, width}, op.dy_TD.dtype);
  if (op.weight_gradient == WeightGradient::add) {
    check.untouched(bytes_of_other_rows(op.dweight_VD, num_tokens));
  }
  check.tensor("tokens_T", op.tokens_T, {num_tokens}, DType::i32);
  check.tensor("order_T", op.order_T, {num_tokens}, DType::i32);
  return check_vocabulary(check, vocab_size, op.vocab_begin, op.vocab_size);
}

// Before anything is written, so that a bad token leaves the outputs as they were.
void check_tokens(std::string_view op, const TensorView& tokens_T, std::int64_t vocab_size) {
  const std::int32_t* const tokens = tokens_T.as<std::int32_t>();
  for (std::int64_t t = 0; t < tokens_T.dim(0); ++t) {
    if (tokens[t] < 0 || tokens[t] >= vocab_size) {
      throw ContractError(std::string(op) + ": tokens_T[" + std::to_string(t) + "] is " +
                          std::to_string(tokens[t]) + " (the vocabulary has " +
                          std::to_string(vocab_size) +
                          " entries); use the tokenizer that the model was made for");
    }
  }
}

template <class T>
void forward(const EmbeddingForward& op) {
  using A = Accumulator<T>;
  const std::int64_t width = op.y_TD.dim(1);
  const std::int64_t num_rows = op.weight_VD.dim(0);
  T* const y_TD = op.y_TD.as<T>();
  const T* const weight_VD = op.weight_VD.as<T>();
  const std::int32_t* const tokens = op.tokens_T.as<std::int32_t>();
  const A multiplier = static_cast<A>(op.multiplier);
  const std::int64_t rows = std::max<std::int64_t>(1, kGrain / std::max<std::int64_t>(1, width));
  parallel_ranges(op.y_TD.dim(0), rows, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      T* const y = y_TD + t * width;
      const std::int64_t row = tokens[t] - op.vocab_begin;
      if (row < 0 || row >= num_rows) {
        std::fill_n(y, width, static_cast<T>(0.0F));
        continue;
      }
      const T* const weight = weight_VD + row * width;
#pragma omp simd
      for (std::int64_t d = 0; d < width; ++d) {
        y[d] = static_cast<T>(static_cast<A>(weight[d]) * multiplier);
      }
    }
  });
}

// Cut by columns: every piece then meets the positions of a token in their order.
template <class T>
void backward(const EmbeddingBackward& op) {
  using A = Accumulator<T>;
  const std::int64_t width = op.dy_TD.dim(1);
  const std::int64_t num_rows = op.dweight_VD.dim(0);
  A* const dweight_VD = op.dweight_VD.as<A>();
  const T* const dy_TD = op.dy_TD.as<T>();
  const std::int32_t* const tokens = op.tokens_T.as<std::int32_t>();
  const A multiplier = static_cast<A>(op.multiplier);
  parallel_ranges(width, kColumns, [&](std::int64_t begin, std::int64_t end) {
    if (op.weight_gradient == WeightGradient::write) {
      for (std::int64_t row = 0; row < num_rows; ++row) {
        std::fill(dweight_VD + row * width + begin, dweight_VD + row * width + end, A{0});
      }
    }
    for (std::int64_t t = 0; t < op.dy_TD.dim(0); ++t) {
      const std::int64_t row = tokens[t] - op.vocab_begin;
      if (row < 0 || row >= num_rows) {
        continue;
      }
      A* const dweight = dweight_VD + row * width;
      const T* const dy = dy_TD + t * width;
#pragma omp simd
      for (std::int64_t d = begin; d < end; ++d) {
        dweight[d] += multiplier * static_cast<A>(dy[d]);
      }
    }
  });
}

}  // namespace

void embedding_forward(const EmbeddingForward& op, Stream stream) {
  const OpCheck call("embedding_forward", stream);
  const std::int64_t vocab_size = check(call, op);
  if (stream.device == Device::cuda) {
    return cuda::embedding_forward(op, stream);
  }
  check_tokens("embedding_forward", op.tokens_T, vocab_size);
  visit_float(op.y_TD.dtype, [&]<class T>() { forward<T>(op); });
}

void embedding_backward(const EmbeddingBackward& op, Stream stream) {
  const OpCheck call("embedding_backward", stream);
  const std::int64_t vocab_size = check(call, op);
  if (stream.device == Device::cuda) {
    return cuda::embedding_backward(op, stream);
  }
  check_tokens("embedding_backward", op.tokens_T, vocab_size);
  visit_float(op.dy_TD.dtype, [&]<class T>() { backward<T>(op); });
}

}  // namespace memphis::kernels
