// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <vector>

#include "csrc/data/token_stream.h"

namespace memphis {

// Streams one behind the other. Requires one at least.
std::shared_ptr<const TokenStream> join(std::vector<std::shared_ptr<const TokenStream>> streams);

}  // namespace memphis
