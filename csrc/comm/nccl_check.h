// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include <nccl.h>

namespace memphis {

// The name of an error, with what NCCL says of it.
std::string nccl_error_text(ncclResult_t status);

// Throws CommunicationError, naming the error, the call and its place. A call of a nonblocking
// communicator that is still in progress is no error.
void nccl_check(ncclResult_t status,
                const char* call,
                const char* file = __builtin_FILE(),
                int line = __builtin_LINE());

}  // namespace memphis

#define MEMPHIS_NCCL(call) ::memphis::nccl_check((call), #call)
