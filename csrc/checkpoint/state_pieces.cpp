// SPDX-License-Identifier: Apache-2.0
#include "csrc/checkpoint/state_pieces.h"

#include <utility>

#include "csrc/checkpoint/pieces.h"
#include "csrc/comm/together.h"

namespace memphis {
namespace {

StatePiece piece_of(const std::string& tensor,
                    const LogicalParameter& parameter,
                    const Range& local,
                    TensorView elements_n) {
  if (local.count == parameter.whole.num_elements()) {
    elements_n.dims = parameter.whole.dims;
    elements_n.num_dims = parameter.whole.num_dims;
  }
  return {.name = piece_name(tensor, parameter, local),
          .segment = static_cast<std::size_t>(parameter.segment),
          .view = elements_n};
}

}  // namespace

std::vector<StatePiece> weight_pieces(const Parameters& parameters) {
  std::vector<StatePiece> pieces;
  for (const LogicalParameter& parameter : parameters.plan().logical) {
    for (const Range& run : parameters.plan().counted_in(parameter)) {
      const Range local = parameter.local(run);
      if (local.count > 0) {
        pieces.push_back(
            piece_of(parameter.name, parameter, local, parameters.held_weights(parameter, local)));
      }
    }
  }
  return pieces;
}

std::vector<StatePiece> optimizer_pieces(const Parameters& parameters, const Optimizer& optimizer) {
  std::vector<StatePiece> pieces;
  for (const Optimizer::StateTensor& state : optimizer.state()) {
    for (const Range& run : parameters.plan().counted_in(*state.parameter)) {
      const Range local = intersection(state.parameter->local(run), state.local);
      if (local.count > 0) {
        const TensorView elements_n = flat_view(
            state.view, state.local.begin, local.begin, {{local.count}, state.view.dtype});
        pieces.push_back(piece_of(state.name, *state.parameter, local, elements_n));
      }
    }
  }
  return pieces;
}

std::vector<TensorSource> sources_of(const std::vector<StatePiece>& pieces,
                                     const PinnedBuffer& staging,
                                     Stream stream) {
  std::vector<TensorSource> sources;
  sources.reserve(pieces.size());
  for (const StatePiece& piece : pieces) {
    sources.push_back(source_of(piece.name, piece.view, staging, stream));
  }
  return sources;
}

std::uint64_t checkpoint_bytes(const Parameters& parameters,
                               const Optimizer& optimizer,
                               const Groups& groups) {
  const PinnedBuffer no_staging(0, Device::cpu);
  auto bytes = static_cast<std::int64_t>(
      safetensors_bytes(sources_of(weight_pieces(parameters), no_staging, {})) +
      safetensors_bytes(sources_of(optimizer_pieces(parameters, optimizer), no_staging, {})));
  sum_over_ranks(groups.all_host(), {&bytes, 1}, "checkpoint.bytes");
  return static_cast<std::uint64_t>(bytes);
}

}  // namespace memphis
