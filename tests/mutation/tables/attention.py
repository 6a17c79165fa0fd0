# SPDX-License-Identifier: Apache-2.0
"""Faults in the kernels of attention."""
from table import planter

plant = planter("kernels")

ATTENTION = "attention/attention.cu"
SHARED = "attention/attention_gpu.h"
TILE = "attention/attention_bf16_tile.h"
BF16_FORWARD = "attention/attention_bf16_forward.cu"
BF16_BACKWARD = "attention/attention_bf16_backward.cu"
MERGE = "attention/attention_merge.cu"
F32 = "attention/attention_f32.cu"

plant("attention.delta_guard", ATTENTION, "tail guard",
      "column == 0 && row_of(i) < num_rows", "column == 0 && row_of(i) <= num_rows",
      "lanes past the last row form a delta")
plant("attention.delta_row", ATTENTION, "index",
      "first_row + i * (kThreads / kLanes)", "first_row",
      "of a block's rows the second half has no delta")
plant("attention.delta_sequence", ATTENTION, "index",
      "* S + token % S] = sum;", "* S + token] = sum;",
      "delta of all sequences but the first goes to the wrong place")
plant("attention.no_key_heads", ATTENTION, "head index",
      "for (int n = first.n; n < first.n + num_heads; ++n) {",
      "for (int n = first.n; n < first.n + 1; ++n) {",
      "only the group's first head has queries without key")
plant("attention.no_key_mean", ATTENTION, "index",
      "const HeadRows<const T> values = queries.first.of_keys(arguments.value);",
      "const HeadRows<const T> values = queries.first.of_keys(arguments.key);",
      "a query without key gets the mean of the keys")
plant("attention.kv_head", SHARED, "head index",
      "return n * static_cast<int>(arguments.shape.G) / static_cast<int>(arguments.shape.N);",
      "return n % static_cast<int>(arguments.shape.G);",
      "query heads are dealt to key/value heads in turn and not in groups")
plant("attention.tile_rows", SHARED, "zero-fill",
      "const bool valid = first + row < end && column < width;",
      "const bool valid = first + row < end + kRows && column < width;",
      "rows past the sequence are loaded and not zero")
plant("attention.tile_columns", SHARED, "zero-fill",
      "const bool valid = first + row < end && column < width;",
      "const bool valid = first + row < end && column < width + kWidth;",
      "columns past the head's width are the next head's")
plant("attention.statistics_no_key", F32, "initial value",
      "statistics.lse[row] = lse == -INFINITY ? INFINITY : lse;",
      "statistics.lse[row] = lse;",
      "a query that is not there has infinite probabilities")
plant("attention.end_query", SHARED, "bound",
      "return place(t) - arguments.position[token(t)] > at;",
      "return place(t) - arguments.position[token(t)] >= at;",
      "documents that begin at a tile's last key end before they begin")
plant("attention.temperature", SHARED, "condition",
      "arguments.temperature_len > 0.0F && p > arguments.temperature_len",
      "arguments.temperature_len > 0.0F && p < arguments.temperature_len",
      "short contexts are scaled and long ones are not")
plant("attention.row_max_lanes", SHARED, "shuffle",
      "return fmaxf(value, gpu::shuffle_xor(value, 2));",
      "return fmaxf(value, gpu::shuffle_xor(value, 1));",
      "the four lanes of a row do not agree on its maximum")
plant("attention.fragment_rows", TILE, "lane",
      "const bf16* const b_row = b + lane % 16 * kStride + lane / 16 * 8;",
      "const bf16* const b_row = b + (lane / 16 * 8 + lane % 8) * kStride + lane / 8 % 2 * 8;",
      "the transposed fragment is addressed like the plain one")
plant("attention.store_rows_end", TILE, "tail guard",
      "if (row >= end) {\n      continue;\n    }\n", "static_cast<void>(end);\n",
      "rows past the sequence are stored")
plant("attention.forward_barrier", BF16_FORWARD, "barrier",
      "    gpu::sync_threads();\n", "",
      "a tile is read before the copies of the other warps are there")
plant("attention.forward_wait", BF16_FORWARD, "copy wait",
      "    gpu::copy_async_wait<0>();", "    gpu::copy_async_wait<1>();",
      "the tile that is read may be on its way")
plant("attention.forward_stage", BF16_FORWARD, "stage",
      "load_keys(stage ^ 1, keys + kKeys);", "load_keys(stage, keys + kKeys);",
      "the next tile overwrites the one that is read")
plant("attention.forward_diagonal", BF16_FORWARD, "bound",
      "last_key[half] + 1 - first);", "last_key[half] - first);",
      "a query does not see itself")
