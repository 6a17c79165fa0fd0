// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>

#include "csrc/checkpoint/store.h"
#include "csrc/checkpoint/weights.h"
#include "csrc/comm/communicator.h"
#include "csrc/config/config.h"
#include "csrc/data/tokenizer.h"

namespace memphis {

// The weights of run.init_from, opened and known to be those of the config's model: nothing is
// allocated, and no value is read. Nothing where the config names no folder. Every rank calls; if
// one fails, all throw. Warns where the folder's tokenizer is not `tokenizer`, that of the run,
// which is null where its ids stand for no known text.
//
// `verify` is what a checkpoint among them is held to.
//
// Errors      CheckpointError, naming all tensors that are missing, have no place in the model or have
//             another shape, and whatever is wrong with the folder. ConfigError, naming all keys of
//             `model` in which its config.json differs: weights must not run under arithmetic other
//             than their own.
std::optional<StoredWeights> open_initial_weights(const Config& config,
                                                  const Tokenizer* tokenizer,
                                                  Communicator& all_host,
                                                  const Verify& verify = verify_checkpoint);

}  // namespace memphis
