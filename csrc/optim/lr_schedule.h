// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "csrc/config/config.h"

namespace memphis {

// The learning rate of step `step`, counted from 1. With w = warmup_steps, n = steps and m =
// min_ratio:
//
//   step <= w   peak * step / w: step w has the peak
//   cosine      peak * (m + (1 - m) * (1 + cos(pi * (step - w) / (n - w))) / 2)
//   wsd         peak, and over the last decay_steps linear to peak * m (not before the warm-up is
//   over) constant    peak
//
// Step n and all after it have peak * m, except with constant. A pure function, so that a resumed
// run needs nothing but its step.
//
// Source: Loshchilov and Hutter 2017, arXiv:1608.03983 (cosine); Hu et al. 2024, arXiv:2404.06395
// (warm-up, stable, decay).
double learning_rate(const ScheduleConfig& schedule, double peak, std::int64_t step);

}  // namespace memphis
