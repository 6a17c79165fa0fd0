# SPDX-License-Identifier: Apache-2.0
"""Faults in csrc/model."""
from table import planter

plant = planter("csrc")

# ---- attention and the block

ATTENTION = "model/attention.cpp"

plant("model.attention_cap", "model/attention_heads.h", "operand",
      ".cap = static_cast<float>(model.attention_cap),", ".cap = 0.0F,",
      "scores are not capped")

# ---- experts

MOE = "model/moe.cpp"

plant("model.dense_scale", MOE, "scale",
      "constexpr float kDenseScale = static_cast<float>(1.0 / std::numbers::sqrt2);",
      "constexpr float kDenseScale = 0.5F;",
      "the sum of experts and dense network is halved")
plant("model.balance_pieces", "model/exchange.cpp", "missing collective",
      "sum(layer.counts_BE), sum(layer.probs_sum_BE), sum(layer.valid_B)};",
      "sum(layer.counts_BE), sum(layer.probs_sum_BE.rows(0, 0)), sum(layer.valid_B)};",
      "a sequence's pieces are balanced by probabilities of their own")
plant("model.loads_under_way", MOE, "order",
      "  exchange.sum_loads(context, layer);\n", "",
      "a sequence's pieces are balanced each by itself")
plant("model.router_valid", MOE, "operand",
      "                  .valid_T = context.routed_valid_T,\n                  .cap = static_cast<float>(context.model.router_cap)},",
      "                  .cap = static_cast<float>(context.model.router_cap)},",
      "padding counts in the balance of experts", occurrence=0)
plant("model.join_backward", MOE, "missing collective",
      "  join_routed_parts(context, scratch.dbranch_in_TD);\n", "",
      "tensor ranks have the gradient of their own piece of the tokens")

# ---- what the backward pass computes again

BLOCK = "model/block.cpp"

plant("model.again_norm", BLOCK, "missing step",
      "  if (groups.norm || groups.block) {\n    norm(", "  if (groups.block) {\n    norm(",
      "the input of attention is that of the last layer")
plant("model.again_residual", BLOCK, "missing step",
      "  if (groups.block) {\n    between_branches(context, weights, layer, hidden_TD);\n  } else if",
      "  if",
      "the stream between the branches is that of the last layer")
plant("model.again_attend", ATTENTION, "missing step",
      "  } else if (groups.attention) {\n    attend(context, layer);\n  }", "  }",
      "heads are those of the last layer")
plant("model.again_rows", MOE, "missing step",
      "  if (groups.block || (groups.norm && !context.dims.exchange_rows)) {", "  if (groups.block) {",
      "rows are those of the last layer")
plant("model.again_dense_up", MOE, "missing step",
      "  if (up && context.dims.local_dense_F > 0) {", "  if (false) {",
      "up-projections of the dense FFN are the gradients of the layer behind")
plant("model.again_geglu", MOE, "missing step",
      "const bool activations = groups.geglu || groups.block;",
      "const bool activations = groups.block;",
      "activations of experts are those of the last layer")
plant("model.again_up", MOE, "missing step",
      "const bool up = groups.experts || groups.block;", "const bool up = groups.experts;",
      "up-projections of a block are those of the last layer")

# ---- gradients of inputs and of weights apart

plant("model.parts_attention", BLOCK, "missing step",
      "  add(attention_branch_weight_products(context, gradients, layer, kept));\n", "",
      "the projections of attention are not trained")
plant("model.parts_experts", MOE, "operand",
      ".dy_RD = kept.dexpert_out_RD.rows(0, exchange.num_arrived()),",
      ".dy_RD = context.shared.expert_out_RD.rows(0, exchange.num_arrived()),",
      "the down-projection gets what another layer or pass has left")
plant("model.parts_dense_input", MOE, "overwritten",
      "  const TensorView& dinput_TD = scratch.dbranch_TD;",
      "  const TensorView& dinput_TD = kept.ddense_out_TD;",
      "the gradient of the dense FFN's output is that of its input when its weights' is formed")
