# SPDX-License-Identifier: Apache-2.0
"""Faults in the kernels of all ops but attention."""
from table import planter

plant = planter("kernels")

# ---- adamw

ADAMW = "adamw/adamw.cu"

plant("adamw.no_tail_guard", ADAMW, "tail guard",
      "if (first + (kQuads - 1) * kStride + kQuad <= n) {", "if (first < n) {",
      "the last threads take whole quads of a part")
plant("adamw.tail_short", ADAMW, "bound",
      "i < quad + kQuad && i < n; ++i", "i < quad + kQuad && i + 1 < n; ++i",
      "the last parameter is not updated")
plant("adamw.overlapping_blocks", ADAMW, "index",
      "block * kStride * kQuads + static_cast<int>(threadIdx.x) * kQuad",
      "block * (kStride - kQuad) * kQuads + static_cast<int>(threadIdx.x) * kQuad",
      "neighbouring blocks update the same parameters twice")
plant("adamw.clip_up", ADAMW, "condition",
      "c.clip_norm > 0.0F && ratio < 1.0F ? ratio", "c.clip_norm > 0.0F ? ratio",
      "a norm below the limit scales the gradient up")
plant("adamw.rates_order", ADAMW, "operand",
      ".m_correction = op.rates[1], .v_correction = op.rates[2]};",
      ".m_correction = op.rates[2], .v_correction = op.rates[1]};",
      "the moments are corrected by each other's factor")
plant("adamw.unclipped_square", ADAMW, "operand",
      "c.one_minus_beta2 * g * g;", "c.one_minus_beta2 * g * grad[p][i];",
      "the second moment sees one factor of the gradient before clipping")
plant("adamw.swapped_moments", ADAMW, "operand",
      "store_pieces(op.m + first, kStride, m);\n  store_pieces(op.v + first, kStride, v);",
      "store_pieces(op.m + first, kStride, v);\n  store_pieces(op.v + first, kStride, m);",
      "the moments are stored in each other's place")
plant("adamw.second_quad", ADAMW, "index",
      "load_pieces(op.m + first, kStride, m);", "load_pieces(op.m + first, kQuad, m);",
      "a thread's second quad is read from beside its first")

# ---- cross_entropy

CROSS_ENTROPY = "cross_entropy/cross_entropy.cu"

plant("cross_entropy.maximum_start", CROSS_ENTROPY, "initial value",
      "float largest = -FLT_MAX;", "float largest = 0.0F;",
      "a row whose logits are all far below 0 underflows: its loss is infinite", occurrence=0)
plant("cross_entropy.maximum_infinity", CROSS_ENTROPY, "initial value",
      "float largest = -FLT_MAX;", "float largest = -INFINITY;",
      "logits of -inf give exp(-inf + inf), a NaN", occurrence=0)
plant("cross_entropy.unscaled", CROSS_ENTROPY, "scale",
      "factor_(grad_scale * s.slope)", "factor_(s.slope + 0.0F * grad_scale)",
      "the gradient is of the sum of losses")
plant("cross_entropy.rescale", CROSS_ENTROPY, "accumulate",
      "      running.sum *= s.exponential(running.largest - new_largest);\n", "",
      "the sum so far stays relative to the old maximum")
plant("cross_entropy.own_maximum", CROSS_ENTROPY, "reduction",
      "gpu::block_sum(running.sum * s.exponential(running.largest - largest), scratch)",
      "gpu::block_sum(running.sum, scratch)",
      "each thread's sum is relative to its own maximum")
plant("cross_entropy.wide_cap", CROSS_ENTROPY, "condition",
      "op.cap > 0.0F && op.cap <= kLargestFixedCap", "op.cap > 0.0F",
      "the sum of a row overflows where the cap is wide")
plant("cross_entropy.tail_exponent", CROSS_ENTROPY, "scale",
      "inner = (tail ? 2.0F * kUnit : 1.0F)", "inner = (tail ? 2.0F : 1.0F)",
      "logits in bf16 are bent in nats where the exponent is of 2")
plant("cross_entropy.tail_shift", CROSS_ENTROPY, "operand",
      "(kCapped ? shift : 0.0F) - less", "-less",
      "capped logits in bf16 lie lower by the cap")
plant("cross_entropy.target_bits", CROSS_ENTROPY, "index",
      "chosen = first + i == v ? l[i] : chosen;", "chosen = first + i == v ? chosen : l[i];",
      "the target's logit is a neighbour's")
plant("cross_entropy.nats", CROSS_ENTROPY, "scale",
      "loss[t] = s.kNats * (logarithm", "loss[t] = (logarithm",
      "losses of logits in bf16 are in bits")
plant("cross_entropy.shard_nats", CROSS_ENTROPY, "scale",
      "lse[t] * s.kUnit,", "lse[t],",
      "a rank's probabilities in bf16 are by the logarithm in nats")
plant("cross_entropy.shard_target", CROSS_ENTROPY, "bound",
      "targets[t] >= 0 && target >= 0 && target < V;", "targets[t] >= 0 && target < V;",
      "a target of a rank before this one is read in front of the row")
plant("cross_entropy.target_past_the_last", CROSS_ENTROPY, "bound",
      "threadIdx.x == 0 && target < V)", "threadIdx.x == 0 && target <= V)",
      "a target just outside of the vocabulary has the next row's first logit")
plant("cross_entropy.shard_past_the_last", CROSS_ENTROPY, "bound",
      "targets[t] >= 0 && target >= 0 && target < V;", "targets[t] >= 0 && target >= 0 && target <= V;",
      "the next rank's first target has the next row's first logit")
plant("cross_entropy.shard_first", CROSS_ENTROPY, "bound",
      "targets[t] >= 0 && target >= 0 && target < V;", "targets[t] >= 0 && target > 0 && target < V;",
      "a rank's first column is nobody's target")
plant("cross_entropy.ignored_zero", CROSS_ENTROPY, "bound",
      "  if (target < 0) {", "  if (target <= 0) {",
      "the first token counts nothing as a target")
plant("cross_entropy.shard_begin", CROSS_ENTROPY, "index",
      "const std::int64_t target = targets[t] - vocab_begin;",
      "const std::int64_t target = targets[t] - 0 * vocab_begin;",
      "every rank takes the first columns for its own")
plant("cross_entropy.join_maximum", CROSS_ENTROPY, "reduction",
      "largest = fmaxf(largest, shard_lse[p * T + t]);", "",
      "the sum over ranks overflows where a later rank's is larger")
plant("cross_entropy.join_row", CROSS_ENTROPY, "index",
      "target += shard_target[p * T + t];", "target += shard_target[p + t];",
      "another token's target is added")
plant("cross_entropy.shard_gradient_begin", CROSS_ENTROPY, "index",
      "targets[t] - vocab_begin, lse[t]", "targets[t] - 0 * vocab_begin, lse[t]",
      "the one-hot lies in the columns of another rank")
plant("cross_entropy.target_element", CROSS_ENTROPY, "index",
      "gradients[i] -= i == place ? 1.0F : 0.0F;", "gradients[i] -= place == 0 ? 1.0F : 0.0F;",
      "only targets at the head of a vector have a gradient")
