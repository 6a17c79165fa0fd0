// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <span>

// Numbers that ranks add up to find out whether what adds and carries them lies.
namespace memphis::doctor {

// What rank `rank` brings to a round, at each index the index plus both, modulo a prime: every bit
// of a number is used by one rank or another.
void fill_for_sum(std::span<std::int32_t> values, int rank, int round);

// The first index whose value is not the sum over all `num_ranks`, modulo 2^32 as int32 adds;
// nothing where all are right. In time that does not grow with the ranks.
std::optional<std::size_t> first_wrong_sum(std::span<const std::int32_t> sums,
                                           int num_ranks,
                                           int round);

}  // namespace memphis::doctor
