// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "csrc/config/config.h"
#include "csrc/core/arena.h"
#include "csrc/data/tokenizer.h"
#include "csrc/model/grok.h"
#include "csrc/model/key_value_cache.h"
#include "csrc/model/pipeline.h"
#include "csrc/plan/training_plan.h"
#include "csrc/train/batch.h"

namespace memphis {

// The model on sequences, forward only, with activations of its own: for samples of text and for
// logits. One layer's activations serve all layers. Every rank of `groups` makes the same calls.
class InferenceModel {
 public:
  InferenceModel(const ModelConfig& model,
                 const InferencePlan& plan,
                 WeightResidency& residency,
                 const Groups& groups,
                 Stream stream);
  InferenceModel(const InferenceModel&) = delete;
  InferenceModel& operator=(const InferenceModel&) = delete;

  Grok& model() { return model_; }
  const Dims& dims() const { return plan_.dims; }
  // Whether later tokens see one of that id: all but the pad id.
  bool is_key(std::int32_t token) const { return token != config_.pad_id; }

  // Runs the model on `tokens_T`, B whole sequences, each one document from position 0.
  // ContractError on a token outside the vocabulary.
  void forward(const std::vector<std::int32_t>& tokens_T);

  // The same of tokens that go on with sequences of `cached`, whose spans have B elements and whose
  // capacity the plan was made for. On one rank.
  void forward(const std::vector<std::int32_t>& tokens_T, const CachedSequences& cached);

  // The cross entropy of each target of a batch of B * S tokens, in nats; 0 where there is none. On one
  // rank.
  std::vector<double> token_losses(const HostBatch& host);

  // Logits of token `index` of `tokens_T` of the last forward(), [V], f32.
  std::vector<float> logits_of(std::int64_t index);
  // Of tokens [0, count), on one rank.
  std::vector<std::vector<float>> first_logits(std::int64_t count);

 private:
  const ModelConfig& config_;
  InferencePlan plan_;
  const Groups& groups_;
  Stream stream_;
  Arena activations_arena_;
  Arena workspace_arena_;
  Activations activations_;
  std::vector<MicroBatch> slots_;
  Grok model_;
  Pipeline pipeline_;
  void run(const HostBatch& host, const CachedSequences& cached);
  HostBatch host_batch(const std::vector<std::int32_t>& tokens_T);
  void require_in_vocabulary(const std::vector<std::int32_t>& tokens) const;

  // Whole sequences, of which this rank takes its tokens, where ranks share them out.
  std::optional<StepBatch> batch_;
  std::vector<std::int32_t> targets_T_;
  std::vector<std::int32_t> positions_T_;
  std::vector<std::uint8_t> valid_T_;
};

// DivergedError, naming `place` ("of row 0, token 3"), if one of them is not finite.
void require_finite_logits(const std::vector<float>& logits, const std::string& place);

// Whose window of a context of `size` tokens begins there, where a model looks at `length` of them at
// most: at 0 as long as all fit, then half a length further each time that it is full. So most tokens
// leave the window where it is, and what was computed of it stays true.
std::int64_t window_begin(std::int64_t size, std::int64_t length);

// Logits of the tokens that follow sequences. Every rank of the model makes the same calls.
class SequenceModel {
 public:
  using Tokens = std::vector<std::int32_t>;

  virtual ~SequenceModel() = default;
  virtual std::int64_t num_sequences() const = 0;
  // Tokens of a sequence that it looks at.
  virtual std::int64_t length() const = 0;
  // Of sequence i, `contexts[i]` being all of its tokens, at least one; null for one that is not asked
  // for, and gets nothing.
  virtual std::vector<std::vector<float>> next(std::span<const Tokens* const> contexts) = 0;
};

// Computes each window anew: in any layout.
class WindowModel : public SequenceModel {
 public:
  // `model` has one sequence, and outlives this.
  explicit WindowModel(InferenceModel& model) : model_(model) {}
  std::int64_t num_sequences() const override { return 1; }
  std::int64_t length() const override { return model_.dims().whole_S; }
  std::vector<std::vector<float>> next(std::span<const Tokens* const> contexts) override;

 private:
  InferenceModel& model_;
};

// Computes what is new of each sequence, and keeps keys and values of the rest: on one rank. Of
// sequences that have one new token each a pass takes all. A context may be another than before: as
// much as begins alike is not computed again.
class CachedModel : public SequenceModel {
 public:
  CachedModel(const ModelConfig& model,
              std::int64_t num_sequences,
              std::int64_t length,
              WeightResidency& residency,
              const Groups& groups,
              Stream stream);
  std::int64_t num_sequences() const override { return cache_.num_sequences(); }
  std::int64_t length() const override { return length_; }
  std::vector<std::vector<float>> next(std::span<const Tokens* const> contexts) override;

 private:
  std::vector<float> read(std::int64_t sequence, const Tokens& window, std::size_t known);

  std::int64_t length_;
  KeyValueCache cache_;
  InferenceModel reader_;  // of one sequence, several tokens
  InferenceModel writer_;  // of all sequences, a token each
  std::vector<Tokens> held_;
};

struct SampleOptions {
  std::int64_t num_tokens = 200;
  double temperature = 0.8;  // 0: the most probable token
  std::int64_t top_k = 0;    // of the most probable tokens so many; 0: of all
  double top_p = 1;          // of those, the fewest that have this probability together
  double min_p = 0;          // of those, what has this share of the largest probability
  double repetition_penalty =
      1;  // logits of tokens that have come before: l / r where l > 0, else l r
  std::uint64_t seed = 1;
  std::vector<std::string> stop = {};  // texts that end it, and are not part of it
  // Told of text `prompt` as it grows, in whole characters of UTF-8, where it is that.
  std::function<void(std::size_t prompt, std::string_view text)> on_text = {};
  const Tokenizer* tokenizer = nullptr;  // null: of bytes
  // Asked before each token, on every rank, with the same answer on all of them: true ends the
  // text.
  std::function<bool()> gives_up = [] { return false; };
};

// The token that follows `context`: temperature 0 takes the largest logit. `uniform` is in [0, 1).
std::int32_t draw_token(std::vector<float> logits,
                        std::span<const std::int32_t> context,
                        const SampleOptions& options,
                        double uniform);

struct GeneratedText {
  enum class End : std::uint8_t { length, document, stop, given_up };
  std::string text;
  std::int64_t num_tokens = 0;
  End end = End::length;
};

// Continues each prompt, which follows the start of a document, by up to num_tokens tokens, as many
// prompts at a time as the model has sequences; stops at the end of the document. Context beyond the
// model's length falls out at the front, half of it at a time. Same seed, same text; each prompt has
// draws of its own. DivergedError if logits are not finite.
std::vector<GeneratedText> generate_texts(SequenceModel& model,
                                          const std::vector<std::string>& prompts,
                                          const SampleOptions& options);

// The same of one prompt, with all of its window computed for each token. Returns the text.
std::string generate_text(InferenceModel& model,
                          std::string_view prompt,
                          const SampleOptions& options);

}  // namespace memphis