plant("cross_entropy.slope", CROSS_ENTROPY, "operand",
      "slope_factor<kCapped>(l[i]);", "slope_factor<kCapped>(0.5F * l[i]);",
      "the cap's derivative is taken at another logit")
plant("cross_entropy.target_vector", CROSS_ENTROPY, "bound",
      "if (place < kWidth) {", "if (place - 1 < kWidth - 1) {",
      "a target at the head of a vector has no gradient of its own")
plant("cross_entropy.target_vector_end", CROSS_ENTROPY, "bound",
      "if (place < kWidth) {", "if (place < kWidth - 1) {",
      "a target at the end of a vector has none, nor any where vectors are of one")
plant("cross_entropy.ignored_gradient", CROSS_ENTROPY, "condition",
      "gpu::store_floats(gradient + v, zeros);", "static_cast<void>(gradient), static_cast<void>(zeros);",
      "rows that do not count keep what was in the gradient's memory")
plant("cross_entropy.slots_turn", CROSS_ENTROPY, "index",
      "slot_ -= slot_ < end_of_slots_ ? 0 : ahead;", "slot_ -= slot_ <= end_of_slots_ ? 0 : ahead;",
      "a row longer than its slots goes on past them")
plant("cross_entropy.slots_back", CROSS_ENTROPY, "index",
      "slot_ < end_of_slots_ - ahead + step_ ? ahead : 0;",
      "slot_ < end_of_slots_ - ahead ? ahead : 0;",
      "the slots that take turns are left a turn early on the way back")
plant("cross_entropy.slots_again", CROSS_ENTROPY, "condition",
      "ask_for(source_ - ahead, slot_, v_ >= end_of_slots_);",
      "ask_for(source_ - ahead, slot_, v_ >= end_of_slots_ + step_);",
      "one vector that lost its slot is not read again")
plant("cross_entropy.slots_arrive", CROSS_ENTROPY, "barrier",
      "gpu::copy_async_wait<kAhead - 1>();", "gpu::copy_async_wait<kAhead>();",
      "a slot is read before its vector has come")
plant("cross_entropy.in_place_race", CROSS_ENTROPY, "race",
      "loss[t] = s.kNats * (logarithm - (target_logit - all.largest));",
      "loss[t] = s.kNats * (logarithm + (target_logit - target_logit) -\n"
      "                         (logit_at<T, kWidth, kCapped>(row, target, s) - all.largest));",
      "the target's logit is read when others may have written its gradient over it")
plant("cross_entropy.block_max_barrier", "device/reduce.h", "barrier",
      "  sync_threads();  // all partial maxima are read: scratch is free\n", "",
      "the sum's partials overwrite maxima that others have not read")
plant("cross_entropy.max_neutral", "device/reduce.h", "initial value",
      "scratch[lane_id()] : scratch[0]);", "scratch[lane_id()] : 0.0F);",
      "the maximum over the block is never below 0: rows far below it underflow")

# ---- soft_cap

SOFT_CAP = "device/soft_cap.h"

plant("soft_cap.largest", SOFT_CAP, "bound",
      "kLargest = 31.0F;", "kLargest = 60.0F;",
      "the product of four overflows where three are saturated, and the fourth is lost")
plant("soft_cap.nan", SOFT_CAP, "operand",
      "min_or_nan(z[i], kLargest)", "(z[i] < kLargest ? z[i] : kLargest)",
      "a NaN becomes the cap")
plant("soft_cap.saturated", SOFT_CAP, "bound",
      "min_or_nan(z[i], kLargest)", "z[i]",
      "the product of four overflows")
plant("soft_cap.first_pair", SOFT_CAP, "operand",
      "of_first * z[1], of_first * z[0],", "of_first * z[0], of_first * z[1],",
      "two neighbours have each other's tails")
plant("soft_cap.pair", SOFT_CAP, "operand",
      "of_second * z[3], of_second * z[2]};", "of_second * z[2], of_second * z[3]};",
      "two neighbours have each other's tails")
plant("soft_cap.one", SOFT_CAP, "operand",
      "exp2_approx(z) + 1.0F", "exp2_approx(-z) + 1.0F",
      "the bend of one is the other way round")

# ---- exp2_polynomial

EXP2 = "device/exp2_polynomial.h"

plant("exp2_polynomial.bias", EXP2, "operand",
      "12582912.0F + 127.0F;", "12582912.0F + 126.0F;",
      "all powers are half of what they are")
plant("exp2_polynomial.last", EXP2, "operand",
      "1.32647972e-3F", "1.33335581e-3F",
      "the last coefficient is that of the series about 0, which is further off at the ends")
plant("exp2_polynomial.first", EXP2, "operand",
      "fmaf(p, f, 6.93147004e-1F)", "fmaf(p, f, 6.93148e-1F)",
      "a coefficient is off in its seventh digit")

# ---- elementwise

ELEMENTWISE = "elementwise/elementwise.cu"

plant("elementwise.no_tail_guard", ELEMENTWISE, "tail guard",
      "if (first + (kPieces - 1) * kStep + kWidth <= n) {", "if (first < n) {",
      "the last threads map whole pieces of a part")
plant("elementwise.no_tail_guard_of_two", ELEMENTWISE, "tail guard",
      "if (first + kWidth <= n) {", "if (first < n) {",
      "the last thread maps a whole vector of a part")
plant("elementwise.piece", ELEMENTWISE, "index",
      "gpu::store_pieces(y + first, kStep, values);", "gpu::store_pieces(y + first, 0, values);",
      "a thread's second piece is written over its first")
plant("elementwise.piece_tail", ELEMENTWISE, "bound",
      "for (std::int64_t begin = first; begin < n; begin += kStep) {",
      "for (std::int64_t begin = first; begin < n; begin += kPieces * kStep) {",
      "of the last block's second pieces nothing is mapped")
plant("elementwise.tail_short", ELEMENTWISE, "bound",
      "for (std::int64_t i = first; i < n; ++i) {",
      "for (std::int64_t i = first; i + 1 < n; ++i) {",
      "the last element of two operands is not mapped")
plant("elementwise.neighbour", ELEMENTWISE, "index",
      "map_pairs<1>(map, y + i, a + i, b + i);", "map_pairs<1>(map, y + i, a + i, b + first);",
      "the tail reads its first element throughout")
plant("elementwise.grid_floor", ELEMENTWISE, "launch",
      ".x = ceil_div(n, kThreads * elements_per_thread)}",
      ".x = n / (kThreads * elements_per_thread)}",
      "the last, partial block is not launched")
plant("elementwise.cap_scale", ELEMENTWISE, "operand",
      "cap * tanhf(ratio * x)", "ratio * cap * cap * tanhf(x / cap)",
      "the scale is applied outside of the cap")
plant("elementwise.swapped", ELEMENTWISE, "operand",
      "op.dx, op.dy, op.y, stream);", "op.dx, op.y, op.dy, stream);",
      "output and gradient are exchanged")

# ---- embedding

EMBEDDING = "embedding/embedding.cu"

plant("embedding.order_barrier", EMBEDDING, "barrier",
      "  gpu::sync_threads();  // the counts of all warps are written\n", "",
      "counts of other warps are read before they are written")

