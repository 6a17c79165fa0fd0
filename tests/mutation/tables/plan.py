# SPDX-License-Identifier: Apache-2.0
"""Faults in csrc/plan."""
from table import planter

plant = planter("csrc")

# ---- dims

DIMS = "plan/dims.cpp"

plant("plan.received_senders", DIMS, "bound",
      "const std::int64_t most = senders * d.routed_T * std::min(d.K, d.local_E);",
      "const std::int64_t most = d.routed_T * std::min(d.K, d.local_E);",
      "a rank has room for the rows of one sender")
plant("plan.received_choices", DIMS, "bound",
      "senders * d.routed_T * std::min(d.K, d.local_E)", "senders * d.routed_T",
      "a rank has room for one choice of each token")
plant("plan.received_floor", DIMS, "rounding",
      "std::ceil(d.equal_share_of_rows() * share.expert_buffer)",
      "std::floor(d.equal_share_of_rows() * share.expert_buffer)",
      "a buffer of so many times the even share has a row less")
plant("plan.received_equal", "plan/dims.h", "scale by degree",
      "static_cast<double>(expert_ranks / expert_pieces);", "static_cast<double>(expert_ranks);",
      "an equal share is too small where an expert's width is cut")
plant("plan.expert_of_copies", DIMS, "index",
      "index / local_E / expert_pieces * local_E", "index / local_E * local_E",
      "rows of an expert's copies are counted for other experts")
plant("plan.pad_chunk", DIMS, "rounding",
      "return round_up(tokens, kChunkMultiple);",
      "return tokens / kChunkMultiple * kChunkMultiple;",
      "a part of a chunk has no column")
plant("plan.kv_head_of_rank", DIMS, "head index",
      ".heads = {.begin = tensor.index / sharers, .count = 1}",
      ".heads = {.begin = tensor.index % model.num_kv_heads, .count = 1}",
      "ranks that share a key/value head are not neighbours")
plant("plan.kv_sharers_first", DIMS, "group",
      ".first = rank - sharers.index * tensor.stride", ".first = tensor.first",
      "all sharers take the first key/value head's group for theirs")
plant("plan.head_is_embedding", "plan/parameters.h", "condition",
      "placements.head_VD.begin == placements.embedding_VD.begin;", "placements.head_VD.begin != placements.embedding_VD.begin;",
      "a head of its own is taken for the embedding, and the embedding for one of its own")
plant("plan.head_chunk_multiple", DIMS, "rounding",
      "kMaxLogits / std::max<std::int64_t>(dims.local_V.count, 1) /\n"
      "                                          kChunkMultiple * kChunkMultiple",
      "kMaxLogits / std::max<std::int64_t>(dims.local_V.count, 1)",
      "chunks of the head begin unaligned where the vocabulary is odd")
plant("plan.head_chunk_limit", DIMS, "bound",
      "dims.head_chunk = std::min(dims.T,\n                             std::max(",
      "dims.head_chunk = std::max(dims.T,\n                             std::max(",
      "all logits of a micro-batch are there at one time")
plant("plan.head_chunk_least", DIMS, "bound",
      "std::max(kChunkMultiple,", "std::max(std::int64_t{0},",
      "a vocabulary of more than 2^27 leaves no token to a chunk")

TRAINING = "plan/training_plan.cpp"

plant("plan.head_rows_asked", TRAINING, "choice",
      "std::min(config.memory.head_rows, dims.T);", "std::min(dims.head_chunk, dims.T);",
      "the run of logits that was asked for is not what is taken")
plant("plan.head_rows_of_gpu", TRAINING, "choice",
      "} else if (device == Device::cuda) {", "} else if (device == Device::cpu) {",
      "a laptop has a gigabyte of logits, and a GPU's head waits for memory")
plant("plan.head_rows_of_batch", TRAINING, "bound",
      "std::min(std::max(dims.head_chunk, kHeadRowsOfGpu), dims.T);",
      "std::max(dims.head_chunk, kHeadRowsOfGpu);",
      "there are more logits than tokens")

# ---- mesh and share

MESH = "plan/mesh.cpp"
SHARE = "plan/share.cpp"

plant("plan.data_stride", MESH, "stride",
      "return {.stride = p.context * p.tensor, .degree = p.data};",
      "return {.stride = p.context, .degree = p.data};",
      "the data axis runs over the ranks of a tensor group")
plant("plan.data_context_degree", MESH, "axis",
      "return {.stride = p.tensor, .degree = p.data * p.context};",
      "return {.stride = p.tensor, .degree = p.context};",
      "gradients are summed over the context axis alone")
plant("plan.expert_stride", MESH, "stride",
      "return {.stride = p.expert_tensor, .degree = p.expert};",
      "return {.stride = 1, .degree = p.expert};",
      "ranks that hold pieces of one expert take themselves for other experts' ranks")
plant("plan.expert_data_stride", MESH, "stride",
      "return {.stride = expert_ranks, .degree = expert_data_};",
      "return {.stride = p.expert, .degree = expert_data_};",
      "replicas of experts are taken at the wrong distance")
plant("plan.stage_degree", MESH, "axis",
      "return {.stride = 1, .degree = num_ranks_ / p.pipeline};",
      "return {.stride = 1, .degree = p.tensor * p.context};",
      "a stage is taken for one of its tensor groups")
plant("plan.group_first", MESH, "group",
      "return {.first = rank - index(axis, rank) * p.stride, .stride",
      "return {.first = index(axis, rank), .stride",
      "a group begins at the wrong rank")
plant("plan.piece_floor", "plan/range.h", "Range",
      ".count = n * (index + 1) / count - begin}", ".count = n / count}",
      "pieces of what the degree does not divide leave elements out")