plant("attention.forward_all_allowed", BF16_FORWARD, "condition",
      "keys >= warp_first_key &&", "warp_first_key >= 0 &&",
      "a whole tile of an older document is seen")
plant("attention.forward_all_allowed_newest", BF16_FORWARD, "condition",
      "keys + kKeys - 1 <= warp_last_key", "keys + kKeys - 1 <= warp_last_key + kWarpRows",
      "a tile that ends within the warp's rows takes no mask")
plant("attention.forward_all_valid", BF16_FORWARD, "condition",
      "all_valid == gpu::kFullMask && ", "",
      "hidden keys are seen where nothing else calls for the mask")
plant("attention.forward_valid_word", BF16_FORWARD, "index",
      "valid_keys(head, keys + word * 32);", "valid_keys(head, keys);",
      "the second half of a tile's keys is hidden like the first")
plant("attention.forward_rescale", BF16_FORWARD, "accumulate",
      "      sum[half] *= factor;\n", "",
      "the sum so far stays relative to the old maximum")
plant("attention.forward_last_key_tile", BF16_FORWARD, "bound",
      "keys < end; keys += kKeys", "keys + kKeys < end; keys += kKeys",
      "the last tile of keys is left out")
plant("attention.kv_barrier", BF16_BACKWARD, "barrier",
      "    gpu::sync_threads();\n", "",
      "statistics and tiles are read while others write them", occurrence=0)
plant("attention.query_wait", BF16_BACKWARD, "copy wait",
      "    gpu::copy_async_wait<0>();\n", "",
      "nobody waits for the keys", occurrence=1)
plant("attention.kv_hidden_keys", BF16_BACKWARD, "condition",
      "if (s < num_keys && !first.key_valid(s)) {", "if (s >= num_keys) {",
      "hidden keys get gradients")
plant("attention.kv_document", BF16_BACKWARD, "condition",
      "(query + at < row_query[element / 2] || s < oldest)",
      "query + at < row_query[element / 2] + 0 * (s + oldest)",
      "queries of later documents give gradients to this one's keys")
plant("attention.kv_no_key", BF16_BACKWARD, "initial value",
      ".offset = lse == -INFINITY ? -INFINITY : factors.shift - kLog2E * lse,",
      ".offset = factors.shift - kLog2E * lse,",
      "a query that is not there has infinite probabilities")
plant("attention.kv_interior_newest", BF16_BACKWARD, "condition",
      "if (query >= warp_all_query &&", "if (query >= warp_first_query &&",
      "keys that are newer than a tile's first queries give it gradients")
plant("attention.kv_interior_document", BF16_BACKWARD, "condition",
      "columns.first_key[kStreamRows - 1] <= warp_key", "columns.first_key[0] <= warp_key",
      "a document that begins within a tile of queries is not seen to")
plant("attention.kv_team_tail", BF16_BACKWARD, "tail guard",
      "if (steps + team >= num_steps) {", "if (steps + team > num_steps) {",
      "a team without a tile of queries takes an old one")
plant("attention.kv_team_left_out", BF16_BACKWARD, "bound",
      "for (int other = 1; other < kSplits; ++other) {",
      "for (int other = 1; other < kSplits - 1; ++other) {",
      "the last team's sums are lost")
plant("attention.kv_team_barrier", BF16_BACKWARD, "barrier",
      "  gpu::sync_threads();  // the others' sums are there\n", "",
      "sums are added up before they are written")
plant("attention.kv_team_room", BF16_BACKWARD, "barrier",
      "    gpu::sync_threads();  // no warp reads the tiles any more\n", "",
      "sums overwrite tiles that are read")
plant("attention.kv_head_of_step", BF16_BACKWARD, "head index",
      "first_head + step / tiles_per_head};", "first_head + step % group};",
      "tiles of queries are taken of the wrong head")
plant("attention.kv_sequence", BF16_BACKWARD, "index",
      "const int b = static_cast<int>(blockIdx.x) / num_kv_heads;",
      "const int b = static_cast<int>(blockIdx.x) / (2 * num_kv_heads);",
      "every other sequence takes the place of the one before")
plant("attention.query_document", BF16_BACKWARD, "condition",
      "first_key[half] - keys,", "first_key[half] - keys - kStreamRows,",
      "keys of older documents give gradients to a query")
plant("attention.query_skip", BF16_BACKWARD, "bound",
      "if (keys > warp_newest_key) {", "if (keys >= warp_last_key) {",
      "the tile on the diagonal is skipped")
plant("attention.query_all_valid", BF16_BACKWARD, "condition",
      "valid == gpu::kFullMask && ", "",
      "hidden keys give gradients where nothing else calls for the mask")
