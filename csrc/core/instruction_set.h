// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

namespace memphis {

// The widest vectors that this program is compiled for, and fma where it rounds a product and a sum
// once, as "avx512f, fma", "avx2, fma" or "sse2": what the bits of its sums on the processor depend on.
std::string instruction_set();

}  // namespace memphis