plant("plan.sample_place", SHARE, "scale by degree",
      "return (i / micro_batch_ * data_.count + data_.index) * micro_batch_ + i % micro_batch_;",
      "return (i / micro_batch_ + data_.index * (num_sequences_ / micro_batch_)) * micro_batch_ +\n"
      "         i % micro_batch_;",
      "micro-batches are dealt to ranks in blocks: sums are of other samples in each layout")
plant("plan.sample_overlap", SHARE, "scale by degree",
      "i / micro_batch_ * data_.count + data_.index", "i / micro_batch_ + data_.index",
      "ranks along data read samples that others have")
plant("plan.zero_2", SHARE, "condition",
      ".shard_gradients = parallel.zero > 1", ".shard_gradients = parallel.zero > 2",
      "ZeRO-2 keeps whole gradients")
plant("plan.zero_1", SHARE, "condition",
      ".shard_optimizer = parallel.zero > 0", ".shard_optimizer = parallel.zero > 1",
      "ZeRO-1 keeps whole moments")
plant("plan.zero_1_gradients", SHARE, "condition",
      ".shard_gradients = parallel.zero > 1", ".shard_gradients = parallel.zero > 0",
      "ZeRO-1 cuts gradients as well")
plant("plan.zero_3", SHARE, "condition",
      ".shard_weights = parallel.zero > 2", ".shard_weights = parallel.zero > 3",
      "ZeRO-3 keeps whole weights")
plant("plan.zero_2_weights", SHARE, "condition",
      ".shard_weights = parallel.zero > 2", ".shard_weights = parallel.zero > 1",
      "ZeRO-2 cuts weights as well")
plant("plan.bucket", SHARE, "unit",
      "constexpr double kMebi = 1024.0 * 1024.0;", "constexpr double kMebi = 1024.0;",
      "buckets are a thousandth of what was asked for")

# ---- shard map

MAP = "plan/shard_map.cpp"

plant("plan.map_held_end", MAP, "Range",
      "const Range held_run = {.begin = row * stride + part.cut.begin * inner, .count = run};",
      "const Range held_run = {.begin = row * stride + part.cut.begin * inner, .count = run - 1};",
      "the last element of each row of a cut is looked for nowhere")
plant("plan.map_first_row", MAP, "Range",
      "for (std::int64_t row = whole.begin / stride; row * stride < whole.end(); ++row) {",
      "for (std::int64_t row = whole.begin / stride + 1; row * stride < whole.end(); ++row) {",
      "the first row of what is looked for is left out")
plant("plan.map_piece_rank", MAP, "rank",
      "visit(holders.ranks.first + index * holders.ranks.stride,",
      "visit(holders.ranks.first + index,",
      "pieces are taken to lie on neighbouring ranks")
plant("plan.map_elsewhere", MAP, "replica",
      "{.begin = part.begin + local.begin, .count = local.count}, holders.plan->elsewhere);",
      "{.begin = part.begin + local.begin, .count = local.count}, {});",
      "what tensor ranks have in common is said to be written by each")
plant("plan.map_replicas", MAP, "replica",
      "if (mesh.index(replicas, rank) != 0) {", "if (mesh.index(replicas, rank) > 1) {",
      "a shard is listed once for each of its first two replicas")

# ---- parameters

PARAMETERS = "plan/parameters.cpp"

plant("plan.norm_decay", PARAMETERS, "weight decay",
      ".decay = false, .replicas = norm_replicas", ".decay = true, .replicas = norm_replicas",
      "norms decay")
plant("plan.router_decay", PARAMETERS, "weight decay",
      "{.dtype = wide, .decay = true, .replicas = Axis::stage_ranks}",
      "{.dtype = wide, .decay = false, .replicas = Axis::stage_ranks}",
      "routers do not decay")
plant("plan.expert_decay", PARAMETERS, "weight decay",
      ".decay = true, .replicas = Axis::expert_data", ".decay = false, .replicas = Axis::expert_data",
      "experts do not decay")
plant("plan.router_replicas", PARAMETERS, "group",
      "{.dtype = wide, .decay = true, .replicas = Axis::stage_ranks}",
      "{.dtype = wide, .decay = true, .replicas = Axis::data_context}",
      "routers' gradients are not summed over the pieces of a sequence")
plant("plan.expert_replicas", PARAMETERS, "group",
      ".decay = true, .replicas = Axis::expert_data", ".decay = true, .replicas = Axis::data_context",
      "gradients of different experts are summed")
plant("plan.router_dtype", PARAMETERS, "dtype",
      "{.dtype = wide, .decay = true, .replicas = Axis::stage_ranks}",
      "{.dtype = compute, .decay = true, .replicas = Axis::stage_ranks}",
      "routers are kept in bf16")
plant("plan.piece_begin", PARAMETERS, "Range",
      "      segment.piece.begin += begin;\n", "",
      "pieces are counted from their segment's begin and used from the first's")
plant("plan.segment_pieces", PARAMETERS, "rounding",
      "round_up(segment.num_elements, kAlignmentElements * replicas.count);",
      "round_up(segment.num_elements, kAlignmentElements);",
      "replicas have pieces of unequal size")
plant("plan.elsewhere_all", PARAMETERS, "replica",
      "if (kv.sharers.index > 0) {", "if (kv.sharers.index >= 0) {",
      "nobody counts a shared key/value head, nor writes it")
plant("plan.owned_whole", PARAMETERS, "condition",
      "segment.owned = share_.shard_optimizer ? segment.piece", "segment.owned = true ? segment.piece",
      "without ZeRO a rank updates its piece alone")
