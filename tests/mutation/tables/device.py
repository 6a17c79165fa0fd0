# SPDX-License-Identifier: Apache-2.0
"""Faults in the simulated device: an instruction of another meaning, or one that is not checked, by
the test of kernels/device that must notice."""
from table import planter

plant = planter("kernels/device/simt")

# ---- elect.sync and stmatrix

plant("warp.elect_all", "instructions.cpp", "condition",
      "own.elected = lane == own.chosen;", "own.elected = lane >= own.chosen;",
      "more than one lane is elected")
plant("warp.store_matrix_transposed", "instructions.cpp", "index",
      "const int outer = kTransposed ? column : row;", "const int outer = kTransposed ? row : row;",
      "a transposed matrix is stored from the wrong lanes")
plant("warp.store_matrix_half", "instructions.cpp", "index",
      "from.fragment[matrix] >> (inner % 2 * 16)", "from.fragment[matrix] >> (outer % 2 * 16)",
      "the halves of a register go to the wrong columns")
plant("hopper_fault.elect_first", "instructions.cpp", "order",
      "static_cast<int>(options().seed * kStride % kWarpSize)", "0",
      "lane 0 is always elected, and a kernel that counts on it passes")
plant("hopper_fault.matrix_row", "instructions.cpp", "check",
      "if (address % kRowBytes != 0 ||", "if (false ||",
      "a row at any address is taken")

# ---- bulk copies

plant("bulk.adds_nothing", "bulk_copies.cpp", "operand",
      "flush_subnormal(std::bit_cast<float>(before)) + flush_subnormal(value)", "flush_subnormal(value)",
      "a reduction replaces what is there")
plant("bulk.keeps_subnormals", "bulk_copies.cpp", "operand",
      "flush_subnormal(std::bit_cast<float>(before))", "std::bit_cast<float>(before)",
      "a reduction adds to a subnormal number")
plant("bulk.leaves_subnormals", "bulk_copies.cpp", "operand",
      "flush_subnormal(flush_subnormal(", "(flush_subnormal(",
      "a reduction leaves a subnormal number")
plant("hopper_fault.unfenced_read", "shared_memory.cpp", "check",
      "read.fences == (fences_[read.thread] & kTouchFenceMask)", "read.fences == kTouchFenceMask",
      "TMA may overwrite what a thread has read, without a fence between the proxies")
plant("hopper_fault.registers", "warpgroups.cpp", "bound",
      "if (missing > num_free_registers_) {", "if (missing > num_free_registers_ + 32) {",
      "a warpgroup takes registers that no other has given up")
plant("bulk.add_first", "bulk_copies.cpp", "index",
      "i += sizeof(float)) {", "i += 2 * sizeof(float)) {",
      "every other float is not added")
plant("bulk.size", "tensor_map.cpp", "size",
      "map.box_bytes = bytes;", "map.box_bytes = bytes - 16;",
      "a copy without a map leaves its last 16 bytes")
plant("hopper_fault.bulk_alignment", "bulk_copies.cpp", "check",
      "address_of(shared) % kChunkBytes != 0 || address_of(global)", "address_of(global)",
      "a copy from any address of shared memory is made")
plant("hopper_fault.bulk_size", "bulk_copies.cpp", "check",
      "bytes % kChunkBytes != 0 ||", "",
      "a copy of any number of bytes is made")
plant("hopper_fault.adds_bf16", "bulk_copies.cpp", "check",
      "combine == Combine::add_floats && map.element_bytes != sizeof(float)",
      "combine == Combine::add_floats && map.element_bytes == 0",
      "a tensor of another type is added to")
plant("flag_fault.early_write", "bulk_copies.cpp", "order",
      "while (!only_read && stores.groups.size() > pending) {",
      "while (stores.groups.size() > pending) {",
      "global memory is written as soon as shared memory is read")

# ---- fragments of wgmma

plant("hopper_fault.fragments", "warpgroups.cpp", "check",
      "if (product.what.a_in_registers && from >= a && from < end &&",
      "if (product.what.a_in_registers && from > a && from < end &&",
      "a fragment that is written under a product goes unseen")

# ---- flags between blocks

plant("flag.fetch_after", "instructions.cpp", "operand",
      "  return before;", "  return before + value;",
      "a ticket is what the counter holds afterwards")
plant("flag.at_least", "instructions.cpp", "condition",
      "__ATOMIC_ACQUIRE) >= self.value", "__ATOMIC_ACQUIRE) > self.value",
      "a wait goes on until the flag is above the value")
