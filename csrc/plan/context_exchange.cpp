// SPDX-License-Identifier: Apache-2.0
#include "csrc/plan/context_exchange.h"

#include <spdlog/fmt/fmt.h>

#include "csrc/core/error.h"
#include "csrc/plan/communication.h"

namespace memphis {
namespace {

// Attention in bf16 with a cap on an H100, and what it sends to a neighbour over NVLink and over one
// network card; and what was seen of cores.
constexpr double kGpuAttention = 550e12;
constexpr double kNvLinkBytes = 361e9;
constexpr double kNetworkBytes = 50e9;
constexpr double kCpuAttention = 5e10;
constexpr double kCpuBytes = 5e9;

constexpr double kMostGathered = 0.1;

// Each part of a merge is an operand of attention by itself.
bool has_whole_parts(const Dims& dims, DType compute) {
  constexpr std::size_t kAlignment = 16;
  const auto bytes = [](std::int64_t elements, DType dtype) {
    return static_cast<std::size_t>(elements) * size_of(dtype);
  };
  return bytes(dims.T * dims.local_N * dims.H, compute) % kAlignment == 0 &&
         bytes(2 * dims.T * dims.local_G * dims.H, compute) % kAlignment == 0 &&
         bytes(dims.T * dims.local_N, accumulation_dtype(compute)) % kAlignment == 0 &&
         bytes(dims.T, DType::i32) % kAlignment == 0 && bytes(dims.T, DType::u8) % kAlignment == 0;
}

}  // namespace

double gathered_share(const ModelConfig& model,
                      const RankGroup& context,
                      std::int64_t sequence_length,
                      Device device) {
  const bool gpu = device == Device::cuda;
  const double rate = gpu ? kGpuAttention : kCpuAttention;
  const double link = !gpu                           ? kCpuBytes
                      : lies_on_one_machine(context) ? kNvLinkBytes
                                                     : kNetworkBytes;
  return 2 * static_cast<double>(context.count - 1) * static_cast<double>(model.num_kv_heads) *
         rate / (static_cast<double>(model.num_heads * sequence_length) * link);
}

ContextExchange choose_key_exchange(const Config& config,
                                    const Dims& dims,
                                    const RankGroup& context,
                                    DType compute,
                                    Device device,
                                    bool trains) {
  ContextExchange wanted = config.parallel.context_exchange;
  const bool automatic = wanted == ContextExchange::automatic;
  if (automatic) {
    const double share =
        gathered_share(config.model, context, config.batch.sequence_length, device);
    wanted = share > kMostGathered ? ContextExchange::ring : ContextExchange::gather;
  }
  if (wanted != ContextExchange::ring || has_whole_parts(dims, compute)) {
    return wanted;
  }
  if (trains && !automatic) {
    throw ConfigError(fmt::format(
        "parallel.context_exchange is ring and a rank has {} tokens of a micro-batch and {} heads "
        "(what it makes of each rank's keys is a tensor by itself, of whole 16 bytes); use gather, "
        "or "
        "a batch.micro_batch with which the tokens are a multiple of 16",
        dims.T,
        dims.local_N));
  }
  return ContextExchange::gather;
}

RingStep ring_step(const Piece& ring, std::int64_t steps) {
  const auto on = [&](std::int64_t by) {
    return ((ring.index + by) % ring.count + ring.count) % ring.count;
  };
  return {.to = on(steps), .from = on(-steps)};
}

}  // namespace memphis
