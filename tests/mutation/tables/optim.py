# SPDX-License-Identifier: Apache-2.0
"""Faults in csrc/optim."""
from table import planter

plant = planter("csrc")

REDUCTION = "optim/gradient_reduction.cpp"
SCHEDULE = "optim/lr_schedule.cpp"
OPTIMIZER = "optim/optimizer.cpp"

plant("optim.in_the_way", REDUCTION, "missing wait",
      "      if (in_the_way) {\n        complete(pending);\n      }\n", "",
      "a gradient that is in the way of the next is not added")
plant("optim.together_of_group", REDUCTION, "condition",
      "each.layer == s.layer && each.replicas == s.replicas &&", "each.layer == s.layer &&",
      "gradients of experts are summed over the ranks of another tensor")
plant("optim.together_cleared", REDUCTION, "state",
      "    sums_.clear();\n", "",
      "what an earlier call has summed is summed again")
plant("optim.together_terms", REDUCTION, "missing step",
      "    for (const std::size_t segment : pending.together->segments) {\n      add_term(segment);\n    }\n",
      "    add_term(pending.together->segments.front());\n",
      "of gradients that come together only the first are added to the sums")
plant("optim.step_writes", "optim/gradient_reduction.h", "condition",
      "each_ || first ?", "each_ ?",
      "the first micro-batch adds to the gradients of the step before")
plant("optim.each_writes", "optim/gradient_reduction.h", "condition",
      "each_ || first ?", "first ?",
      "a micro-batch whose gradients are reduced at once adds to another layer's")
plant("optim.first_sum", REDUCTION, "condition",
      "if (has_sum_[segment]) {", "if (each_) {",
      "sums that a rank keeps are added to those of the step before")
plant("optim.sum_begins_anew", REDUCTION, "initial value",
      "  std::fill(has_sum_.begin(), has_sum_.end(), false);\n", "",
      "sums that a rank keeps are added to those of the step before, but for the first step")
plant("optim.later_sum", REDUCTION, "missing step",
      "    has_sum_[segment] = true;\n", "",
      "a rank keeps the gradients of the last micro-batch alone")
plant("optim.master_copy", OPTIMIZER, "condition",
      "    if (segments_[i].owns_master) {\n      kernels::convert", "    if (!segments_[i].owns_master) {\n      kernels::convert",
      "master weights begin at zero")
plant("optim.decay_none", OPTIMIZER, "weight decay",
      ".weight_decay = segment.decay ? config_.weight_decay : 0.0,", ".weight_decay = segment.decay ? 0.0 : 0.0,",
      "nothing decays")
plant("optim.betas", OPTIMIZER, "operand",
      ".beta1 = config_.beta1,\n                      .beta2 = config_.beta2,",
      ".beta1 = config_.beta2,\n                      .beta2 = config_.beta1,",
      "the two betas are exchanged")
plant("optim.bias_late", OPTIMIZER, "bias correction",
      "config_.beta2, step);", "config_.beta2, step + 1);",
      "the moments are corrected as if they were a step older")
plant("optim.warmup_longer", SCHEDULE, "off by one",
      "/ static_cast<double>(schedule.warmup_steps);", "/ static_cast<double>(schedule.warmup_steps + 1);",
      "the warm-up does not reach the peak")
plant("optim.cosine_end", SCHEDULE, "bound",
      "progress(step, schedule.warmup_steps, schedule.steps);", "progress(step, schedule.warmup_steps, schedule.steps + 1);",
      "the last step is not at the end of the decay")
plant("optim.min_ratio", SCHEDULE, "scale",
      "return peak * (schedule.min_ratio + (1 - schedule.min_ratio) * height);",
      "return peak * std::max(schedule.min_ratio, height);",
      "the decay is cut off where it should end softly")
plant("optim.after_end", SCHEDULE, "bound",
      "  if (step >= end) {\n    return 1;\n  }\n", "",
      "past the last step the learning rate goes up again")