plant("attention.query_stage", BF16_BACKWARD, "stage",
      "multiply_accumulators<kWidth, kTiles>(dquery, dscore, shared.key[stage]);",
      "multiply_accumulators<kWidth, kTiles>(dquery, dscore, shared.key[stage ^ 1]);",
      "dq is formed with another tile's keys")
plant("attention.f32_forward_sync_warp", F32, "barrier",
      "    gpu::sync_warp();  // a row of probabilities is written and read by one warp\n", "",
      "probabilities of other lanes are read before they are written")
plant("attention.f32_query_sync_warp", F32, "barrier",
      "    gpu::sync_warp();  // a row of scores is written and read by one warp\n", "",
      "gradients of scores are read before they are written", occurrence=1)
plant("attention.f32_kv_free_barrier", F32, "barrier",
      "      gpu::sync_threads();  // all reads of the tiles are done: the next may arrive\n", "",
      "the next queries overwrite those that are read")
plant("attention.f32_kv_group", F32, "head index",
      "for (int n = first_head; n < first_head + group; ++n) {",
      "for (int n = first_head; n < first_head + 1; ++n) {",
      "only the group's first head gives gradients to its keys")
plant("attention.f32_weight_stride", F32, "stride",
      "constexpr int kWeightStride = kRows + 1;", "constexpr int kWeightStride = kRows - 1;",
      "a row of probabilities overlaps the next")
plant("attention.f32_maximum_start", F32, "initial value",
      "float maximum = -INFINITY;", "float maximum = 0.0F;",
      "a row of strongly negative logits underflows to a row without keys")
plant("attention.forward_maximum_start", BF16_FORWARD, "initial value",
      "float maximum[2] = {-INFINITY, -INFINITY};", "float maximum[2] = {0.0F, 0.0F};",
      "a row of strongly negative logits underflows to a row without keys")
plant("attention.f32_first_tile", F32, "bound",
      "const int begin = head.first_key(first_query) / kRows * kRows;",
      "const int begin = head.first_key(end_query - 1) / kRows * kRows;",
      "keys that only the tile's first queries see are left out", occurrence=0)
plant("attention.f32_score_columns", F32, "stride",
      "right + i * kLanesPerRow * kRowStride<float, kWidth> + h",
      "right + i * kRowStride<float, kWidth> + h",
      "scores are formed with a neighbour's column")
plant("attention.forward_warp_first_key", BF16_FORWARD, "operand",
      "const int warp_first_key = head.first_key(warp_last);",
      "const int warp_first_key = head.first_key(query_of(0));",
      "rows behind a document's edge within a warp see the document before it")
plant("attention.forward_warp_last", BF16_FORWARD, "off by one",
      "const int warp_first_key = head.first_key(warp_last);",
      "const int warp_first_key = head.first_key(query_of(kWarpRows - 2));",
      "a document that begins at a warp's last row sees the one before it")
plant("attention.forward_begin", BF16_FORWARD, "bound",
      "const int begin = head.first_key(first_query) / kKeys * kKeys;",
      "const int begin = head.first_key(std::min(first_query + 1, end_query - 1)) / kKeys * kKeys;",
      "a block whose second row begins a document leaves out what its first row sees")
plant("attention.query_begin", BF16_BACKWARD, "bound",
      "const int begin = head.first_key(first_query) / kStreamRows * kStreamRows;",
      "const int begin =\n      head.first_key(std::min(first_query + 1, end_query - 1)) / kStreamRows * kStreamRows;",
      "a block whose second row begins a document leaves out gradients of its first row")
plant("attention.kv_end_query", BF16_BACKWARD, "bound",
      "const int end_query = first.end_query(end_key - 1);",
      "const int end_query = first.end_query(std::max(first_key, end_key - 2));",
      "a document that begins at a tile's last key gives it no gradients")
plant("attention.f32_begin", F32, "bound",
      "const int begin = head.first_key(first_query) / kRows * kRows;",
      "const int begin =\n      head.first_key(std::min(first_query + 1, end_query - 1)) / kRows * kRows;",
      "a tile whose second row begins a document leaves out what its first row sees", occurrence=0)
plant("attention.f32_query_begin", F32, "bound",
      "const int begin = head.first_key(first_query) / kRows * kRows;",
      "const int begin =\n      head.first_key(std::min(first_query + 1, end_query - 1)) / kRows * kRows;",
      "a tile whose second row begins a document leaves out gradients of its first row",
      occurrence=1)
plant("attention.first_key_clip", SHARED, "bound",
      "return at < 0 ? 0 : (at < num_keys() ? at : num_keys());",
      "return at < num_keys() ? at : num_keys();",
      "a document that began before the sequence is read from before it")
