// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace memphis {

// The multiple of `multiple` that is not below `number`: whole numbers of one type, not negative.
template <class Integer>
constexpr Integer round_up(Integer number, Integer multiple) {
  return (number + multiple - 1) / multiple * multiple;
}

}  // namespace memphis
