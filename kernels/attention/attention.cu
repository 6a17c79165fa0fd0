// SPDX-License-Identifier: Apache-2.0
//
// The order of launches, and the two small passes around the tiled kernels: delta, a lane a vector
// of a row, and the queries that see no key, which exist only where keys are masked, a block a
// key/value head.
#include "kernels/attention/attention.h"

#include <cmath>

#include <gpu_launch.h>
#include <gpu_memory.h>
#include <gpu_warp.h>

#include "kernels/attention/attention_gpu.h"
#include "kernels/attention/attention_hopper.h"
#include "kernels/attention/attention_hopper_backward.h"
#include "kernels/or_null.h"
#include "kernels/visit.h"

namespace memphis::kernels::cuda {
namespace {

constexpr int kThreads = 256;

// Of delta, so that a lane has four vectors on their way at once.
constexpr int kRowsPerLane = 2;

// How many lanes have a row, in heads of up to kWidth, and how many rows a block has.
template <class T, int kWidth>
constexpr int kRowLanes = kWidth / gpu::kVectorWidth<T>;
template <class T, int kWidth>
constexpr int kRowsPerBlock = kThreads / kRowLanes<T, kWidth>* kRowsPerLane;

// delta[b, n, t] = sum over h of dout * out. Bound by the bytes of these two.
// grid: ceil(T * N / kRowsPerBlock), block: kThreads, shared: none; requires H <= kWidth.
template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    attention_delta_kernel(AttentionArguments<T> arguments) {
  constexpr int kLanes = kRowLanes<T, kWidth>;
  const AttentionShape& shape = arguments.shape;
  // 32 bits, in which divisions are short.
  const auto num_rows = static_cast<unsigned>(shape.B * shape.S * shape.N);
  const auto H = static_cast<unsigned>(shape.H);
  const unsigned column = threadIdx.x % kLanes * gpu::kVectorWidth<T>;
  const unsigned first_row = blockIdx.x * kRowsPerBlock<T, kWidth> + threadIdx.x / kLanes;
  const auto row_of = [&](int i) { return first_row + i * (kThreads / kLanes); };

  gpu::Packed<T> dout[kRowsPerLane] = {};
  gpu::Packed<T> out[kRowsPerLane] = {};
#pragma unroll
  for (int i = 0; i < kRowsPerLane; ++i) {
    if (row_of(i) < num_rows && column < H) {
      const std::int64_t at = static_cast<std::int64_t>(row_of(i)) * H + column;
      dout[i] = gpu::load_packed(arguments.dout + at);
      out[i] = gpu::load_packed(arguments.out + at);
    }
  }
#pragma unroll
  for (int i = 0; i < kRowsPerLane; ++i) {
    float dout_values[gpu::kVectorWidth<T>];
    float out_values[gpu::kVectorWidth<T>];
    gpu::unpack<T>(dout[i], dout_values);
    gpu::unpack<T>(out[i], out_values);
    float sum = 0.0F;
#pragma unroll
    for (int k = 0; k < gpu::kVectorWidth<T>; ++k) {
      sum += dout_values[k] * out_values[k];
    }
    sum = gpu::lanes_sum<kLanes>(sum);
    if (column == 0 && row_of(i) < num_rows) {
      const auto N = static_cast<unsigned>(shape.N);
      const auto S = static_cast<unsigned>(shape.S);
      const unsigned token = row_of(i) / N;
      const unsigned head = token / S * N + row_of(i) % N;  // of all sequences
      arguments.delta[static_cast<std::int64_t>(head) * S + token % S] = sum;
    }
  }
}

// The query heads that read the key/value head of a block, and those of their queries that see no
// key. The heads' statistics lie one behind the other.
template <class T>
struct QueriesWithoutKey {
  AttentionHead<T> first;
  int num_heads;

  __device__ explicit QueriesWithoutKey(const AttentionArguments<T>& arguments)
      : first{arguments,
              static_cast<int>(blockIdx.x / arguments.shape.G),
              static_cast<int>(blockIdx.x % arguments.shape.G * arguments.shape.group())},
        num_heads(static_cast<int>(arguments.shape.group())) {}

