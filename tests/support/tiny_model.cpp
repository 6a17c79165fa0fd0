// SPDX-License-Identifier: Apache-2.0
#include "tests/support/tiny_model.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "csrc/comm/together.h"
#include "csrc/core/rng.h"
#include "csrc/model/host_stats.h"
#include "tests/support/test_tensor.h"
#include "tests/support/tolerance.h"

namespace memphis::test {
namespace {

double read_element(const TensorView& view, std::int64_t index, Stream stream) {
  const char* source =
      static_cast<const char*>(view.data) + static_cast<std::size_t>(index) * size_of(view.dtype);
  if (view.dtype == DType::f64) {
    double value = 0;
    device_copy(&value, source, sizeof(value), stream);
    synchronize(stream);
    return value;
  }
  if (view.dtype == DType::f32) {
    float value = 0;
    device_copy(&value, source, sizeof(value), stream);
    synchronize(stream);
    return static_cast<double>(value);
  }
  bf16 value{0.0F};
  device_copy(&value, source, sizeof(value), stream);
  synchronize(stream);
  return static_cast<double>(static_cast<float>(value));
}

template <class T>
void write_element(const TensorView& view, std::int64_t index, double value, Stream stream) {
  const T typed = static_cast<T>(value);
  device_copy(view.as<T>() + index, &typed, sizeof(T), stream);
  synchronize(stream);
}

Dims dims_of(const ModelConfig& config,
             std::int64_t num_sequences,
             std::int64_t sequence_length,
             const Share& share,
             std::int64_t head_chunk) {
  Dims dims = make_dims(config, num_sequences, sequence_length, share);
  dims.head_chunk = head_chunk > 0 ? head_chunk : dims.head_chunk;
  return dims;
}

std::vector<double> read_elements(const TensorView& view, Stream stream) {
  std::vector<double> values(static_cast<std::size_t>(view.num_elements()));
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = read_element(view, static_cast<std::int64_t>(i), stream);
  }
  return values;
}

}  // namespace

TinyModel::TinyModel(const ModelConfig& config,
                     std::int64_t num_sequences,
                     std::int64_t sequence_length,
                     DType compute,
                     Device device,
                     std::int64_t head_chunk)
    : TinyModel(config,
                dims_of(config, num_sequences, sequence_length, {}, head_chunk),
                {},
                Groups(device),
                compute,
                device) {}

TinyModel::TinyModel(World& world,
                     const ParallelConfig& parallel,
                     const ModelConfig& config,
                     std::int64_t num_sequences,
                     std::int64_t sequence_length,
                     DType compute,
                     std::int64_t head_chunk)
    : TinyModel(
          config,
          dims_of(config,
                  num_sequences,
                  sequence_length,
                  make_share(config, parallel, Mesh(parallel, world.size()), world.rank()),
                  head_chunk),
          make_share(config, parallel, Mesh(parallel, world.size()), world.rank()),
          Groups(
              world, Mesh(parallel, world.size()), config, Device::cpu, create_group_of_all(world)),
          compute,
          Device::cpu) {}

TinyModel::TinyModel(const ModelConfig& config,
                     const Dims& dims,
                     const Share& share,
                     Groups groups,
                     DType compute,
                     Device device)
    : config_(config),
      dims_(dims),
      stream_(device),
      parameters_(plan_parameters(config_, compute, share),
                  compute,
                  device,
                  Parameters::Gradients::allocate),
      plan_(plan_activations(dims_, compute, Keep::all_layers, device)),
      activations_arena_("activations", plan_.activation_bytes(), device),
      workspace_arena_("workspace", plan_.workspace_bytes(), device),
      activations_(allocate_activations(plan_, activations_arena_, workspace_arena_)),
      groups_(std::move(groups)),
      residency_(parameters_, groups_, stream_.view()),
      host_scalars_(activations_.shared.step_scalars),
      batch_(activations_.slots.front(), dims_, device),
      model_(config_, dims_, groups_, residency_, activations_, stream_.view()) {
  parameters_.initialise(6 + test_seed(), stream());
}

