// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

#include "csrc/core/device.h"
#include "csrc/model/parameters.h"
#include "csrc/optim/optimizer.h"
#include "csrc/train/host_pieces.h"

namespace memphis {

// What a rank holds of a run between two of the optimizer's steps, by the hash of each array of each
// segment: nothing writes it meanwhile, so what differs at the end was changed by the machine. It
// needs no other rank, and sees what no other rank has: layers under ZeRO-3, master weights and
// moments under ZeRO-1 and 2.
//
// Weights are all that this rank has for good: whole, or under ZeRO-3 a layer's own part.
//
// Cost  take() and check() read weights, master weights and moments once, and take() the weights
//       beside their masters once more, by all threads of the rank; from a GPU they are brought to
//       the host, a piece while the one before is hashed, and for the optimizer's step while it
//       still computes gradients. Nothing where take() is not called.
class StateSeal final : public UpdateGate {
 public:
  // All referents must outlive it. The optimizer waits for it from now on. The grain of `pieces` is
  // ChunkedChecksum's.
  StateSeal(const Parameters& parameters, Optimizer& optimizer, HostPieces& pieces, Stream stream);
  ~StateSeal() override;
  StateSeal(const StateSeal&) = delete;
  StateSeal& operator=(const StateSeal&) = delete;

  // Parts that are not what they should be, added up.
  static constexpr unsigned kWeights = 1;
  static constexpr unsigned kMasters = 2;
  static constexpr unsigned kMoments = 4;
  static constexpr unsigned kRounding = 8;

  // Of what lies there now. Weights that were on their way have arrived. Returns kRounding where
  // weights are not their master weights, rounded, and 0 otherwise.
  unsigned take();
  // Forgets what was taken, for something is about to write that is no step.
  void drop();
  bool is_taken() const { return taken_; }

  // Parts that are not what take() found: all of them now; and those which the optimizer's step found
  // that came since, each segment before it was changed. The latter are told once.
  unsigned check();
  unsigned take_findings();
  // After a step: whether there is what take_findings() tells. A rank that holds nothing has nothing to
  // find, at the same steps as the others.
  bool has_findings() const { return checked_ || (taken_ && seals_.empty()); }

  // By take(), of a segment's weights.
  std::uint64_t weights_hash(std::size_t segment) const { return seals_.at(segment).weights; }

  // Bytes that were read, in all.
  std::uint64_t bytes_read() const { return bytes_read_; }

  bool is_open() const override { return !taken_ || seals_.empty(); }
  void await(std::size_t segment, Stream stream) override;

 private:
  struct Seal {
    std::uint64_t weights = 0;
    std::uint64_t master = 0;
    std::uint64_t moments = 0;
  };

  std::uint64_t hash_of(std::initializer_list<TensorView> views);
  // With `rounded` weights are held to their masters too.
  Seal seal_of(std::size_t segment, bool* rounded = nullptr);
  TensorView weights_of(std::size_t segment) const;
  unsigned differences(std::size_t segment);
  // Of a segment's master weights, which its rank has. `rounded` becomes false where its weights are
  // not what they round to.
  std::uint64_t hash_of_masters(std::size_t segment, bool& rounded);

  const Parameters& parameters_;
  Optimizer& optimizer_;
  Stream stream_;
  std::vector<Seal> seals_;
  unsigned findings_ = 0;
  bool taken_ = false;
  bool checked_ = false;
  std::uint64_t bytes_read_ = 0;
  HostPieces& pieces_;
};

// "weights and master weights": what `parts` are.
std::string describe_parts(unsigned parts);

}  // namespace memphis
