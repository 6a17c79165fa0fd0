// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <memory>
#include <vector>

#include "csrc/data/file_records.h"
#include "csrc/data/megatron_stream.h"
#include "csrc/data/token_file_stream.h"
#include "tests/fuzz/fuzz.h"

namespace {

void read_all(const memphis::TokenStream& stream, std::int64_t vocab_size) {
  const std::uint64_t count = std::min<std::uint64_t>(stream.num_tokens(), 4096);
  std::vector<std::int32_t> tokens(count);
  std::vector<std::int32_t> positions(count);
  std::vector<std::uint8_t> learnt(count);
  for (const std::uint64_t begin : {std::uint64_t{0}, stream.num_tokens() - count}) {
    stream.read(begin, tokens, positions);
    if (stream.has_mask()) {
      stream.read_mask(begin, learnt);
    }
    for (std::uint64_t i = 0; i < count; ++i) {
      memphis::require(tokens[i] >= 0 && tokens[i] < vocab_size && positions[i] >= 0,
                       "a token is of the vocabulary");
    }
  }
}

}  // namespace

// Corpora of tokens. The first byte says which: of llm.c or llmq, or of Megatron, where the next two
// say how many bytes are the index; tokens and mask follow.
int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace memphis;
  constexpr std::int64_t kVocabSize = 300;
  if (size < 4) {
    return 0;
  }
  const std::string_view rest = fuzz::text_of(data + 3, size - 3);
  const std::size_t index_bytes = std::min<std::size_t>(data[1] + 256U * data[2], rest.size());
  FileRecords records;
  if (data[0] % 2 == 0) {
    const auto path = fuzz::file_of(rest, "tokens.bin");
    return fuzz::read_or_refuse([&] {
      read_all(*open_token_file(path, {.first = 1, .last = 2}, kVocabSize, records), kVocabSize);
    });
  }
  const auto index = fuzz::file_of(rest.substr(0, index_bytes), "corpus.idx");
  const std::string_view bytes = rest.substr(index_bytes);
  fuzz::file_of(bytes, "corpus.bin");
  const std::filesystem::path mask = index.parent_path() / "corpus.mask";
  if (data[0] % 4 == 3) {
    fuzz::file_of(std::string(kMaskMagic) + std::string(bytes.substr(0, bytes.size() / 2)),
                  "corpus.mask");
  } else {
    std::filesystem::remove(mask);
  }
  return fuzz::read_or_refuse(
      [&] { read_all(*open_megatron(index, kVocabSize, records), kVocabSize); });
}