plant("plan.bucket_full", PARAMETERS, "condition",
      "open && plan_.segments[*open].num_elements < bucket_elements_ &&",
      "open && plan_.segments[*open].num_elements > bucket_elements_ &&",
      "each tensor is a bucket of its own")
plant("plan.init_normal", PARAMETERS, "condition",
      "model.init == InitScheme::normal ? model.init_std", "model.init != InitScheme::normal ? model.init_std",
      "the two schemes of initialisation are exchanged")
plant("plan.swapped_k_v", PARAMETERS, "name",
      "{rows(attention + \"q_proj.weight\", whole_NH, d.D, rows_of(q_heads)),\n"
      "                             rows(attention + \"k_proj.weight\", whole_GH, d.D, rows_of(kv.heads)),\n"
      "                             rows(attention + \"v_proj.weight\", whole_GH, d.D, rows_of(kv.heads))}",
      "{rows(attention + \"q_proj.weight\", whole_NH, d.D, rows_of(q_heads)),\n"
      "                             rows(attention + \"v_proj.weight\", whole_GH, d.D, rows_of(kv.heads)),\n"
      "                             rows(attention + \"k_proj.weight\", whole_GH, d.D, rows_of(kv.heads))}",
      "keys and values have each other's name")
plant("plan.count_layers", "plan/parameters.h", "dropped term",
      "num_layers * (matrices + experts + vectors) + around_layers;",
      "num_layers * (matrices + experts) + around_layers;", "norms are not counted")
plant("plan.segment_of_begin", PARAMETERS, "bound",
      "return value < segment.begin;", "return value <= segment.begin;",
      "a segment's first element is said to lie in the one before")

# ---- memory, activations and FLOPs

plant("plan.weight_turn", PARAMETERS, "index",
      "static_cast<std::size_t>(layer % kTurns)", "static_cast<std::size_t>(layer / kTurns % kTurns)",
      "neighbouring layers have one place")
plant("plan.weight_offset", PARAMETERS, "index",
      "      segment.place_offset = end;\n", "", "all weights of a layer begin at one byte")
plant("plan.weight_room", PARAMETERS, "max", "std::max(plan_.weight_place_bytes, end);", "end;",
      "the last layer's size is taken for the largest")
plant("plan.segment_layer", PARAMETERS, "condition",
      "                      plan_.segments[*open].layer == layer_;", "                      true;",
      "a segment holds tensors of several layers")

MEMORY = "plan/memory.cpp"
ACTIVATIONS = "plan/activations.cpp"

plant("plan.for_weights_heads", ACTIVATIONS, "operand",
      "attention, true};", "attention};",
      "heads are gone when the output projection's gradient is formed")
plant("plan.for_weights_dense", ACTIVATIONS, "dropped term",
      "    layer.moe_in_TD.for_weights = true;\n", "",
      "the dense FFN's input is gone when its weights' gradient is formed")
plant("plan.for_weights_too_many", ACTIVATIONS, "dropped term",
      "layer.moe_in_TD = {{{d.residual_T, d.D}, compute}, norm};",
      "layer.moe_in_TD = {{{d.residual_T, d.D}, compute}, norm, true};",
      "every layer keeps a tensor that nothing reads")
plant("plan.gradients_in_scratch", ACTIVATIONS, "swap",
      ".dattention_out_TD = scratch.dbranch_TD,", ".dattention_out_TD = scratch.dbranch_in_TD,",
      "the gradient of attention's output is that of its input when its weights' is formed")
plant("plan.weights_kept", MEMORY, "size",
      "segment.place ? segment.owned.count : segment.num_elements;", "segment.num_elements;",
      "under ZeRO-3 all weights are counted")
plant("plan.weight_places", MEMORY, "size",
      "static_cast<std::size_t>(parameters.num_weight_places) * parameters.weight_place_bytes;",
      "parameters.weight_place_bytes;", "one place where layers are whole is counted")

FLOPS = "plan/flops.cpp"

plant("plan.total_sampling", MEMORY, "dropped term",
      "library_bytes + communication_bytes + sampling_bytes;", "library_bytes + communication_bytes;",
      "memory for sampling is planned and not counted")
plant("plan.kept_layers", ACTIVATIONS, "bound",
      "    if (keep == Keep::all_layers) {\n      of_slot +=",
      "    {\n      of_slot +=",
      "inference has room for every layer")
plant("plan.again_room", ACTIVATIONS, "missing term",
      "(layers.count - more.count) * bytes_of(recompute.num_layers);",
      "(layers.count - more.count) * bytes_of(0);",
      "layers that keep all have no room for it")
plant("plan.again_first", "plan/recompute.h", "comparison",
      "layer < num_layers ? groups : rest", "layer <= num_layers ? groups : rest",
      "one layer more is computed again than was asked for")
plant("plan.again_cheapest", "plan/training_plan.cpp", "comparison",
      "return memory.needed_bytes(room.device) <= room.budget_bytes &&",
      "return memory.needed_bytes(room.device) < room.budget_bytes &&",
      "what fits to the byte does not fit")
plant("plan.again_agreed", "plan/training_plan.cpp", "condition",
      "for (bool agreed = false; !agreed;) {\n    agreed = true;",
      "for (bool agreed = false, once = true; !agreed && once; once = false) {\n    agreed = true;",
      "what the first stage has room for is taken for what all have")
plant("plan.again_nested", "plan/recompute.cpp", "condition",
      "groups != rest && has_all_of(groups, rest) && layers", "groups != rest && !rest.any() && layers",
      "what is cheap is computed again only where what is dear is")
plant("plan.again_pareto", "plan/recompute.cpp", "comparison",
      "if (options.empty() || each.bytes < least) {", "if (options.empty() || each.bytes <= least) {",
      "an option costs more than the one before it and needs as much")
