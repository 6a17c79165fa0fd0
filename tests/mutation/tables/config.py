# SPDX-License-Identifier: Apache-2.0
"""Faults in csrc/config."""
from table import planter

plant = planter("csrc")

VALIDATE = "config/validate.cpp"
PARALLEL = "config/resolve_parallel.cpp"
LOAD = "config/load.cpp"
SCALAR = "config/scalar.cpp"

plant("config.pad_id", VALIDATE, "bound",
      "model.pad_id < model.vocab_size,", "model.pad_id <= model.vocab_size,",
      "an id just outside of the vocabulary is taken for padding")
plant("config.temperature", VALIDATE, "unchecked",
      "model.attention_temperature_len != 1,", "model.attention_temperature_len != -1,",
      "a temperature divides by log 1")
plant("config.max_sequence", VALIDATE, "bound",
      "model.max_sequence_length >= batch.sequence_length,", "model.max_sequence_length > batch.sequence_length,",
      "a model is not trained on as many positions as it has")
plant("config.embedding_default", VALIDATE, "scale",
      "model.embedding_multiplier = std::sqrt(static_cast<double>(model.d_model));", "model.embedding_multiplier = 1 / std::sqrt(static_cast<double>(model.d_model));",
      "embeddings are scaled down by default")
plant("config.attention_default", VALIDATE, "scale",
      "model.attention_multiplier = 1 / std::sqrt(static_cast<double>(model.head_dim));", "model.attention_multiplier = 1 / std::sqrt(static_cast<double>(model.d_model));",
      "scores are scaled by the model's width by default")
plant("config.warmup", VALIDATE, "bound",
      "schedule.warmup_steps < schedule.steps,", "schedule.warmup_steps <= schedule.steps,",
      "a run is all warm-up")
plant("config.data_degree", PARALLEL, "unchecked",
      "parallel.data == 0 || parallel.data == data,", "parallel.data >= 0,",
      "parallel.data is another than was asked for")
plant("config.pass_order", LOAD, "order",
      "    assign_all(from_file, config);\n    assign_all(from_arguments, config);\n", "    assign_all(from_arguments, config);\n    assign_all(from_file, config);\n",
      "the file goes over what the command line says")
plant("config.leading_zero", SCALAR, "condition",
      "return count == 1 || (count > 1 && !leading_zero);", "return count >= 1;",
      "010 is a number")

# ---- pipelines

plant("config.chunks_more", PARALLEL, "condition",
      "(chunks > each.num_chunks && each.takes_more)", "chunks > each.num_chunks",
      "zbv is taken with three chunks")
plant("config.stages_missing", PARALLEL, "comparison",
      "checker.expect(missing == 0,", "checker.expect(missing <= 0,",
      "stages have layers that the model does not have")
plant("config.stages_count", PARALLEL, "comparison",
      "checker.expect(given == num_stages,", "checker.expect(given <= num_stages,",
      "a stage is not said to have layers or none")
plant("config.stages_of_ranks", PARALLEL, "bound",
      "        num_stages <= num_layers,", "        parallel.pipeline <= num_layers,",
      "chunks are left without a layer that nobody asked for")
plant("config.pipeline_advice", PARALLEL, "condition",
      "job_ranks_ / degree % stage_ranks() == 0", "job_ranks_ % stage_ranks() == 0",
      "a pipeline is advised that leaves too few ranks for the other degrees")
plant("config.pipeline_zero", PARALLEL, "condition",
      "num_stages == 1 || parallel.zero < 2,", "parallel.pipeline == 1 || parallel.zero < 2,",
      "gradients of chunks are reduced once a micro-batch")
plant("config.chunks_default", "config/config.h", "initial value",
      "parallel.chunks != 0 ? parallel.chunks : rule_of(parallel.schedule).num_chunks",
      "parallel.chunks != 0 ? parallel.chunks : 1",
      "interleaved has one chunk by default")
