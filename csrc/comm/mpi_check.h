// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <mpi.h>

namespace memphis {

// Throws CommunicationError, naming the error, the call and its place. Errors come back from calls
// only under MPI_ERRORS_RETURN.
void mpi_check(int status,
               const char* call,
               const char* file = __builtin_FILE(),
               int line = __builtin_LINE());

}  // namespace memphis

#define MEMPHIS_MPI(call) ::memphis::mpi_check((call), #call)
