// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <limits>

// What numbers of a model may be, given in a config or in a folder's config.json.
namespace memphis {

// Device code keeps these in f32: the bounds are within its normal range. What is above 0 and below
// that would be 0 there, which means that there is none.
constexpr double kMinFactor = std::numeric_limits<float>::min();
constexpr double kMaxFactor = 1e6;
constexpr double kMinEpsilon = 1e-20;
constexpr double kMaxEpsilon = 1;
constexpr double kMinTheta = 1;
constexpr double kMaxTheta = 1e12;

}  // namespace memphis