plant("model.parts_twice", ATTENTION, "operand",
      "with_weights ? gradients.attention_out_DN : TensorView{}", "gradients.attention_out_DN",
      "the output projection's gradient is added by both parts")
plant("model.parts_queries", ATTENTION, "operand",
      "                   .dy_TN = kept.dqkv_TCH.reshape({d.T, d.local_C * d.H}),\n                   .x_TK = layer",
      "                   .dy_TN = context.scratch.dqkv_TCH.reshape({d.T, d.local_C * d.H}),\n                   .x_TK = layer",
      "the projection to queries, keys and values gets what the last layer has left")

# ---- rows to the ranks of their experts

EXCHANGE = "model/exchange.cpp"

plant("model.exchange_direction", EXCHANGE, "index",
      "rows_between(rank_, other);", "rows_between(other, rank_);",
      "a rank sends as many rows as it receives")
plant("model.exchange_own_room", EXCHANGE, "condition",
      "    most_arrived = std::max(most_arrived, arrived);\n",
      "    most_arrived = receiver == rank_ ? arrived : most_arrived;\n",
      "a rank whose own rows have room goes on where another's have none")
plant("model.exchange_first_count", EXCHANGE, "condition",
      "  reads_counts_ = true;\n", "  reads_counts_ = num_arrived_ == dims_.local_R;\n",
      "a layer has the counts of the micro-batch before")

# ---- groups and regions

GROUPS = "model/groups.cpp"
REGIONS = "model/regions.cpp"

plant("model.group_data_host", GROUPS, "group",
      "data_context_host_ = create(Axis::data_context, Device::cpu, \"_host\");",
      "data_context_host_ = create(Axis::stage_ranks, Device::cpu, \"_host\");",
      "targets are counted once for each tensor rank")
plant("model.join_blocks", REGIONS, "operand",
      "{.y = residual_TD, .x = context.shared.routed_out_TD, .num_blocks = context.dims.B}",
      "{.y = residual_TD, .x = context.shared.routed_out_TD}",
      "routed pieces of several sequences are joined rank by rank")

# Who of a layer forms which gradient, in the order of the file; see weight_gradient of BlockContext.
WRITES = ",\n                    .weight_gradient = context.weight_gradient"
for occurrence, norm in enumerate(("between", "first", "end")):
    plant(f"model.write_{norm}_norm", BLOCK, "accumulate", WRITES, "",
          "a norm's gradient is added to that of the step before", occurrence=occurrence)
WRITES = ",\n                           .weight_gradient = context.weight_gradient}"
for matrix, file in (("attention_out", ATTENTION), ("dense_down", MOE)):
    plant(f"model.write_{matrix}", file, "accumulate", WRITES, "}",
          "a matrix's gradient is added to that of the step before")
WRITES = ",\n                             .weight_gradient = context.weight_gradient}"
for matrix, file in (("qkv", ATTENTION), ("dense_up", MOE)):
    plant(f"model.write_{matrix}", file, "accumulate", WRITES, "}",
          "a matrix's gradient is added to that of the step before")
WRITES = ",\n                   .weight_gradient = context.weight_gradient}"
for occurrence, matrix in enumerate(("attention_out_apart", "qkv_apart")):
    plant(f"model.write_{matrix}", ATTENTION, "accumulate", WRITES, "}",
          "a matrix's gradient is added to that of the step before", occurrence=occurrence)
for occurrence, matrix in enumerate(("router", "dense_down_apart", "dense_up_apart")):
    plant(f"model.write_{matrix}", MOE, "accumulate", WRITES, "}",
          "a matrix's gradient is added to that of the step before", occurrence=occurrence)
plant("model.write_experts", MOE, "accumulate",
      "rows.source_R,\n                    .weight_gradient = context.weight_gradient}", "rows.source_R}",
      "the experts' gradients are added to those of the step before")
