# SPDX-License-Identifier: Apache-2.0
"""Faults in csrc/comm."""
from table import planter

plant = planter("csrc")

HOST = "comm/host_communicator.cpp"
SOLO = "comm/solo.cpp"
GPU = "comm/gpu_of_rank.cpp"
ACTIVITY = "comm/activity.cpp"
CLOCK = "comm/clock_offset.cpp"
SIMT_NCCL = "comm/simt_nccl/communicator.cpp"
SIMT_STREAM = "core/device_simt.cpp"

plant("comm.sums_all", HOST, "missing step",
      "std::visit([&](const auto& sum) { execute(sum, name); }, part);",
      "std::visit([&](const auto& sum) { execute(sum, name); }, part);\n    break;",
      "of several sums the first alone is made")
plant("comm.nccl_priority", "comm/nccl.cpp", "operand",
      "StreamPriority::highest", "StreamPriority::ordinary",
      "collectives queue behind the blocks of the kernel that is at work")
plant("comm.nccl_held", "comm/nccl.cpp", "operand",
      "      *held_of_ -= num_held_;\n", "",
      "kernels have fewer multiprocessors for ever once a collective ran beside one")
plant("comm.nccl_sender", "comm/nccl.cpp", "operand",
      "message != nullptr && message->root == rank_", "message != nullptr && message->root < 0",
      "whoever has sent a message leaves multiprocessors idle until its place is used again")
plant("comm.gather_blocks", HOST, "index",
      "      std::memcpy(bytes_of(op.y) + (b * n + r) * block_bytes,", "      std::memcpy(bytes_of(op.y) + (r * num_blocks + b) * block_bytes,",
      "blocks are not put together")
TOGETHER = "comm/together.cpp"

plant("comm.roll_call_word", TOGETHER, "index",
      "own_.size() + 1 + word];", "own_.size() + word];",
      "the first word of a rank is how its work ended")
plant("comm.roll_call_last", TOGETHER, "condition",
      "    if (report != 0) {\n", "    if (report != 0 && rank + 1 == all_host_.size()) {\n",
      "a rank that fails is heard of only if it is the last")
plant("comm.solo_copy", SOLO, "condition",
      "    if (op.y.data != op.x.data) {\n      device_copy(op.y.data, op.x.data, op.x.bytes(), stream);", "    if (op.y.data == op.x.data) {\n      device_copy(op.y.data, op.x.data, op.x.bytes(), stream);",
      "a collective of one rank leaves its result as it was")
plant("comm.gpu_share", GPU, "bound",
      "  if (local_rank < num_gpus) {", "  if (local_rank <= num_gpus) {",
      "the first rank too many takes a GPU that is not there")
plant("comm.describe_inside", ACTIVITY, "condition",
      "inside != 0 ? \"in\" : \"after\"", "inside == 0 ? \"in\" : \"after\"",
      "a rank that waits is said to be behind its collective")
plant("comm.simt_turn", SIMT_NCCL, "condition",
      "return work.may_begin();", "return work.may_begin() || true;",
      "a call begins before what lies before it on the stream is done")
plant("comm.simt_connects", SIMT_NCCL, "condition",
      "if (!std::exchange(made_[static_cast<std::size_t>(kind)], true)) {", "if (std::exchange(made_[static_cast<std::size_t>(kind)], false)) {",
      "the first call of a kind does not wait for the other ranks")
plant("comm.simt_event", SIMT_STREAM, "value",
      "event_of(event) = {.point = last,", "event_of(event) = {.point = nullptr,",
      "an event is done before the work that it was recorded behind")
plant("comm.simt_recorded_work_is_done", SIMT_STREAM, "order",
      "  recording->work.push_back(std::move(work));", "  work();\n  recording->work.push_back(std::move(work));",
      "what is captured runs meanwhile")
plant("comm.simt_pageable_source", SIMT_STREAM, "condition",
      "!is_asynchronous(source, bytes) || !is_asynchronous(destination, bytes)", "!is_asynchronous(destination, bytes)",
      "a copy from memory that may be gone is captured")
plant("comm.simt_event_of_graph", SIMT_STREAM, "condition",
      "    if (timing) {\n", "    if (!timing) {\n",
      "the launches of a graph do not pass its events")
plant("comm.simt_query_of_captured", SIMT_STREAM, "condition",
      "refuse_if_recorded(event, \"cudaEventSynchronize\");", "(void)event;",
      "the host waits for what a capture has not done")
plant("comm.simt_copy", SIMT_STREAM, "order",
      "  simt_stream::enqueue(stream, [=] {\n    const auto from",
      "  [](void* /*stream*/, const auto& work) { work(); }(stream, [=] {\n    const auto from",
      "a copy reads what the stream has not received yet")
plant("comm.missing_of_another", ACTIVITY, "condition",
      "  if (group == stands_in_) {", "  if (true) {",
      "what an early receive of another group misses is taken for what the rank waits for")
plant("comm.peer_at_once", ACTIVITY, "condition",
      "    if (call.peer >= 0) {", "    if (call.peer > call.peer) {",
      "a rank that waits for one other does not say for whom until a while has passed")
plant("comm.log_is_off", ACTIVITY, "condition",
      "  if (!logs_) {", "  if (!log_) {",
      "calls behind the end of the log are kept")
plant("comm.shortest_trip", CLOCK, "condition",
      "return a.received - a.sent < b.received - b.sent;", "return a.received - a.sent > b.received - b.sent;",
      "a clock's offset is taken from the longest round trip")
plant("comm.clock_drift", CLOCK, "value",
      "static_cast<std::int64_t>(share * drift)", "static_cast<std::int64_t>(drift)",
      "clocks have drifted apart before they were apart")
plant("comm.threads_hang_under_way", "comm/threads.cpp", "condition",
      "activity_.idle_seconds_in(this);", "1;",
      "what was started ahead is taken for a hang while its rank works")
plant("comm.simt_memory_waits", SIMT_STREAM, "condition",
      "  if (simt_device::memory_waits) {", "  if (false) {",
      "memory that is taken while a receive is on its way shows nothing")
