// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include <nccl.h>

namespace memphis::simt_nccl {

// What a call returns or reports, with what ncclGetLastError says of it.
struct Failure {
  ncclResult_t status = ncclSuccess;
  std::string text;
};

// Thrown in the thread of a communicator that is aborted.
struct Aborted {};

}  // namespace memphis::simt_nccl
