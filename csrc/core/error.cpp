// SPDX-License-Identifier: Apache-2.0
#include "csrc/core/error.h"

namespace memphis {

void throw_contract_error(std::string_view message,
                          const char* file,
                          int line,
                          const char* function) {
  throw ContractError(std::string(message) + " [" + function + ", " + file + ":" +
                      std::to_string(line) + "]");
}

}  // namespace memphis
