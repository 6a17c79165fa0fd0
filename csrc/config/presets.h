// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string_view>
#include <vector>

#include "csrc/config/config.h"

namespace memphis {

std::vector<std::string_view> preset_names();

// The model that xAI released under that name. A preset states all of its multipliers as released,
// so a size that a config overrides does not change them: a narrower grok-1 keeps 78.38 as its
// embedding_multiplier unless the config gives another. The same holds for num_kv_heads, head_dim
// and max_sequence_length. ContractError if `name` is none of preset_names.
ModelConfig preset(std::string_view name);

}  // namespace memphis
