// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <span>
#include <string_view>

#include "csrc/comm/communicator.h"

namespace memphis {

// ContractError, naming the collective, the group and the values, unless the operands are what
// communicator.h says of them in a group of `size` ranks.
void check_collective(const Collective& collective,
                      std::string_view name,
                      std::string_view axis,
                      int rank,
                      int size,
                      Stream stream);

// ContractError: rank `sender` of the group sends another size than rank `receiver` expects.
[[noreturn]] void throw_sizes_differ(std::string_view name,
                                     int sender,
                                     std::size_t sent_bytes,
                                     int receiver,
                                     std::size_t expected_bytes);

// CommunicationError with ExitCode::hang: after so long, `missing`, ranks of the job, have not
// come.
[[noreturn]] void throw_hang(std::string_view name, double seconds, std::span<const int> missing);

// What a collective is about, whoever moves how much of it: the operand that is whole. All that is
// summed or gathered, the message of a broadcast, the rows that this rank sends.
std::size_t payload_bytes(const Collective& collective);

// What `rank` of the group is in it.
CommunicationRecord::Role role_in(const Collective& collective, int rank);

// What follows the first dim.
std::size_t row_bytes_of(const TensorView& view);

}  // namespace memphis
