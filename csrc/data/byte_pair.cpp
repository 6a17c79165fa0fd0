// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/byte_pair.h"

#include <algorithm>
#include <bit>
#include <queue>
#include <utility>

namespace memphis {
namespace {

// Below, going through all pairs for each merge is faster than keeping them in order.
constexpr std::size_t kShortWord = 48;

std::size_t merge_short(const MergeTable& merges, std::span<std::int32_t> ids) {
  std::size_t count = ids.size();
  MergeTable::Merge next[kShortWord];  // of the pair that begins at each
  for (std::size_t i = 0; i + 1 < count; ++i) {
    next[i] = merges.find(ids[i], ids[i + 1]);
  }
  while (count > 1) {
    std::size_t best = 0;
    for (std::size_t i = 1; i + 1 < count; ++i) {
      best = next[i].rank < next[best].rank ? i : best;
    }
    if (next[best].rank == MergeTable::kNone) {
      break;
    }
    ids[best] = next[best].id;
    std::copy(ids.begin() + static_cast<std::ptrdiff_t>(best) + 2,
              ids.begin() + static_cast<std::ptrdiff_t>(count),
              ids.begin() + static_cast<std::ptrdiff_t>(best) + 1);
    if (best + 2 < count) {  // pairs behind it
      std::copy(next + best + 2, next + count - 1, next + best + 1);
    }
    --count;
    if (best + 1 < count) {
      next[best] = merges.find(ids[best], ids[best + 1]);
    }
    if (best > 0) {
      next[best - 1] = merges.find(ids[best - 1], ids[best]);
    }
  }
  return count;
}

// A pair that was found to merge; stale once one of its two has merged otherwise.
struct Candidate {
  std::uint32_t rank;
  std::uint32_t left;
  std::int32_t id;

  bool operator<(const Candidate& other) const {  // the first one is the largest of a heap
    return rank != other.rank ? rank > other.rank : left > other.left;
  }
};

std::size_t merge_long(const MergeTable& merges, std::span<std::int32_t> ids) {
  constexpr std::uint32_t kEnd = UINT32_MAX;
  const auto count = static_cast<std::uint32_t>(ids.size());
  std::vector<std::uint32_t> previous(count);
  std::vector<std::uint32_t> next(count);
  std::vector<bool> gone(count);
  std::priority_queue<Candidate> candidates;
  const auto offer = [&](std::uint32_t left) {
    if (left != kEnd && next[left] != kEnd) {
      const MergeTable::Merge merge = merges.find(ids[left], ids[next[left]]);
      if (merge.rank != MergeTable::kNone) {
        candidates.push({merge.rank, left, merge.id});
      }
    }
  };
  for (std::uint32_t i = 0; i < count; ++i) {
    previous[i] = i == 0 ? kEnd : i - 1;
    next[i] = i + 1 == count ? kEnd : i + 1;
  }
  for (std::uint32_t i = 0; i < count; ++i) {
    offer(i);
  }
  while (!candidates.empty()) {
    const Candidate best = candidates.top();
    candidates.pop();
    if (gone[best.left] || next[best.left] == kEnd) {
      continue;
    }
    const std::uint32_t right = next[best.left];
    const MergeTable::Merge merge = merges.find(ids[best.left], ids[right]);
    if (merge.rank != best.rank || merge.id != best.id) {
      continue;
    }
    ids[best.left] = merge.id;
    gone[right] = true;
    next[best.left] = next[right];
    if (next[right] != kEnd) {
      previous[next[right]] = best.left;
    }
    offer(previous[best.left]);
    offer(best.left);
  }
  std::size_t kept = 0;
  for (std::uint32_t i = 0; i < count; ++i) {
    if (!gone[i]) {
      ids[kept++] = ids[i];
    }
  }
  return kept;
}

}  // namespace

void MergeTable::add(std::int32_t left, std::int32_t right, Merge merge) {
  if (2 * (count_ + 1) > slots_.size()) {
    grow();
  }
  const std::uint64_t key = key_of(left, right);
  std::size_t i = place_of(key);
  while (slots_[i].key != kEmpty && slots_[i].key != key) {
    i = (i + 1) & (slots_.size() - 1);
  }
  if (slots_[i].key == kEmpty) {
    slots_[i] = {key, merge};
    ++count_;
  } else if (merge.rank < slots_[i].merge.rank) {
    slots_[i].merge = merge;
  }
}

void MergeTable::grow() {
  constexpr std::size_t kFirst = 1024;
  const std::vector<Slot> old =
      std::exchange(slots_, std::vector<Slot>(std::max(kFirst, 2 * slots_.size())));
  shift_ = 64U - static_cast<unsigned>(std::countr_zero(slots_.size()));
  for (const Slot& slot : old) {
    if (slot.key != kEmpty) {
      std::size_t i = place_of(slot.key);
      while (slots_[i].key != kEmpty) {
        i = (i + 1) & (slots_.size() - 1);
      }
      slots_[i] = slot;
    }
  }
}

std::size_t merge_word(const MergeTable& merges, std::span<std::int32_t> ids) {
  return ids.size() <= kShortWord ? merge_short(merges, ids) : merge_long(merges, ids);
}

}  // namespace memphis
