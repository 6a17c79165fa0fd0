// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "csrc/core/device.h"
#include "csrc/plan/activations.h"

namespace memphis {

// What one term weighs in the means over the whole step, which may be many micro-batches, and the
// coefficients of the auxiliary losses (summed over layers).
struct LossScales {
  float target = 0;         // 1 / number of targets of the step
  float sequence = 0;       // 1 / number of sequences of the step
  float token = 0;          // 1 / number of valid tokens of the step
  float balance = 0;        // coefficient
  float router_z = 0;       // coefficient
  float own_sequences = 1;  // 0: another rank adds the balance losses of this one's sequences
};

// SharedActivations::step_scalars, written by the host before a step: what differs from step to
// step and is no tensor lies there, so that the step's work is the same calls with the same
// arguments each time.
class HostScalars {
 public:
  explicit HostScalars(const TensorView& scalars)
      : scalars_(scalars), buffer_(scalars.bytes(), scalars.device) {}

  // `values` are all of `scalar`. Nothing that copy() has enqueued may still be under way.
  void set(StepScalar scalar, std::initializer_list<double> values) {
    std::int64_t index = step_scalar_row(scalar) * kStatWidth;
    for (const double value : values) {
      if (scalars_.dtype == DType::f64) {
        static_cast<double*>(buffer_.data())[index] = value;
      } else {
        static_cast<float*>(buffer_.data())[index] = static_cast<float>(value);
      }
      ++index;
    }
  }

  // What the losses of a model of `num_layers` layers are multiplied by. Products are of f32 in
  // every dtype, as the scales are.
  void set(const LossScales& scales, std::int64_t num_layers) {
    const float per_layer = 1.0F / static_cast<float>(num_layers);
    const auto wide = [](float value) { return static_cast<double>(value); };
    set(StepScalar::target, {wide(scales.target)});
    set(StepScalar::balance_mean, {wide(scales.own_sequences * (scales.sequence * per_layer))});
    set(StepScalar::z_mean, {wide(scales.token * per_layer)});
    set(StepScalar::auxiliary,
        {wide(scales.balance * scales.sequence), wide(scales.router_z * scales.token)});
  }

  // Enqueue the copies: of what the losses are multiplied by, and of the rates, which a step reads at
  // its end.
  void copy_scales(Stream stream) const { copy(0, kRates, stream); }
  void copy_rates(Stream stream) const { copy(kRates, kNumStepScalars, stream); }

 private:
  static constexpr auto kRates = static_cast<std::int64_t>(StepScalar::rates);
  static_assert(kRates + 1 == kNumStepScalars, "the rates are the last row");

  void copy(std::int64_t begin, std::int64_t end, Stream stream) const {
    const auto row = static_cast<std::int64_t>(scalars_.bytes()) / kNumStepScalars;
    device_copy(static_cast<std::byte*>(scalars_.data) + begin * row,
                static_cast<const std::byte*>(buffer_.data()) + begin * row,
                static_cast<std::size_t>((end - begin) * row),
                stream);
  }

  TensorView scalars_;
  PinnedBuffer buffer_;
};

}  // namespace memphis
