// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "csrc/checkpoint/safetensors.h"
#include "csrc/core/tensor.h"
#include "csrc/model/groups.h"
#include "csrc/model/parameters.h"
#include "csrc/optim/optimizer.h"

namespace memphis {

// Of a checkpoint, elements that this rank writes: those that it counts (ParameterPlan::counted), so
// that each is written once by the ranks together.
struct StatePiece {
  std::string name;  // in its file: piece_name
  std::size_t segment = 0;
  TensorView view;  // flat; with the tensor's dims where it is all of it
};
std::vector<StatePiece> weight_pieces(const Parameters& parameters);
std::vector<StatePiece> optimizer_pieces(const Parameters& parameters, const Optimizer& optimizer);

// As a file's tensors. See source_of.
std::vector<TensorSource> sources_of(const std::vector<StatePiece>& pieces,
                                     const PinnedBuffer& staging,
                                     Stream stream);

// Bytes of a checkpoint's tensors, on all ranks.
std::uint64_t checkpoint_bytes(const Parameters& parameters,
                               const Optimizer& optimizer,
                               const Groups& groups);

}  // namespace memphis
