# SPDX-License-Identifier: Apache-2.0
"""Faults in the products of experts on sm_90a."""
from table import planter

plant = planter("kernels")

TILE = "grouped_matmul/grouped_matmul_hopper_tile.h"
LAUNCH = "grouped_matmul/grouped_matmul_hopper_launch.h"
HOPPER = "grouped_matmul/grouped_matmul_hopper.cu"
GATED = "experts/experts_hopper.cu"

# ---- which tile is whose

plant("grouped_matmul.h_first_block", TILE, "index",
      "index_(static_cast<int>(blockIdx.x) / kCluster) {", "index_(0) {",
      "all blocks compute the same tiles")
plant("grouped_matmul.h_next_block", TILE, "index",
      "index_ += num_clusters();", "index_ += num_clusters() + 1;",
      "tiles are left out")
plant("grouped_matmul.h_expert_rows", TILE, "group index",
      "const int first = arguments_.offsets_E1[expert_];", "const int first = arguments_.offsets_E1[0];",
      "each expert also takes the rows of those before it")
plant("grouped_matmul.h_first_index", TILE, "index",
      "first_index_ += down * across;", "first_index_ += down;",
      "an expert begins before the one before it has ended")
plant("grouped_matmul.h_tiles_down", TILE, "tail guard",
      "return (rows + kTileRows - 1) / kTileRows;", "return rows / kTileRows;",
      "an expert's last rows have no tile")
plant("grouped_matmul.h_group_tail", TILE, "tail guard",
      "std::min(down - group * kGroupTiles, int{kGroupTiles});", "kGroupTiles;",
      "of the last group tiles past the expert's rows are computed, and others not")
plant("grouped_matmul.h_row", TILE, "index",
      ".row = weights ? row : first + row,", ".row = row,",
      "rows count from the first expert's")
plant("grouped_matmul.h_num_rows", TILE, "tail guard",
      ".num_rows = std::min(c_rows - row, most_rows),", ".num_rows = most_rows,",
      "the last tile writes into the next expert's rows")
plant("grouped_matmul.h_column", TILE, "index",
      "(in_group / group_tiles * kCluster + gpu::cluster_rank()) * kTileColumns", "(in_group / group_tiles * kCluster + gpu::cluster_rank()) * 128",
      "tiles across overlap, and the last columns are nobody's")
plant("grouped_matmul.h_first", TILE, "group index",
      ".first = weights ? first : 0};", ".first = 0};",
      "dweight is of the first expert's rows")
plant("grouped_matmul.h_second_half", TILE, "index",
      "halved ? halves % 2 * kConsumerRows : 0;", "0;",
      "both blocks of a tile take its first rows")
plant("grouped_matmul.h_halved_tile", TILE, "index",
      "halved ? first_halved_ + halves / 2 : index_;", "index_;",
      "half of the halves are of tiles that are not there")
plant("grouped_matmul.h_num_steps", TILE, "tail guard",
      "return (reduction + kDepth - 1) / kDepth;", "return reduction / kDepth;",
      "the reduction ends before its last part")

# ---- the ring

plant("grouped_matmul.h_empty_wait", TILE, "barrier",
      "    gpu::mbarrier_wait(&shared.empty[place.stage()], place.parity() ^ 1U);\n", "",
      "a stage is fetched again while it is read")
plant("grouped_matmul.h_empty_parity", TILE, "phase",
      "place.parity() ^ 1U);", "place.parity());",
      "the producer waits for what nobody has filled")
plant("grouped_matmul.h_expect", TILE, "barrier",
      "fetch(static_cast<int>(sizeof(Stage)), [&]", "fetch(static_cast<int>(sizeof(Stage::b)), [&]",
      "a stage counts as full before a has come")
plant("grouped_matmul.h_full_wait", TILE, "barrier",
      "      gpu::mbarrier_wait(&shared_.full[stage], place_.parity());\n      if constexpr (Product::kOverRows)",
      "      if constexpr (Product::kOverRows)",
      "products begin before the operands are there")
plant("grouped_matmul.h_release_early", TILE, "barrier",
      "      gpu::wgmma_wait<1>();\n      if (step > 0) {", "      if (step > 0) {",
      "a stage goes back while products read it")
plant("grouped_matmul.h_release_last", TILE, "barrier",
      "    if (tile.num_steps() > 0) {\n      release_stage(last);\n    }\n", "",
      "the last stage of a tile never goes back")
plant("grouped_matmul.h_readers", TILE, "barrier",
      "gpu::mbarrier_init(&shared.empty[stage], kCluster * kReaders);",
      "gpu::mbarrier_init(&shared.empty[stage], kCluster * kReaders / 2);",
      "a stage goes back when one consumer has read it")