plant("model.write_experts_apart", MOE, "accumulate",
      "rows.offsets_E1,\n                            .weight_gradient = context.weight_gradient}",
      "rows.offsets_E1}",
      "the experts' gradients of a part of their own are added to those of the step before")

# ---- exchanges of tensor ranks beside products

PRODUCTS = "model/tensor_products.cpp"
GROK = "model/grok.cpp"
HEAD = "model/head.cpp"

plant("model.tensor_waits", PRODUCTS, "order",
      "    work->wait(context_.stream);\n    work.reset();\n  }\n}\n\nstd::int64_t GatheredChunks",
      "    work.reset();\n  }\n}\n\nstd::int64_t GatheredChunks",
      "chunks are used before they have arrived, but for what their end waits for")
plant("model.tensor_order", PRODUCTS, "order",
      "  if (d.tensor_chunks.cuts == 1) {", "  if (d.tensor_chunks.cuts >= 1) {",
      "a weight's gradient takes parts of sequences in another order than its input's")
plant("model.tensor_place", PRODUCTS, "aliasing",
      "index % 2 == 0 ? context_.shared.whole_TD : context_.shared.partial_TD", "context_.shared.whole_TD",
      "the next tokens come to the place of those that a product reads")
plant("model.tensor_sum_beside", PRODUCTS, "condition",
      "  if (index + 1 < sums.count()) {", "  if (index > sums.count()) {",
      "every sum is waited for at once")
plant("model.tensor_begun", PRODUCTS, "condition",
      "  if (overlaps(context) && context.shared.whole_TD.present()) {\n    work_",
      "  if (false) {\n    work_",
      "tokens that a layer has kept are gathered when they are needed")
plant("model.tensor_apart", PRODUCTS, "order",
      "    sum.start_next();\n    weights.x_TK = x->take();\n    matmul_backward(weights, stream);\n",
      "    weights.x_TK = x->take();\n    matmul_backward(weights, stream);\n    sum.start_next();\n",
      "no product is beside the sum of an input's gradient")
plant("model.tensor_head_sums", HEAD, "bound",
      "sums.start_before(begin + count);", "sums.start_before(dims_.T);",
      "terms of the head are summed before all of them are there")
plant("model.tensor_head_aligned", HEAD, "alignment",
      "end < count && dims_.pad_chunk(end) != end", "end < count && dims_.pad_chunk(end) == 0",
      "the head's products begin at any row")
plant("model.tensor_join_waits", MOE, "order",
      "  if (dbranch_in) {\n    dbranch_in->wait(stream);\n  }\n", "",
      "parts are added to before they are joined, but for what their end waits for")
plant("model.tensor_join_begun", "model/regions.cpp", "condition",
      "  if (context.dims.tensor_chunks.overlap() && context.shared.routed_out_TD.present()) {",
      "  if (false) {",
      "parts of experts are joined before the dense FFN begins")

# ---- the model

plant("model.norm_eps", BLOCK, "operand",
      ".eps = static_cast<float>(context.model.norm_eps),", ".eps = 1e-5F,",
      "norms do not use model.norm_eps")
plant("model.end_of_stream", BLOCK, "accumulate",
      ".accumulate = !next.last}", ".accumulate = true}",
      "the head's gradient is added to what an earlier pass has left of the stream's")
plant("model.end_next_weight", BLOCK, "operand",
      "{.y_TD = next.out_TD, .rrms_T = next.rrms_T, .weight_D = next.weight_D}",
      "{.y_TD = next.out_TD, .rrms_T = next.rrms_T, .weight_D = weights.pre_attention_norm_D}",
      "a layer begins with the first norm of the one before")
plant("model.end_places_of_layer", GROK, "missing step",
      "  before_layer(before);\n", "",
      "a layer's gradients are formed where an earlier one's are still being reduced")
