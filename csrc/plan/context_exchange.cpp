// SPDX-License-Identifier: Apache-2.0
#include "csrc/plan/context_exchange.h"

#include <spdlog/fmt/fmt.h>

#include "csrc/plan/communication.h"
#include "csrc/plan/run_description.h"

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

// Each rank's part is an operand of attention by itself, down to a byte a token, and those start
// aligned. csrc/config refuses a ring that is asked for where it cannot be.
constexpr std::int64_t kTokensMultiple = 16;

}  // namespace

double gathered_share(const Config& config, Device device) {
  const ModelConfig& model = config.model;
  const RankGroup context = {
      .first = 0, .stride = config.parallel.tensor, .count = config.parallel.context};
  const bool gpu = device == Device::cuda;
  const double rate = gpu ? kGpuAttention : kCpuAttention;
  const double link = !gpu                           ? kCpuBytes
                      : lies_on_one_machine(context) ? kNvLinkBytes
                                                     : kNetworkBytes;
  return 2 * static_cast<double>(context.count - 1) * static_cast<double>(model.num_kv_heads) *
         rate / (static_cast<double>(model.num_heads * config.batch.sequence_length) * link);
}

bool prefers_ring(const Config& config, Device device) {
  const ContextExchange wanted = config.parallel.context_exchange;
  return wanted == ContextExchange::automatic ? gathered_share(config, device) > kMostGathered
                                              : wanted == ContextExchange::ring;
}

ContextExchange choose_key_exchange(const Config& config, const Dims& dims, Device device) {
  if (prefers_ring(config, device)) {
    return dims.T % kTokensMultiple == 0 ? ContextExchange::ring : ContextExchange::gather;
  }
  const ContextExchange wanted = config.parallel.context_exchange;
  return wanted == ContextExchange::automatic ? ContextExchange::gather : wanted;
}

std::string describe_key_exchange(const Config& config, const Dims& dims) {
  constexpr std::string_view kOrders[] = {
      "zigzag where it is one document, else blocks", "zigzag", "blocks"};
  constexpr std::string_view kWays[] = {
      "", "are gathered", "travel in a ring", "and queries are exchanged from all to all"};
  return fmt::format(
      "{} ranks share out each sequence, {} tokens each ({}); keys {} (gathering them takes {:.0f} "
      "% "
      "of what attention does forward)",
      dims.context().count,
      dims.S,
      kOrders[static_cast<std::size_t>(config.parallel.context_order)],
      kWays[static_cast<std::size_t>(dims.key_exchange)],
      100 * gathered_share(config, described_device(config)));
}

RingStep ring_step(const Piece& ring, std::int64_t steps) {
  const auto on = [&](std::int64_t by) {
    return ((ring.index + by) % ring.count + ring.count) % ring.count;
  };
  return {.to = on(steps), .from = on(-steps)};
}

}  // namespace memphis