plant("embedding.order_warps", EMBEDDING, "warp id",
      "for (int p = warp * kAtOnce; p < own;", "for (int p = 0; p < own;",
      "all warps compare with the same tokens")

plant("embedding.order_tail", EMBEDDING, "tail guard",
      "p < whole; p += kWarpSize) {", "p < num_tokens; p += kWarpSize) {",
      "tokens past the last are read and counted")

plant("embedding.order_last", EMBEDDING, "bound",
      "p < num_tokens && warp == 0; ++p) {", "p < whole && warp == 0; ++p) {",
      "the last tokens, fewer than four, are not counted")

plant("embedding.order_own", EMBEDDING, "tail guard",
      "own + other_lane < num_tokens && (other < token || is_earlier)", "other < token || is_earlier",
      "lanes past the last position are counted")

plant("embedding.order_before", EMBEDDING, "condition",
      "others.values[i] <= token);", "others.values[i] < token);",
      "equal tokens that come earlier are not counted")

plant("embedding.order_positions", EMBEDDING, "tail guard",
      "tokens_T[t < num_tokens ? t : num_tokens - 1];", "tokens_T[t];",
      "lanes past the last position read a token")

plant("embedding.order_written", EMBEDDING, "tail guard",
      "if (warp == 0 && t < num_tokens) {", "if (warp == 0) {",
      "lanes past the last position have a place in the order")

plant("embedding.order_earlier", EMBEDDING, "condition",
      "other == token && other_lane < lane;", "other == token && other_lane <= lane;",
      "a position comes before itself, and no token has a first one")

plant("embedding.order_first", EMBEDDING, "condition",
      "order_T[rank] = is_met ? t : as_first(t);", "order_T[rank] = rank > 0 ? t : as_first(t);",
      "only the smallest token has a first position")

plant("embedding.before", EMBEDDING, "accumulate",
      "    load_floats(dweight_VD + row * width + columns[r], sums[r]);\n",
      "    for (int c = 0; c < kWidth; ++c) { sums[r][c] = 0.0F; }\n",
      "the gradient of before is lost")

plant("embedding.next_token", EMBEDDING, "condition",
      "!is_first(entries[a]) && (a == 0 || is_here[a - 1]);", "!is_first(entries[a]);",
      "positions behind the next token's first are added too")

plant("embedding.past_the_order", EMBEDDING, "bound",
      "begin + a < num_tokens ? order_T[begin + a] : as_first(0);", "order_T[begin + a];",
      "the order is read past its end")

plant("embedding.ahead", EMBEDDING, "bound",
      "    place += kAhead;\n", "    place += kAhead - 1;\n",
      "every fourth position of a token is added twice")

plant("embedding.columns", EMBEDDING, "tail guard",
      "has_run[r] = columns[r] < width;", "has_run[r] = true;",
      "threads past the row's end write into the next row")

plant("embedding.every_position", EMBEDDING, "race between blocks",
      "if (!is_first(entries[0]) || !has_run[0]) {\n    return;\n  }\n  entries[0] = as_first(entries[0]);",
      "if (!has_run[0]) {\n    return;\n  }\n  entries[0] = is_first(entries[0]) ? as_first(entries[0]) : entries[0];",
      "a block for each position of a token adds to its row")

plant("embedding.rows_without_tokens", EMBEDDING, "initial value",
      "    device_zero(op.dweight_VD.data, op.dweight_VD.bytes(), stream);\n", "",
      "rows that no token has stay what they were, and the others are added to")
plant("embedding.zeroed_once", EMBEDDING, "condition",
      "op.weight_gradient == WeightGradient::write", "op.weight_gradient == WeightGradient::add",
      "what is to be added to is lost")
plant("embedding.shard_bound", EMBEDDING, "bound",
      "const bool is_here = row >= 0 && row < rows.count;", "const bool is_here = row < rows.count;",
      "a token of a rank before this one is read in front of the weights")
plant("embedding.shard_begin", EMBEDDING, "index",
      "tokens_T[entries[0]] - rows.begin;", "tokens_T[entries[0]];",
      "gradients go to the rows of another rank")
plant("embedding.column_block", EMBEDDING, "index",
      "static_cast<std::int64_t>(blockIdx.y) * kRuns + r;", "r;",
      "all blocks of a row take its first columns")

plant("embedding.past_the_last", EMBEDDING, "bound",
      "const bool is_here = row >= 0 && row < rows.count;", "const bool is_here = row >= 0 && row <= rows.count;",
      "a token just outside of a rank's rows is read from behind them")
plant("embedding.first_row", EMBEDDING, "bound",
      "const bool is_here = row >= 0 && row < rows.count;", "const bool is_here = row > 0 && row < rows.count;",
      "a rank's first token is nobody's")
plant("embedding.backward_past_the_last", EMBEDDING, "bound",
      "if (row < 0 || row >= rows.count) {", "if (row < 0 || row > rows.count) {",
      "gradients of a token just outside of a rank's rows go behind them")

# ---- geglu

GEGLU = "geglu/geglu.cu"
GELU = "geglu/gelu_gpu.h"

plant("geglu.column_guard", GEGLU, "tail guard",
      "if (f >= F) {", "if (f > F) {",
      "the thread at the row's end overwrites the next row's first vector")
plant("geglu.up_offset", GEGLU, "index",
      "gpu::load_floats(gate_up + r * 2 * F + F + f, up);",
      "gpu::load_floats(gate_up + r * 2 * F + f, up);",
      "the gate is taken for the linear half")
plant("geglu.column_block", GEGLU, "index",
      "(static_cast<std::int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * kWidth;",
      "static_cast<std::int64_t>(threadIdx.x) * kWidth;",
      "all blocks of a row take its first columns")
plant("geglu.gate_of_row", GEGLU, "index",
      "dgates[source[r]] = sum;", "dgates[r] = sum;",
      "the gradient of a gate goes to the row's number and not to the assignment's")
plant("geglu.left_before_sum", GEGLU, "divergence",
      "  if (dgates != nullptr) {\n",
      "  if (static_cast<std::int64_t>(threadIdx.x) * kWidth >= F) {\n    return;\n  }\n"
      "  if (dgates != nullptr) {\n",
      "threads without columns leave before the sum over the block")
plant("geglu.swapped_halves", GEGLU, "operand",
      "gpu::store_floats(dgate_row + f, dgate);\n    gpu::store_floats(dgate_row + F + f, dup);",
      "gpu::store_floats(dgate_row + f, dup);\n    gpu::store_floats(dgate_row + F + f, dgate);",
      "the gradients of the halves are exchanged")
plant("geglu.negative_overflow", GELU, "condition",
      "fminf(kExact ? expf(power) : gpu::exp2_approx(power), kLargest);",
      "kExact ? expf(power) : gpu::exp2_approx(power);",
      "of a gate far below 0 the derivative is inf * 0")
plant("geglu.largest", GELU, "formula",
      "constexpr float kLargest = 1e37F;", "constexpr float kLargest = 1e3F;",
      "values far below 0 are not zero")
plant("geglu.derivative_tail", GELU, "formula",
      "fmaf(value * (e * s),", "fmaf(value * e,",
      "the second term of the derivative lacks a factor")
