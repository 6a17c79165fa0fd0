# SPDX-License-Identifier: Apache-2.0
"""Faults in csrc/config."""
from table import planter

plant = planter("csrc")

VALIDATE = "config/validate.cpp"
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
plant("config.data_degree", VALIDATE, "unchecked",
      "parallel.data == 0 || parallel.data == data,", "parallel.data >= 0,",
      "parallel.data is another than was asked for")
plant("config.pass_order", LOAD, "order",
      "    assign_all(from_file, config);\n    assign_all(from_arguments, config);\n", "    assign_all(from_arguments, config);\n    assign_all(from_file, config);\n",
      "the file goes over what the command line says")
plant("config.leading_zero", SCALAR, "condition",
      "return count == 1 || (count > 1 && !leading_zero);", "return count >= 1;",
      "010 is a number")
