// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace memphis {

// The merges of BPE: of two neighbours, which id they become and which pair goes first.
class MergeTable {
 public:
  struct Merge {
    std::uint32_t rank;  // lower ones first
    std::int32_t id;
  };
  static constexpr std::uint32_t kNone = UINT32_MAX;

  // Of a pair that is there already the lower rank stays.
  void add(std::int32_t left, std::int32_t right, Merge merge);
  std::size_t size() const { return count_; }

  // Rank kNone where the two do not merge.
  Merge find(std::int32_t left, std::int32_t right) const {
    if (slots_.empty()) {
      return {kNone, -1};
    }
    const std::uint64_t key = key_of(left, right);
    for (std::size_t i = place_of(key);; i = (i + 1) & (slots_.size() - 1)) {
      if (slots_[i].key == key) {
        return slots_[i].merge;
      }
      if (slots_[i].key == kEmpty) {
        return {kNone, -1};
      }
    }
  }

 private:
  static constexpr std::uint64_t kEmpty = UINT64_MAX;
  struct Slot {
    std::uint64_t key = kEmpty;
    Merge merge{kNone, -1};
  };

  static std::uint64_t key_of(std::int32_t left, std::int32_t right) {
    return (static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32U) |
           static_cast<std::uint32_t>(right);
  }
  std::size_t place_of(std::uint64_t key) const {
    return static_cast<std::size_t>((key * 0x9E3779B97F4A7C15) >> shift_);
  }
  void grow();

  std::vector<Slot> slots_;  // a power of two, at most half full
  unsigned shift_ = 0;
  std::size_t count_ = 0;
};

// Merges `ids`, a word's bytes or characters, until no neighbours merge: each time the pair of the
// lowest rank, of equal ones the leftmost. Leaves the result in ids[0, n) and returns n.
//
// Cost  O(n log n) for a word of n ids.
std::size_t merge_word(const MergeTable& merges, std::span<std::int32_t> ids);

}  // namespace memphis
