// SPDX-License-Identifier: Apache-2.0
#include "csrc/train/generator.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <optional>
#include <utility>

#include "csrc/core/error.h"
#include "csrc/core/rng.h"
#include "csrc/data/growing_text.h"
#include "csrc/data/loader.h"
#include "csrc/data/tokenizer.h"

namespace memphis {
namespace {

// Tokens of a prompt that a pass reads at a time: enough for products of many rows, few enough that
// their activations are small beside the weights.
constexpr std::int64_t kReadTokens = 256;

std::int64_t round_up(std::int64_t count, std::int64_t multiple) {
  return (count + multiple - 1) / multiple * multiple;
}

// A row of the device's, whatever it is computed in. `stream` is done with it when this returns.
template <class T>
std::vector<T> to_host(const TensorView& row, Stream stream) {
  synchronize(stream);  // the copies below are to memory that is not pinned (core/device.h)
  const auto read = [&]<class Stored>(Stored /*type*/) {
    std::vector<Stored> stored(static_cast<std::size_t>(row.num_elements()));
    device_copy(stored.data(), row.data, row.bytes(), stream);
    synchronize(stream);
    return std::vector<T>(stored.begin(), stored.end());
  };
  return row.dtype == DType::f64 ? read(double{}) : read(float{});
}

// Sequences of which each is one document, for StepBatch::fill().
class WholeSequences {
 public:
  WholeSequences(const std::vector<std::int32_t>& tokens, std::int64_t length)
      : tokens_(tokens), length_(static_cast<std::size_t>(length)) {}

  std::int64_t sample(std::uint64_t index, const SampleView& out) const {
    std::copy_n(tokens_.begin() + static_cast<std::ptrdiff_t>(index * length_),
                length_,
                out.tokens_S.begin());
    std::fill(out.targets_S.begin(), out.targets_S.end(), kNoTarget);
    std::iota(out.position_S.begin(), out.position_S.end(), 0);
    return 0;
  }

 private:
  const std::vector<std::int32_t>& tokens_;
  std::size_t length_;
};

// A prompt under way.
struct Sequence {
  std::size_t prompt;
  CounterRng rng;
  GrowingText text;
  SequenceModel::Tokens context;
  GeneratedText result;
};

}  // namespace

std::int32_t draw_token(std::vector<float> logits,
                        std::span<const std::int32_t> context,
                        const SampleOptions& options,
                        double uniform) {
  if (options.repetition_penalty != 1) {
    const auto penalty = static_cast<float>(options.repetition_penalty);
    std::vector<bool> seen(logits.size());
    for (const std::int32_t token : context) {
      const auto index = static_cast<std::size_t>(token);
      if (!seen[index]) {
        seen[index] = true;
        logits[index] = logits[index] > 0 ? logits[index] / penalty : logits[index] * penalty;
      }
    }
  }
  const auto largest = std::max_element(logits.begin(), logits.end());
  if (options.temperature == 0) {
    return static_cast<std::int32_t>(largest - logits.begin());
  }
  std::vector<double> weights(logits.size());
  for (std::size_t i = 0; i < logits.size(); ++i) {
    weights[i] = std::exp(static_cast<double>(logits[i] - *largest) / options.temperature);
  }
  // Of equal weights the first id comes first, whatever is left out.
  const bool cuts = options.top_k > 0 || options.top_p < 1;
  if (cuts) {
    std::vector<std::size_t> order(weights.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
      return weights[a] > weights[b];
    });
    if (options.top_k > 0) {
      for (std::size_t i = static_cast<std::size_t>(options.top_k); i < order.size(); ++i) {
        weights[order[i]] = 0;
      }
    }
    const double enough = options.top_p * std::accumulate(weights.begin(), weights.end(), 0.0);
    double held = 0;
    for (const std::size_t index : order) {
      if (options.top_p < 1 && held >= enough && held > 0) {
        weights[index] = 0;
      }
      held += weights[index];
    }
  }
  double total = 0;
  for (double& weight : weights) {
    if (weight < options.min_p) {  // the largest is 1
      weight = 0;
    }
    total += weight;
  }
  double remaining = uniform * total;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    remaining -= weights[i];
    if (remaining < 0 && weights[i] > 0) {
      return static_cast<std::int32_t>(i);
    }
  }
  return static_cast<std::int32_t>(largest - logits.begin());
}

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
  const Dims& d = plan_.dims;
  if (d.exchange_keys) {
    batch_.emplace(d.B,
                   d.whole_S,
                   model.pad_id,
                   stream.device,
                   SequenceShare{.context = d.context(), .micro_batch = d.B});
  }
}