plant("geglu.stride", GEGLU, "stride",
      "f += static_cast<std::int64_t>(blockDim.x) * kWidth) {",
      "f += static_cast<std::int64_t>(blockDim.x)) {",
      "vectors are visited several times, and in place after they were overwritten")

# ---- global_norm

GLOBAL_NORM = "global_norm/global_norm.cu"

plant("global_norm.barrier", GLOBAL_NORM, "barrier",
      "  gpu::sync_threads();  // all partial sums are written\n", "",
      "sums of other warps are read before they are written")
plant("global_norm.warps", GLOBAL_NORM, "bound",
      "gpu::lane_id() < num_warps ?", "gpu::lane_id() <= num_warps ?",
      "the sum of a warp that is not there is added")
plant("global_norm.second_shuffle", GLOBAL_NORM, "shuffle",
      "for (int mask = kWarpSize / 2; mask > 0; mask /= 2) {",
      "for (int mask = kWarpSize / 4; mask > 0; mask /= 2) {",
      "half of the warps of the large block are not in the sum", occurrence=1)
plant("global_norm.no_tail_guard", GLOBAL_NORM, "tail guard",
      "if (at < end_of_vectors) {", "if (at < end) {",
      "the last vector reads past the tensor")
plant("global_norm.tail_short", GLOBAL_NORM, "bound",
      "if (end_of_vectors + threadIdx.x < end) {", "if (end_of_vectors + threadIdx.x + 1 < end) {",
      "the last element is not in the norm")
plant("global_norm.stride", GLOBAL_NORM, "stride",
      "i += kLoads * kThreads * kWidth) {", "i += kThreads * kWidth) {",
      "elements are counted several times")
plant("global_norm.load_stride", GLOBAL_NORM, "stride",
      "i + load * kThreads * kWidth;", "i + load * kWidth;",
      "a thread reads what its neighbours have")
plant("global_norm.run_end", GLOBAL_NORM, "bound",
      "begin + run < n ? begin + run", "begin < n ? begin + run",
      "runs reach past the tensor")
plant("global_norm.partials", GLOBAL_NORM, "bound",
      "p < num_partials; p += kSumThreads", "p + 1 < num_partials; p += kSumThreads",
      "the last block's sum is left out")
plant("global_norm.last_run", GLOBAL_NORM, "bound",
      "std::max<std::int64_t>(ceil_div(n, run), 1)", "std::max<std::int64_t>(n / run, 1)",
      "a last run that is short of elements has no block")
plant("global_norm.partials_stride", GLOBAL_NORM, "stride",
      "p < num_partials; p += kSumThreads", "p < num_partials && p < kSumThreads; p += kSumThreads",
      "sums of blocks beyond the last block's threads are left out")
plant("global_norm.accumulate", GLOBAL_NORM, "accumulate",
      "accumulate ? static_cast<double>(total_1[0]) : 0.0;", "accumulate ? 0.0 : 0.0;",
      "the total of before is lost")
plant("global_norm.sum_scale", GLOBAL_NORM, "scale",
      "before + scale * sum", "scale * (before + sum)",
      "what was there is scaled again")
plant("global_norm.sum_loop", GLOBAL_NORM, "bound",
      "i < n; i += kSumThreads) {", "i < n && i < kSumThreads; i += kSumThreads) {",
      "elements beyond the block's threads are not in the sum")

# ---- grouped_matmul

GROUPED = "grouped_matmul/grouped_matmul.cu"

plant("grouped_matmul.barrier", GROUPED, "barrier",
      "    gpu::sync_threads();\n    load_step(", "    load_step(",
      "a stage is read before the copies of all threads are there")
plant("grouped_matmul.pending", GROUPED, "copy wait",
      "gpu::copy_async_wait<kStages - 2>();", "gpu::copy_async_wait<kStages - 1>();",
      "one step too many may be on its way")
plant("grouped_matmul.stage_loaded", GROUPED, "stage",
      "load_step(step + kStages - 1);", "load_step(step + kStages);",
      "the step that is read is overwritten, and one is never loaded")
plant("grouped_matmul.stage_read", GROUPED, "stage",
      "const int stage = step % kStages;", "const int stage = (step + 1) % kStages;",
      "the next step is read")
plant("grouped_matmul.stage_of_b", GROUPED, "stage",
      "b.load(b_stages + step % kStages * kBStage", "b.load(b_stages + step % 3 * kBStage",
      "b goes around in three stages and is read in four")
plant("grouped_matmul.commit", GROUPED, "copy wait",
      "    gpu::copy_async_commit();\n", "",
      "no copy is in a group, so that no wait is for it")
plant("grouped_matmul.zero_fill", GROUPED, "zero-fill",
      "matrix_.source + (valid ? offset : 0), valid);",
      "matrix_.source + (valid ? offset : 0), true);",
      "what is outside of the operand is its first element and not zero")
plant("grouped_matmul.reduction_tail", GROUPED, "tail guard",
      "const bool valid = outer < matrix_.num_outer && position < reduction_;",
      "const bool valid = outer < matrix_.num_outer && position < reduction_ + kChunk;",
      "the reduction runs into the next row", occurrence=0)
plant("grouped_matmul.copy_rows", GROUPED, "stride",
      "const int row = row_ + i * kRowsApart;", "const int row = row_ + i * kRowsApart / 2;",
      "rows of the stage are never written")
plant("grouped_matmul.fragment_a", GROUPED, "lane",
      "const int column = outer + lane / 8 % 2 * 8;", "const int column = outer + lane / 16 * 8;",
      "the fragment of a transposed operand has its matrices in another order", occurrence=0)
plant("grouped_matmul.fragment_b", GROUPED, "lane",
      "stage + row * kRowLength<major> + depth + lane / 8 % 2 * 8);",
      "stage + row * kRowLength<major> + depth + lane / 16 * 8);",
      "the fragment of b has its matrices in another order")
plant("grouped_matmul.warp_column", GROUPED, "warp id",
      "gpu::warp_id() / kWarpsDown * kWarpColumns;", "gpu::warp_id() % kWarpsDown * kWarpColumns;",
      "half of the tile's columns are computed by nobody")
plant("grouped_matmul.row_guard", GROUPED, "tail guard",
      "if (row >= tile.a.num_outer || column >= tile.b.num_outer) {",
      "if (row > tile.a.num_outer || column >= tile.b.num_outer) {",
      "a row of zeros is written over the next expert's first")
plant("grouped_matmul.column_guard", GROUPED, "tail guard",
      "if (row >= tile.a.num_outer || column >= tile.b.num_outer) {",
      "if (row >= tile.a.num_outer || column > tile.b.num_outer) {",
      "the next row's first pair is overwritten")
plant("grouped_matmul.dweight_accumulate", GROUPED, "accumulate",
      "*c = add ? *c + value : value;", "*c = value;",
      "the gradient of before is lost")
plant("grouped_matmul.dweight_written", GROUPED, "accumulate",
      "*c = add ? *c + value : value;", "*c += value;",
      "what is to be written is added to what was there")
plant("grouped_matmul.empty_expert_written", GROUPED, "condition",
      "op.add && num_rows == 0 ? 0 :", "num_rows == 0 ? 0 :",
      "the gradient of an expert without rows stays what it was")