plant("plan.flops_experts", FLOPS, "scale",
      "counts.experts / d.E * d.K", "counts.experts",
      "all experts are counted and not those that a token visits")
plant("plan.flops_scores", FLOPS, "scale",
      "const double scores = 3 * layers * forward.scores;", "const double scores = 6 * layers * forward.scores;",
      "the halved convention counts all scores")
plant("plan.flops_vectors", PARAMETERS, "condition",
      "parameter.whole.num_dims > 1", "parameter.whole.num_dims > 0",
      "gains of norms are multiplied as matrices")

# ---- pipeline schedules

SCHEDULE = "plan/schedule.cpp"
REPLAY = "plan/schedule_replay.h"
MESSAGES = "plan/schedule_messages.cpp"
CHECK = "plan/schedule_check.cpp"
SIMULATION = "plan/schedule_simulation.cpp"

plant("plan.schedule_warm_up", SCHEDULE, "bound",
      ": v == 1     ? after", ": v == 1     ? after + 1",
      "a rank holds one micro-batch more than 1F1B does")
plant("plan.pair_warm_up", SCHEDULE, "bound",
      "shape.paired ? 2 * after + (v - 1) * groups.largest() + 1",
      "shape.paired ? after + (v - 1) * groups.largest() + 1",
      "neighbours wait for each other's pairs in turn")
plant("plan.pair_zero_bubble_warm_up", SCHEDULE, "bound",
      "shape.paired ? 2 * after + 1 : after", "shape.paired ? after + 1 : after",
      "neighbours of zb-h1 wait for each other's pairs in turn")
plant("plan.pair_needs_itself", CHECK, "dropped condition",
      "next->stage == action.stage && next->micro_batch == action.micro_batch", "false",
      "a pass may be paired with the backward pass that needs it")
plant("plan.pair_places", "plan/activations.cpp", "scale",
      "(paired ? 2 : 1) * of_layer", "of_layer",
      "what a forward pass beside another has computed again is not in the plan")
plant("plan.pair_operations", "plan/step_operations.cpp", "order",
      "{std::pair(&backward_action, &passes[0]), std::pair(&forward_action, &passes[1])}",
      "{std::pair(&forward_action, &passes[0]), std::pair(&backward_action, &passes[1])}",
      "operations of pairs begin with those of the forward pass")
plant("plan.pair_before_again", "plan/training_plan.cpp", "order",
      "options[i / plans_.size()]", "options[i % options.size()]",
      "something is computed again so that passes can be paired")
plant("plan.schedule_groups", SCHEDULE, "rounding",
      "return size_ + (num_larger_ > 0 ? 1 : 0);", "return size_;",
      "the warm-up is that of the smaller groups")
plant("plan.schedule_backward_chunk", SCHEDULE, "index",
      "list.backward(v - 1 - pass.chunk, pass.micro_batch);",
      "list.backward(pass.chunk, pass.micro_batch);",
      "backward passes go through the chunks in the order of the forward passes")
plant("plan.schedule_whole_backward", SCHEDULE, "dropped condition",
      "last->stage == 0 && last->kind", "last->kind",
      "a gradient of inputs is sent after that of the weights")
plant("plan.schedule_zb_delay", SCHEDULE, "bound",
      "if (i >= rank) {", "if (i > rank) {",
      "a rank puts a gradient of weights off for ever")
plant("plan.schedule_zbv_least", SCHEDULE, "bound",
      "std::max(2 * p - 1, shape.num_micro_batches)", "shape.num_micro_batches",
      "fewer micro-batches than a V has stages end in the middle of it")
plant("plan.schedule_v_rank", SCHEDULE, "index",
      "upwards ? 2 * num_ranks - 1 - stage : stage % num_ranks", "stage % num_ranks",
      "the stages of a V lie in a loop")
plant("plan.schedule_group_of_two", SCHEDULE, "bound",
      "shape.group < shape.num_ranks &&", "shape.group < 0 &&",
      "groups that ranks wait in forever are taken")
plant("plan.message_gradient_edge", MESSAGES, "swap",
      "queue_between(queues, to, from, MessageKind::gradient, messages)",
      "queue_between(queues, from, to, MessageKind::gradient, messages)",
      "gradients are sent the way of the activations")
plant("plan.message_slots", MESSAGES, "bound",
      "std::max(even->peak_messages[queue], kLeastSlots)", "kLeastSlots",
      "each ring has two slots, and ranks wait in a circle")
plant("plan.message_least_slots", MESSAGES, "constant",
      "kLeastSlots = 2", "kLeastSlots = 1",
      "no message arrives while another is used")
plant("plan.slots_forward_only", MESSAGES, "dropped term",
      "now.held -= shape_.forward_only ? 1 : 0;", "",
      "validation keeps the activations of all micro-batches")
plant("plan.slots_pending", MESSAGES, "dropped condition",
      "now.pending_weights -= action.kind == ActionKind::backward_weights ? 1 : 0;",
      "now.pending_weights -= 1;",
      "a whole backward pass makes room that is not there")
plant("plan.check_order", CHECK, "bound",
      "if (action.micro_batch > next) {", "if (action.micro_batch > next + 1) {",
      "two micro-batches may change places")
plant("plan.check_neighbour", CHECK, "dropped call",
      "        check_neighbour(rank, place, pass);\n", "",
      "a stage may come before its neighbour on the same rank")
plant("plan.check_pass_before", CHECK, "bound",
      "done[pass - 1] <= action.micro_batch", "done[pass - 1] < action.micro_batch",
      "a backward pass may come before its forward pass")