  // Whether there are any; the same for the whole block, all of which calls.
  __device__ bool any(float* scratch) const {
    const float* const lse = first.arguments.lse + first.statistic(0);
    const std::int64_t count = num_heads * first.arguments.shape.S;
    float found = 0.0F;
    for (std::int64_t i = threadIdx.x; i < count; i += kThreads) {
      found = lse[i] == -INFINITY ? 1.0F : found;
    }
    return gpu::block_max(found, scratch) > 0.0F;
  }

  // Calls visit(output) with the place in out and dout of each of them.
  template <class Visit>
  __device__ void for_each(const Visit& visit) const {
    for (int n = first.n; n < first.n + num_heads; ++n) {
      const AttentionHead<T> head = {first.arguments, first.b, n};
      for (int t = 0; t < head.num_tokens(); ++t) {
        if (first.arguments.lse[head.statistic(t)] == -INFINITY) {
          visit(head.output(t));
        }
      }
    }
  }
};

// out = the mean of v over the sequence, for queries that see no key.
// grid: B * G, block: kThreads, shared: none; requires H <= kThreads and lse from the forward pass.
template <class T>
__global__ void attention_no_key_forward_kernel(AttentionArguments<T> arguments) {
  __shared__ float scratch[gpu::kWarpSize];
  const QueriesWithoutKey<T> queries(arguments);
  const AttentionShape& shape = arguments.shape;
  const int h = static_cast<int>(threadIdx.x);
  if (!queries.any(scratch) || h >= shape.H) {
    return;
  }
  float sum = 0.0F;
  const HeadRows<const T> values = queries.first.of_keys(arguments.value);
  for (std::int64_t s = 0; s < shape.num_keys; ++s) {
    sum += gpu::to_float(values.data[s * values.stride + h]);
  }
  // Without keys there is no mean either: 0.
  const T mean = gpu::from_float<T>(sum / fmaxf(1.0F, static_cast<float>(shape.num_keys)));
  queries.for_each([&](std::int64_t output) { arguments.out[output + h] = mean; });
}

// dv of every key += the sum of dout over the queries that see no key, divided by the keys that the
// mean of values is over.
// grid: B * G, block: kThreads, shared: none; requires H <= kThreads and dv from the backward pass.
template <class T>
__global__ void attention_no_key_backward_kernel(AttentionArguments<T> arguments) {
  __shared__ float scratch[gpu::kWarpSize];
  const QueriesWithoutKey<T> queries(arguments);
  const AttentionShape& shape = arguments.shape;
  const int h = static_cast<int>(threadIdx.x);
  if (!queries.any(scratch) || h >= shape.H) {
    return;
  }
  float sum = 0.0F;
  queries.for_each([&](std::int64_t output) { sum += gpu::to_float(arguments.dout[output + h]); });
  const float dmean = sum / arguments.sequence_keys;
  const HeadRows<T> dvalues = queries.first.of_keys(arguments.dvalue);
  for (std::int64_t s = 0; s < shape.num_keys; ++s) {
    T& element = dvalues.data[s * dvalues.stride + h];
    element = gpu::from_float<T>(gpu::to_float(element) + dmean);
  }
}

template <class T, class U = T>
HeadRows<U> rows_of(const HeadsView& heads) {
  return {heads.as<T>(), heads.token_stride()};
}
template <class T, class Operands>
AttentionArguments<T> common_arguments(const Operands& op) {
  return {.out = op.out_TNH.template as<T>(),
          .lse = op.lse_BNS.template as<float>(),
          .query = rows_of<T, const T>(op.q_TNH),
          .key = rows_of<T, const T>(op.k_UGH),
          .value = rows_of<T, const T>(op.v_UGH),
          .position = op.position_T.template as<std::int32_t>(),
          .place = or_null<std::int32_t>(op.place_T),
          .key_place = or_null<std::int32_t>(op.key_place_U),
          .key_valid = or_null<std::uint8_t>(op.key_valid_U),
          .dquery = {},
          .dkey = {},
          .dvalue = {},
          .dout = nullptr,
          .delta = nullptr,
          .shape = attention_shape(op),
          .sequence_keys = 0,
          .scale = op.score.scale,
          .cap = op.score.cap,
          .temperature_len = static_cast<float>(op.score.temperature_len),
          .log2_temperature_len = std::log2(static_cast<float>(op.score.temperature_len))};
}

// Whether a query may see no key. Every token is a key of its own query where nothing is hidden and
// keys are the queries' tokens.
template <class T>
bool keys_may_lack(const AttentionArguments<T>& arguments) {
  return arguments.key_valid != nullptr || arguments.place != nullptr ||
         arguments.key_place != nullptr || arguments.shape.num_keys < arguments.shape.S;
}

Launch block_per_kv_head(const AttentionShape& shape, Stream stream) {
  return {.grid = {.x = shape.B * shape.G}, .block = {.x = kThreads}, .stream = stream};
}

void launch_tiles(const AttentionArguments<float>& arguments, Stream stream) {
  launch_attention_forward(arguments, stream);
}
void launch_tiles(const AttentionArguments<bf16>& arguments, Stream stream) {
  if (hopper_takes_attention(arguments.shape)) {
    launch_attention_forward_hopper(arguments, stream);
  } else {
    launch_attention_forward(arguments, stream);
  }
}

bool takes_hopper_backward(const AttentionBackward& op, const AttentionShape& shape) {
  return op.q_TNH.dtype() == DType::bf16 && shape.S > 0 && hopper_takes_attention(shape);
}

void launch_backward_tiles(const AttentionArguments<float>& arguments,
                           const AttentionBackward& /*op*/,
                           Stream stream) {
  launch_attention_backward(arguments, stream);
}
void launch_backward_tiles(const AttentionArguments<bf16>& arguments,
                           const AttentionBackward& op,
                           Stream stream) {
  if (takes_hopper_backward(op, arguments.shape) && op.workspace_W.present() &&
      static_cast<std::size_t>(op.workspace_W.num_elements()) >=
          attention_backward_hopper_bytes(arguments.shape)) {
    launch_attention_backward_hopper(arguments, op.workspace_W.data, stream);
  } else {
    launch_attention_backward(arguments, stream);
  }
}

template <class T>
void forward(const AttentionForward& op, Stream stream) {
  const auto arguments = common_arguments<T>(op);
  launch_tiles(arguments, stream);
  if (keys_may_lack(arguments)) {
    launch(
        attention_no_key_forward_kernel<T>, block_per_kv_head(arguments.shape, stream), arguments);
  }
}

template <class T>
void backward(const AttentionBackward& op, Stream stream) {
  auto arguments = common_arguments<T>(op);
  arguments.dquery = rows_of<T>(op.dq_TNH);
  arguments.dkey = rows_of<T>(op.dk_UGH);
  arguments.dvalue = rows_of<T>(op.dv_UGH);
  arguments.sequence_keys =
      static_cast<float>(op.sequence_keys == 0 ? arguments.shape.num_keys : op.sequence_keys);
  arguments.dout = op.dout_TNH.template as<T>();
  arguments.delta = op.delta_BNS.template as<float>();
  const AttentionShape& shape = arguments.shape;
  visit_head_width(shape.H, [&]<int kWidth>() {
    launch(attention_delta_kernel<T, kWidth>,
           {.grid = {.x = ceil_div(shape.B * shape.S * shape.N, kRowsPerBlock<T, kWidth>)},
            .block = {.x = kThreads},
            .stream = stream},
           arguments);
  });
  launch_backward_tiles(arguments, op, stream);
  if (keys_may_lack(arguments)) {
    launch(attention_no_key_backward_kernel<T>, block_per_kv_head(shape, stream), arguments);
  }
}

}  // namespace

void attention_forward(const AttentionForward& op, Stream stream) {
  if (op.out_TNH.num_elements() == 0) {
    return;
  }
  visit_gpu_float(op.q_TNH.dtype(), [&]<class T>() { forward<T>(op, stream); });
}

void attention_backward(const AttentionBackward& op, Stream stream) {
  if (op.out_TNH.num_elements() == 0 && op.k_UGH.num_tokens() == 0) {
    return;
  }
  visit_gpu_float(op.q_TNH.dtype(), [&]<class T>() { backward<T>(op, stream); });
}

std::size_t attention_backward_workspace_bytes(const AttentionBackward& op) {
  const AttentionShape shape = attention_shape(op);
  return takes_hopper_backward(op, shape) ? attention_backward_hopper_bytes(shape) : 0;
}

}  // namespace memphis::kernels::cuda