plant("model.end_reduced_early", GROK, "order",
      "    std::optional<WeightResidency::Use> use;\n    if (i > 0) {\n      const int before",
      "    if (norm.present() && !of_head && pending_ == nullptr) {\n      end_layer(batch_.layer_at(i));\n    }\n"
      "    std::optional<WeightResidency::Use> use;\n    if (i > 0) {\n      const int before",
      "a layer's gradients are reduced without that of its first norm")

plant("model.head_first_chunk", HEAD, "accumulate",
      "begin == 0 ? weight_gradient : WeightGradient::add", "weight_gradient",
      "the head's gradient is that of its last chunk of tokens")
plant("model.head_written", HEAD, "accumulate",
      "begin == 0 ? weight_gradient : WeightGradient::add", "WeightGradient::add",
      "the head's gradient is added to that of the step before")
plant("model.tied_embedding_added", GROK, "condition",
      "parameters_.plan().head_is_embedding() ? WeightGradient::add : weight_gradient", "weight_gradient",
      "the head's part of a tied embedding's gradient is lost")
plant("model.embedding_written", GROK, "condition",
      "parameters_.plan().head_is_embedding() ? WeightGradient::add : weight_gradient",
      "weight_gradient == WeightGradient::write ? WeightGradient::add : weight_gradient",
      "the embedding's gradient is added to that of the step before")
plant("model.weights_written", GROK, "accumulate",
      "  context.weight_gradient = weight_gradient;\n  for (",
      "  context.weight_gradient = weight_gradient == WeightGradient::write ? WeightGradient::add : weight_gradient;\n  for (",
      "weights' gradients of a part of their own are added to those of the step before")
plant("model.inputs_written", GROK, "accumulate",
      "    context_.weight_gradient = weight_gradient;\n",
      "    context_.weight_gradient = pending != nullptr ? WeightGradient::add : weight_gradient;\n",
      "norms' and routers' gradients of a backward pass in parts are added to those of the step before")

# ---- a forward pass beside a backward pass

plant("model.pair_places_of_rows", GROK, "aliasing",
      "context_.rows = forward_row_places(shared);", "context_.rows = row_places(shared);",
      "both passes of a pair have their rows in one place")
plant("model.pair_places_again", GROK, "aliasing",
      "? with_places_of(model_.activations_.forward_places[batch_.first_layer + i], kept)", "? kept",
      "a forward pass writes over what the backward pass beside it has computed again")
plant("model.pair_turns", GROK, "order",
      "    backward_left = backward_left && take_turn(Turn::backward, backward);\n"
      "    forward_left = forward_left && take_turn(Turn::forward, forward);\n",
      "    forward_left = forward_left && take_turn(Turn::forward, forward);\n"
      "    backward_left = backward_left && take_turn(Turn::backward, backward);\n",
      "beside the last exchange of a backward pass is a norm")
plant("model.pair_rests", GROK, "missing step",
      "rests_ = model.activations_.recompute.sends_again();", "rests_ = false;",
      "rows that are sent again travel beside nothing")
plant("model.pair_waits", "model/exchange.cpp", "order",
      "      work->wait(stream);\n", "",
      "rows are taken before they have arrived, but for what their end waits for")
plant("model.pair_starts", "model/exchange.cpp", "condition",
      "  if (context.under_way != nullptr) {\n    context.under_way->start(",
      "  if (false) {\n    context.under_way->start(",
      "rows of a pair are waited for at once")
plant("model.pair_hands_over", "model/pipeline.cpp", "missing step",
      "          hand_over(shape, *first);\n", "",
      "the next chunk does not have what a paired forward pass has made for it")

# ---- parameters

PARAMETERS = "model/parameters.cpp"

plant("model.init_staged_end", PARAMETERS, "bound",
      "const std::int64_t count = std::min(kStagedElements, all.end() - begin);\n      staging",
      "const std::int64_t count = std::min(kStagedElements, all.end() - begin - 1);\n      staging",
      "the last element of a parameter has no initial value")
