// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "csrc/config/config.h"
#include "csrc/core/arena.h"
#include "csrc/model/grok.h"
#include "csrc/model/pipeline.h"
#include "csrc/plan/training_plan.h"

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

  // Runs the model on `tokens_T`, B * S of them, each sequence one document from position 0.
  // ContractError on a token outside the vocabulary.
  void forward(const std::vector<std::int32_t>& tokens_T);

  // Logits of token `index` of the last forward(), [V], f32.
  std::vector<float> logits_of(std::int64_t index);

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
  std::vector<std::int32_t> targets_T_;
  std::vector<std::int32_t> positions_T_;
  std::vector<std::uint8_t> valid_T_;
};

// DivergedError, naming `place` ("of row 0, token 3"), if one of them is not finite.
void require_finite_logits(const std::vector<float>& logits, const std::string& place);

struct SampleOptions {
  std::int64_t num_tokens = 200;
  double temperature = 0.8;  // 0: the most probable token
  std::uint64_t seed = 1;
  // Asked before each token, on every rank, with the same answer on all of them: true ends the
  // text.
  std::function<bool()> gives_up = [] { return false; };
};

// Continues `prompt`, which follows the start of a document, by up to num_tokens tokens; stops at
// the end of the document. Context beyond the sequence length falls out at the front. Same seed,
// same text. Returns the continuation. DivergedError if logits are not finite.
std::string generate_text(InferenceModel& model,
                          std::string_view prompt,
                          const SampleOptions& options);

}  // namespace memphis
