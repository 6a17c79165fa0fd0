// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

#include "csrc/checkpoint/checksum.h"

namespace memphis {

// What all threads of a rank hash together: the XXH3 of the XXH3s of chunks, each of one thread. It
// is not that of the bytes in one piece, which files have (Checksum), and is compared within a run
// alone.
class ChunkedChecksum {
 public:
  static constexpr std::size_t kChunkBytes = std::size_t{1} << 20;

  // Called for each chunk by the thread that has hashed it, while the processor has its bytes at
  // hand: those of `bytes` from `begin` on.
  using Beside = std::function<void(std::size_t begin, std::size_t count)>;

  // The bytes of a call are cut from the first of them. So the value is the same in however many
  // calls they come, where all but the last have whole chunks, and on any number of threads.
  void update(std::span<const std::byte> bytes, const Beside& beside = {});
  std::uint64_t value() const { return of_chunks_.value(); }

 private:
  Checksum of_chunks_;
};

}  // namespace memphis