plant("attention_merge.keys_before", SHARED, "bound",
      "return first_of(0, num_keys(), [&](int s) { return key_place(s) >= at; });",
      "return first_of(0, num_keys(), [&](int s) { return key_place(s) > at; });",
      "a query sees the key after it, and not the first of its document")
plant("attention_merge.key_places", SHARED, "index",
      "arguments.key_place[key_token(s)];", "arguments.key_place[s];",
      "keys of all sequences lie at the places of the first one's")
plant("attention_merge.first_query", SHARED, "bound",
      "return place(t) >= at; });", "return place(t) > at; });",
      "a key gets no gradients of its own query, where tokens have places")
plant("attention_merge.sequence_keys", ATTENTION, "operand",
      "op.sequence_keys == 0 ? arguments.shape.num_keys : op.sequence_keys",
      "op.sequence_keys == 0 ? op.sequence_keys : arguments.shape.num_keys",
      "the mean of values is taken over one part's keys")
plant("attention_merge.guard", MERGE, "tail guard",
      "if (row >= arguments.rows) {", "if (row > arguments.rows) {",
      "lanes past the last row merge one")
plant("attention_merge.maximum", MERGE, "initial value",
      "float maximum = -INFINITY;", "float maximum = 0.0F;",
      "parts whose logits are far below 0 have no weight")
plant("attention_merge.counts", MERGE, "operand",
      "static_cast<float>(arguments.num_keys[p])", "1.0F",
      "the means of parts count the same whatever their number of keys")
plant("attention_merge.statistic", MERGE, "index",
      "* arguments.S + t % arguments.S;", "* arguments.S + t;",
      "sequences but the first are weighted by others")
plant("attention_merge.part", MERGE, "stride",
      "(first + i) * arguments.rows * arguments.H + at",
      "(first + i) * static_cast<std::int64_t>(arguments.N) * arguments.H + at",
      "the second part is read within the first")
plant("attention_merge.parts_again", MERGE, "index",
      "weights[i] = weight(first + i);", "weights[i] = weight(i);",
      "the fifth part has the weight of the first")

# ---- hopper, forward

RING = "device/hopper_ring.h"
HOPPER = "attention/attention_hopper_forward.cu"
HOPPER_SOFTMAX = "attention/attention_hopper_softmax.h"

plant("attention.hopper_refill", HOPPER, "barrier",
      "  gpu::mbarrier_wait(empty, parity ^ 1U);\n",
      "",
      "a tile is fetched over one that is still read")
plant("attention.hopper_expected", HOPPER, "phase",
      "static_cast<int>(sizeof(tile))",
      "static_cast<int>(sizeof(tile) / 2)",
      "half a tile is waited for")
plant("attention.hopper_parity", RING, "phase",
      "static_cast<unsigned>(count_) / kStages % 2;",
      "static_cast<unsigned>(count_) % 2;",
      "the parity turns with each stage and not with each round")
plant("attention.hopper_readers", HOPPER, "barrier",
      "gpu::mbarrier_init(&shared.key_empty[stage], kReaders);",
      "gpu::mbarrier_init(&shared.key_empty[stage], kReaders / 2);",
      "one consumer's warps give a tile back for both")
plant("attention.hopper_init_fence", HOPPER, "fence",
      "    gpu::fence_mbarrier_init();\n",
      "",
      "TMA does not see the mbarriers")
plant("attention.hopper_init_barrier", HOPPER, "barrier",
      "  gpu::sync_threads();  // the mbarriers are there\n",
      "",
      "consumers wait for mbarriers that are not there yet")
plant("attention.hopper_all_arrive", RING, "barrier",
      "  if (gpu::elect_one()) {\n    gpu::mbarrier_arrive(empty);\n  }",
      "  gpu::mbarrier_arrive(empty);",
      "each lane arrives for its warp")
plant("attention.hopper_keep_query", HOPPER, "barrier",
      "    release(&shared_.query_empty);\n",
      "",
      "the queries of the next item never come")
plant("attention.hopper_first_turn", HOPPER, "barrier",
      "      gpu::arrive_named(kTurn, kConsumers * kWarpgroup);  // the first turn is the other's\n",
      "",
      "nobody has the first turn")
plant("attention.hopper_pass_turn", HOPPER, "barrier",
      "gpu::arrive_named(kTurn + 1 - consumer_, kConsumers * kWarpgroup);",
      "gpu::arrive_named(kTurn + consumer_, kConsumers * kWarpgroup);",
      "a consumer passes the turn to itself")
plant("attention.hopper_scores_early", HOPPER, "wait",
      "    gpu::wgmma_wait<1>(rows_.score);\n",
      "",
      "scores are read while their product runs")
