# SPDX-License-Identifier: Apache-2.0
"""Faults in csrc/train."""
from table import planter

plant = planter("csrc")

EVALUATE = "train/evaluate.cpp"
GENERATOR = "train/generator.cpp"
STEP = "train/step.cpp"

plant("train.step_token_scale", STEP, "scale by degree",
      ".token = 1.0F / static_cast<float>(std::max<std::int64_t>(counts.valid_tokens, 1)),", ".token = 1.0F / static_cast<float>(micro_batch * config_.batch.sequence_length),",
      "the z loss adds up over micro-batches")
plant("train.validation_stride", EVALUATE, "scale by degree",
      "micro_batch_ * plan.share.data_context.count)),", "micro_batch_)),",
      "ranks along data validate windows twice")
plant("train.validation_clear", EVALUATE, "initial value",
      "  device_zero(shared.stats.data, shared.stats.bytes(), stream_);\n", "",
      "the validation loss begins with that of the step")
plant("train.generate_seed", GENERATOR, "seed",
      "const CounterRng rng(options.seed, \"sample\");", "const CounterRng rng(0, \"sample\");",
      "the seed of a sample does not count")