plant("grouped_matmul.no_rows_written", GROUPED, "launch",
      "(add && R == 0 ? 0 : E)", "(R == 0 ? 0 : E)",
      "without rows no gradient becomes zero")
plant("grouped_matmul.expert_rows", GROUPED, "group index",
      "first_row = op.offsets_E1[expert];", "first_row = op.offsets_E1[0];",
      "each expert also takes the rows of those before it")
plant("grouped_matmul.forward_column", GROUPED, "index",
      "{op.b + weight + column * op.K, op.K, left_of(op.N, column)}",
      "{op.b + weight, op.K, left_of(op.N, column)}",
      "all tiles across are formed with the first weights")
plant("grouped_matmul.dx_column", GROUPED, "index",
      "{op.b + weight + column, op.K, left_of(op.K, column)}",
      "{op.b + weight, op.K, left_of(op.K, column)}",
      "all tiles across dx are formed with the first weights")
plant("grouped_matmul.dweight_row", GROUPED, "index",
      "{op.a + first_row * op.N + row, op.N, left_of(op.N, row)}",
      "{op.a + first_row * op.N, op.N, left_of(op.N, row)}",
      "all tiles down dweight are formed with the first columns of dy")
plant("grouped_matmul.tile_group", GROUPED, "index",
      "(group * kGroupTiles + in_group % group_tiles) * kTile", "(in_group % group_tiles) * kTile",
      "tiles below the first sixteen are those above them")
plant("grouped_matmul.part_group", GROUPED, "bound",
      "left < kGroupTiles ? left : kGroupTiles;", "left < 0 ? left : kGroupTiles;",
      "the last group of tiles is taken to be full")
plant("grouped_matmul.grid", GROUPED, "launch",
      "(R == 0 ? 0 : R / kTile + (E < R ? E : R)) * across;",
      "(R == 0 ? 0 : ceil_div(R, kTile)) * across;",
      "the parts of tiles that experts end with have no block")
plant("grouped_matmul.f32_written", GROUPED, "barrier",
      "    gpu::sync_threads();  // the step is written\n", "",
      "a step is read before all threads have written it")
plant("grouped_matmul.f32_read", GROUPED, "barrier",
      "    gpu::sync_threads();  // the step is read: the next may overwrite it\n", "",
      "the next step overwrites one that is read")
plant("grouped_matmul.f32_tail", GROUPED, "tail guard",
      "const bool valid = outer < matrix_.num_outer && position < reduction_;",
      "const bool valid = outer < matrix_.num_outer && position <= reduction_;",
      "the reduction takes one element too many", occurrence=1)
plant("grouped_matmul.f32_half", GROUPED, "index",
      "[](int i) { return i % 4 + i / 4 * kHalf; }", "[](int i) { return i % 4 + i / 4 * 4; }",
      "the far half of a thread's sums is stored beside the near one")

# ---- experts

EXPERTS = "experts/experts.cu"

for name, occurrence, what in (("down", 0, "down projection"), ("up", 1, "gate and up projections"),
                               ("later_down", 2, "down projection in a pass of its own"),
                               ("later_up", 3, "gate and up projections in a pass of their own")):
    plant(f"experts.write_{name}", EXPERTS, "operand",
          ",\n                                    .weight_gradient = op.weight_gradient}", "}",
          f"the gradient of the {what} is added to what it should replace", occurrence=occurrence)

# ---- matmul

plant("matmul.dweight_written", "matmul/matmul.cpp", "accumulate",
      ".accumulate = op.weight_gradient == WeightGradient::add", ".accumulate = true",
      "what is to be written is added to what was there")

# ---- permute

PERMUTE = "permute/permute.cu"

plant("permute.arrival_sender", PERMUTE, "condition",
      "if (other < sender) {", "if (other <= sender) {",
      "a sender's rows come behind themselves")
plant("permute.arrival_lanes", PERMUTE, "bound",
      "other < P; other += gpu::kWarpSize) {", "other < P && other < gpu::kWarpSize; other += gpu::kWarpSize) {",
      "senders beyond a warp's lanes are not counted")
plant("permute.arrival_room", PERMUTE, "tail guard",
      "if (arrived + i < R && place + i < R) {", "if (arrived + i < R) {",
      "a row without a place is written")
plant("permute.arrival_rank", PERMUTE, "index",
      "sent_offsets + static_cast<std::int64_t>(rank) * E;", "sent_offsets + static_cast<std::int64_t>(rank);",
      "experts of other ranks are counted")
plant("permute.arrival_last", PERMUTE, "index",
      "offsets[E] = place + count;", "offsets[E] = place;",
      "the last sender's rows of the last expert are left out")
plant("permute.spread_copy", PERMUTE, "index",
      "experts_per_rank * copies + copy) * experts_per_rank",
      "experts_per_rank * copies + 0 * copy) * experts_per_rank",
      "every choice goes to the first piece of its expert")
plant("permute.spread_gate", PERMUTE, "index",
      "gates[i] = chosen_gates[i / copies];", "gates[i] = chosen_gates[i % copies];",
      "gates of other choices are taken")
plant("permute.spread_tail", PERMUTE, "tail guard",
      "if (i >= num_spread) {", "if (i > num_spread) {",
      "a choice past the last is written")
plant("permute.gather_copy", PERMUTE, "bound",
      "for (int c = 1; c < copies; ++c) {", "for (int c = 2; c < copies; ++c) {",
      "the second piece's gradient is left out")

plant("permute.zeroed", PERMUTE, "barrier",
      "  gpu::sync_threads();  // all counters are zero\n", "",
      "a counter is added to before it is zero")
plant("permute.counted", PERMUTE, "barrier",
      "  gpu::sync_threads();  // all assignments are counted\n", "",
      "counts are stored before they are complete")
plant("permute.count_stride", PERMUTE, "bound",
      "a < end; a += kCountThreads) {",
      "a < end && a < begin + kCountThreads; a += kCountThreads) {",
      "assignments of a chunk beyond the block's threads are not counted")
plant("permute.plain_add", PERMUTE, "atomic",
      "gpu::atomic_add(&counts[experts[a]], 1);", "counts[experts[a]] += 1;",
      "threads that count one expert at once lose counts")
plant("permute.inclusive", PERMUTE, "index",
      "next[e] += through - own;", "next[e] += through;",
      "an expert's rows begin where they should end")
plant("permute.own_chunk", PERMUTE, "bound",
      "i < own_counts ? next : others;", "i <= own_counts ? next : others;",
      "rows of a chunk's own count among those before it")
plant("permute.scan_lane", PERMUTE, "lane",
      "value += gpu::lane_id() >= delta ? below : 0;",
      "value += gpu::lane_id() > delta ? below : 0;",
      "the scan leaves the first lane out of its neighbour's sum")
plant("permute.sums_zero", PERMUTE, "barrier",
      "  gpu::sync_threads();  // all sums are zero\n", "",
      "chunks are added to a sum before it is zero")
plant("permute.totals", PERMUTE, "barrier",
      "  gpu::sync_threads();  // all chunks are added\n", "",
      "sums are read before they are complete")