plant("grouped_matmul.h_pass_over", TILE, "barrier",
      "        pass_over(tile.num_steps() + Product::kLastSteps);\n", "",
      "a consumer without rows does not give the stages back")
plant("grouped_matmul.h_read_order", TILE, "barrier",
      "    if (is_storing()) {\n      gpu::tma_wait_read<kPending>();\n    }\n", "",
      "a slot is written while TMA reads it")
plant("grouped_matmul.h_seal_fence", TILE, "fence",
      "    gpu::fence_proxy_async();\n    gpu::sync_named(barrier_, kWarpgroup);\n  }\n  // One thread",
      "    gpu::sync_named(barrier_, kWarpgroup);\n  }\n  // One thread",
      "TMA stores what was in the slot before")
plant("grouped_matmul.h_seal_barrier", TILE, "barrier",
      "    gpu::fence_proxy_async();\n    gpu::sync_named(barrier_, kWarpgroup);\n  }\n  // One thread",
      "    gpu::fence_proxy_async();\n  }\n  // One thread",
      "a slot is stored before all threads have written it")
plant("grouped_matmul.h_slots", TILE, "copy wait",
      "    wait_read<kSlots - 1>();", "    wait_read<kSlots>();",
      "a slot is written while TMA reads it")
plant("grouped_matmul.h_commit", TILE, "copy wait",
      "      store();\n      gpu::tma_commit();", "      store();",
      "no store is in a group, so that no wait is for it")

plant("grouped_matmul.h_tile_empty_wait", TILE, "barrier",
      "    gpu::mbarrier_wait(&shared.tile_empty[turn.stage()], turn.parity() ^ 1U);\n", "",
      "a tile is overwritten before the consumers have read which it is")
plant("grouped_matmul.h_tile_full_wait", TILE, "barrier",
      "    gpu::mbarrier_wait(&shared_.tile_full[turn_.stage()], turn_.parity());\n", "",
      "consumers do not wait for the next tile to be found")
plant("grouped_matmul.h_tile_read", TILE, "barrier",
      "    gpu::sync_warp();  // all lanes have read the tile\n", "",
      "a tile is given back while lanes read it")

# ---- products

plant("grouped_matmul.h_sums", TILE, "accumulate",
      "    for (int i = 0; i < kSums; ++i) {\n      sums_[i] = 0.0F;\n    }\n",
      "    for (int i = 0; i < kSums; ++i) {\n      sums_[i] += 0.0F;\n    }\n",
      "a tile begins with the sums of the last")
plant("grouped_matmul.h_a_rows", TILE, "index",
      "&shared.stage[0].a[consumer_ * kConsumerRows * kDepth]", "&shared.stage[0].a[0]",
      "both consumers compute the first 64 rows")
plant("grouped_matmul.h_depth", TILE, "stride",
      "k < kDepth / kMmaDepth; ++k", "k < kDepth / kMmaDepth - 1; ++k",
      "16 of 64 of the reduction are left out")
plant("grouped_matmul.h_bytes_of_b", TILE, "stride",
      "Product::kMajorB == Major::k ? kMmaDepth * 2 : kMmaDepth * kRowBytes",
      "Product::kMajorA == Major::k ? kMmaDepth * 2 : kMmaDepth * kRowBytes",
      "b is read as if it lay as a does")
plant("grouped_matmul.h_stage_bytes", TILE, "stage",
      "const int stage_bytes = stage * static_cast<int>(sizeof(Stage));",
      "const int stage_bytes = stage % 2 * static_cast<int>(sizeof(Stage));",
      "the third stage is never read")
plant("grouped_matmul.h_clear", TILE, "zero-fill",
      "        if (left < kDepth) {\n          clear(", "        if (left < 0) {\n          clear(",
      "an expert's gradient has rows of the next one")
plant("grouped_matmul.h_clear_b", TILE, "zero-fill",
      "constexpr int kBoxes = static_cast<int>(sizeof(Stage)) / kBoxBytes;",
      "constexpr int kBoxes = static_cast<int>(sizeof(Stage::a)) / kBoxBytes;",
      "zero times the next expert's NaN")
plant("grouped_matmul.h_clear_first", TILE, "zero-fill",
      "int i = left * (kRowBytes / 2) + gpu::lane_id() * kWidth;", "int i = gpu::lane_id() * kWidth;",
      "rows of the expert are cleared")
plant("grouped_matmul.h_clear_fence", TILE, "fence",
      "    gpu::fence_proxy_async();\n    gpu::sync_named(kClear,", "    gpu::sync_named(kClear,",
      "products read what was there before it was cleared")
