// SPDX-License-Identifier: Apache-2.0
#include "csrc/train/generator.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "csrc/core/error.h"
#include "csrc/core/rng.h"
#include "csrc/data/loader.h"
#include "csrc/data/tokenizer.h"

namespace memphis {
namespace {

// Draws from softmax(logits / temperature) by inversion; `uniform` is in [0, 1).
std::int32_t draw_token(const std::vector<float>& logits, double temperature, double uniform) {
  const auto largest = std::max_element(logits.begin(), logits.end());
  if (temperature == 0) {
    return static_cast<std::int32_t>(largest - logits.begin());
  }
  std::vector<double> weights(logits.size());
  double total = 0;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    weights[i] = std::exp(static_cast<double>(logits[i] - *largest) / temperature);
    total += weights[i];
  }
  double remaining = uniform * total;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    remaining -= weights[i];
    if (remaining < 0) {
      return static_cast<std::int32_t>(i);
    }
  }
  return static_cast<std::int32_t>(largest - logits.begin());
}

}  // namespace

InferenceModel::InferenceModel(const ModelConfig& model,
                               const InferencePlan& plan,
                               WeightResidency& residency,
                               const Groups& groups,
                               Stream stream)
    : config_(model),
      plan_(plan),
      groups_(groups),
      stream_(stream),
      activations_arena_("inference activations", plan.activation_bytes(), stream.device),
      workspace_arena_("inference workspace", plan.workspace_bytes(), stream.device),
      activations_(allocate_activations(plan.activations, activations_arena_, workspace_arena_)),
      slots_(make_slots(activations_, plan_.dims, stream.device)),
      model_(model, plan_.dims, groups, residency, activations_, stream),
      pipeline_(plan_.messages, plan_.activations, groups, slots_, {}, workspace_arena_, stream),
      targets_T_(static_cast<std::size_t>(plan_.dims.T), kNoTarget),
      positions_T_(static_cast<std::size_t>(plan_.dims.T)),
      valid_T_(static_cast<std::size_t>(plan_.dims.T)) {
  for (std::int64_t t = 0; t < plan_.dims.T; ++t) {
    positions_T_[static_cast<std::size_t>(t)] = static_cast<std::int32_t>(t % plan_.dims.S);
  }
}

void InferenceModel::forward(const std::vector<std::int32_t>& tokens_T) {
  bool any_padding = false;
  for (std::size_t t = 0; t < tokens_T.size(); ++t) {
    require(tokens_T[t] >= 0 && tokens_T[t] < plan_.dims.V,
            "token " + std::to_string(tokens_T[t]) + " is outside the vocabulary of " +
                std::to_string(plan_.dims.V));
    valid_T_[t] = tokens_T[t] != config_.pad_id ? 1 : 0;
    any_padding = any_padding || valid_T_[t] == 0;
  }
  const HostBatch host = {.tokens_T = tokens_T,
                          .targets_T = targets_T_,
                          .positions_T = positions_T_,
                          .valid_T = valid_T_,
                          .any_padding = any_padding};
  pipeline_.run(plan_.schedule, [&](const Action& /*action*/, MicroBatch& slot) {
    model_.load(slot, host);
    model_.forward(slot);
  });
  synchronize(stream_);  // the batch's memory is the caller's
}

std::vector<float> InferenceModel::logits_of(std::int64_t index) {
  // The rank with the head has them, and tells the others.
  const PipelineShape& shape = plan_.schedule.shape;
  const StagePlace head = shape.place_of(shape.num_stages() - 1);
  TensorView row = activations_.shared.row_logits_V;
  if (MicroBatch& slot = pipeline_.slot_of(head.chunk, 0); slot.stage.head) {
    row = model_.logits(slot, index);
  }
  groups_.pipeline().run(
      Broadcast{.x = row, .root = static_cast<int>(head.rank)}, "head.logits", stream_);
  std::vector<float> logits(static_cast<std::size_t>(plan_.dims.V));
  synchronize(stream_);  // the copies below are to memory that is not pinned (core/device.h)
  if (row.dtype == DType::f64) {
    std::vector<double> wide(logits.size());
    device_copy(wide.data(), row.data, row.bytes(), stream_);
    synchronize(stream_);
    std::transform(wide.begin(), wide.end(), logits.begin(), [](double value) {
      return static_cast<float>(value);
    });
  } else {
    device_copy(logits.data(), row.data, row.bytes(), stream_);
    synchronize(stream_);
  }
  return logits;
}

void require_finite_logits(const std::vector<float>& logits, const std::string& place) {
  const auto found =
      std::find_if(logits.begin(), logits.end(), [](float logit) { return !std::isfinite(logit); });
  if (found != logits.end()) {
    throw DivergedError("the logits " + place + " are not finite (that of token id " +
                        std::to_string(found - logits.begin()) + " is " + std::to_string(*found) +
                        ": the weights are finite, but what they compute grows beyond the range of "
                        "their type); use an older checkpoint, or compute in f32");
  }
}

std::string generate_text(InferenceModel& model,
                          std::string_view prompt,
                          const SampleOptions& options) {
  const auto length = static_cast<std::size_t>(model.dims().S);
  require(model.dims().B == 1, "text is generated one sequence at a time");
  const ByteTokenizer tokenizer;
  const CounterRng rng(options.seed, "sample");

  std::vector<std::int32_t> context{ByteTokenizer::kBos};
  const std::vector<std::int32_t> prompt_tokens = tokenizer.encode(prompt);
  context.insert(context.end(), prompt_tokens.begin(), prompt_tokens.end());

  std::vector<std::int32_t> generated;
  std::vector<std::int32_t> window(length);
  for (std::int64_t i = 0; i < options.num_tokens && !options.gives_up(); ++i) {
    const std::size_t used = std::min(context.size(), length);
    // What lies behind the last token is in no one's view: attention is causal.
    std::fill(window.begin(), window.end(), ByteTokenizer::kEos);
    std::copy(context.end() - static_cast<std::ptrdiff_t>(used), context.end(), window.begin());
    model.forward(window);
    const std::vector<float> logits = model.logits_of(static_cast<std::int64_t>(used) - 1);
    require_finite_logits(logits, "after " + std::to_string(context.size()) + " tokens");
    const std::int32_t token =
        draw_token(logits, options.temperature, rng.uniform(static_cast<std::uint64_t>(i)));
    if (token == ByteTokenizer::kEos) {
      break;
    }
    generated.push_back(token);
    context.push_back(token);
  }
  // A vocabulary may be larger than the tokenizer's; ids that mean nothing are left out.
  std::erase_if(generated, [](std::int32_t id) { return id >= ByteTokenizer::kVocabSize; });
  return tokenizer.decode(generated);
}

}  // namespace memphis
