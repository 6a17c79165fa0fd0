// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "csrc/comm/simt_nccl/meeting.h"

// Why a rank that waits would wait for ever, where NCCL does. Each throws Failure; `name` is the
// communicator's, and `yield` is called while another rank has the lock.
namespace memphis::simt_nccl {

// Ranks that wait for each other, this one among them or leading to them, and one that waits for a
// rank which parts.
void look_for_a_circle(const std::string& name,
                       const Meeting& meeting,
                       const Meeting::Pause& yield);

// Ranks that are gone and have not parted.
void look_for_the_lost(const std::string& name,
                       const Meeting& meeting,
                       const Meeting::Pause& yield);

}  // namespace memphis::simt_nccl