void TinyModel::load_random_batch(std::uint64_t seed) {
  const CounterRng rng(seed + test_seed() - 1, "batch");
  const auto count = static_cast<std::size_t>(dims_.T);
  tokens_.assign(count, 0);
  targets_.assign(count, 0);
  positions_.assign(count, 0);
  valid_.assign(count, 1);
  std::int64_t num_targets = 0;
  std::int64_t num_valid = 0;
  for (std::size_t t = 0; t < count; ++t) {
    const auto vocab = static_cast<std::uint64_t>(dims_.V);
    tokens_[t] = static_cast<std::int32_t>(1 + rng.word64(3 * t) % (vocab - 1));
    targets_[t] = static_cast<std::int32_t>(rng.word64(3 * t + 1) % vocab);
    const std::uint64_t choice = rng.word64(3 * t + 2) % 11;
    if (choice == 0) {
      targets_[t] = -1;
    }
    if (choice == 1 && config_.pad_id >= 0) {
      tokens_[t] = static_cast<std::int32_t>(config_.pad_id);
      valid_[t] = 0;
    }
    const bool starts_document = t % static_cast<std::size_t>(dims_.S) == 0 || choice == 2;
    positions_[t] = starts_document ? 0 : positions_[t - 1] + 1;
    num_targets += targets_[t] >= 0 ? 1 : 0;
    num_valid += valid_[t];
  }
  scales = {.target = 1.0F / static_cast<float>(num_targets),
            .sequence = 1.0F / static_cast<float>(dims_.B),
            .token = 1.0F / static_cast<float>(num_valid),
            .balance = 0.5F,
            .router_z = 0.25F};
  model_.load(batch_, batch());
  synchronize(stream());
}

void TinyModel::load(std::vector<std::int32_t> tokens,
                     std::vector<std::int32_t> targets,
                     std::vector<std::int32_t> positions,
                     std::vector<std::uint8_t> valid) {
  tokens_ = std::move(tokens);
  targets_ = std::move(targets);
  positions_ = std::move(positions);
  valid_ = std::move(valid);
  model_.load(batch_, batch());
  synchronize(stream());
}

HostBatch TinyModel::batch() const {
  return {.tokens_T = tokens_,
          .targets_T = targets_,
          .positions_T = positions_,
          .valid_T = valid_,
          .any_padding = std::count(valid_.begin(), valid_.end(), 0) > 0};
}

double TinyModel::stat(Stat stat) const {
  HostStats stats(activations_.shared.stats);
  stats.copy(stream());
  synchronize(stream());
  return stats[stat];
}

double TinyModel::read_total() {
  // Statistics are means over layers, gradients those of sums. Both by scales in f32, each rounded
  // for itself: 5e-8 of a gradient, which differences in f64 would see.
  const auto per_layer = 1.0F / static_cast<float>(dims_.L);
  const auto sum = [&](Stat mean, float coefficient, float each) {
    return static_cast<double>(coefficient * each) / static_cast<double>(each * per_layer) *
           stat(mean);
  };
  return stat(Stat::loss) + sum(Stat::balance, scales.balance, scales.sequence) +
         sum(Stat::z, scales.router_z, scales.token);
}

void TinyModel::begin_pass() {
  const TensorView& stats = activations_.shared.stats;
  device_zero(stats.data, stats.bytes(), stream());
  host_scalars_.set(scales, dims_.L);
  host_scalars_.copy_scales(stream());
}

double TinyModel::total_loss() {
  begin_pass();
  model_.forward(batch_);
  model_.loss(batch_);
  model_.add_auxiliary_losses(batch_);
  return read_total();
}

double TinyModel::total_loss_and_gradient() {
  begin_pass();
  model_.forward(batch_);
  model_.backward(batch_, kernels::WeightGradient::write);
  return read_total();
}

std::vector<double> TinyModel::gradient(const LogicalParameter& parameter) const {
  return read_elements(
      parameters_.sums({.begin = parameter.begin, .count = parameter.spec.num_elements()}),
      stream());
}

