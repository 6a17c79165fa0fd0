// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

namespace memphis {

// The widest vectors that the compiler may have used for this program, and fma where it may round a
// product and a sum once, as "avx512f, fma", "avx2, fma" or "sse2". Of one compiler and one version of
// the sources, what the bits of sums on the processor depend on.
std::string instruction_set();

}  // namespace memphis