plant("model.init_held", PARAMETERS, "index",
      "static_cast<std::size_t>(begin - all.begin) * width;", "static_cast<std::size_t>(begin) * width;",
      "what a rank owns of a parameter begins elsewhere in memory")

# ---- weights that ranks share out
RESIDENCY = "model/weight_residency.cpp"

plant("model.residency_ahead", RESIDENCY, "condition", "if (next) {", "if (next && !next) {",
      "no layer's weights come before it is at work")
plant("model.residency_taken", RESIDENCY, "missing", "        states_[i].current = false;\n", "",
      "a layer whose place another has taken is not gathered again")
plant("model.residency_kept", RESIDENCY, "condition", "== layer && !states_[i].current)", "== layer)",
      "what lies in its place is gathered again")
plant("model.residency_first", RESIDENCY, "condition",
      "comes_after_step(segment(index))", "segments.empty()",
      "the layers that are used first come when they are")
plant("model.residency_use", RESIDENCY, "condition", "!user || user == s.layer", "user || !user",
      "a layer takes the place of one in use")
plant("model.residency_release", RESIDENCY, "condition", "    if (user == layer) {", "    if (user) {",
      "the end of a layer releases the next one too")
plant("model.residency_forward", GROK, "missing step",
      "      model_.residency_.expect(*next);\n", "      (void)next;\n",
      "in a forward pass no layer's weights come before it is at work")
plant("model.residency_backward", GROK, "missing step",
      "      model_.residency_.expect(batch_.layer_at(i - 2));\n", "",
      "in a backward pass no layer's weights come before it is at work")

PIPELINE = "model/pipeline.cpp"
plant("model.pipeline_send_wait", PIPELINE, "order",
      "    before->wait(stream_);\n    before.reset();\n  }\n  const TensorView& place",
      "    static thread_local std::vector<std::unique_ptr<Communicator::Work>> kept;\n"
      "    kept.push_back(std::move(before));\n  }\n  const TensorView& place",
      "a message is overwritten that has not left")
plant("model.pipeline_receive_wait", PIPELINE, "order",
      "  place_of(end.under_way, step.sequence)->wait(stream_);\n  place_of(end.under_way, step.sequence).reset();\n"
      "  copy(input_of(step.action), place_of(end.places, step.sequence));",
      "  copy(input_of(step.action), place_of(end.places, step.sequence));\n"
      "  place_of(end.under_way, step.sequence)->wait(stream_);\n  place_of(end.under_way, step.sequence).reset();",
      "a message is taken before it has come")
plant("model.pipeline_receive_next", PIPELINE, "off by one",
      "step.sequence + static_cast<std::int64_t>(end.places.size());",
      "step.sequence + static_cast<std::int64_t>(end.places.size()) - 1;",
      "the place of a message that has not been taken is received into")

plant("model.mean_of_other_loss", "model/grok.cpp", "operand",
      "StepScalar::z_mean", "StepScalar::balance_mean",
      "the z loss is averaged over sequences")
plant("model.z_mean_of_layers", "model/host_scalars.h", "operand",
      "set(StepScalar::z_mean, {wide(scales.token * per_layer)});", "set(StepScalar::z_mean, {wide(scales.token)});",
      "the z losses of layers are summed")

# ---- keys and values that are kept

plant("model.cache_sequence", "model/attention.cpp", "index",
      "(cached.first_sequence + b) * capacity + cached.begin[index];",
      "b * capacity + cached.begin[index];",
      "keys of all sequences but the first go to the first")
plant("model.cache_heads", "model/attention.cpp", "operand",
      ".v_UGH = {keys_UCH, d.local_G, d.local_G},", ".v_UGH = {keys_UCH, 0, d.local_G},",
      "keys are taken for values")
plant("model.cache_layer", "model/grok.cpp", "index",
      "batch_.cached.cache->layer(batch_.first_layer + i);", "batch_.cached.cache->layer(0);",
      "layers share keys and values")