void InferenceModel::forward(const std::vector<std::int32_t>& tokens_T) {
  require_in_vocabulary(tokens_T);
  if (batch_) {
    batch_->fill(WholeSequences(tokens_T, plan_.dims.whole_S));
    return run(batch_->micro_batch(0, plan_.dims.B), {});
  }
  for (std::int64_t t = 0; t < plan_.dims.T; ++t) {
    positions_T_[static_cast<std::size_t>(t)] = static_cast<std::int32_t>(t % plan_.dims.S);
  }
  run(host_batch(tokens_T), {});
}

void InferenceModel::forward(const std::vector<std::int32_t>& tokens_T,
                             const CachedSequences& cached) {
  const std::int64_t S = plan_.dims.S;
  for (std::int64_t b = 0; b < plan_.dims.B; ++b) {
    const auto index = static_cast<std::size_t>(b);
    const std::int64_t count = cached.count[index];
    require(count >= 0 && count <= S && cached.begin[index] >= 0 &&
                cached.begin[index] + std::max<std::int64_t>(count, 1) <= cached.cache->capacity(),
            "tokens that go on with a sequence have room in its cache");
    for (std::int64_t s = 0; s < S; ++s) {
      // Those that stand for nothing see what the last one sees.
      const std::int64_t last = std::max<std::int64_t>(count - 1, 0);
      positions_T_[static_cast<std::size_t>(b * S + s)] =
          static_cast<std::int32_t>(cached.begin[index] + std::min(s, last));
    }
  }
  require_in_vocabulary(tokens_T);
  run(host_batch(tokens_T), cached);
}

void InferenceModel::require_in_vocabulary(const std::vector<std::int32_t>& tokens) const {
  for (const std::int32_t token : tokens) {
    require(token >= 0 && token < plan_.dims.V,
            "token " + std::to_string(token) + " is outside the vocabulary of " +
                std::to_string(plan_.dims.V));
  }
}

// At the positions that are set already.
HostBatch InferenceModel::host_batch(const std::vector<std::int32_t>& tokens_T) {
  bool any_padding = false;
  for (std::size_t t = 0; t < tokens_T.size(); ++t) {
    valid_T_[t] = is_key(tokens_T[t]) ? 1 : 0;
    any_padding = any_padding || valid_T_[t] == 0;
  }
  return {.tokens_T = tokens_T,
          .targets_T = targets_T_,
          .positions_T = positions_T_,
          .valid_T = valid_T_,
          .any_padding = any_padding};
}

void InferenceModel::run(const HostBatch& host, const CachedSequences& cached) {
  pipeline_.run_first(plan_.schedule, [&](const Action& /*action*/, MicroBatch& slot) {
    model_.load(slot, host);
    slot.cached = cached;
    model_.forward(slot);
  });
  synchronize(stream_);  // the batch's memory is the caller's
}

std::vector<double> InferenceModel::token_losses(const HostBatch& host) {
  TensorView loss_T;
  pipeline_.run_first(plan_.schedule, [&](const Action& /*action*/, MicroBatch& slot) {
    model_.load(slot, host);
    slot.cached = {};
    model_.forward(slot);
    model_.token_losses(slot);
    loss_T = slot.tensors.loss_T;
  });
  return to_host<double>(loss_T, stream_);
}

std::vector<float> InferenceModel::logits_of(std::int64_t index) {
  // The rank with the head has them, and tells the others.
  const PipelineShape& shape = plan_.schedule.shape;
  const StagePlace head = shape.place_of(shape.num_stages() - 1);
  TensorView row = activations_.shared.row_logits_V;
  const StepBatch::Owner owner =
      batch_ ? batch_->owner_of(index) : StepBatch::Owner{.token = index};
  MicroBatch& slot = pipeline_.slot_of(head.chunk, 0);
  if (slot.stage.head && owner.rank == plan_.dims.context().index) {
    row = model_.logits(slot, owner.token);
  }
  groups_.context().run(
      Broadcast{.x = row, .root = static_cast<int>(owner.rank)}, "head.logits", stream_);
  groups_.pipeline().run(
      Broadcast{.x = row, .root = static_cast<int>(head.rank)}, "head.logits", stream_);
  return to_host<float>(row, stream_);
}