plant("permute.later_experts", PERMUTE, "lane",
      "end = gpu::shuffle_from(through, gpu::kWarpSize - 1);", "end = gpu::shuffle_from(through, 0);",
      "experts beyond a warp's lanes begin where others have rows")
plant("permute.first_rows", PERMUTE, "barrier",
      "  gpu::sync_warp();  // all first rows are there\n", "",
      "first rows of other lanes are read before they are written")
plant("permute.next_read", PERMUTE, "barrier",
      "    gpu::sync_warp();  // all lanes have read `next`\n", "",
      "a lane advances `next` while its peers read it")
plant("permute.next_advanced", PERMUTE, "barrier",
      "    gpu::sync_warp();  // `next` is advanced\n", "",
      "the next assignments read `next` before it is advanced")
plant("permute.rank_mask", PERMUTE, "lane mask",
      "((1U << static_cast<unsigned>(lane)) - 1U)", "((2U << static_cast<unsigned>(lane)) - 1U)",
      "a lane counts itself among those before it")
plant("permute.tail_expert", PERMUTE, "tail guard",
      "const int expert = active ? experts[a] : -1;", "const int expert = experts[a];",
      "the expert of an assignment past the last is read")
plant("permute.row_guard", PERMUTE, "tail guard",
      "if (r >= R) {", "if (r > R) {",
      "a row past the last is moved")
plant("permute.token_blocks", PERMUTE, "index",
      "(static_cast<std::int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * kWidth;\n}\n\n// grid: T x",
      "static_cast<std::int64_t>(threadIdx.x) * kWidth;\n}\n\n// grid: T x",
      "all blocks of a token move the first columns of its rows")
plant("permute.odd_choices", PERMUTE, "tail guard",
      "launch(K % 2 == 0 ? unpermute_kernel<T, kWidth, 2> : unpermute_kernel<T, kWidth, 1>,",
      "launch(unpermute_kernel<T, kWidth, 2>,",
      "of an odd number of choices the next token's first is added as well")
plant("permute.nothing", PERMUTE, "initial value",
      "constexpr float kNothing = -0.0F;", "constexpr float kNothing = 0.0F;",
      "a sum of -0 becomes 0")

# ---- rmsnorm

RMSNORM = "rmsnorm/rmsnorm.cu"

plant("rmsnorm.dweight_barrier", RMSNORM, "barrier",
      "  gpu::sync_threads();  // the sums of all warps are written\n", "",
      "sums of other warps are read before they are written")
plant("rmsnorm.block_sum_written", "device/reduce.h", "barrier",
      "  sync_threads();  // all partial sums are written\n", "",
      "sums of other warps are read before they are written")
plant("rmsnorm.block_sum_read", "device/reduce.h", "barrier",
      "  sync_threads();  // all partial sums are read: scratch is free\n", "",
      "the next row's sums overwrite those that others have not read")
plant("rmsnorm.block_sum_warps", "device/reduce.h", "bound",
      "lane_id() < num_warps ? scratch[lane_id()] : 0.0F",
      "lane_id() <= num_warps ? scratch[lane_id()] : 0.0F",
      "the sum of a warp that is not there is added")
plant("rmsnorm.warp_sum", "device/reduce.h", "shuffle",
      "for (int mask = kLanes / 2; mask > 0; mask /= 2) {",
      "for (int mask = kLanes / 4; mask > 0; mask /= 2) {",
      "a warp's halves do not see each other", occurrence=0)
plant("rmsnorm.transposed", RMSNORM, "swizzle",
      "gpu::warp_sum(sums[lane][warp]);", "gpu::warp_sum(sums[warp][lane]);",
      "a warp sums its own columns and not its own runs")
plant("rmsnorm.last_vector", RMSNORM, "bound",
      "if (d < width) {", "if (d + kWidth < width) {",
      "the last vector of a row is not written", occurrence=1)
plant("rmsnorm.vectors", RMSNORM, "stride",
      "const int d = first + v * stride;", "const int d = first + v * kWidth;",
      "a thread reads what its neighbours have", occurrence=0)
plant("rmsnorm.row_loop", RMSNORM, "bound",
      "for (std::int64_t d = threadIdx.x; d < width; d += blockDim.x) {",
      "for (std::int64_t d = threadIdx.x; d < width && d < blockDim.x; d += blockDim.x) {",
      "a row's columns beyond the block's threads are not in its sum", occurrence=0)
plant("rmsnorm.dweight_runs", RMSNORM, "bound",
      "run < num_runs; run += kWarpSize) {",
      "run < num_runs && run < kWarpSize; run += kWarpSize) {",
      "runs beyond the block's warps are not in the sum")
plant("rmsnorm.run_end", RMSNORM, "bound",
      "begin + run < num_tokens ? run", "begin < num_tokens ? run",
      "the last run goes past the last row")
plant("rmsnorm.row_ahead", RMSNORM, "index",
      "load_row<true>(row, norm, t + 1, num_rows, width);",
      "load_row<true>(row, norm, t, num_rows, width);",
      "a row is reduced twice, and the last of a run never")
plant("rmsnorm.last_row", RMSNORM, "bound",
      "first_column<T>() < width && t < num_rows", "first_column<T>() < width",
      "what is asked for ahead goes past the last row")
plant("rmsnorm.idle_threads", RMSNORM, "tail guard",
      "first_column<T>() < width && t < num_rows", "t < num_rows",
      "threads beyond the row add what the next one begins with")
plant("rmsnorm.dweight_norm", RMSNORM, "operand",
      "blockIdx.y == 0 ? norm : next;", "norm;",
      "the next norm's weight has no gradient")
plant("rmsnorm.dweight_read", RMSNORM, "tail guard",
      "if (first_column + lane < width) {", "if (first_column + lane < width + kWarpSize) {",
      "columns past the last run's end are read")
plant("rmsnorm.dweight_write", RMSNORM, "tail guard",
      "if (lane == 0 && first_column + warp < width) {", "if (lane == 0) {",
      "columns past the last are written")
plant("rmsnorm.dweight_accumulate", RMSNORM, "accumulate",
      "*dweight = add ? *dweight + total : total;", "*dweight = total;",
      "the gradient of before is lost")
plant("rmsnorm.dweight_written", RMSNORM, "accumulate",
      "*dweight = add ? *dweight + total : total;", "*dweight += total;",
      "what is to be written is added to what was there")
plant("rmsnorm.accumulate", RMSNORM, "accumulate",
      "dx[i] = dx[i] + weight[i]", "dx[i] = weight[i]",
      "the gradient of the residual is lost")
plant("rmsnorm.partial_row", RMSNORM, "race between blocks",
      ".partial_PD = norm.partial_PD + block * width,", ".partial_PD = norm.partial_PD,",
      "all runs write one row of partial sums")
plant("rmsnorm.sums_zeroed", RMSNORM, "initial value",
      "    store_floats(sums + d, zeros);\n", "",
      "sums begin with what was in shared memory")
plant("rmsnorm.rrms_row", RMSNORM, "index",
      "row.rrms = norm.rrms_T[t];", "row.rrms = norm.rrms_T[0];",
      "rows take the factor of the first")
plant("rmsnorm.next_stored", RMSNORM, "rounding",
      "const float stored = gpu::to_float(gpu::from_float<T>(y));", "const float stored = y;",
      "the next norm is of values that are not stored")
