// SPDX-License-Identifier: Apache-2.0
#include "csrc/model/parameters.h"

#include <utility>
#include <vector>

#include "csrc/core/error.h"
#include "csrc/core/parallel.h"
#include "csrc/core/rng.h"
#include "csrc/plan/memory.h"

namespace memphis {
namespace {

// Elements drawn on the host at a time on the way to the device.
constexpr std::int64_t kStagedElements = std::int64_t{1} << 22;
constexpr std::int64_t kGrain = 4096;  // elements a thread draws at a time

// Elements [begin, begin + count) of this rank's part of a parameter.
template <class T>
void draw(std::vector<std::byte>& staging,
          const LogicalParameter& parameter,
          const CounterRng& rng,
          std::int64_t begin,
          std::int64_t count) {
  T* values = reinterpret_cast<T*>(staging.data());
  parallel_ranges(count, kGrain, [&](std::int64_t first, std::int64_t last) {
    const Range range{.begin = begin + first, .count = last - first};
    for_each_run(
        parameter, range, [&](std::int64_t whole, std::int64_t local, std::int64_t length) {
          for (std::int64_t i = 0; i < length; ++i) {
            const double value =
                parameter.init_std == 0
                    ? 1.0
                    : parameter.init_std * rng.normal(static_cast<std::uint64_t>(whole + i));
            values[local - begin + i] = static_cast<T>(value);
          }
        });
  });
}

template <class View>
ModelParameters<TensorView> map_placements(const ModelParameters<Placement>& placements,
                                           const View& view) {
  ModelParameters<TensorView> result;
  const auto visit = [&](const Placement& from, TensorView& to) {
    to = from.present() ? view(from) : TensorView{};
  };
  visit(placements.embedding_VD, result.embedding_VD);
  visit(placements.final_norm_D, result.final_norm_D);
  visit(placements.head_VD, result.head_VD);
  result.layers.resize(placements.layers.size());
  for (std::size_t i = 0; i < placements.layers.size(); ++i) {
    for_each_layer_parameter(placements.layers[i], result.layers[i], visit);
  }
  return result;
}

}  // namespace

TensorView flat_view(const TensorView& flat_n,
                     std::int64_t origin,
                     std::int64_t begin,
                     const TensorSpec& spec) {
  const std::int64_t offset = begin - origin;
  require(offset >= 0 && offset + spec.num_elements() <= flat_n.num_elements(),
          "a parameter lies within its flat array");
  TensorSpec typed = spec;
  typed.dtype = flat_n.dtype;
  const std::size_t offset_bytes = static_cast<std::size_t>(offset) * size_of(flat_n.dtype);
  return {static_cast<char*>(flat_n.data) + offset_bytes, typed, flat_n.device};
}

Parameters::Parameters(ParameterPlan plan, DType compute, Device device, Gradients gradients)
    : plan_(std::move(plan)),
      compute_(compute),
      weights_arena_("weights", weights_bytes(plan_), device) {
  std::vector<TensorView> places;
  for (int i = 0; i < plan_.num_weight_places; ++i) {
    const auto bytes = static_cast<std::int64_t>(plan_.weight_place_bytes);
    places.push_back(weights_arena_.allocate({{bytes}, DType::u8}));
  }
  for (const Segment& segment : plan_.segments) {
    const TensorSpec whole({segment.num_elements}, segment.dtype);
    const TensorSpec owned({segment.owned.count}, segment.dtype);
    if (segment.place) {
      char* const place = static_cast<char*>(places[*segment.place].data);
      segment_weights_.emplace_back(place + segment.place_offset, whole, device);
      owned_weights_.push_back(weights_arena_.allocate(owned));
    } else {
      segment_weights_.push_back(weights_arena_.allocate(whole));
      owned_weights_.push_back(
          flat_view(segment_weights_.back(), segment.begin, segment.owned.begin, owned));
    }
  }
  weights_ = map_placements(plan_.placements, [&](const Placement& placement) {
    const auto index = static_cast<std::size_t>(placement.segment);
    return flat_view(
        segment_weights_[index], plan_.segments[index].begin, placement.begin, placement.spec);
  });
  if (gradients == Gradients::allocate) {
    const DType wide = accumulation_dtype(compute);
    gradients_arena_.emplace("gradients", gradients_bytes(plan_, compute), device);
    gradients_n_ = gradients_arena_->allocate({{plan_.num_gradient_elements}, wide});
    if (plan_.num_sum_elements > 0) {
      sums_n_ = gradients_arena_->allocate({{plan_.num_sum_elements}, wide});
    }
    gradients_ = map_placements(plan_.placements, [&](const Placement& placement) {
      const Segment& segment = plan_.segments[static_cast<std::size_t>(placement.segment)];
      return flat_view(
          gradients_n_, segment.begin - segment.gradient_begin, placement.begin, placement.spec);
    });
  }
}

std::size_t Parameters::allocated_bytes() const {
  return weights_arena_.capacity_bytes() +
         (gradients_arena_ ? gradients_arena_->capacity_bytes() : 0);
}

TensorView Parameters::segment_weights(std::size_t segment) const {
  return segment_weights_.at(segment);
}

TensorView Parameters::owned_weights(std::size_t segment) const {
  return owned_weights_.at(segment);
}

TensorView Parameters::segment_gradients(std::size_t segment) const {
  const Segment& s = plan_.segments.at(segment);
  return flat_view(gradients_n_, 0, s.gradient_begin, {{s.num_elements}, gradients_n_.dtype});
}

TensorView Parameters::segment_sums(std::size_t segment) const {
  return sums(plan_.segments.at(segment).owned);
}

TensorView Parameters::sums(const Range& run) const {
  const Segment& s = plan_.segments[plan_.segment_of(run.begin)];
  require(intersection(run, s.owned) == run, "a rank has the sums of what it owns");
  return sums_n_.present()
             ? flat_view(
                   sums_n_, s.owned.begin - s.sum_begin, run.begin, {{run.count}, sums_n_.dtype})
             : flat_view(gradients_n_,
                         s.begin - s.gradient_begin,
                         run.begin,
                         {{run.count}, gradients_n_.dtype});
}

TensorView Parameters::logical_weights(const LogicalParameter& parameter) const {
  const auto index = static_cast<std::size_t>(parameter.segment);
  return flat_view(
      segment_weights_[index], plan_.segments[index].begin, parameter.begin, parameter.spec);
}

Range Parameters::held(const LogicalParameter& parameter) const {
  const Segment& segment = plan_.segments[static_cast<std::size_t>(parameter.segment)];
  return segment.place ? parameter.local(segment.owned)
                       : Range{.begin = 0, .count = parameter.spec.num_elements()};
}

TensorView Parameters::held_weights(const LogicalParameter& parameter, const Range& local) const {
  const auto index = static_cast<std::size_t>(parameter.segment);
  const Segment& segment = plan_.segments[index];
  require(intersection(local, held(parameter)) == local, "these elements are always there");
  const TensorSpec spec({local.count}, segment.dtype);
  return segment.place
             ? flat_view(
                   owned_weights_[index], segment.owned.begin, parameter.begin + local.begin, spec)
             : flat_view(
                   segment_weights_[index], segment.begin, parameter.begin + local.begin, spec);
}

void Parameters::initialise(std::uint64_t seed, Stream stream) {
  std::vector<std::byte> staging;
  for (const LogicalParameter& parameter : plan_.logical) {
    const CounterRng rng(seed, "init/" + parameter.name);
    const Range all = held(parameter);
    if (all.count == 0) {
      continue;
    }
    const TensorView view = held_weights(parameter, all);
    const std::size_t width = size_of(view.dtype);
    for (std::int64_t begin = all.begin; begin < all.end(); begin += kStagedElements) {
      const std::int64_t count = std::min(kStagedElements, all.end() - begin);
      staging.resize(static_cast<std::size_t>(count) * width);
      switch (view.dtype) {
        case DType::f64:
          draw<double>(staging, parameter, rng, begin, count);
          break;
        case DType::f32:
          draw<float>(staging, parameter, rng, begin, count);
          break;
        default:
          draw<bf16>(staging, parameter, rng, begin, count);
          break;
      }
      char* destination =
          static_cast<char*>(view.data) + static_cast<std::size_t>(begin - all.begin) * width;
      device_copy(destination, staging.data(), staging.size(), stream);
      synchronize(stream);  // staging is filled again
    }
  }
}

}  // namespace memphis