std::vector<std::vector<float>> InferenceModel::first_logits(std::int64_t count) {
  MicroBatch& slot = pipeline_.slot_of(0, 0);
  std::vector<std::vector<float>> result;
  const std::int64_t most = std::max<std::int64_t>(plan_.dims.head_chunk / 8 * 8, 1);
  for (std::int64_t begin = 0; begin < count; begin += most) {
    const std::int64_t rows = std::min(most, count - begin);
    const TensorView logits_CV = model_.logits_of_rows(slot, begin, rows);
    for (std::int64_t row = 0; row < rows; ++row) {
      result.push_back(to_host<float>(logits_CV.rows(row, 1), stream_));
    }
  }
  return result;
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

std::int64_t window_begin(std::int64_t size, std::int64_t length) {
  if (size <= length) {
    return 0;
  }
  const std::int64_t hop = std::max<std::int64_t>(length / 2, 1);
  return round_up(size - length, hop);
}

std::vector<std::vector<float>> WindowModel::next(std::span<const Tokens* const> contexts) {
  require(contexts.size() == 1, "windows are computed one at a time");
  if (contexts[0] == nullptr) {
    return {{}};
  }
  const Tokens& context = *contexts[0];
  const auto size = static_cast<std::int64_t>(context.size());
  const std::int64_t begin = window_begin(size, length());
  // What lies behind the last token is in no one's view: attention is causal.
  Tokens window(static_cast<std::size_t>(length()), context.back());
  std::copy(context.begin() + begin, context.end(), window.begin());
  model_.forward(window);
  return {model_.logits_of(size - begin - 1)};
}

namespace {

std::int64_t cache_capacity(std::int64_t length) {
  return round_up(length, KeyValueCache::kCapacityMultiple);
}

InferencePlan plan_with_cache(const ModelConfig& model,
                              std::int64_t num_sequences,
                              std::int64_t num_tokens,
                              std::int64_t length,
                              const Parameters& parameters) {
  return plan_inference(model,
                        num_sequences,
                        num_tokens,
                        parameters.compute(),
                        parameters.device(),
                        cache_capacity(length));
}

}  // namespace

CachedModel::CachedModel(const ModelConfig& model,
                         std::int64_t num_sequences,
                         std::int64_t length,
                         WeightResidency& residency,
                         const Groups& groups,
                         Stream stream)
    : length_(length),
      cache_(
          model, num_sequences, cache_capacity(length), residency.parameters().compute(), stream),
      reader_(
          model,
          plan_with_cache(model, 1, std::min(length, kReadTokens), length, residency.parameters()),
          residency,
          groups,
          stream),
      writer_(model,
              plan_with_cache(model, num_sequences, 1, length, residency.parameters()),
              residency,
              groups,
              stream),
      held_(static_cast<std::size_t>(num_sequences)) {}

std::vector<float> CachedModel::read(std::int64_t sequence,
                                     const Tokens& window,
                                     std::size_t known) {
  const auto most = static_cast<std::size_t>(reader_.dims().S);
  std::int64_t last = 0;
  for (std::size_t done = known; done < window.size(); done += most) {
    const std::size_t count = std::min(most, window.size() - done);
    Tokens tokens(most, window.back());
    std::copy_n(window.begin() + static_cast<std::ptrdiff_t>(done), count, tokens.begin());
    const auto begin_1 = static_cast<std::int64_t>(done);
    const auto count_1 = static_cast<std::int64_t>(count);
    reader_.forward(tokens,
                    {.cache = &cache_,
                     .first_sequence = sequence,
                     .begin = {&begin_1, 1},
                     .count = {&count_1, 1}});
    last = count_1 - 1;
  }
  return reader_.logits_of(last);
}

std::vector<std::vector<float>> CachedModel::next(std::span<const Tokens* const> contexts) {
  const auto num_sequences = static_cast<std::size_t>(cache_.num_sequences());
  require(contexts.size() == num_sequences, "each sequence has a context, or none");
  std::vector<std::vector<float>> logits(num_sequences);
  Tokens tokens(num_sequences, 0);
  std::vector<std::int64_t> begin(num_sequences, 0);
  std::vector<std::int64_t> count(num_sequences, 0);
  std::int64_t num_written = 0;
  for (std::size_t i = 0; i < num_sequences; ++i) {
    if (contexts[i] == nullptr) {
      continue;
    }
    const Tokens& context = *contexts[i];
    const auto size = static_cast<std::int64_t>(context.size());
    Tokens window(context.begin() + window_begin(size, length_), context.end());
    Tokens& held = held_[i];
    const auto same = std::mismatch(held.begin(), held.end(), window.begin(), window.end()).second;
    const std::size_t known =
        std::min(static_cast<std::size_t>(same - window.begin()), window.size() - 1);
    std::vector<std::uint8_t> valid;
    for (std::size_t t = known; t < window.size(); ++t) {
      valid.push_back(reader_.is_key(window[t]) ? 1 : 0);
    }
    cache_.mark_valid(static_cast<std::int64_t>(i), static_cast<std::int64_t>(known), valid);
    if (window.size() - known > 1) {
      logits[i] = read(static_cast<std::int64_t>(i), window, known);
    } else {
      tokens[i] = window.back();
      begin[i] = static_cast<std::int64_t>(known);
      count[i] = 1;
      ++num_written;
    }
    held = std::move(window);
  }
  if (num_written > 0) {
    writer_.forward(tokens,
                    {.cache = &cache_, .first_sequence = 0, .begin = begin, .count = count});
    std::vector<std::vector<float>> written =
        writer_.first_logits(static_cast<std::int64_t>(num_sequences));
    for (std::size_t i = 0; i < num_sequences; ++i) {
      if (count[i] == 1) {
        logits[i] = std::move(written[i]);
      }
    }
  }
  return logits;
}

std::vector<GeneratedText> generate_texts(SequenceModel& model,
                                          const std::vector<std::string>& prompts,
                                          const SampleOptions& options) {
  const ByteTokenizer bytes;
  const Tokenizer& tokenizer = options.tokenizer == nullptr ? bytes : *options.tokenizer;
  const SpecialTokens special = tokenizer.special();
  std::vector<GeneratedText> results(prompts.size());
  std::vector<std::optional<Sequence>> places(static_cast<std::size_t>(model.num_sequences()));
  std::size_t next_prompt = 0;
  const auto finish = [&](std::optional<Sequence>& place, GeneratedText::End end) {
    Sequence& sequence = *place;
    sequence.result.end = end;
    if (options.on_text) {
      options.on_text(sequence.prompt, sequence.text.show(true));
    }
    sequence.result.text = sequence.text.take();
    results[sequence.prompt] = std::move(sequence.result);
    place.reset();
  };
  while (true) {
    std::vector<const SequenceModel::Tokens*> contexts;
    bool any = false;
    for (std::optional<Sequence>& place : places) {
      if (!place && next_prompt < prompts.size() && options.num_tokens > 0) {
        const std::size_t index = next_prompt++;
        SequenceModel::Tokens context = tokenizer.begin_document(prompts[index]);
        place.emplace(Sequence{
            .prompt = index,
            .rng =
                CounterRng(options.seed, index == 0 ? "sample" : "sample." + std::to_string(index)),
            .text = GrowingText(tokenizer, context, options.stop),
            .context = std::move(context),
            .result = {}});
      }
      contexts.push_back(place ? &place->context : nullptr);
      any = any || place.has_value();
    }
    if (!any) {
      return results;
    }
    if (options.gives_up()) {
      for (std::optional<Sequence>& place : places) {
        if (place) {
          finish(place, GeneratedText::End::given_up);
        }
      }
      for (; next_prompt < prompts.size(); ++next_prompt) {
        results[next_prompt].end = GeneratedText::End::given_up;
      }
      return results;
    }
    std::vector<std::vector<float>> logits = model.next(contexts);
    for (std::size_t i = 0; i < places.size(); ++i) {
      if (!places[i]) {
        continue;
      }
      Sequence& sequence = *places[i];
      require_finite_logits(logits[i],
                            "after " + std::to_string(sequence.context.size()) + " tokens");
      const std::int32_t token =
          draw_token(std::move(logits[i]),
                     sequence.context,
                     options,
                     sequence.rng.uniform(static_cast<std::uint64_t>(sequence.result.num_tokens)));
      if (token == special.eos) {
        finish(places[i], GeneratedText::End::document);
        continue;
      }
      ++sequence.result.num_tokens;
      sequence.context.push_back(token);
      if (sequence.text.add(token)) {
        finish(places[i], GeneratedText::End::stop);
        continue;
      }
      if (sequence.result.num_tokens == options.num_tokens) {
        finish(places[i], GeneratedText::End::length);
      } else if (options.on_text) {
        options.on_text(sequence.prompt, sequence.text.show(false));
      }
    }
  }
}

std::string generate_text(InferenceModel& model,
                          std::string_view prompt,
                          const SampleOptions& options) {
  require(model.dims().B == 1, "text is generated one sequence at a time");
  WindowModel window(model);
  return generate_texts(window, {std::string(prompt)}, options).front().text;
}

}  // namespace memphis