plant("attention.hopper_values_early", HOPPER, "wait",
      "    gpu::wgmma_wait<0>(rows_.result, rows_.probability);\n    release(&shared_.value_empty[place_.stage_before()]);\n    place_",
      "    release(&shared_.value_empty[place_.stage_before()]);\n    place_",
      "probabilities are overwritten while their product runs")
plant("attention.hopper_values_there", HOPPER, "barrier",
      "    gpu::mbarrier_wait(&shared_.value_full[place_.stage()], place_.parity());\n",
      "",
      "values are multiplied before they are there")
plant("attention.hopper_stage_before", RING, "stage",
      "(count_ + kStages - 1) % kStages",
      "count_ % kStages",
      "probabilities are multiplied by the values of the next tile")
plant("attention.hopper_diagonal", HOPPER_SOFTMAX, "mask",
      "(s <= last_key[half])",
      "(s < last_key[half])",
      "a query does not see itself")
plant("attention.hopper_future", HOPPER_SOFTMAX, "mask",
      "(s <= last_key[half])",
      "(s <= last_key[half] + 1)",
      "a query sees the next token")
plant("attention.hopper_document", HOPPER_SOFTMAX, "mask",
      "(s >= first_key[half])",
      "(s > first_key[half])",
      "a document's first token is seen by nobody")
plant("attention.hopper_interior", HOPPER, "bound",
      "(head.first_key(last_query) + kKeys - 1) / kKeys",
      "head.first_key(last_query) / kKeys",
      "a tile with a document's edge is not masked")
plant("attention.hopper_interior_query", HOPPER, "bound",
      "(head.first_key(last_query) + kKeys - 1) / kKeys",
      "(head.first_key(first_query) + kKeys - 1) / kKeys",
      "later queries see another document")
plant("attention.hopper_first_tile", HOPPER, "bound",
      "first_tile = head.first_key(first_query) / kKeys;",
      "first_tile = head.first_key(last_query) / kKeys;",
      "earlier queries lose their first keys")
plant("attention.hopper_padding", HOPPER_SOFTMAX, "mask",
      "(is_key(s + 1) ? 0b1010U : 0U)",
      "(is_key(s) ? 0b1010U : 0U)",
      "a key is taken for padding by its neighbour")
plant("attention.hopper_hidden", HOPPER_SOFTMAX, "mask",
      "score[i] = hide(i, exponential, 0.0F);",
      "score[i] = exponential;",
      "what the mask hides has a probability")
plant("attention.hopper_unit", HOPPER_SOFTMAX, "operand",
      "fmaf(score[i], unit[i / 2 % 2], -base[i / 2 % 2])",
      "score[i] - base[i / 2 % 2]",
      "without a cap the exponent lacks the scale")
plant("attention.hopper_rescale", HOPPER_SOFTMAX, "accumulate",
      "result[i] *= rescale[i / 2 % 2];",
      "result[i] *= 1.0F;",
      "what there is stays relative to the old maximum")
plant("attention.hopper_rescale_sum", HOPPER_SOFTMAX, "accumulate",
      "        sum[half] *= rescale[half];\n",
      "",
      "the sum stays relative to the old maximum")
plant("attention.hopper_lse", HOPPER, "operand",
      "kLn2 * rows_.offset[half] + logf(total)",
      "rows_.offset[half] + logf(total)",
      "lse in mixed units")
plant("attention.hopper_lse_tail", HOPPER, "tail guard",
      "if (t < head.num_tokens() && gpu::lane_id() % 4 == 0) {",
      "if (gpu::lane_id() % 4 == 0) {",
      "rows beyond the last query write the statistics of others")
plant("attention.hopper_row_tail", HOPPER_SOFTMAX, "tail guard",
      "std::min(row(first_query, half), head.num_tokens() - 1)",
      "row(first_query, half)",
      "positions beyond the last are read")
plant("attention.hopper_out_fence", HOPPER, "fence",
      "    gpu::fence_proxy_async();\n",
      "",
      "TMA may store what was in the tile before")
plant("attention.hopper_out_written", HOPPER, "barrier",
      "    gpu::sync_named(kStore + consumer_, kWarpgroup);  // the tile is written\n",
      "",
      "the tile is stored before all warps have written it")
plant("attention.hopper_out_read", HOPPER, "wait",
      "      gpu::tma_wait_read<0>();\n",
      "",
      "the tile is overwritten while it is stored")
plant("attention.hopper_out_row", HOPPER, "index",
      "* 16 + lane % 16;",
      "* 16 + lane % 8;",
      "the lower rows of a warp are written over the upper ones")
