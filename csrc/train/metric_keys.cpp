// SPDX-License-Identifier: Apache-2.0
#include "csrc/train/metric_keys.h"

#include <array>

#include <spdlog/fmt/fmt.h>

namespace memphis {
namespace {

constexpr std::array kKeys = {
    MetricKey{"start", "step", "", "After which the process begins, or goes on."},
    MetricKey{"start", "time", "UTC, ISO 8601", "When the line was written."},
    MetricKey{
        "start",
        "steps_again",
        "steps",
        "Done by an earlier process after its last checkpoint, and now once more: their lines "
        "are dropped."},
    MetricKey{"start", "last_step", "", "schedule.steps."},
    MetricKey{"start", "ranks", "", "Of the job."},
    MetricKey{"start", "device", "text", "Ranks, their device and the type that they compute in."},
    MetricKey{"start", "layout", "text", "The degrees of `parallel` that are more than one."},
    MetricKey{"start", "parameters", "", "Of the model."},
    MetricKey{
        "start",
        "model_flops_per_token",
        "FLOP",
        "Forward and backward, attention counted by its causal half. Over the peak this is MFU."},
    MetricKey{"start", "model_flops_per_token_unhalved", "FLOP", "With the whole square."},
    MetricKey{"start",
              "hardware_flops_per_token",
              "FLOP",
              "The first, with what the backward pass computes again. Over the peak this is HFU."},
    MetricKey{"start",
              "peak_flops_per_second",
              "FLOP/s",
              "Dense bf16 peak of all ranks. Left out where it is not known."},
    MetricKey{"start", "memory", "bytes", "The memory plan of the first rank, by kind."},
    MetricKey{"step", "step", "", "Of which the line is."},
    MetricKey{"step", "time", "UTC, ISO 8601", "When the line was written."},
    MetricKey{"step",
              "loss",
              "nats a token",
              "Cross entropy of the targets, without the auxiliary losses."},
    MetricKey{"step",
              "balance_loss",
              "",
              "How unevenly tokens are spread over experts, mean over layers; 1: each has its "
              "share. Without its weight loss.balance."},
    MetricKey{"step",
              "router_z_loss",
              "",
              "Mean square of the logarithm of the router's partition function, mean over layers. "
              "Without its weight loss.router_z."},
    MetricKey{"step", "grad_norm", "", "Of the whole gradient, before it is clipped."},
    MetricKey{"step", "learning_rate", "", "Of this step."},
    MetricKey{"step",
              "expert_load_max",
              "times an equal share",
              "Tokens of the busiest expert, in the layer where it is worst, over what each would "
              "have if all had equally many; in the last micro-batch of each rank. The log says "
              "`busiest expert`."},
    MetricKey{"step", "tokens", "tokens", "Of this step, over all ranks."},
    MetricKey{"step", "samples", "sequences", "Of training text, since step 0."},
    MetricKey{"step",
              "seconds",
              "seconds",
              "Of this step on rank 0: from the end of the one before, or from when this one was "
              "prepared where "
              "something came between."},
    MetricKey{"step", "tokens_per_second", "tokens/s", "tokens over seconds."},
    MetricKey{"step",
              "model_flops_per_second",
              "FLOP/s",
              "What the model needs for these tokens, attention counted by its causal half, over "
              "seconds."},
    MetricKey{"step", "data_seconds", "seconds", "Of rank 0: reading the batch."},
    MetricKey{"step", "model_seconds", "seconds", "Of rank 0: forward and backward pass."},
    MetricKey{"step",
              "optimizer_seconds",
              "seconds",
              "Of rank 0: norm of the gradient, clipping, AdamW."},
    MetricKey{"step",
              "communication_seconds",
              "seconds",
              "For how long within the step rank 0 exchanged anything with others, however much of "
              "it at a time; never more than seconds. Left out where GPUs exchange and nobody "
              "times it (metrics.trace does)."},
    MetricKey{"step",
              "exposed_seconds",
              "seconds",
              "For how long within the step rank 0 stood and waited for others; the rest of "
              "communication_seconds is hidden behind work. Left out with it."},
    MetricKey{
        "step",
        "context_imbalance",
        "times an equal share",
        "Where ranks share sequences out: pairs of a query and a key that it sees, on the rank "
        "that has most of them, over the mean; of rank 0's samples. 1: nobody waits. The log says "
        "`busiest context rank`."},
    MetricKey{
        "step",
        "skipped",
        "",
        "true where the step was left out, as the norm of its gradient is not finite. What of "
        "it is no number is left out too."},
    MetricKey{"routing", "step", "", "Of which the line is: each of which the log has a line."},
    MetricKey{"routing", "time", "UTC, ISO 8601", "When the line was written."},
    MetricKey{
        "routing",
        "expert_load",
        "times an equal share",
        "Tokens of each expert, a list for each layer; in the last micro-batch of each rank."},
    MetricKey{
        "routing",
        "effective_experts",
        "experts",
        "Of each layer: exp of the entropy of its load. All of them: even. Below K + (E - K) / "
        "4, of E experts of which a token takes K, in three lines in a row, the router has "
        "collapsed, and the log warns with the layer's name."},
    MetricKey{
        "routing",
        "router_entropy",
        "of ln(experts)",
        "Of each layer: entropy of the probabilities that the router gives a token, the mean. "
        "1: it knows no difference; 0: it is certain."},
    MetricKey{"routing",
              "kept_probability",
              "",
              "Of each layer: sum of the probabilities of the experts that a token goes to, the "
              "mean. 1: nothing is lost by taking K of them."},
    MetricKey{"routing", "dropped_tokens", "tokens", "0: experts take whatever comes."},
    MetricKey{"routing",
              "slowest_rank",
              "",
              "Which rank worked longest in the step, apart from what it waited for others."},
    MetricKey{"routing", "slowest_rank_seconds", "seconds", "For how long."},
    MetricKey{"routing", "median_rank_seconds", "seconds", "For how long the rank in the middle."},
    MetricKey{"gpus", "step", "", "Of which the line is; there are none where no NVML is."},
    MetricKey{"gpus", "time", "UTC, ISO 8601", "When the line was written."},
    MetricKey{"gpus", "gpu_watts", "W", "Of the GPUs of all ranks."},
    MetricKey{"gpus", "gpu_joules", "J", "The same, since this process began to train."},
    MetricKey{"gpus", "joules_per_token", "J", "Since the line before."},
    MetricKey{"gpus", "gpu_celsius_max", "C", "Of the hottest GPU."},
    MetricKey{"gpus", "hottest_rank", "", "Whose that is; -1: none says."},
    MetricKey{"gpus", "gpu_mhz_min", "MHz", "The lowest clock of any GPU's multiprocessors."},
    MetricKey{"gpus", "slowest_clock_rank", "", "Whose that is; -1: none says."},
    MetricKey{"gpus",
              "throttled_rank",
              "",
              "The first rank whose clocks are held down by more than idleness; -1: none."},
    MetricKey{"gpus", "throttle_reasons", "text", "Why, of any rank: power limit, heat, ..."},
    MetricKey{"validation", "step", "", "After which it was measured."},
    MetricKey{"validation", "time", "UTC, ISO 8601", "When the line was written."},
    MetricKey{
        "validation",
        "validation_set",
        "",
        "Its name; left out where there is one set, of no name. The sets of a step have a line "
        "each."},
    MetricKey{"validation",
              "validation_loss",
              "nats a token",
              "Cross entropy over the text that is held out."},
    MetricKey{"validation", "validation_targets", "tokens", "Over how many that is the mean."},
    MetricKey{"validation", "elapsed_seconds", "seconds", "Since this process began to train."},
    MetricKey{"evaluation", "step", "", "After which the questions of data.evaluate were asked."},
    MetricKey{"evaluation", "time", "UTC, ISO 8601", "When the line was written."},
    MetricKey{"evaluation",
              "accuracy",
              "",
              "Share of questions whose right ending has the largest probability."},
    MetricKey{"evaluation",
              "accuracy_normalised",
              "",
              "The same by the mean log-probability a byte, which longer endings lose nothing by."},
    MetricKey{"evaluation", "questions", "", "Over how many both are."},
    MetricKey{"sample", "step", "", "After which it was drawn."},
    MetricKey{"sample", "time", "UTC, ISO 8601", "When the line was written."},
    MetricKey{
        "sample",
        "sample",
        "text",
        "What the model wrote behind metrics.sample_prompt; bytes that are no UTF-8 are replaced."},
    MetricKey{"end", "step", "", "The last one."},
    MetricKey{"end", "time", "UTC, ISO 8601", "When the line was written."},
    MetricKey{"end", "end", "text", "Why the process ended: `done`, or what its last line says."},
    MetricKey{"end", "done", "", "Whether the run has come to its last step."},
};

std::string title_of(std::string_view line) {
  if (line == "step") {
    return "A line of a step";
  }
  if (line == "evaluation") {
    return "A line of an evaluation";
  }
  if (line == "start") {
    return "A line of a start";
  }
  if (line == "end") {
    return "A line of an end";
  }
  if (line == "gpus") {
    return "A line of the GPUs";
  }
  if (line == "routing") {
    return "A line of the routing";
  }
  return line == "sample" ? "A line of a sample of the model's text"
                          : "A line of a validation loss";
}

}  // namespace

std::span<const MetricKey> metric_keys() {
  return kKeys;
}

std::string describe_metrics() {
  std::string text;
  std::string_view line;
  for (const MetricKey& key : kKeys) {
    if (key.line != line) {
      text += fmt::format("{}{}:\n", line.empty() ? "" : "\n", title_of(key.line));
      line = key.line;
    }
    text += fmt::format("  {:<24} {}{}\n",
                        key.key,
                        key.meaning,
                        key.unit.empty() ? "" : fmt::format(" [{}]", key.unit));
  }
  return text;
}

std::string metrics_reference() {
  std::string text =
      "# The keys of metrics.jsonl\n\n"
      "Written by `memphis docs metrics --markdown`, from csrc/train/. `run.dir/metrics.jsonl` has "
      "one\n"
      "JSON object a line: one for each step, and others for starts, routing, GPUs, validation\n"
      "losses, evaluations, samples and ends. `memphis report RUN_DIR` shows them.\n";
  std::string_view line;
  for (const MetricKey& key : kKeys) {
    if (key.line != line) {
      line = key.line;
      text +=
          fmt::format("\n## {}\n\n| key | unit | meaning |\n| --- | --- | --- |\n", title_of(line));
    }
    text += fmt::format("| `{}` | {} | {} |\n", key.key, key.unit, key.meaning);
  }
  return text;
}

}  // namespace memphis