plant("grouped_matmul.h_clear_barrier", TILE, "barrier",
      "    gpu::sync_named(kClear, kConsumers * kWarpgroup);  // the rows are cleared\n", "",
      "products begin before the other consumer has cleared its part")

# ---- ends of tiles

plant("grouped_matmul.h_fragment", TILE, "lane",
      "const int column = step * 16 + lane / 16 * 8;", "const int column = step * 16 + lane / 8 % 2 * 8;",
      "the matrices of a fragment lie in another order")
plant("grouped_matmul.h_whole", TILE, "tail guard",
      "const bool whole = num_rows >= kConsumerRows;", "const bool whole = num_rows > 0;",
      "a part of a tile is written over the next expert's rows")
plant("grouped_matmul.h_copy_rows", TILE, "tail guard",
      "if (r < num_rows && to < c.columns) {", "if (r <= num_rows && to < c.columns) {",
      "a row is written over the next expert's first")
plant("grouped_matmul.h_copy_columns", TILE, "tail guard",
      "if (r < num_rows && to < c.columns) {", "if (r < num_rows) {",
      "columns past the last are written over the next row")
plant("grouped_matmul.h_copy_swizzle", TILE, "swizzle",
      "static_cast<std::uint32_t>(r * kRowBytes + chunk * kChunkBytes), Swizzle::bytes_128);",
      "static_cast<std::uint32_t>(r * kRowBytes + chunk * kChunkBytes), Swizzle::bytes_64);",
      "chunks of a row are exchanged")
plant("grouped_matmul.h_pack", HOPPER, "index",
      "pack(packed, sums, chunk * (kSlotColumns / 2));", "pack(packed, sums, 0);",
      "all columns of a tile are its first 64")
plant("grouped_matmul.h_weight_expert", HOPPER, "group index",
      "stage.b, arguments.weight, full, tile.column, reduction, tile.expert);",
      "stage.b, arguments.weight, full, tile.column, reduction, 0);",
      "all experts use the first one's weight", occurrence=0)
plant("grouped_matmul.h_dweight_expert", HOPPER, "group index",
      "column, tile_.row, tile_.expert);", "column, tile_.row, 0);",
      "all gradients are written to the first expert's", occurrence=0)
plant("grouped_matmul.h_dweight_expert_added", HOPPER, "group index",
      "column, tile_.row, tile_.expert);", "column, tile_.row, 0);",
      "all gradients are added to the first expert's", occurrence=1)
plant("grouped_matmul.h_dweight_store", HOPPER, "accumulate",
      "gpu::tma_reduce_add(arguments_.dweight,", "gpu::tma_store(arguments_.dweight,",
      "the gradient of before is lost")
plant("grouped_matmul.h_dweight_write", HOPPER, "accumulate",
      "gpu::tma_store(arguments_.dweight,", "gpu::tma_reduce_add(arguments_.dweight,",
      "what is to be written is added to what was there")
plant("grouped_matmul.h_empty_expert_written", TILE, "condition",
      "rows > 0 || arguments_.write;", "rows > 0;",
      "the gradient of an expert without rows stays what it was")
plant("grouped_matmul.h_dweight_row", HOPPER, "lane",
      "const int row = row_of_thread(i % 2);", "const int row = row_of_thread(i / 2 % 2);",
      "sums of two rows are exchanged")
plant("grouped_matmul.h_dweight_other", HOPPER, "lane",
      "const int at = (odd ? other : i) / 2 * 8", "const int at = i / 2 * 8",
      "odd rows of the gradient have halves of 32 columns exchanged")
plant("grouped_matmul.h_part", TILE, "operand",
      "const int part = gpu::cluster_rank() * kConsumerRows;", "const int part = 0;",
      "both blocks fetch the same rows, and the others are never there")
plant("grouped_matmul.h_part_rows", TILE, "index",
      "kAll, reduction, row + part);", "kAll, reduction, row);",
      "the second half of the rows is the first again")
plant("grouped_matmul.h_own_release", TILE, "operand",
      "gpu::mbarrier_arrive_at(&shared_.empty[stage], gpu::lane_id());",
      "gpu::mbarrier_arrive_at(&shared_.empty[stage], gpu::cluster_rank());",
      "a stage goes back to this block alone, twice")
plant("grouped_matmul.h_last_barrier", TILE, "synchronisation",
      "  gpu::cluster_sync();  // nobody reaches this block any more\n", "",
      "a block leaves while the other still tells it of stages")
plant("grouped_matmul.h_blocks", LAUNCH, "grid",
      "(R / kTileRows + std::min(E, R)) * clusters_across(columns);",
      "(R / kTileRows) * clusters_across(columns);",
      "no block is launched for the last part")