plant("attention.hopper_group", HOPPER, "index",
      "static_cast<int>(item.n / arguments.shape.group())",
      "static_cast<int>(item.n % arguments.shape.G)",
      "a query head reads another group's keys")
plant("attention.hopper_value_half", HOPPER, "stride",
      "rows_descriptor(&shared.value, Tile<kKeys>::kHalfBytes)",
      "rows_descriptor(&shared.value, Tile<kKeys>::kHalfBytes / 2)",
      "the upper half of the values is read from elsewhere")
plant("attention.hopper_group_stride", HOPPER, "index",
      "tile_map(arguments.value, shape.B,",
      "tile_map(arguments.key, shape.B,",
      "keys stand for values")
plant("attention_merge.hopper_end_interior", HOPPER, "bound",
      "(head.last_key(first_query) + 1) / kKeys",
      "(head.last_key(last_query) + 1) / kKeys",
      "the second of two tiles on the diagonal is not masked, where keys are others than queries")
plant("attention.hopper_padded_interior", HOPPER, "bound",
      "arguments.key_valid == nullptr ? (head.last_key(first_query)",
      "shape.S > 0 ? (head.last_key(first_query)",
      "padding in the interior is seen")
plant("attention_merge.hopper_last_tile", HOPPER, "bound",
      "std::max(first_tile, head.last_key(last_query) / kKeys)",
      "head.last_key(last_query) / kKeys",
      "queries whose keys all lie in other parts have fewer tiles than the one that is waited for")
plant("attention_merge.hopper_last_key", HOPPER_SOFTMAX, "bound",
      "last_key[half] = head.last_key(t);",
      "last_key[half] = t;",
      "queries see the keys at their own index, and not those up to their own place")
plant("attention_merge.hopper_keys_of_map", HOPPER, "bound",
      "tile_map(arguments.key, shape.B, shape.num_keys,",
      "tile_map(arguments.key, shape.B, shape.S,",
      "sequences of keys are taken to be as long as those of queries")
plant("attention_merge.hopper_padding_of", HOPPER_SOFTMAX, "index",
      "head.arguments.key_valid + head.key_token(0)",
      "head.arguments.key_valid + head.token(0)",
      "padding is looked up as if there were as many keys as queries")
plant("attention.hopper_padding_tail", HOPPER_SOFTMAX, "tail guard",
      "valid[std::min(s, head.num_keys() - 1)]",
      "valid[s]",
      "padding is read beyond the last key")
plant("attention.hopper_largest", HOPPER, "bound",
      "arguments.position[head.token(first_query)] + head.place(last_query) -\n                        head.place(first_query);",
      "arguments.position[head.token(first_query)];",
      "rows whose temperature is too large for a fixed offset have one")
plant("attention_merge.hopper_near", HOPPER_SOFTMAX, "initial value",
      "const float wanted = largest == -INFINITY ? 0.0F : largest;",
      "const float wanted = largest;",
      "a row that sees no key of its first tile is relative to an offset that costs its logits bits")

# ---- hopper, backward

HOPPER_BACKWARD = "attention/attention_hopper_backward.cu"
HOPPER_ROWS = "attention/attention_hopper_backward_rows.cu"
HOPPER_ORDER = "attention/attention_hopper_backward.h"

plant("attention.hb_ticket_refill", HOPPER_BACKWARD, "barrier",
      "    gpu::mbarrier_wait(&shared.ticket_empty[tickets.stage()], tickets.parity() ^ 1U);\n",
      "",
      "a ticket is overwritten before all have read it")
plant("attention.hb_ticket_readers", HOPPER_BACKWARD, "barrier",
      "gpu::mbarrier_init(&shared.ticket_empty[stage], kReaders + 1);",
      "gpu::mbarrier_init(&shared.ticket_empty[stage], kReaders);",
      "a ticket is given back before all have read it")
plant("attention.hb_keys_refill", HOPPER_BACKWARD, "barrier",
      "    gpu::mbarrier_wait(&shared.keys_empty, tickets.parity_of_one() ^ 1U);\n",
      "",
      "keys are fetched over those that are read")
plant("attention.hb_keys_expected", HOPPER_BACKWARD, "phase",
      "static_cast<int>(2 * sizeof(Tile<kKeys>) + sizeof(shared.first_query))",
      "static_cast<int>(sizeof(Tile<kKeys>) + sizeof(shared.first_query))",
      "values are not waited for")
plant("attention.hb_query_refill", HOPPER_BACKWARD, "barrier",
      "      gpu::mbarrier_wait(&shared.query_empty[stage], place.parity() ^ 1U);\n",
      "",
      "queries are fetched over those that are read")
plant("attention.hb_parity_of_one", RING, "phase",
      "    return static_cast<unsigned>(count_) % 2;",
      "    return static_cast<unsigned>(count_) / 2 % 2;",
      "a single stage has the parity of a ring of two")