plant("plan.check_queue_stage", CHECK, "dropped condition",
      "made.micro_batch != needed.micro_batch || made.stage + step != needed.stage",
      "made.micro_batch != needed.micro_batch",
      "a message may go to another stage than it is for")
plant("plan.check_progress", CHECK, "dropped call",
      "    check_progress();\n", "",
      "ranks may wait in a circle")
plant("plan.check_slots", CHECK, "bound",
      "if (lies_there >= done_", "if (lies_there > done_",
      "a slot may be written before it is free")
plant("plan.replay_slots", REPLAY, "bound",
      "used_up_[queue] + slots <= step.sequence", "used_up_[queue] + slots < step.sequence",
      "a queue takes one message more than it has slots")
plant("plan.simulation_latency", SIMULATION, "dropped term",
      "times.arrived.push_back(times.free + message.latency);",
      "times.arrived.push_back(times.free);",
      "messages arrive at once")
plant("plan.simulation_line", SIMULATION, "dropped term",
      "std::max(now, times.free)", "now",
      "a queue carries all of its messages at one time")
plant("plan.simulation_tie", SIMULATION, "bound",
      "times.used_up[used] < times.made[k]", "times.used_up[used] <= times.made[k]",
      "a slot is free while it is still used")
plant("plan.simulation_peak", SIMULATION, "swap",
      "if (makes_weight_gradient(kind) || schedule.shape.forward_only) {",
      "if (makes_input_gradient(kind) || schedule.shape.forward_only) {",
      "activations are free before the gradients of weights are there")
plant("plan.simulation_whole_backward", SIMULATION, "dropped term",
      "return cost.backward_inputs + cost.backward_weights;", "return cost.backward_inputs;",
      "a whole backward pass costs half")

# ---- stages

STAGES = "plan/stages.cpp"

plant("plan.stages_remainder", STAGES, "index",
      "    ++counts[at(s)];\n  }\n  return make_layout(counts);",
      "    ++counts[at(num_stages - 1 - s)];\n  }\n  return make_layout(counts);",
      "the stage of the head has a layer more than others")
plant("plan.stages_doubled", STAGES, "bound",
      "if (times[at(layer)] != 1) {", "if (times[at(layer)] < 1) {",
      "a layer may be in two stages")
plant("plan.stages_order", STAGES, "bound",
      "if (layout[s].layers.begin != next) {", "if (layout[s].layers.begin > num_layers) {",
      "stages may stand in another order than the model's")
plant("plan.stages_head_place", STAGES, "index",
      "layout[s].head != (s + 1 == layout.size())", "layout[s].head && s + 1 != layout.size()",
      "a layout without a head is taken")
plant("plan.stages_head_cost", STAGES, "dropped term",
      "(stage == num_stages_ - 1 ? costs_.head : 0)", "0",
      "the head costs nothing")
plant("plan.stages_squares", STAGES, "scale",
      "std::numeric_limits<double>::infinity() : cost * cost;",
      "std::numeric_limits<double>::infinity() : cost;",
      "stages below the largest are as they come")
plant("plan.stages_rank_head", STAGES, "dropped term",
      "  stages.back() += costs.head;\n", "",
      "the rank of the head has as many layers as others")
plant("plan.stages_moves", STAGES, "swap",
      "          if (then.is_better_than(now)) {", "          if (now.is_better_than(then)) {",
      "layers are moved to where they make the largest rank larger")

# ---- costs of stages

STAGE_COSTS = "plan/stage_costs.cpp"

plant("plan.cost_of_head", STAGE_COSTS, "order",
      "result.head.backward_inputs = 3 *", "result.head.forward = 3 *",
      "the last stage is taken to be slow in the forward pass")
plant("plan.cost_of_scores", STAGE_COSTS, "scale",
      "matrices + 2 * scores + again", "matrices + scores + again",
      "attention's backward pass is counted for one product of two")
plant("plan.cost_of_again", STAGE_COSTS, "index",
      "recompute.of_layer(layer)", "recompute.of_layer(0)",
      "every layer is taken to compute again what the first does")
plant("plan.cost_of_stage_head", STAGE_COSTS, "condition",
      "  if (stage.head) {\n    result += flops.head;", "  if (stage.embedding) {\n    result += flops.head;",
      "the head is counted for the first stage")
plant("plan.cost_evened", STAGE_COSTS, "scale",
      "mean.backward_weights += stage.backward_weights / count;",
      "mean.backward_weights += stage.backward_weights;",
      "stages that are alike cost more than those they stand for")
plant("plan.better_layout", STAGE_COSTS, "comparison",
      "if (makespan < least) {", "if (makespan > least) {",
      "a layout is offered that takes more time")

# ---- what a rank does in a step
OPERATIONS = "plan/step_operations.cpp"

plant("plan.operations_residency", OPERATIONS, "condition",
      "std::exchange(held, layer) != layer", "std::exchange(held, layer) != kNoLayer",
      "a layer that is kept is gathered again")
plant("plan.operations_each", OPERATIONS, "condition",
      "if (!each && micro_batch_ + 1 < plan_.num_micro_batches) {",
      "if (micro_batch_ + 1 < plan_.num_micro_batches) {",
      "under ZeRO-2 gradients are reduced once a step")
plant("plan.operations_again", OPERATIONS, "condition",
      "groups.block || (groups.norm && !d_.exchange_rows)", "groups.block || groups.norm",
      "rows that have come from other ranks are sent again with the norms")
plant("plan.operations_weights", OPERATIONS, "missing",
      "      if (with_weights) {\n        reduce_layer(layer);\n      }\n", "      reduce_layer(layer);\n",
      "gradients of weights are reduced before they are formed")
plant("plan.operations_flops", OPERATIONS, "missing term",
      "flops.backward_inputs - again_flops +", "flops.backward_inputs +",
      "what is computed again is counted twice")