std::vector<double> TinyModel::weights(const LogicalParameter& parameter) const {
  return read_elements(parameters_.logical_weights(parameter), stream());
}

double TinyModel::weight(const LogicalParameter& parameter, std::int64_t index) const {
  return read_element(parameters_.logical_weights(parameter), index, stream());
}

void TinyModel::set_weight(const LogicalParameter& parameter, std::int64_t index, double value) {
  const TensorView view = parameters_.logical_weights(parameter);
  switch (view.dtype) {
    case DType::f64:
      return write_element<double>(view, index, value, stream());
    case DType::f32:
      return write_element<float>(view, index, value, stream());
    default:
      return write_element<bf16>(view, index, value, stream());
  }
}

void TinyModel::set_weights(const LogicalParameter& parameter, const std::vector<double>& values) {
  for (std::size_t i = 0; i < values.size(); ++i) {
    set_weight(parameter, static_cast<std::int64_t>(i), values[i]);
  }
}

Rounding effect_of_rounding(TinyModel& exact, DType dtype) {
  constexpr int kNumDraws = 8;
  // Norms, products, rotation, attention, gates, sums: an op rounds what it stores, and a layer has
  // about sixteen of them, in each of two passes.
  constexpr double kRoundingsOfALayer = 2 * 16;
  const std::vector<LogicalParameter>& parameters = exact.parameters().plan().logical;
  const double loss = exact.total_loss_and_gradient();
  std::vector<std::vector<double>> gradients;
  std::vector<std::vector<double>> weights;
  for (const LogicalParameter& parameter : parameters) {
    gradients.push_back(exact.gradient(parameter));
    weights.push_back(exact.weights(parameter));
  }
  Rounding result{.loss = 0, .gradients = std::vector<double>(parameters.size())};
  const double chain =
      std::sqrt(kRoundingsOfALayer * static_cast<double>(exact.config().num_layers));
  for (int draw = 1; draw <= kNumDraws; ++draw) {
    for (std::size_t p = 0; p < parameters.size(); ++p) {
      exact.set_weights(parameters[p], perturbed(dtype, weights[p], draw));
    }
    const double moved = std::abs(exact.total_loss_and_gradient() - loss);
    result.loss = std::max(result.loss, chain * moved);
    for (std::size_t p = 0; p < parameters.size(); ++p) {
      result.gradients[p] = std::max(
          result.gradients[p], chain * relative_error(exact.gradient(parameters[p]), gradients[p]));
    }
  }
  for (std::size_t p = 0; p < parameters.size(); ++p) {
    exact.set_weights(parameters[p], weights[p]);
  }
  return result;
}

double relative_error(const std::vector<double>& actual, const std::vector<double>& exact) {
  double error = 0;
  double size = 0;
  for (std::size_t i = 0; i < exact.size(); ++i) {
    error += (actual[i] - exact[i]) * (actual[i] - exact[i]);
    size += exact[i] * exact[i];
  }
  return error == 0 ? 0 : std::sqrt(error / size);
}

ModelConfig tiny_grok1() {
  ModelConfig config;
  config.vocab_size = 64;
  config.num_layers = 3;
  config.d_model = 32;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 8;
  config.ffn_dim = 24;
  config.num_experts = 8;
  config.experts_per_token = 2;
  config.embedding_multiplier = std::sqrt(32.0);
  config.output_multiplier = 0.5773502691896257;
  config.attention_multiplier = 1 / std::sqrt(8.0);
  config.attention_cap = 30;
  config.pad_id = 0;
  config.max_sequence_length = 64;
  config.router_init_std = 0.3;  // experts get unequal shares from the start
  return config;
}

ModelConfig tiny_grok2() {
  ModelConfig config = tiny_grok1();
  config.dense_ffn_dim = 40;
  config.router_cap = 2;
  config.final_cap = 5;
  config.attention_cap = 4;
  config.tie_embeddings = false;
  config.attention_temperature_len = 4;
  config.rope_theta = 208533496;
  return config;
}

}  // namespace memphis::test