plant("rmsnorm.next_size", RMSNORM, "operand",
      "const float next_rrms = row_rrms(sum_squares(x), width, eps, scratch);",
      "const float next_rrms = rrms;",
      "the next norm is by the size of x")
plant("rmsnorm.next_weight", RMSNORM, "operand",
      "load_floats(next.weight_D + d, weight);", "load_floats(norm.weight_D + d, weight);",
      "both norms have one weight")
plant("rmsnorm.next_gradient", RMSNORM, "accumulate",
      ".accumulate = op.next.accumulate,", ".accumulate = false,",
      "the residual's gradient is lost")
plant("rmsnorm.next_written", RMSNORM, "accumulate",
      ".accumulate = op.next.accumulate,", ".accumulate = true,",
      "the last norm's gradient is added to what was there")
plant("rmsnorm.next_partial", RMSNORM, "operand",
      "first_column<T>(), next_columns.sums);", "first_column<T>(), columns.sums);",
      "both weights have one gradient")

# ---- rope

ROPE = "rope/rope.cu"

plant("rope.overwritten", ROPE, "operand",
      "second[k] * cosine + x * sine;", "second[k] * cosine + first[k] * sine;",
      "the second half is turned by the first one's new value")
plant("rope.sign", ROPE, "sign",
      "static_cast<float>(kSign) * angle[2 * k + 1];", "angle[2 * k + 1];",
      "the backward pass turns forward")
plant("rope.position", ROPE, "index",
      "position_T[token]", "position_T[0]",
      "all tokens are turned by the first one's angle")
plant("rope.token_stride", ROPE, "stride",
      "(token * num_heads + i / runs_per_head)",
      "(token * (num_heads < num_rotated_heads ? num_heads : num_rotated_heads) +"
      " i / runs_per_head)",
      "tokens lie as far apart as if they had no values")
plant("rope.one_run_more", ROPE, "bound",
      "i < num_rotated_heads * runs_per_head;", "i <= num_rotated_heads * runs_per_head;",
      "a run of the first value head is turned too")
plant("rope.pair", ROPE, "stride",
      "T* const x2 = x1 + half;", "T* const x2 = x1 + kWidth;",
      "a pair is neighbours and not the halves' elements")
plant("rope.table", ROPE, "stride",
      "gpu::load_floats(row + 2 * j, angle);", "gpu::load_floats(row + j, angle);",
      "angles of earlier pairs are taken")

# ---- router

ROUTER = "router/router.cu"
ROUTER_BACKWARD = "router/router_backward.cu"
ROUTER_GPU = "router/router_gpu.h"

plant("router.loss_scales_order", ROUTER_BACKWARD, "operand",
      "const float balance_scale = loss_scales[0];\n  const float z_scale = loss_scales[1];",
      "const float balance_scale = loss_scales[1];\n  const float z_scale = loss_scales[0];",
      "the auxiliary losses weigh what the other does")
plant("router.logits_written", ROUTER, "barrier",
      "  gpu::sync_warp();  // the logits of this warp's tokens are written\n", "",
      "lanes read logits that lane 0 has not written")
plant("router.own_logits", ROUTER, "warp id",
      "shared_logits[gpu::warp_id()];", "shared_logits[0];",
      "all warps keep their logits in one place")
plant("router.divergent_sum", ROUTER, "divergence",
      "const float sum = gpu::warp_sum(sums[j][i]);\n"
      "        if (lane == 0 && group + i < s.E) {\n"
      "          own_logits[j][group + i] = sum;",
      "if (lane == 0 && group + i < s.E) {\n"
      "          own_logits[j][group + i] = gpu::warp_sum(sums[j][i]);",
      "one lane alone takes part in the warp's sum")
plant("router.row_tail", ROUTER, "tail guard",
      "(first + j < s.T ? first + j : s.T - 1) * s.D;", "(first + j) * s.D;",
      "rows past the last token are read")
plant("router.expert_tail", ROUTER, "tail guard",
      "group + i < s.E ? group + i : s.E - 1;", "group + i;",
      "weights past the last expert are read")
plant("router.tie", ROUTER, "condition",
      "(other == best && other_expert < expert)", "(other == best && other_expert > expert)",
      "of equal probabilities the last expert is chosen")
plant("router.z_valid", ROUTER, "condition",
      "is_valid(out.valid_T, t) ? lse * lse : 0.0F;", "is_valid(out.valid_T, t) || t >= 0 ? lse * lse : 0.0F;",
      "padding counts in the z loss")
plant("router.softmax_start", ROUTER_GPU, "initial value",
      "float largest = -FLT_MAX;", "float largest = 0.0F;",
      "a token whose logits are all far below 0 has no probabilities")
plant("router.lane_experts", ROUTER_GPU, "lane",
      "const int e = R::expert(i);\n    row.values[i] = e < E",
      "const int e = R::lane() * R::kCount + i;\n    row.values[i] = e < E",
      "a lane loads four experts side by side and holds them for experts 32 apart")
plant("router.row_lanes", ROUTER_GPU, "lane",
      "return gpu::lanes_sum<R::kLanes>(sum);", "return gpu::lanes_sum<gpu::kWarpSize>(sum);",
      "tokens of a warp have one sum")
plant("router.tile_written", ROUTER, "barrier",
      "    gpu::sync_threads();  // the sums of all warps are written\n    static_assert", "    static_assert",
      "logits are summed before all warps have written")
plant("router.tile_read", ROUTER, "barrier",
      "    gpu::sync_threads();  // the group's logits are written, and its sums read\n", "",
      "the next experts' sums are written over those that are read")
plant("router.tile_rows", ROUTER, "tail guard",
      "const int token = i * 8 + lane / 4;\n    rows", "const int token = i * 8;\n    rows",
      "eight tokens have the first one's logits")
plant("router.tile_last", ROUTER, "tail guard",
      "(first + (token < last ? token : last)) * s.D;", "(first + token) * s.D;",
      "rows past the last token are read")
plant("router.tile_columns", ROUTER, "tail guard",
      "      if (d < s.D) {\n", "      if (d >= 0) {\n",
      "columns past the last one are those of the next row")
plant("router.tile_terms", ROUTER, "index",
      "gpu::mma_m16n8k16(rest[i], tokens, low.terms[term], high.terms[term]);",
      "gpu::mma_m16n8k16(rest[i], tokens, low.terms[1], high.terms[1]);",
      "of a weight's last eight bits others are taken")
plant("router.tile_expert", ROUTER, "tail guard",
      "if (thread / kExperts <= last && group + thread % kExperts < s.E) {",
      "if (thread / kExperts <= last) {",
      "logits past the last expert are the next token's")
plant("router.sums_expert", ROUTER, "index",
      "probs[tokens[j] * s.E + expert];", "probs[tokens[j] * s.E];",
      "probabilities of the first expert are added for all")

plant("router.sums_valid", ROUTER, "condition",
      "sum += weights[j] > 0.0F ? own[j] : 0.0F;", "sum += own[j];",
      "padding counts in the balance")