plant("plan.operations_columns", OPERATIONS, "scale by degree",
      "2 * plan_.share.tensor.count * columns", "2 * columns",
      "of the vocabulary's ranks one tells what it has seen")
plant("plan.operations_first", OPERATIONS, "condition",
      "plan_.parameters.comes_after_step(segment)", "segment.sharded() && !segment.place",
      "the layers that are used first come when they are")

plant("plan.operations_sent", OPERATIONS, "factor", "return 2 * whole * others;", "return whole * others;",
      "a sum that all have is taken for one that is scattered")
plant("plan.operations_received", OPERATIONS, "condition", "return kind == receive ? 0 : whole;",
      "return whole;", "a message is counted where it arrives, too")

# ---- communication, host memory

# ---- communication, host memory, step costs, ways to fit

COMMUNICATION = "plan/communication.cpp"
STEP_COST = "plan/step_cost.cpp"
WAYS = "plan/ways_to_fit.cpp"

plant("plan.nccl_neighbours", COMMUNICATION, "bound",
      "std::min<std::int64_t>(num_others, 2)", "num_others",
      "a ring is taken to connect every rank with every other")
plant("plan.nccl_network", COMMUNICATION, "condition",
      "(far > 0 ? kFarBytes : kNearBytes)", "kNearBytes",
      "buffers of the network's senders are not counted")
plant("plan.nccl_shared", COMMUNICATION, "missing term",
      "* kNearBytes + shared +", "* kNearBytes +",
      "what rows to other machines go through is not counted")
plant("plan.nccl_ring", COMMUNICATION, "missing term",
      "(group.is_connected_ahead ? of_ring : 0)", "0",
      "what a pipeline connects beside the rows of its experts is not counted")
plant("plan.nccl_rounds", COMMUNICATION, "scale",
      "kPeersOfRound = 8;", "kPeersOfRound = 16;",
      "ranks of several machines are taken to have more channels than they have")
plant("plan.group_tied", COMMUNICATION, "condition",
      "if (model.tie_embeddings && first != last) {", "if (first != last) {",
      "two ranks are taken to share an embedding that the model has not")
plant("plan.host_terms", COMMUNICATION, "scale by degree",
      "static_cast<std::size_t>(num_ranks_) * round_up(bytes, kAlignment)", "round_up(bytes, kAlignment)",
      "the terms of one rank are counted and not those of all")
plant("plan.host_gradients", COMMUNICATION, "condition",
      "if (segment.sharded()) {", "if (!segment.sharded()) {",
      "room for whole gradients and for pieces of them are exchanged")
plant("plan.needed_cpu", "plan/memory.h", "condition",
      "(device == Device::cpu ? host.total_bytes() : 0)", "0",
      "host memory is not taken from the machine's where that is the device")
plant("plan.host_slots", "plan/training_plan.cpp", "missing factor",
      "chunk.num_slots * chunk.stage.layers.count", "chunk.stage.layers.count",
      "one micro-batch has places for rows, and as many are under way as there are slots")
plant("plan.host_validation", "plan/training_plan.cpp", "condition",
      "(validates ? kStepsUnderWay + 1 : kStepsUnderWay) * stats_bytes",
      "(kStepsUnderWay + 1) * stats_bytes",
      "a run that validates nothing has statistics of it")
plant("plan.cost_weights", STEP_COST, "missing factor",
      "cost.price += static_cast<double>(plan.num_micro_batches) * (3 * weights",
      "cost.price += (3 * weights",
      "more and smaller micro-batches cost nothing")
plant("plan.cost_again", STEP_COST, "missing term",
      "cost.price += again.weight() / of_token;", "",
      "what is computed again costs nothing")
plant("plan.cost_machine", STEP_COST, "condition",
      "(lies_on_one_machine(group) ? kFlopsOfNearByte : kFlopsOfFarByte)", "kFlopsOfNearByte",
      "the network is as fast as NVLink")
plant("plan.ways_fit", WAYS, "comparison",
      "return way.bytes <= room_.budget_bytes;", "return way.bytes < room_.budget_bytes;",
      "what fits to the byte is told what would make it fit")
plant("plan.ways_order", WAYS, "comparison",
      "[](const auto& a, const auto& b) {\n    return a.cost.price < b.cost.price;",
      "[](const auto& a, const auto& b) {\n    return a.cost.price > b.cost.price;",
      "the dearest comes first")
plant("plan.ways_least", WAYS, "condition",
      "if (turned.valid && !turned.fits) {", "if (turned.valid) {",
      "a knob is turned beside one that does it alone")
plant("plan.ways_sequences", WAYS, "condition",
      "if (!result.ways.empty() && result.ways.size() < kMostWays) {",
      "if (result.ways.size() < kMostWays) {",
      "another model is offered where there is no other way")
plant("plan.ways_ranks", WAYS, "missing step",
      "return [=](Config& config) {\n    config.parallel.*degree *= factor;\n    config.parallel.data = 0;",
      "return [=](Config& config) {\n    config.parallel.*degree *= factor;",
      "degrees are raised and what they leave is not lowered")
plant("plan.ways_stages", WAYS, "missing step",
      "config.parallel.stages.clear();", "",
      "stages that were written out keep a pipeline from being longer")

# ---- what a step takes

MACHINE = "plan/machine.cpp"

plant("plan.machine_missing", MACHINE, "condition",
      "if (!is_optional(field) && !places_.contains(field.path())) {",
      "if (is_optional(field) && !places_.contains(field.path())) {",
      "a machine without a link's bandwidth is read, and is said to have none")