plant("grouped_matmul.h_across", LAUNCH, "index",
      "return ceil_div(columns, kTileColumns);", "return columns / kTileColumns;",
      "the last columns have no tile")

# ---- GeGLU at the ends

plant("experts.h_up", GATED, "index",
      "pack(up, sums, kSums / 2 + chunk * (kSlotColumns / 2));",
      "pack(up, sums, kSums / 2);",
      "all columns of up are the first 64 of the tile")
plant("experts.h_half", GATED, "index",
      "write_half(outbox, up, column, 1);", "write_half(outbox, up, column, 0);",
      "up is written over gate")
plant("experts.h_weight_column", GATED, "index",
      "full, reduction, tile.column / 2, 0, tile.expert);",
      "full, reduction, tile.column, 0, tile.expert);",
      "rows of the weight are those of twice the column")
plant("experts.h_column", GATED, "index",
      "column_(tile.column / 2),", "column_(tile.column),",
      "columns are written twice as far")
plant("experts.h_scale", GATED, "scale",
      "          const float scale = gates_.value[i % 2];\n", "          const float scale = gates_.value[0];\n",
      "both rows of a thread have the first one's expert gate")
plant("experts.h_scale_backward", GATED, "scale",
      "        const float scale = gates_.value[j % 2];\n", "        const float scale = gates_.value[0];\n",
      "both rows of a thread have the first one's expert gate")
plant("experts.h_source", GATED, "index",
      "gates[source[tile.row + row]] : 0.0F;", "gates[tile.row + row] : 0.0F;",
      "the expert gate is of another row")
plant("experts.h_rounded", GATED, "rounding",
      "const Pair dy = unpack(gpu::pack_bf16(sums[sum], sums[sum + 1]));",
      "const Pair dy = {sums[sum], sums[sum + 1]};",
      "the gradient of hidden is not rounded, as the three ops round it")
plant("experts.h_last_step", GATED, "index",
      "full, tile.column + step * kSlotColumns, tile.row, 0);", "full, tile.column, tile.row, 0);",
      "gate and up of the tile's first columns stand for all")
plant("experts.h_consumer_rows", GATED, "index",
      "(half * kTileRows + consumer * kConsumerRows) * kRowBytes;",
      "half * kTileRows * kRowBytes;",
      "both consumers take the first 64 rows of gate and up")
plant("experts.h_sum_other_half", GATED, "accumulate",
      "        sum_[j % 2] += dy.high * high.value * up.high;\n", "",
      "half of the columns are left out of the gradient of the expert gate")
plant("experts.h_shuffle", GATED, "lane",
      "      sum += gpu::shuffle_xor(sum, 2);\n", "",
      "two of four lanes are left out of the gradient of the expert gate")
plant("experts.h_part", GATED, "index",
      "arguments_.partial_CR[tile_.column / kTileColumns * arguments_.R + tile_.row + row] = sum;",
      "arguments_.partial_CR[tile_.row + row] = sum;",
      "the parts of a row overwrite each other")
plant("experts.h_parts", GATED, "index",
      "static_cast<int>(tiles_across(F)));", "1);",
      "the gradient of the expert gate is that of the first 256 columns")
plant("experts.h_gradient_guard", GATED, "tail guard",
      "if (gpu::lane_id() % 4 == 0 && row < tile_.num_rows) {", "if (gpu::lane_id() % 4 == 0) {",
      "a part of the next expert's row is overwritten")
plant("experts.h_finish_release", TILE, "barrier",
      "      if (step > 0) {\n        outbox_.template wait_read<0>();\n        release_stage(",
      "      if (step > 0) {\n        release_stage(",
      "a stage goes back while its results are stored")
plant("experts.h_finish_last", TILE, "barrier",
      "    outbox_.template wait_read<0>();\n    release_stage(before);\n  }",
      "    release_stage(before);\n  }",
      "the last stage goes back while its results are stored")
plant("experts.h_finish_fence", TILE, "barrier",
      "    gpu::fence_proxy_async();\n    outbox_.template wait_read<0>();", "    outbox_.template wait_read<0>();",
      "what threads read of the last stage may come after what TMA fetches into it")
plant("experts.h_finish_full", TILE, "barrier",
      "      gpu::mbarrier_wait(&shared_.full[stage], place_.parity());\n      product.replace(",
      "      product.replace(",
      "gate and up are read before they have come")
plant("experts.h_finish_seal", TILE, "barrier",
      "      product.replace(shared_.stage[stage], sums_, step, consumer_);\n      outbox_.seal();\n",
      "      product.replace(shared_.stage[stage], sums_, step, consumer_);\n",
      "results are stored before all threads have written them")
