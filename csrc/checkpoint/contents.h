// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>

#include "csrc/checkpoint/tensor_names.h"
#include "csrc/comm/communicator.h"
#include "csrc/config/config.h"
#include "csrc/core/dtype.h"

namespace memphis {

// What the tensors of a checkpoint are, by the headers of its files.
struct Contents {
  TensorDifference difference;   // from what a run of this model keeps
  std::optional<DType> compute;  // that of its weights; nothing if it is none of ours
};

// Compares the weights and the optimizer's state in a valid checkpoint that `num_writers` ranks
// wrote with those that `model` has in the checkpoint's own `compute`: names and whole shapes.
// `writer` is the model by the checkpoint's own config, if that is known: shapes that pieces do not
// tell are shown from it. Touches nothing. Every rank calls, reads its share of the headers, and
// has the same result; if one fails, all throw.
Contents compare_contents(const std::filesystem::path& checkpoint,
                          std::int64_t num_writers,
                          const ModelConfig& model,
                          const std::optional<ModelConfig>& writer,
                          Communicator& all_host);

}  // namespace memphis