plant("attention.hb_turn", HOPPER_BACKWARD, "order",
      "        gpu::wait_at_least(workspace.query_turn + tile, before);\n",
      "",
      "dq is added to before its turn")
plant("attention.hb_turn_early", HOPPER_BACKWARD, "order",
      "gpu::wait_at_least(workspace.query_turn + tile, before);",
      "gpu::wait_at_least(workspace.query_turn + tile, before - 1);",
      "two tiles of keys may add to dq in either order")
plant("attention.hb_turn_passed_on", HOPPER_BACKWARD, "order",
      "gpu::store_release(workspace.query_turn + tile, before + 1);",
      "gpu::store_release(workspace.query_turn + tile, before);",
      "nobody else has a turn")
plant("attention.hb_turn_unwritten", HOPPER_BACKWARD, "wait",
      "      gpu::tma_wait<0>();  // the sums are there: whoever is next may add to them\n",
      "",
      "the next may add to sums that are not written")
plant("attention.hb_first_stores", HOPPER_BACKWARD, "initial value",
      "        if (before > 0) {\n          gpu::bulk_reduce_add",
      "        if (before >= 0) {\n          gpu::bulk_reduce_add",
      "dq is added to what was there")
plant("attention.hb_dquery_read", HOPPER_BACKWARD, "wait",
      "      gpu::tma_wait_read<0>();\n",
      "",
      "dq is overwritten while it is read")
plant("attention.hb_dquery_refill", HOPPER_BACKWARD, "barrier",
      "    gpu::mbarrier_wait(&shared_.dquery_empty[consumer_], parity ^ 1U);\n",
      "    static_cast<void>(parity);\n",
      "dq is overwritten before it is added up")
plant("attention.hb_dquery_full", HOPPER_BACKWARD, "barrier",
      "        gpu::mbarrier_wait(&shared.dquery_full[consumer], parity);\n",
      "",
      "dq is added up before it is there")
plant("attention.hb_dquery_warps", HOPPER_BACKWARD, "barrier",
      "gpu::mbarrier_init(&shared.dquery_full[consumer], kWarpsOfGroup);",
      "gpu::mbarrier_init(&shared.dquery_full[consumer], kWarpsOfGroup - 1);",
      "dq is added up before the last warp has written its part")
plant("attention.hb_dquery_fence", HOPPER_BACKWARD, "fence",
      "    gpu::fence_proxy_async();\n    gpu::sync_warp();  // the warp's part is written\n",
      "    gpu::sync_warp();\n",
      "the reduction may read what was there before")
plant("attention.hb_scores_fence", HOPPER_BACKWARD, "fence",
      "    gpu::fence_proxy_async();\n  }\n",
      "  }\n",
      "wgmma may read probabilities and gradients that were there before")
plant("attention.hb_scores_barrier", HOPPER_BACKWARD, "barrier",
      "    gpu::sync_named(kScores, kConsumers * kWarpgroup);\n",
      "",
      "dq is formed before the other's gradients are there")
plant("attention.hb_probability_barrier", HOPPER_BACKWARD, "barrier",
      "    gpu::sync_named(kOwn + consumer_, kWarpgroup);  // probabilities are written\n",
      "",
      "dv is formed before all warps' probabilities are there")
plant("attention.hb_dscore_stage", HOPPER_BACKWARD, "stage",
      "store_scores(shared_.dscore[stage],",
      "store_scores(shared_.dscore[0],",
      "gradients of scores overwrite those that are read")
plant("attention.hb_step_wait", HOPPER_BACKWARD, "wait",
      "    gpu::wgmma_wait<1>(dvalue_, gradient_, score_);\n",
      "    gpu::wgmma_wait<2>(dvalue_, gradient_, score_);\n",
      "dq is handed on while its product runs")
plant("attention.hb_dkey_wait", HOPPER_BACKWARD, "wait",
      "    gpu::wgmma_wait<0>(dkey_);\n",
      "",
      "queries are given back while the product of dk reads them")
plant("attention.hb_future", HOPPER_BACKWARD, "mask",
      "(after_first[half] + column >= 0)",
      "(after_first[half] + column >= -1)",
      "a query sees the next token")
plant("attention.hb_diagonal", HOPPER_BACKWARD, "mask",
      "(after_first[half] + column >= 0)",
      "(after_first[half] + column > 0)",
      "a query does not see itself")
plant("attention.hb_document", HOPPER_BACKWARD, "mask",
      "(first_key + half * 8 >= rows.first_key[lane_column + column])",
      "(first_key + half * 8 > rows.first_key[lane_column + column])",
      "a document's first token is seen by nobody")