plant("router.sums_count_valid", ROUTER, "condition",
      "count += experts[tokens[j] * s.K + k] == expert ? weights[j] : 0.0F;",
      "count += experts[tokens[j] * s.K + k] == expert ? 1.0F : 0.0F;",
      "padding counts as assigned")

plant("router.sums_stride", ROUTER, "bound",
      "first < length; first += kSumTokens * stride) {",
      "first < length && first < stride; first += kSumTokens * stride) {",
      "tokens of a sequence beyond the block's first ones are not counted")

plant("router.sums_tail", ROUTER, "tail guard",
      "i < length && is_valid(valid, tokens[j]) ? 1.0F : 0.0F;",
      "is_valid(valid, tokens[j]) ? 1.0F : 0.0F;",
      "the last token of a sequence is counted several times")

plant("router.sums_sequence", ROUTER, "index",
      "sequence * s.S + (i < length ? i : length - 1);", "i < length ? i : length - 1;",
      "every sequence has the sums of the first")

plant("router.sums_tokens", ROUTER, "operand",
      "valid_tokens[sequence] = static_cast<std::int32_t>(num_valid);",
      "valid_tokens[sequence] = static_cast<std::int32_t>(s.S);",
      "padding counts as valid tokens")

plant("router.balance_tail", ROUTER, "tail guard",
      "thread < E ? probs_sum[i] * static_cast<float>(counts[i]) : 0.0F;",
      "probs_sum[i] * static_cast<float>(counts[i]);",
      "the experts of the next sequence are added")
plant("router.counts_sequence", ROUTER_BACKWARD, "index",
      "counts + t / s.S * s.E;", "counts + t / s.S;",
      "counts of another sequence are taken")
plant("router.softmax_gradient", ROUTER_BACKWARD, "operand",
      "prob.values[i] * (dprob.values[i] - mean)", "prob.values[i] * dprob.values[i] - mean",
      "the mean is not weighted by the probability")
plant("router.dx_barrier", ROUTER_BACKWARD, "barrier",
      "  gpu::sync_threads();  // the tokens' dz are there\n", "",
      "gradients are read before they are written")
plant("router.dx_tail", ROUTER_BACKWARD, "tail guard",
      "(batch + j < last ? batch + j : last) * s.D;", "(batch + j) * s.D;",
      "rows past the last token are written")
plant("router.dx_accumulate", ROUTER_BACKWARD, "accumulate",
      "sums[j][c] += before[j][c];", "sums[j][c] = before[j][c];",
      "the router's own gradient is lost")
plant("router.dx_columns", ROUTER_BACKWARD, "index",
      "static_cast<int>(blockIdx.y * kColumnThreads + threadIdx.x) * kWidth;",
      "static_cast<int>(threadIdx.x) * kWidth;",
      "all blocks of a row take its first columns")
plant("router.dx_groups", ROUTER_BACKWARD, "condition",
      "if (batch == 0 || num_groups > 1) {", "if (batch == 0) {",
      "later tokens take the last experts' weights for the first ones'")
plant("router.partial_columns", ROUTER_BACKWARD, "index",
      "(static_cast<std::int64_t>(blockIdx.y) * kColumnThreads + threadIdx.x) * kWidth;",
      "static_cast<std::int64_t>(threadIdx.x) * kWidth;",
      "all blocks of a run take its first columns")
plant("router.partial_run", ROUTER_BACKWARD, "race between blocks",
      "partial + (static_cast<std::int64_t>(blockIdx.x) * s.E + group + i) * s.D + d;",
      "partial + (static_cast<std::int64_t>(blockIdx.x / 2) * s.E + group + i) * s.D + d;",
      "two runs write one sum")
plant("router.partial_expert", ROUTER_BACKWARD, "tail guard",
      "const bool present = first + j < end && group + i < s.E;",
      "const bool present = first + j < end;",
      "gradients past the last expert are read")
plant("router.partial_tail", ROUTER_BACKWARD, "tail guard",
      "const bool present = first + j < end && group + i < s.E;",
      "const bool present = group + i < s.E;",
      "tokens of the next run are added to this one's")
plant("router.mma_columns", ROUTER_BACKWARD, "index",
      "static_cast<int>(blockIdx.y) * kWarps + gpu::warp_id();", "gpu::warp_id();",
      "all blocks of a run take its first columns")
plant("router.mma_tail", ROUTER_BACKWARD, "tail guard",
      "dz[step][j] = own < num_tokens ? dz_run[", "dz[step][j] = own >= 0 ? dz_run[",
      "the last token of a run is added several times")
plant("router.mma_terms", ROUTER_BACKWARD, "bound",
      "for (int term = 1; term < gpu::kSplitTerms; ++term) {", "for (int term = 1; term < 2; ++term) {",
      "gradients of logits lose their last eight bits")
plant("router.mma_halves", ROUTER_BACKWARD, "operand",
      "high_halves(word[0], word[1]),", "low_halves(word[0], word[1]),",
      "odd columns have the gradient of even ones")
plant("router.mma_write", ROUTER_BACKWARD, "tail guard",
      "if (e < s.E && d < s.D) {", "if (e < s.E) {",
      "columns past the last one are written")
plant("router.dweight_barrier", ROUTER_BACKWARD, "barrier",
      "  gpu::sync_threads();  // the sums of all warps are written\n\n", "",
      "sums of runs are read before they are written")
plant("router.dweight_runs", ROUTER_BACKWARD, "bound",
      "if (run + j * kSumWarps < num_runs) {", "if (j == 0) {",
      "of a warp's runs only each third is summed")
plant("router.dweight_tail", ROUTER_BACKWARD, "tail guard",
      "if (thread < kWeights && first + thread < num_weights) {", "if (thread < kWeights) {",
      "weights past the last one are written")
plant("router.dweight_written", ROUTER_BACKWARD, "accumulate",
      "*to = add ? *to + total : total;", "*to += total;",
      "what is to be written is added to what was there")
plant("router.dweight_accumulate", ROUTER_BACKWARD, "accumulate",
      "*to = add ? *to + total : total;", "*to = total;",
      "the gradient of before is lost")

# ---- what a profile of ops counts

PROFILE = "op_profile.cpp"

plant("op_profile.caller", PROFILE, "accumulate",
      "caller.flops -= std::min(call.flops, calls_[call.caller].flops);", "",
      "products are counted where they are called, and by the caller as well")
plant("op_profile.innermost", PROFILE, "state",
      "  innermost_ = calls_[call].caller;\n", "",
      "what follows an op is taken for a part of it")
plant("op_profile.between", PROFILE, "condition",
      "if (calls_[i].caller != kLeftOut || !calls_[i].ended) {", "if (!calls_[i].ended) {",
      "what an op calls is taken for one that follows it")
plant("op_profile.room", PROFILE, "bound",
      "    ++num_left_out_;\n", "", "calls are left out in silence")
plant("op_profile.ended", PROFILE, "condition",
      "    if (!call.ended) {", "    if (false) {", "a call that goes on is counted")
plant("op_profile.stream", PROFILE, "condition",
      "stream.handle != stream_.handle", "false", "what runs on another stream is timed on this one")
plant("op_profile.bytes", "check.cpp", "missing step",
      "    profile_->add_bytes(call_, static_cast<double>(view.bytes()));\n", "",
      "operands have no bytes")