plant("plan.machine_twice", MACHINE, "condition",
      "if (!places_.emplace(path, key.place).second) {",
      "if (places_.emplace(path, key.place).second && path.empty()) {",
      "of a key that is given twice the last holds")
plant("plan.machine_peak", MACHINE, "comparison",
      "large <= peak && (peak == 0) == (large == 0)", "(peak == 0) == (large == 0)",
      "a machine reaches more than its peak")

WORK = "plan/run_work.cpp"
PLANNED_WORK = "plan/planned_run_work.cpp"

plant("plan.work_tokens", WORK, "missing factor",
      "own_tokens_(tokens_ / real(p_.tensor)) {}", "own_tokens_(tokens_) {}",
      "each tensor rank has all tokens of the residual stream")
plant("plan.work_pieces", WORK, "missing factor",
      "const double received = sent * pieces;", "const double received = sent;",
      "a rank that holds a piece of an expert has a piece of its rows")
plant("plan.work_copies", WORK, "missing factor",
      ".bytes = sent * copies * D * value_bytes_", ".bytes = sent * D * value_bytes_",
      "a row is sent to one of the pieces of its expert alone")
plant("plan.work_tied", WORK, "bound",
      "around = std::min(around, 1.0);", "around = std::min(around, 2.0);",
      "a tied embedding is reduced twice")
plant("plan.work_apart", WORK, "condition",
      "return p_.pipeline > 1 &&", "return p_.pipeline > 1024 &&",
      "a gradient that is formed later needs nothing gathered for it")
plant("plan.work_again_block", PLANNED_WORK, "missing step",
      "repeat(kAttentionOut);", "",
      "a block that is computed again leaves out a product")
plant("plan.work_again_layers", PLANNED_WORK, "comparison",
      "static_cast<std::int64_t>(layer) < recompute.num_layers ? 0 : 1;",
      "static_cast<std::int64_t>(layer) <= recompute.num_layers ? 0 : 1;",
      "one layer too many is computed again")
plant("plan.work_gathers", PLANNED_WORK, "choice",
      "add(each, ExchangeKind::weights, waiting);", "add(each, ExchangeKind::weights, again);",
      "weights that are gathered for a pass take no time in it")

TIME = "plan/step_time.cpp"

plant("plan.time_ports", TIME, "missing factor",
      "placed.in_node * far.gb_per_second", "far.gb_per_second",
      "ranks of a node have one port between them")
plant("plan.time_node", TIME, "condition",
      "placed.in_node >= count && stride * (count - 1) < node", "stride < node",
      "a group of several nodes has the links of one")
plant("plan.time_reduce", TIME, "missing factor",
      "return 2 * (once + hops);", "return once + hops;",
      "a sum that all have moves as much as a gather")
plant("plan.time_far_rows", TIME, "scale by degree",
      "double far = exchange.bytes * (count - placed.in_node) / count;",
      "double far = exchange.bytes * (placed.in_node - 1) / count;",
      "rows to other nodes are counted as rows to this one")
plant("plan.time_met", TIME, "bound",
      "std::min(met(nodes), exchange.most_nodes)", "std::max(met(nodes), exchange.most_nodes)",
      "a router that keeps a token on few nodes sends it to as many as any")
plant("plan.time_rounds", TIME, "missing factor",
      "filled * tiles / (units * std::ceil(tiles / units))", "filled",
      "a product of one tile keeps every multiprocessor busy")
plant("plan.time_together", TIME, "condition",
      "(product.together ? std::max(product.count, 1.0) : 1)", "std::max(product.count, 1.0)",
      "products that follow each other fill the rounds of one")
plant("plan.time_table", TIME, "interpolation",
      "(size - low) / (high - low)", "(high - size) / (high - low)",
      "between two measured sizes the nearer one counts least")
plant("plan.time_backward_scores", TIME, "missing factor",
      "(forward ? 1 : kBackwardOverForwardScores) * flops", "flops",
      "attention's backward pass is as long as its forward pass")
plant("plan.time_imbalance", TIME, "missing factor",
      "at(parts, StepPart::expert_products) += imbalance * seconds;",
      "at(parts, StepPart::expert_products) += seconds;",
      "a router gives every expert as much")
plant("plan.time_fp8_head", TIME, "condition",
      "kind == Products::fp8 && !product.in_fp8 ? Products::bf16 : kind", "kind",
      "the head, which stays in 16 bits, is as fast as what does not")
plant("plan.time_seen", TIME, "condition",
      "return overlaps ? std::max(seconds - covered, 0.0) : seconds;",
      "return std::max(seconds - covered, 0.0);",
      "gradients that are reduced behind the work are covered by it")
plant("plan.time_bubble", TIME, "missing term",
      "time.of(StepPart::pipeline) = makespan - busy;", "time.of(StepPart::pipeline) = 0;",
      "ranks of a pipeline wait for nobody")
plant("plan.time_busiest", TIME, "comparison",
      "if (sum(ranks[rank]) > sum(ranks[busiest])) {", "if (sum(ranks[rank]) < sum(ranks[busiest])) {",
      "the parts are those of the rank with least work")
plant("plan.time_ranks", TIME, "missing factor",
      "run.step_tokens() / time.seconds / static_cast<double>(run.num_ranks);",
      "run.step_tokens() / time.seconds;",
      "each rank is said to have the tokens of all")
plant("plan.time_heads", TIME, "missing factor",
      "take(head, heads);", "take(head, 0);",
      "the head takes no time")

SEARCH = "plan/layout_search.cpp"

plant("plan.search_fits", SEARCH, "condition",
      "if (most_of(plans) > room_.budget_bytes) {", "if (most_of(plans) > 2 * room_.budget_bytes) {",
      "layouts are listed that do not fit")
