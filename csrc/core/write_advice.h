// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string_view>

namespace memphis {

// What the user can do about a write that failed with this value of errno, as half a sentence:
// "free space".
std::string_view write_advice(int error_number);

}  // namespace memphis