plant("attention.hb_interior_document", HOPPER_BACKWARD, "bound",
      " || seen.oldest_key > item.tile * kKeys;",
      ";",
      "a tile with a document's edge is not masked")
plant("attention.hb_interior_query", HOPPER_BACKWARD, "bound",
      "row < item.all_query || ",
      "",
      "the diagonal is not masked")
plant("attention.hb_oldest", HOPPER_ROWS, "bound",
      ".oldest_key = head.first_key(last)};",
      ".oldest_key = oldest};",
      "documents that begin in a tile of queries are not seen to")
plant("attention.hb_padding", HOPPER_ROWS, "mask",
      "s < head.num_keys() && head.key_valid(s) ? head.first_query(s) : INT_MAX;",
      "s < head.num_keys() ? head.first_query(s) : INT_MAX;",
      "hidden keys give and get gradients")
plant("attention.hb_whole", HOPPER_ROWS, "bound",
      "last == first + kKeys - 1 && attention.key_valid == nullptr;",
      "last == first + kKeys - 1;",
      "hidden keys are seen where nothing else calls for the mask")
plant("attention.hb_end_tile", HOPPER_ROWS, "bound",
      "ceil_div(head.end_query(last), kQueries)",
      "ceil_div(head.end_query(first), kQueries)",
      "later documents of a tile of keys get no gradients")
plant("attention.hb_offset", HOPPER_ROWS, "initial value",
      ".offset = lse == -INFINITY ? -INFINITY : factors.shift - kLog2E * lse};",
      ".offset = factors.shift - kLog2E * lse};",
      "a query that is not there has infinite probabilities")
plant("attention.hb_delta", HOPPER_ROWS, "operand",
      ".shift = -factors.slope * delta};",
      ".shift = -delta};",
      "delta is taken off without the logit's slope")
plant("attention.hb_cap_slope", HOPPER_BACKWARD, "operand",
      "p[j] * fmaf(-v[j], v[j], v[j])",
      "p[j] * v[j]",
      "the cap's derivative is not that of tanh")
plant("attention.hb_slice_turn", HOPPER_BACKWARD, "order",
      "          gpu::wait_at_least(turn, item.slice);\n",
      "",
      "dk and dv are added to before their turn")
plant("attention.hb_slice_seen", HOPPER_BACKWARD, "barrier",
      "        gpu::sync_named(kOwn + consumer_, kWarpgroup);  // all see what was waited for\n",
      "",
      "threads read sums that the first of them waits for")
plant("attention.hb_slice_last", HOPPER_BACKWARD, "bound",
      "if (item.slice < num_slices - 1) {",
      "if (item.slice < num_slices) {",
      "nobody writes dk and dv")
plant("attention.hb_slice_written", HOPPER_BACKWARD, "barrier",
      "        gpu::sync_named(kOwn + consumer_, kWarpgroup);  // all sums are written\n",
      "",
      "the next slice has its turn before all sums are written")
plant("attention.hb_slice_end", HOPPER_BACKWARD, "bound",
      "end_step = num_steps * (slice + 1) / plan.num_slices;",
      "end_step = num_steps / plan.num_slices * (slice + 1);",
      "steps that do not divide are left out")
plant("attention.hb_head", HOPPER_BACKWARD, "head index",
      "      ++n;\n",
      "      n += 2;\n",
      "every other head of a group is left out")
plant("attention.hb_key_tail", HOPPER_BACKWARD, "tail guard",
      "      if (s < num_keys) {\n",
      "      if (s <= num_keys) {\n",
      "a row past the last key is written")
plant("attention.hb_write_tail", HOPPER_ROWS, "tail guard",
      "      if (t < head.num_tokens()) {\n",
      "      if (t <= head.num_tokens()) {\n",
      "a row past the last query is written")
plant("attention.hb_write_nothing", HOPPER_ROWS, "initial value",
      "const bool has_sums = seen.first_tile <= seen.last_tile;",
      "const bool has_sums = true;",
      "queries that no tile of keys gives anything get what was there")
plant("attention.hb_columns", HOPPER_BACKWARD, "index",
      "rows_descriptor(&shared.key.half[consumer_],",
      "rows_descriptor(&shared.key.half[0],",
      "both halves of dq are formed with the first half of the keys")
plant("attention.hb_order", HOPPER_ORDER, "order",
      "return last - (position - first);",
      "return position;",
      "tiles of keys are not taken in the order of their turns")
plant("attention.hb_before", HOPPER_ORDER, "order",
      "(band_first > first ? band_first - first : 0) + newest - tile;",
      "newest - tile;",
      "tiles of earlier bands are not waited for")
