// SPDX-License-Identifier: Apache-2.0
#include <spdlog/fmt/fmt.h>

#include "csrc/comm/nccl.h"

namespace memphis {

bool has_nccl() {
  return false;
}

void set_nccl_defaults() {}

void prepare_nccl(const NcclGroups& /*groups*/) {}

std::unique_ptr<Communicator> make_nccl_communicator(std::string axis,
                                                     Communicator& host,
                                                     Activity& /*activity*/,
                                                     int /*num_channels*/,
                                                     int /*ranks_per_id*/) {
  throw PreflightError(
      fmt::format("the {} group has {} ranks on GPUs (several ranks on GPUs need NCCL, which this "
                  "binary does not have); use run.device cpu",
                  axis,
                  host.size()));
}

}  // namespace memphis
