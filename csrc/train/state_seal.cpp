// SPDX-License-Identifier: Apache-2.0
#include "csrc/train/state_seal.h"

#include <atomic>
#include <utility>

#include "csrc/checkpoint/chunked_checksum.h"
#include "csrc/core/dtype.h"
#include "csrc/core/error.h"
#include "csrc/core/rounding.h"

namespace memphis {

StateSeal::StateSeal(const Parameters& parameters,
                     Optimizer& optimizer,
                     HostPieces& pieces,
                     Stream stream)
    : parameters_(parameters),
      optimizer_(optimizer),
      stream_(stream),
      seals_(parameters.plan().segments.size()),
      pieces_(pieces) {
  optimizer.add_gate(*this);
}

StateSeal::~StateSeal() {
  optimizer_.remove_gate(*this);
}

std::uint64_t StateSeal::hash_of(std::initializer_list<TensorView> views) {
  ChunkedChecksum checksum;
  for (const TensorView& view : views) {
    pieces_.for_each(view, [&](std::span<const std::byte> piece) { checksum.update(piece); });
    bytes_read_ += view.bytes();
  }
  return checksum.value();
}

TensorView StateSeal::weights_of(std::size_t segment) const {
  // Layers that take turns are whole now and then.
  return parameters_.plan().segments[segment].place ? parameters_.owned_weights(segment)
                                                    : parameters_.segment_weights(segment);
}

StateSeal::Seal StateSeal::seal_of(std::size_t segment, bool* rounded) {
  Seal seal{.weights = hash_of({weights_of(segment)})};
  if (parameters_.plan().segments[segment].has_state()) {
    const Optimizer::SegmentState& state = optimizer_.segment_state(segment);
    if (state.owns_master) {
      seal.master =
          rounded != nullptr ? hash_of_masters(segment, *rounded) : hash_of({state.master_n});
    }
    seal.moments = hash_of({state.m_n, state.v_n});
  }
  return seal;
}

std::uint64_t StateSeal::hash_of_masters(std::size_t segment, bool& rounded) {
  const TensorView& master_n = optimizer_.segment_state(segment).master_n;
  require(master_n.dtype == DType::f32 && parameters_.plan().segments[segment].dtype == DType::bf16,
          "weights apart from their master are bf16, and that is f32");
  const TensorView weights = parameters_.owned_weights(segment);
  ChunkedChecksum checksum;
  std::atomic<bool> differ = false;
  pieces_.for_each_beside(
      master_n,
      weights,
      [&](std::span<const std::byte> masters, std::span<const std::byte> values) {
        checksum.update(masters, [&](std::size_t begin, std::size_t bytes) {
          const std::size_t first = begin / sizeof(float);
          const std::size_t count = bytes / sizeof(float);
          // What is not a number has a loss that tells of it.
          if (!are_rounded({reinterpret_cast<const bf16*>(values.data()) + first, count},
                           {reinterpret_cast<const float*>(masters.data()) + first, count})) {
            differ = true;
          }
        });
      });
  rounded = rounded && !differ;
  bytes_read_ += master_n.bytes() + weights.bytes();
  return checksum.value();
}

unsigned StateSeal::take() {
  synchronize(stream_);
  unsigned parts = 0;
  for (std::size_t i = 0; i < seals_.size(); ++i) {
    bool rounded = true;
    seals_[i] = seal_of(i, &rounded);
    parts |= rounded ? 0U : kRounding;
  }
  taken_ = true;
  checked_ = false;
  findings_ = 0;
  return parts;
}

void StateSeal::drop() {
  taken_ = false;
  checked_ = false;
  findings_ = 0;
}

unsigned StateSeal::differences(std::size_t segment) {
  const Seal now = seal_of(segment);
  const Seal& then = seals_[segment];
  return (now.weights != then.weights ? kWeights : 0U) |
         (now.master != then.master ? kMasters : 0U) |
         (now.moments != then.moments ? kMoments : 0U);
}

unsigned StateSeal::check() {
  require(taken_, "a seal is taken before it is compared");
  synchronize(stream_);
  unsigned parts = 0;
  for (std::size_t i = 0; i < seals_.size(); ++i) {
    parts |= differences(i);
  }
  return parts;
}

unsigned StateSeal::take_findings() {
  taken_ = taken_ && !seals_.empty();
  checked_ = false;
  return std::exchange(findings_, 0U);
}

// What the GPU has under way meanwhile, the step's gradients and the update of other segments,
// reads this one at most: so nothing waits for it.
void StateSeal::await(std::size_t segment, Stream /*stream*/) {
  findings_ |= differences(segment);
  taken_ = segment + 1 < seals_.size();
  checked_ = !taken_;
}

std::string describe_parts(unsigned parts) {
  std::vector<std::string> names;
  const auto add = [&](unsigned part, const char* name) {
    if ((parts & part) != 0) {
      names.emplace_back(name);
    }
  };
  add(StateSeal::kWeights, "weights");
  add(StateSeal::kMasters, "master weights");
  add(StateSeal::kMoments, "moments");
  std::string text;
  for (std::size_t i = 0; i < names.size(); ++i) {
    text += (i == 0 ? "" : i + 1 == names.size() ? " and " : ", ") + names[i];
  }
  return text;
}

}  // namespace memphis
