// SPDX-License-Identifier: Apache-2.0
#include "csrc/checkpoint/snapshot.h"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <utility>

#include "csrc/core/error.h"
#include "csrc/plan/memory.h"

namespace memphis {
namespace {

// A GPU makes one copy to the host at a time, and does not break off a long one for the few numbers that a
// layer of the next step waits for: this is over in less than a millisecond.
constexpr std::size_t kBytesAtOnce = std::size_t{32} << 20;

}  // namespace

Snapshot::Snapshot(const Parameters& parameters, const Optimizer& optimizer, Stream stream)
    : stream_(stream),
      memory_(snapshot_bytes(parameters.plan()), stream.device),
      copies_(stream.device),
      taken_at_(stream.device, Event::Use::ordering) {
  for (std::size_t i = 0; i < parameters.plan().segments.size(); ++i) {
    buckets_.push_back({.copies = {}, .copied = Event(stream.device, Event::Use::ordering)});
  }
  add(weight_pieces(parameters), weights_);
  add(optimizer_pieces(parameters, optimizer), optimizer_);
  require(used_ == memory_.bytes(), "a snapshot takes the memory that the plan has for it");
}

void Snapshot::add(const std::vector<StatePiece>& pieces, std::vector<TensorSource>& sources) {
  for (const StatePiece& piece : pieces) {
    const std::size_t bytes = piece.view.bytes();
    buckets_[piece.segment].copies.push_back(
        {.from = piece.view.data, .offset = used_, .bytes = bytes});
    TensorView copied = piece.view;
    copied.data = static_cast<std::byte*>(memory_.data()) + used_;
    copied.device = Device::cpu;
    sources.push_back(source_of(piece.name, copied, memory_, {}));
    used_ += snapshot_piece_bytes(bytes);
  }
}

void Snapshot::take() {
  taken_ = true;
  num_copied_ = 0;
  awaited_seconds_ = 0;
  if (stream_.device == Device::cpu) {
    return;
  }
  taken_at_.record(stream_);
  taken_at_.make_wait(copies_.view());
  for (Bucket& bucket : buckets_) {
    for (const Copy& copy : bucket.copies) {
      for (std::size_t at = 0; at < copy.bytes; at += kBytesAtOnce) {
        device_copy(static_cast<std::byte*>(memory_.data()) + copy.offset + at,
                    static_cast<const std::byte*>(copy.from) + at,
                    std::min(kBytesAtOnce, copy.bytes - at),
                    copies_.view());
      }
    }
    bucket.copied.record(copies_.view());
  }
}

bool Snapshot::can_copy() const {
  return stream_.device == Device::cpu || buckets_.empty() || buckets_.back().copied.is_done();
}

void Snapshot::wait_until_it_can() const {
  if (!can_copy()) {
    buckets_.back().copied.wait();
  }
}

void Snapshot::copy() {
  if (stream_.device != Device::cpu) {
    return;
  }
  for (const Bucket& bucket : buckets_) {
    for (const Copy& copy : bucket.copies) {
      std::memcpy(static_cast<std::byte*>(memory_.data()) + copy.offset, copy.from, copy.bytes);
    }
    ++num_copied_;
    num_copied_.notify_one();
  }
}

void Snapshot::await(std::size_t segment, Stream stream) {
  if (stream_.device == Device::cpu) {
    const auto begin = std::chrono::steady_clock::now();
    for (std::size_t copied = num_copied_; copied <= segment; copied = num_copied_) {
      num_copied_.wait(copied);
    }
    awaited_seconds_ +=
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  } else {
    buckets_[segment].copied.make_wait(stream);
  }
  taken_ = segment + 1 < buckets_.size();
}

}  // namespace memphis