plant("plan.search_bound", SEARCH, "bound",
      "if (candidate.least >= bound) {", "if (candidate.least >= bound / 2) {",
      "the search ends before what is left is worse")
plant("plan.search_order", SEARCH, "comparison",
      "return a.time.seconds < b.time.seconds;", "return a.time.seconds > b.time.seconds;",
      "the slowest layouts are kept")
plant("plan.search_state", "plan/run_work.cpp", "scale by degree",
      "count * (whole + state_bytes / sharers)", "count * (whole + state_bytes)",
      "layouts are left out that fit because replicas share the optimizer's state")
plant("plan.search_data", SEARCH, "missing step",
      "changed.parallel.data = 0;  // what the others leave", "",
      "no layout of another number of replicas is found")
plant("plan.search_given", SEARCH, "condition",
      "if (config.parallel.schedule == ScheduleKind::interleaved) {",
      "if (config.parallel.schedule == ScheduleKind::zbv) {",
      "a layout that is given is not found if its chunks are no power of two")

EFFECTIVE = "plan/effective_time.cpp"

plant("plan.effective_interval", EFFECTIVE, "missing factor",
      "std::sqrt(2 * M * d)", "std::sqrt(M * d)",
      "saves are more often than is best")
plant("plan.effective_restart", EFFECTIVE, "missing term",
      "(result.lost_seconds + interruptions.restart_seconds) / M", "result.lost_seconds / M",
      "a restart takes no time")
plant("plan.effective_ranks", EFFECTIVE, "missing factor",
      "machine.rank_hours_between_failures * kSecondsOfHour / static_cast<double>(num_ranks)",
      "machine.rank_hours_between_failures * kSecondsOfHour",
      "a job fails as rarely as one rank")
plant("plan.effective_watts", EFFECTIVE, "missing term",
      "return machine.idle_watts + share * (machine.busy_watts - machine.idle_watts);",
      "return share * machine.busy_watts;",
      "a rank that waits takes no power")
plant("plan.time_slowest", TIME, "missing factor",
      "cost.backward_inputs /= slowest;", "",
      "ranks do not wait for the backward passes of a slow one")

MIX = "plan/machine_mix.cpp"

plant("plan.mix_slowest", MIX, "comparison",
      "all.large_bf16_tflops = std::min(all.large_bf16_tflops, one.large_bf16_tflops);",
      "all.large_bf16_tflops = one.large_bf16_tflops;",
      "the rate of products is that of the machine named last")
plant("plan.mix_failures", MIX, "missing factor",
      "failures_an_hour += share_of(part, num_ranks) / one.rank_hours_between_failures;",
      "failures_an_hour += 1 / one.rank_hours_between_failures;",
      "each part fails as if it were the whole job")
plant("plan.mix_ranks", MIX, "condition",
      "if (total != num_ranks) {", "if (total > num_ranks) {",
      "some ranks are on no machine")
plant("plan.mix_shares", MIX, "missing factor",
      "steps_a_second += static_cast<double>(parts[i].num_ranks) / seconds_of_part[i];",
      "steps_a_second += static_cast<double>(parts[i].num_ranks) * seconds_of_part[i];",
      "whoever is slow gets more of the batch")
plant("plan.mix_table", MIX, "missing step",
      "      all.measured_gflop = one.measured_gflop;\n      all.measured_per_mille = one.measured_per_mille;\n", "",
      "small products are as fast as on the faster machine")

BENCH_MACHINE = "cli/bench_machine.cpp"

plant("plan.measured_node", BENCH_MACHINE, "missing step",
      "machine.node.ranks = num_here;", "",
      "ranks of other machines are taken to be of the node that was measured")
plant("plan.measured_links", BENCH_MACHINE, "wrong operand",
      "machine.node = level_of(measure_links(*host, *group, stream.view()), machine.node, 1);", "measure_links(*host, *group, stream.view());",
      "links are said to be measured and are those of --like")

# ---- exchanges of tensor ranks in chunks

plant("plan.chunk_part", "plan/dims.cpp", "index",
      "index % chunks.cuts * rows;  // within each piece", "0;  // within each piece",
      "every part of a sequence is the first")
plant("plan.chunk_runs", "plan/dims.cpp", "index",
      "    chunk.step = piece;", "    chunk.step = rows;",
      "a part of each piece is one part of the sequence")
plant("plan.chunk_aligned", "plan/tensor_chunks.cpp", "alignment",
      "multiple / std::gcd(multiple, piece)", "std::int64_t{1}",
      "chunks of sequences begin at any row")
plant("plan.chunk_run_rows", "plan/tensor_chunks.cpp", "condition",
      " || piece / cuts < sizes.least_run_rows", "",
      "products have few rows that lie together")
plant("plan.chunk_two", "plan/tensor_chunks.cpp", "condition",
      "const std::int64_t least = at_least_two ? 2 : 1;", "const std::int64_t least = 1;",
      "an overlap that is required has nothing beside a product that is alone")
plant("plan.chunk_sums_of_head", "plan/step_operations.cpp", "bound",
      "        if (chunk.whole.end() > end) {", "        if (chunk.whole.end() > d_.T) {",
      "the head's sums are planned to begin before its last tokens are there")
plant("plan.time_own_experts", TIME, "condition",
      "model.num_experts > 0 && work_.run.parallel.expert > 1", "model.num_experts > 0",
      "a rank that has all experts is said to have more rows than there are")
plant("plan.time_beside", TIME, "condition",
      "      if (exchange.beside) {", "      if (false) {",
      "what travels beside products is seen whole")
plant("plan.work_cut", PLANNED_WORK, "missing factor",
      "      product.M /= count;\n", "",
      "products in chunks have all rows each")
