# SPDX-License-Identifier: Apache-2.0
"""Faults in what shares a sequence out over ranks: csrc/plan, csrc/model, csrc/train and the op that
puts heads in order."""
from table import planter

plant = planter("csrc")

# ---- who has which tokens

ORDER = "plan/context_order.cpp"

plant("plan.context_zigzag", ORDER, "index",
      "std::min(piece, num_pieces - 1 - piece) % context_.count", "piece % context_.count",
      "pieces are dealt out in turn, and the last rank sees most")
plant("plan.context_pairs", ORDER, "operand",
      "+= position_S[t] + 1;", "+= position_S[t];",
      "a query does not count the key that it is")
plant("plan.context_even_out", ORDER, "missing step",
      "  even_out();\n}", "}",
      "ranks keep what their turns gave them")
plant("plan.context_one_document", ORDER, "missing step",
      "one_document = one_document && position_S[t] == static_cast<std::int32_t>(t);", "",
      "packed documents are cut as one is")
plant("plan.context_block", ORDER, "bound",
      "while (half % tokens != 0) {", "while (false) {",
      "a share is no whole number of blocks")

# ---- what a rank takes of a sample

BATCH = "train/batch.cpp"

plant("train.context_key_valid", BATCH, "index",
      "    key_valid_[first_key + key] = valid;", "    key_valid_[first_key + in_batch] = valid;",
      "padding is marked where its key was numbered")
plant("train.context_numbers", BATCH, "stride",
      "(rank * share_.micro_batch + b) * own_length_", "(rank + b) * own_length_",
      "sequences of a micro-batch are numbered over one another")
plant("train.context_targets", BATCH, "operand",
      "num_targets += targets_[t] >= 0 ? 1 : 0;", "num_targets += 1;",
      "tokens without a target count as some")
plant("train.context_padding", BATCH, "operand",
      "    keys = batch.key_valid_U;\n", "",
      "a rank without padding sees that of the others as keys")
plant("train.context_balance", "train/step.cpp", "operand",
      ".own_sequences = plan_.share.context.index == 0 ? 1.0F : 0.0F", ".own_sequences = 1.0F",
      "the balance loss is counted once a rank")
plant("train.context_samples", "plan/share.cpp", "operand",
      "      data_(share.data)", "      data_(share.data_context)",
      "ranks that share a sequence out take different ones")

# ---- the ways to the others' keys

CONTEXT = "model/context_attention.cpp"

plant("model.context_places", CONTEXT, "operand",
      "                     .place_T = context.batch.place_T,\n                     .key_valid_U = context.key_valid_U,",
      "                     .key_valid_U = context.key_valid_U,",
      "queries stand at the front of the sequence")
plant("model.context_order_back", CONTEXT, "operand",
      ".source_T = context.batch.key_of_number_U},\n               context.stream);\n  const TensorView own_TCH",
      ".source_T = context.batch.key_number_U},\n               context.stream);\n  const TensorView own_TCH",
      "gradients of keys go back in another order than keys came")
plant("model.context_ring_home", CONTEXT, "sign",
      "const RingStep home = ring_step(ring, -i);", "const RingStep home = ring_step(ring, i);",
      "gradients of keys go to the rank as far the other way")
plant("model.context_ring_valid", CONTEXT, "operand",
      "        op.key_valid_U = of_rank(context, context.key_valid_U, rank);\n", "",
      "padding is a key in the ring's backward pass")
plant("model.context_positions", CONTEXT, "operand",
      "  op.position_T = context.batch.key_position_U;\n  differentiate", "  differentiate",
      "whole sequences have the positions of a rank's own tokens")
plant("model.context_sequence_ranks", "model/groups.cpp", "missing collective",
      "return sequence_ranks_ ? *sequence_ranks_ : context_->size() > 1 ? *context_ : *tensor_;",
      "return *tensor_;",
      "a sequence's pieces on other ranks are balanced by themselves")

# ---- the op

plant = planter("kernels")
HEADS = "attention/gather_heads.cu"

plant("gather_heads.guard", HEADS, "tail guard",
      "if (t >= arguments.num_tokens) {", "if (t > arguments.num_tokens) {",
      "a warp past the last token writes one")
plant("gather_heads.part", HEADS, "stride",
      "p * arguments.part_stride", "p * arguments.x_stride",
      "parts are the tokens behind the first")
plant("gather_heads.turn", HEADS, "index",
      "loaded[i] = load(first + i);", "loaded[i] = load(i);",
      "the fifth part and column are the first again")
plant("gather_heads.turn_tail", HEADS, "bound",
      "if (first + i < count) {\n        take(", "if (first + i <= count) {\n        take(",
      "a part that there is not is added", occurrence=0)
plant("gather_heads.source", HEADS, "operand",
      "arguments.source == nullptr ? t : arguments.source[t]", "t",
      "tokens keep their order")
