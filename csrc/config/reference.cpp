// SPDX-License-Identifier: Apache-2.0
#include "csrc/config/reference.h"

#include <algorithm>
#include <array>
#include <sstream>
#include <vector>

#include "csrc/config/scalar.h"
#include "csrc/config/schema.h"
#include "csrc/config/words.h"
#include "csrc/core/error.h"

namespace memphis {
namespace {

constexpr std::array kTexts = {
    KeyText{"model.preset",
            "",
            "none",
            "A model to start from: its values stand for the keys of `model` that are not given."},
    KeyText{"model.vocab_size",
            "tokens",
            "",
            "Size of the vocabulary. The byte tokenizer needs 259; a multiple of 64 keeps a GPU's "
            "products aligned."},
    KeyText{"model.num_layers", "", "", "Blocks of attention and experts."},
    KeyText{"model.d_model", "", "", "Width of the residual stream."},
    KeyText{"model.num_heads", "", "", "Query heads of a layer."},
    KeyText{"model.num_kv_heads",
            "",
            "num_heads",
            "Key/value heads of a layer; must divide num_heads."},
    KeyText{"model.head_dim",
            "",
            "d_model / num_heads",
            "Width of a head; even, for the rotary embedding."},
    KeyText{"model.ffn_dim", "", "", "Hidden width of one expert."},
    KeyText{"model.num_experts", "", "", "Experts of a layer."},
    KeyText{"model.experts_per_token", "", "", "Experts that each token visits."},
    KeyText{"model.dense_ffn_dim",
            "",
            "",
            "Hidden width of a dense FFN beside the experts, as in Grok-2; 0: none."},
    KeyText{"model.embedding_multiplier", "", "sqrt(d_model)", "Scales the embeddings."},
    KeyText{"model.output_multiplier", "", "", "Scales the logits."},
    KeyText{
        "model.attention_multiplier", "", "1 / sqrt(head_dim)", "Scales the scores of attention."},
    KeyText{
        "model.attention_cap", "", "", "Soft cap c of the scores, c * tanh(score / c); 0: none."},
    KeyText{"model.router_cap", "", "", "Soft cap of the router's logits; 0: none."},
    KeyText{"model.final_cap", "", "", "Soft cap of the logits; 0: none."},
    KeyText{"model.attention_temperature_len",
            "positions",
            "",
            "From which position on scores are scaled up with the logarithm of the position; 0: "
            "never."},
    KeyText{"model.rope_theta", "", "", "Base of the rotary embedding's wavelengths."},
    KeyText{"model.tie_embeddings", "", "", "Whether the embedding is the output matrix, too."},
    KeyText{"model.norm_eps", "", "", "Added to the mean square under the root of RMSNorm."},
    KeyText{"model.pad_id",
            "token id",
            "",
            "Token that is no key of attention and no target; -1: none."},
    KeyText{"model.max_sequence_length",
            "tokens",
            "batch.sequence_length",
            "What config.json of a checkpoint says that the model takes, and where `memphis "
            "generate` stops."},
    KeyText{"model.init",
            "",
            "",
            "How weights are drawn: fan_in gives each matrix N(0, 1/inputs), normal gives all N(0, "
            "init_std^2)."},
    KeyText{"model.init_std", "", "", "Standard deviation of weights under init=normal."},
    KeyText{"model.router_init_std", "", "", "Standard deviation of the router's weights."},

    KeyText{"run.dir", "", "", "Where checkpoints, metrics.jsonl and the resolved config go."},
    KeyText{"run.device", "", "", "What to run on; auto: the GPU where there is one."},
    KeyText{"run.seed",
            "",
            "",
            "Of weights, the order of samples and sampled text: same seed, same bits."},
    KeyText{"run.resume",
            "",
            "",
            "auto: go on from the newest checkpoint in run.dir if there is one; required: fail if "
            "there is none; never: start over where that loses nothing."},
    KeyText{"run.init_from",
            "",
            "weights are drawn",
            "A model folder in Hugging Face's layout whose weights the run begins with. A "
            "checkpoint in run.dir wins."},
    KeyText{"run.export_every",
            "steps",
            "",
            "Between model folders written to run.dir/export, of which the end has one too; 0: "
            "none."},
    KeyText{"run.lost_seconds",
            "seconds",
            "",
            "After how much silence of a rank the job ends; 0: never, for a debugger."},
    KeyText{"run.hang_seconds",
            "seconds",
            "",
            "After how long in a collective to which a living rank does not come the job ends; 0: "
            "never."},
    KeyText{"run.graph",
            "",
            "",
            "Whether a GPU is given a step as two CUDA graphs, gradients and update, to the same "
            "bits. auto: where one rank runs without metrics.trace and the GPU has memory for "
            "them; required: fail where that cannot be. Padding makes steps differ: those that "
            "have it in other micro-batches than the first four kinds of steps are launched "
            "kernel by kernel."},
    KeyText{"run.time_limit",
            "",
            "",
            "After how long since its start a run saves and stops, with exit code 10, in time for "
            "what a step and a save have taken: 3h50m, say. auto: when Slurm says that it ends the "
            "job, where it does; none: never. Slurm's end counts beside a time that is given."},
    KeyText{"run.failure_hours",
            "hours",
            "",
            "Between two failures that end the job, of one rank; a job of N ranks fails N times as "
            "often. checkpoint.every auto goes by it."},
    KeyText{
        "run.verify_every",
        "steps",
        "",
        "Between comparisons of the weights of ranks that hold the same, of each rank's weights "
        "with its master weights, and, from there to the next step's update, of weights and "
        "optimizer's state with what they were: a rank whose bits differ is named, and the run "
        "ends with exit code 13 before anything is saved. Also before each save; 0: never. All "
        "threads of a rank read all of it, from a GPU over its bus: once while training stands, "
        "and once more before the update."},
    KeyText{"run.recompute_check_every",
            "steps",
            "",
            "Between steps whose first micro-batch is computed twice: a rank whose gradients are "
            "not the same to the bit is named, and the run ends with exit code 13; 0: never."},

    KeyText{"parallel.pipeline", "ranks", "", "Ranks that share out the layers."},
    KeyText{"parallel.schedule",
            "",
            "",
            "In which order pipeline ranks work. 1f1b: least messages; interleaved: a bubble as "
            "many times shorter as there are chunks; zb-h1 and zbv: gradients of weights fill the "
            "bubble."},
    KeyText{"parallel.chunks",
            "stages a rank",
            "1, or 2 for interleaved and zbv",
            "Runs of layers that a pipeline rank holds: 1 for 1f1b and zb-h1, 2 for zbv, 2 or more "
            "for interleaved; 0: the default."},
    KeyText{"parallel.stages",
            "layers",
            "evenly",
            "Layers of each of the pipeline x chunks stages, in the order of the model, as in "
            "[9, 8, 8, 7]; `memphis plan` shows what balances best."},
    KeyText{"parallel.data",
            "ranks",
            "what the other degrees leave",
            "Ranks that share out the samples of a batch."},
    KeyText{"parallel.context",
            "ranks",
            "",
            "Ranks that share out the tokens of a sequence, for long ones; twice as many divide "
            "batch.sequence_length."},
    KeyText{"parallel.context_order",
            "",
            "",
            "Which tokens each of them has, so that their work is equal: zigzag (two pieces, one "
            "from the front and one from the back), blocks (of up to 128 tokens, dealt out by how "
            "many keys they see), or auto: zigzag for a sequence of one document, else blocks."},
    KeyText{
        "parallel.context_exchange",
        "",
        "",
        "How they come to each other's keys and values: gather (all at once, one kernel), ring "
        "(from neighbour to neighbour beside the work), all_to_all (whole sequences, some of the "
        "heads each, within a machine), or auto: gather, and ring where gathering would take "
        "more than a tenth of attention."},
    KeyText{"parallel.expert", "ranks", "", "Ranks that share out the experts of a layer."},
    KeyText{"parallel.tensor",
            "ranks",
            "",
            "Ranks that share out the heads and widths of dense layers."},
    KeyText{"parallel.expert_tensor",
            "ranks",
            "",
            "Ranks that share out the hidden width of each expert."},
    KeyText{"parallel.zero",
            "",
            "",
            "What ranks with the same parameters keep a piece of each: 0 nothing, 1 the "
            "optimizer's state, 2 gradients too, 3 the weights of layers too, which are gathered "
            "a layer ahead in both passes. 2 and 3 where there is one stage."},
    KeyText{"parallel.bucket_mib",
            "MiB",
            "",
            "How much of gradients, in f32, is reduced at a time while the backward pass goes on."},
    KeyText{"parallel.sequence_parallel",
            "",
            "",
            "Whether tensor ranks share out the positions between their products as well."},
    KeyText{"parallel.expert_buffer",
            "times an equal share",
            "",
            "Rows that a rank's experts have room for in a micro-batch; 0: room for every case."},
    KeyText{"parallel.overlap_experts",
            "",
            "",
            "Whether rows travel to experts and back beside the work of another micro-batch, the "
            "forward pass of one with the backward pass of another: more of them are under way, to "
            "the same bits. auto: where ranks share out the experts and memory has room; required: "
            "always, or the run does not start."},
    KeyText{
        "parallel.overlap_tensor",
        "",
        "",
        "Whether what tensor ranks gather and sum travels beside their products: beside the "
        "other of two products in the backward pass, else in chunks of tokens. auto: on GPUs, in "
        "as many chunks as have the rows of an efficient product; required: in two at least, or "
        "the run does not start."},

    KeyText{
        "memory.recompute",
        "",
        "",
        "What the backward pass computes again instead of keeping it, with the same bits: inputs "
        "of branches (norm), attention, up-projections (experts), their activations (geglu), or "
        "all but a layer's input and output of its experts (block); auto: the least that fits."},
    KeyText{"memory.recompute_layers",
            "layers",
            "",
            "The first so many of which it does so; 0: all of them."},
    KeyText{
        "memory.head_rows",
        "tokens",
        "",
        "Whose logits are there at one time, a multiple of 8; 0: those of 2^27 logits, and on a "
        "GPU at least 4096, whose products do not wait for memory."},
    KeyText{"memory.budget_gib",
            "GiB",
            "",
            "What a rank may take on its device; 0: what is free there, in plans for a GPU that is "
            "not here what an H100 has."},

    KeyText{"data.train",
            "",
            "memphis's own sources",
            "What to train on: files, directories, globs, which are one text; or `{path, weight, "
            "name}` "
            "each, a mixture whose samples are shared out by weight."},
    KeyText{
        "data.validation",
        "",
        "the held-out end of data.train",
        "What to measure the validation loss on: files, directories, globs, which are one text; "
        "or `{path, name}` each, sets with a loss of their own."},
    KeyText{"data.held_out",
            "fraction",
            "",
            "How much of the end of data.train is held out where data.validation is empty; 0: "
            "nothing."},
    KeyText{"data.tokenizer",
            "",
            "",
            "byte: a token is a byte, or one of pad, begin and end. none: the data are ids, of no "
            "known text. Else the path of a SentencePiece model, a tokenizer.json of BPE, "
            "a tiktoken file, or a folder with one of them."},
    KeyText{"data.evaluate",
            "",
            "nothing",
            "Multiple-choice questions: jsonl files whose lines have ctx, endings and label."},
    KeyText{
        "data.tokenizer_pattern",
        "",
        "by the size of the vocabulary",
        "How a tiktoken file's text is cut into words: gpt2, cl100k, o200k, llama3 or qwen, or a "
        "regular expression."},
    KeyText{"data.field", "", "", "The text of a line of JSON."},
    KeyText{"data.prompt_field",
            "",
            "none",
            "Of a line of JSON, in place of data.field: what is read and is not a target."},
    KeyText{"data.response_field", "", "none", "What follows data.prompt_field, the targets."},
    KeyText{
        "data.document_boundaries",
        "",
        "",
        "Whether attention and targets end where a document does; false: a sample is one text."},

    KeyText{"batch.sequence_length", "tokens", "", "Tokens of a sample."},
    KeyText{"batch.micro_batch", "sequences", "", "Samples that a rank has in memory at a time."},
    KeyText{"batch.global_batch",
            "sequences",
            "",
            "Samples of a step, over all ranks; a multiple of micro_batch times parallel.data."},

    KeyText{"optimizer.learning_rate", "", "", "Peak of the schedule."},
    KeyText{"optimizer.beta1", "", "", "Decay of AdamW's first moment."},
    KeyText{"optimizer.beta2", "", "", "Decay of AdamW's second moment."},
    KeyText{"optimizer.eps", "", "", "Added to the root of the second moment."},
    KeyText{"optimizer.weight_decay",
            "",
            "",
            "Of matrices, decoupled: times the learning rate, each step."},
    KeyText{"optimizer.clip_norm", "", "", "Largest norm of the whole gradient; 0: none."},
    KeyText{"optimizer.max_skipped",
            "steps",
            "",
            "How many in a row may have a gradient whose norm is not finite: each is left out and "
            "said, and its samples are passed over. One more ends the run; 0: the first does."},
    KeyText{"optimizer.rewind_norm",
            "",
            "",
            "Norm of the gradient, before clipping, above which the run goes back to its last "
            "checkpoint and passes over the samples of that step; 0: never."},
    KeyText{"optimizer.max_rewinds",
            "times",
            "",
            "How often a run goes back to one checkpoint; once more ends it."},

    KeyText{"schedule.steps", "steps", "", "Where the run ends."},
    KeyText{"schedule.warmup_steps",
            "steps",
            "",
            "Over which the learning rate rises from 0 in a line."},
    KeyText{"schedule.decay",
            "",
            "",
            "How the learning rate falls after that: cosine to the end, wsd at the end only, "
            "constant not at all."},
    KeyText{"schedule.decay_steps",
            "steps",
            "steps / 5",
            "Length of wsd's fall at the end, in a line."},
    KeyText{"schedule.min_ratio", "", "", "Last learning rate over the peak."},

    KeyText{"loss.balance",
            "",
            "",
            "Weight of the loss that spreads tokens over experts, summed over layers."},
    KeyText{"loss.router_z",
            "",
            "",
            "Weight of the loss that keeps the router's logits small, summed over layers."},

    KeyText{"precision.compute",
            "",
            "",
            "What products are computed in; auto: bf16 on cuda, f32 on cpu. f64 is for the CPU."},

    KeyText{"checkpoint.every",
            "steps",
            "",
            "Between checkpoints; the last step is always saved. 0: that alone. auto: by Young's "
            "rule, from what a save costs, as measured in the run, and from run.failure_hours."},
    KeyText{"checkpoint.keep", "checkpoints", "", "How many of the newest stay."},
    KeyText{
        "checkpoint.background",
        "",
        "",
        "Whether a checkpoint is written while training goes on, from a copy of it in host memory "
        "that is made beneath the next step; auto: where there is room for it. never: training "
        "stands until it is written."},
    KeyText{
        "checkpoint.max_failures",
        "saves",
        "",
        "How many in a row may fail, for a full disk say, before the run ends; the last one, and "
        "that of a run that is stopped, end it at once."},
    KeyText{
        "checkpoint.keep_every",
        "steps",
        "",
        "The first checkpoint from each multiple of so many steps on stays for ever, beside the "
        "newest; 0: none does."},

    KeyText{
        "metrics.every",
        "steps",
        "",
        "Between progress lines in the log, and lines of the routing in metrics.jsonl, which has "
        "every step."},
    KeyText{"metrics.validate_every",
            "steps",
            "",
            "Between validation losses, of which the end has one too; 0: that alone."},
    KeyText{"metrics.validate_batches",
            "micro-batches",
            "",
            "How much text a validation loss is measured on; 0: all that is held out."},
    KeyText{"metrics.evaluate_every",
            "steps",
            "",
            "Between evaluations on data.evaluate, of which the end has one too; 0: that alone."},
    KeyText{"metrics.sample_every",
            "steps",
            "",
            "Between samples of the model's text, of which the end has one too; 0: none at all."},
    KeyText{"metrics.sample_tokens", "tokens", "", "Length of a sample."},
    KeyText{"metrics.sample_prompt", "", "", "What a sample goes on from."},
    KeyText{"metrics.sample_temperature",
            "",
            "",
            "How freely a sample is drawn; 0: the most probable token each time."},
    KeyText{"metrics.trace",
            "",
            "",
            "Whether to write what each rank did when to run.dir/trace, for ui.perfetto.dev."},
    KeyText{"metrics.tensorboard",
            "",
            "",
            "Whether to write metrics, samples and expert loads as event files to "
            "run.dir/tensorboard, for `tensorboard --logdir`, too."},
};

// A value's type with its range: "integer, 1 to 4096".
struct TypeOf {
  std::string operator()(const Integer& target) const {
    return "integer, " + std::to_string(target.low) + " to " + std::to_string(target.high) +
           (target.word.empty() ? "" : ", or " + std::string(target.word));
  }
  std::string operator()(const Duration& /*target*/) const {
    return "time of d, h, m and s, or auto or none";
  }
  std::string operator()(const Number& target) const {
    return std::string("number, ") + (target.low_kind == Number::Low::above ? "above " : "") +
           print_number(target.low) + " to " +
           (target.high_kind == Number::High::below ? "below " : "") + print_number(target.high);
  }
  std::string operator()(const Switch& /*target*/) const { return "true or false"; }
  std::string operator()(const Text& /*target*/) const { return "text"; }
  std::string operator()(const TextList& /*target*/) const { return "list of texts"; }
  std::string operator()(const IntegerList& target) const {
    return "list of integers, " + std::to_string(target.low) + " to " +
           std::to_string(target.high) + " each";
  }
  std::string operator()(const WordSet& target) const {
    return join_words(target.alone, "or") + ", or some of " + join_words(target.words, "and");
  }
  std::string operator()(const Choice& target) const {
    std::vector<std::string_view> words;
    std::copy_if(target.words.begin(),
                 target.words.end(),
                 std::back_inserter(words),
                 [](std::string_view word) { return !word.empty(); });
    return join_words(words, "or");
  }
};

const KeyText& text_of(const Field& field) {
  const std::string path = field.path();
  const auto text = std::find_if(
      kTexts.begin(), kTexts.end(), [&](const KeyText& each) { return each.path == path; });
  require(text != kTexts.end(), path + " has no text in csrc/config/reference.cpp");
  return *text;
}

std::string default_of(const Field& field, const KeyText& text) {
  const Integer* integer = std::get_if<Integer>(&field.target);
  if (integer != nullptr && integer->required) {
    return "none: required";
  }
  return text.derived.empty() ? print(field) : std::string(text.derived);
}

// At spaces, to lines of at most `width`, each behind `indent`.
std::string wrapped(std::string_view text, std::string_view indent, std::size_t width) {
  std::istringstream words{std::string(text)};
  std::string lines;
  std::string line;
  for (std::string word; words >> word;) {
    if (!line.empty() && indent.size() + line.size() + 1 + word.size() > width) {
      lines += std::string(indent) + line + "\n";
      line.clear();
    }
    line += (line.empty() ? "" : " ") + word;
  }
  return lines + std::string(indent) + line + "\n";
}

std::string without_marks(std::string_view text) {
  std::string plain(text);
  std::erase(plain, '`');
  return plain;
}

// A cell of a Markdown table.
std::string cell(const std::string& text) {
  std::string escaped;
  for (const char c : text) {
    escaped += c == '|' ? std::string("\\|") : std::string(1, c);
  }
  return escaped;
}

std::vector<std::string_view> sections_of(const std::vector<Field>& fields) {
  std::vector<std::string_view> sections;
  for (const Field& field : fields) {
    if (sections.empty() || sections.back() != field.section) {
      sections.push_back(field.section);
    }
  }
  return sections;
}

[[noreturn]] void refuse_name(std::string_view wanted, const std::vector<Field>& fields) {
  std::vector<std::string> names;
  for (const std::string_view section : sections_of(fields)) {
    names.emplace_back(section);
  }
  for (const Field& field : fields) {
    names.push_back(field.path());
  }
  std::string_view nearest = nearest_word(wanted, {names.begin(), names.end()});
  // A key without its section.
  for (const Field& field : fields) {
    if (field.key == wanted || (nearest.empty() && nearest_word(wanted, {field.key}) != "")) {
      nearest = *std::find(names.begin(), names.end(), field.path());
      break;
    }
  }
  throw ConfigError("there is no key or section " + std::string(wanted) +
                    " (a key is section.key); " +
                    (nearest.empty() ? "the sections are " + join_words(sections_of(fields), "and")
                                     : "did you mean " + std::string(nearest) + "?"));
}

}  // namespace

std::span<const KeyText> key_texts() {
  return kTexts;
}

std::string describe_keys(std::string_view wanted) {
  constexpr std::size_t kWidth = 100;
  Config config;
  const std::vector<Field> fields = fields_of(config);
  std::string described;
  for (const Field& field : fields) {
    if (!wanted.empty() && wanted != field.section && wanted != field.path()) {
      continue;
    }
    const KeyText& text = text_of(field);
    described += field.path() + "\n" + wrapped(without_marks(text.meaning), "    ", kWidth) +
                 wrapped(std::visit(TypeOf{}, field.target) +
                             (text.unit.empty() ? "" : ", in " + std::string(text.unit)) +
                             "; default: " + default_of(field, text),
                         "    ",
                         kWidth);
  }
  if (described.empty()) {
    refuse_name(wanted, fields);
  }
  return described;
}

std::string config_reference() {
  Config config;
  const std::vector<Field> fields = fields_of(config);
  std::string text =
      "# The keys of a config\n\n"
      "Written by `memphis docs config --markdown`, from csrc/config/. A config is YAML: sections "
      "of\n"
      "keys. On the command line `section.key=value` takes the place of what the file says.\n";
  std::string_view section;
  for (const Field& field : fields) {
    if (field.section != section) {
      section = field.section;
      text += "\n## " + std::string(section) +
              "\n\n| key | type and range | unit | default | meaning |\n"
              "| --- | --- | --- | --- | --- |\n";
    }
    const KeyText& key = text_of(field);
    text += "| `" + std::string(field.key) + "` | " + cell(std::visit(TypeOf{}, field.target)) +
            " | " + cell(std::string(key.unit)) + " | " + cell(default_of(field, key)) + " | " +
            cell(std::string(key.meaning)) + " |\n";
  }
  return text;
}

}  // namespace memphis
