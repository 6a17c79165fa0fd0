// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "csrc/comm/communicator.h"
#include "csrc/core/arena.h"
#include "csrc/model/grok.h"
#include "csrc/model/host_scalars.h"
#include "csrc/model/parameters.h"

namespace memphis::test {

// A model of a few thousand parameters with everything that it needs around it, on either device.
class TinyModel {
 public:
  // The head takes `head_chunk` tokens at a time; 0: as many as are planned, which is all.
  TinyModel(const ModelConfig& config,
            std::int64_t num_sequences,
            std::int64_t sequence_length,
            DType compute,
            Device device,
            std::int64_t head_chunk = 0);
  // This rank's part of one that the threads of `world` share, on the CPU. The whole batch is every
  // rank's. Collective.
  TinyModel(World& world,
            const ParallelConfig& parallel,
            const ModelConfig& config,
            std::int64_t num_sequences,
            std::int64_t sequence_length,
            DType compute,
            std::int64_t head_chunk);
  TinyModel(const TinyModel&) = delete;
  TinyModel& operator=(const TinyModel&) = delete;

  // A batch of random tokens; some documents start inside their sequence, some targets are missing
  // and, where the config names a pad id, some tokens are pads. Batch and weights vary with the
  // seed of the test, too.
  void load_random_batch(std::uint64_t seed);
  // A batch of the caller's, who sets the scales.
  void load(std::vector<std::int32_t> tokens,
            std::vector<std::int32_t> targets,
            std::vector<std::int32_t> positions,
            std::vector<std::uint8_t> valid);
  HostBatch batch() const;

  // Cross entropy + balance * sum of balance losses + router_z * sum of z losses, of the loaded
  // batch.
  double total_loss();
  // The same; leaves its gradient in parameters().
  double total_loss_and_gradient();
  // Of the last pass.
  double stat(Stat stat) const;

  // The gradient of this rank's part of a logical parameter, and one of its weights.
  std::vector<double> gradient(const LogicalParameter& parameter) const;
  std::vector<double> weights(const LogicalParameter& parameter) const;
  double weight(const LogicalParameter& parameter, std::int64_t index) const;
  void set_weight(const LogicalParameter& parameter, std::int64_t index, double value);
  void set_weights(const LogicalParameter& parameter, const std::vector<double>& values);

  const ModelConfig& config() const { return config_; }
  Parameters& parameters() { return parameters_; }
  const Parameters& parameters() const { return parameters_; }
  Grok& model() { return model_; }
  Stream stream() const { return stream_.view(); }

  LossScales scales;  // of the passes from here on

 private:
  TinyModel(const ModelConfig& config,
            const Dims& dims,
            const Share& share,
            Groups groups,
            DType compute,
            Device device);
  void begin_pass();
  double read_total();

  ModelConfig config_;
  Dims dims_;
  OwnedStream stream_;
  Parameters parameters_;
  ActivationPlan plan_;
  Arena activations_arena_;
  Arena workspace_arena_;
  Activations activations_;
  Groups groups_;
  WeightResidency residency_;
  HostScalars host_scalars_;
  MicroBatch batch_;
  Grok model_;
  std::vector<std::int32_t> tokens_;
  std::vector<std::int32_t> targets_;
  std::vector<std::int32_t> positions_;
  std::vector<std::uint8_t> valid_;
};

// How far rounding may move a model's loss, and the gradient of each parameter over its norm.
struct Rounding {
  double loss = 0;
  std::vector<double> gradients;
};

// Of a model that computes in `dtype`, measured on the same one in f64, so that nothing that is
// wrong in `dtype` alone makes room for itself: what comes of weights that are each a rounding off,
// the worst of several draws, times the square root of how many roundings follow each other.
Rounding effect_of_rounding(TinyModel& exact, DType dtype);

// |actual - exact| over |exact|, as norms; 0 where both are 0.
double relative_error(const std::vector<double>& actual, const std::vector<double>& exact);

// Grok-1's block, 3 layers of width 32: grouped queries, attention cap, tied embeddings.
ModelConfig tiny_grok1();
// Grok-2's: a dense FFN beside the experts, caps on router and logits, a head of its own, attention
// temperature.
ModelConfig tiny_grok2();

}  // namespace memphis::test
