// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <string>
#include <vector>

#include "csrc/data/document_reader.h"
#include "csrc/data/text_format.h"
#include "csrc/data/utf8.h"
#include "tests/fuzz/fuzz.h"

// A corpus of text: what it is told to be by its first bytes, and its documents, plain, of gzip and of
// zstd, whole and in lines.
int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace memphis;
  const auto path = fuzz::file_of(fuzz::text_of(data, size), "corpus.jsonl");
  const std::span<const std::byte> head =
      std::as_bytes(std::span(data, std::min(size, kFormatBytes)));
  static_cast<void>(recognise_format(path, head, size <= kFormatBytes));
  require(count_bytes_outside_utf8(head) <= head.size(), "bytes are counted once");
  for (const Packing packing : {Packing::none, Packing::gzip, Packing::zstd}) {
    for (const Framing framing : {Framing::whole, Framing::lines}) {
      fuzz::read_or_refuse([&] {
        constexpr std::uint64_t kMost = 1 << 20;
        const CorpusFile file{.path = path, .packing = packing, .framing = framing};
        DocumentReader reader(file, kMost);
        std::string document;
        std::uint64_t offset = 0;
        while (reader.next(document)) {
          require(document.size() <= kMost && reader.offset() >= offset, "a reader goes on");
          offset = reader.offset();
        }
        require(unpacked_beginning(file, 100).size() <= 100,
                "no more is unpacked than was asked for");
      });
    }
  }
  return 0;
}
