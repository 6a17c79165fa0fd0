// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/megatron_index.h"

#include <algorithm>
#include <numeric>
#include <span>
#include <vector>

#include "csrc/core/file.h"
#include "csrc/data/append_file.h"

namespace memphis {
namespace {

constexpr std::uint64_t kPiece = 1U << 16U;  // numbers

template <class Value>
void put(AppendFile& out, Value value) {
  out.write(std::as_bytes(std::span(&value, 1)));
}

// Calls body(lengths) for one piece of them after another.
template <class Body>
void for_pieces(const InputFile& lengths, std::uint64_t count, const Body& body) {
  std::vector<std::int32_t> piece;
  for (std::uint64_t first = 0; first < count; first += kPiece) {
    piece.resize(std::min(kPiece, count - first));
    lengths.read(4 * first, std::as_writable_bytes(std::span(piece)));
    body(piece);
  }
}

}  // namespace

void write_megatron_index(const std::filesystem::path& path,
                          const std::filesystem::path& lengths,
                          std::uint64_t num_documents,
                          bool wide) {
  constexpr std::uint8_t kInt32 = 4;
  constexpr std::uint8_t kUint16 = 8;
  AppendFile index(path);
  index.cut(0);
  index.write(std::as_bytes(std::span("MMIDIDX\0", 9)));
  put(index, std::uint64_t{1});
  put(index, wide ? kInt32 : kUint16);
  put(index, num_documents);
  put(index, num_documents + 1);
  const InputFile kept(lengths);
  for_pieces(kept, num_documents, [&](const std::vector<std::int32_t>& piece) {
    index.write_values(piece);
  });
  std::int64_t pointer = 0;
  for_pieces(kept, num_documents, [&](const std::vector<std::int32_t>& piece) {
    std::vector<std::int64_t> pointers;
    for (const std::int32_t length : piece) {
      pointers.push_back(pointer);
      pointer += std::int64_t{length} * (wide ? 4 : 2);
    }
    index.write_values(pointers);
  });
  for (std::uint64_t first = 0; first <= num_documents; first += kPiece) {
    std::vector<std::int64_t> boundaries(std::min(kPiece, num_documents + 1 - first));
    std::iota(boundaries.begin(), boundaries.end(), static_cast<std::int64_t>(first));
    index.write_values(boundaries);
  }
  index.sync();
}

}  // namespace memphis
