// SPDX-License-Identifier: Apache-2.0
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "csrc/data/tokenizer.h"
#include "tests/fuzz/fuzz.h"

// A tokenizer's file, of whatever program: tokenizer.json, tiktoken, SentencePiece. What is taken
// encodes and decodes.
int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace memphis;
  const auto path = fuzz::file_of(fuzz::text_of(data, size), "tokenizer");
  return fuzz::read_or_refuse([&] {
    const std::shared_ptr<const Tokenizer> tokenizer = open_tokenizer(path.string());
    std::vector<std::int32_t> ids =
        tokenizer->encode("It's  2024;\n \xC3\xA4\xF0\x9F\x98\x80\xFF end");
    for (const std::int32_t id : ids) {
      require(id >= 0 && id < tokenizer->vocab_size(), "an id is of the vocabulary");
    }
    static_cast<void>(tokenizer->decode(ids));
    ids.resize(static_cast<std::size_t>(std::min(tokenizer->vocab_size(), 1000)));
    std::iota(ids.begin(), ids.end(), 0);
    static_cast<void>(tokenizer->decode(ids));
    for (const std::int32_t id : ids) {
      static_cast<void>(tokenizer->piece(id, id % 2 == 0));
    }
  });
}
