// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>

namespace memphis::kernels::simt {

// .ftz: a subnormal number is a zero of its sign.
inline float flush_subnormal(float value) {
  return std::fpclassify(value) == FP_SUBNORMAL ? std::copysign(0.0F, value) : value;
}

}  // namespace memphis::kernels::simt
