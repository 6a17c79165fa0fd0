# SPDX-License-Identifier: Apache-2.0
"""Faults in csrc/comm."""
from table import planter

plant = planter("csrc")

HOST = "comm/host_communicator.cpp"
SOLO = "comm/solo.cpp"
GPU = "comm/gpu_of_rank.cpp"
ACTIVITY = "comm/activity.cpp"

plant("comm.gather_blocks", HOST, "index",
      "      std::memcpy(bytes_of(op.y) + (b * n + r) * block_bytes,", "      std::memcpy(bytes_of(op.y) + (r * num_blocks + b) * block_bytes,",
      "blocks are not put together")
plant("comm.solo_copy", SOLO, "condition",
      "    if (op.y.data != op.x.data) {\n      device_copy(op.y.data, op.x.data, op.x.bytes(), stream);", "    if (op.y.data == op.x.data) {\n      device_copy(op.y.data, op.x.data, op.x.bytes(), stream);",
      "a collective of one rank leaves its result as it was")
plant("comm.gpu_share", GPU, "bound",
      "  if (local_rank < num_gpus) {", "  if (local_rank <= num_gpus) {",
      "the first rank too many takes a GPU that is not there")
plant("comm.describe_inside", ACTIVITY, "condition",
      "inside != 0 ? \"in\" : \"after\"", "inside == 0 ? \"in\" : \"after\"",
      "a rank that waits is said to be behind its collective")