plant("flag_fault.nobody_left", "grid_waits.cpp", "condition",
      "if (++num_waiting_ == num_running_) {", "if (++num_waiting_ > num_running_) {",
      "blocks that all wait do so for ever")
plant("flag_fault.nobody_left_at_the_end", "grid_waits.cpp", "condition",
      "  if (num_waiting_ > 0 && num_waiting_ == num_running_) {",
      "  if (num_waiting_ > num_running_ && num_waiting_ == num_running_) {",
      "the last block waits for ever for those that have ended")
plant("flag_fault.fault_last", "executor.cpp", "order",
      "if (found < reported) {", "if (found > reported || message.empty()) {",
      "a block that waits is said, and not the fault of the one that it waits for")
plant("flag_fault.opt_in", "executor.cpp", "size",
      "shared_opt_in(static_bytes, call.dynamic_shared_bytes)",
      "shared_opt_in(0, call.dynamic_shared_bytes)",
      "static shared memory is forgotten where the launch asks for more")

plant("box_place.period", "bulk_load.cpp", "index",
      "constexpr std::uintptr_t kPeriod = 1024;", "constexpr std::uintptr_t kPeriod = 128;",
      "the swizzle takes a box to begin at the first row of its pattern")
plant("box_place.offset_alone", "bulk_load.cpp", "index",
      "return swizzled(begin + offset, swizzle) - begin;", "return swizzled(offset, swizzle);",
      "the swizzle follows the place in the box, not that in shared memory")

plant("executor.pending", "gpu_launch.h", "order",
      "  simt_stream::enqueue(shape.stream.handle, [call, bound] {",
      "  [](void* /*stream*/, const auto& work) { work(); }(shape.stream.handle, [call, bound] {",
      "a kernel runs before what another thread does on its stream")

# ---- clusters

plant("cluster_fault.left", "cluster.cpp", "condition",
      "if (&to != &from && to.num_exited() > 0) {", "if (false) {",
      "a block is reached that threads have left")
plant("cluster_fault.proxy", "mbarrier.cpp", "check",
      "return barriers_.at(address_of(barrier)).in_async_proxy", "return true",
      "a copy completes on a barrier of another block that the async proxy does not see")
plant("cluster_fault.rank", "cluster.cpp", "bound",
      "if (rank < 0 || static_cast<std::size_t>(rank) >= size_) {",
      "if (rank < 0 || static_cast<std::size_t>(rank) > blocks_.size()) {",
      "a block of an earlier, larger cluster is reached")
plant("cluster_fault.heard", "mbarrier.cpp", "operand",
      "    merge(heard_[self][rank], carried);\n", "    (void)rank;\n    (void)carried;\n",
      "what readers of another block have told is not known, and a refill is a race")
plant("cluster.place", "cluster.cpp", "operand",
      "const std::byte*>(address) - from.shared().dynamic())", "const std::byte*>(address) - from.shared().dynamic()) + 4",
      "a box comes four bytes behind its place")
plant("cluster.own", "cluster.cpp", "condition",
      "      from.bulk_copies().deliver(shared, map, barrier, corner, pc);\n      continue;", "      continue;",
      "a box goes to the other blocks alone")

# ---- what accesses cost, and approximate instructions

plant("traffic.pass", "traffic.cpp", "size",
      "const auto num_lanes = static_cast<unsigned>(kPassBytes / width);",
      "const auto num_lanes = static_cast<unsigned>(kWarpSize);",
      "vectors of all lanes are held to one pass")
plant("traffic.sector", "traffic.cpp", "size",
      "units(request.addresses, request.lanes, request.bytes, kSectorBytes)",
      "units(request.addresses, request.lanes, request.bytes, 2 * kSectorBytes)",
      "half of the sectors are counted")
plant("traffic.together", "block.cpp", "order",
      "  if (counts_traffic_ && (warp.present & ~done.arrived) == 0) {", "  if (false) {",
      "lanes that were apart are never together again")
plant("traffic.words", "traffic.cpp", "operand",
      "units(request.addresses, group, request.bytes, kBankBytes)",
      "units(request.addresses, group, request.bytes, 1)",
      "bytes of a word meet in its bank")
plant("inexact.sign", "inexact.h", "operand",
      "(hash >> 16U) % (2U * kUlps + 1U)) - kUlps;", "(hash >> 16U) % (2U * kUlps + 1U));",
      "an approximate result is never too small")
plant("inexact.exact_zero", "gpu_math.h", "condition",
      "operand == 0.0F ? exact : simt::off_by<2>(exact, operand)", "simt::off_by<2>(exact, operand)",
      "two to the power of zero is not one")
