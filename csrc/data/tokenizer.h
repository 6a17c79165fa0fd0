// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace memphis {

// Ids that stand for no text; -1 where the tokenizer has none.
struct SpecialTokens {
  std::int32_t pad = -1;
  std::int32_t bos = -1;  // in front of a document
  std::int32_t eos = -1;  // behind it
};

// A file that a tokenizer is opened from, whole, under the name that it has in a folder.
struct TokenizerFile {
  std::string name;
  std::string content;

  bool operator==(const TokenizerFile&) const = default;
};

// Text as ids and back. Const calls may come from any number of threads.
class Tokenizer {
 public:
  Tokenizer() = default;
  virtual ~Tokenizer() = default;
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  virtual std::string_view kind() const = 0;  // "byte", "SentencePiece", "byte-level BPE", "BPE"
  virtual std::int32_t vocab_size() const = 0;
  virtual SpecialTokens special() const = 0;

  // Appends the ids of `text` alone: whoever starts a document puts bos in front. What is not UTF-8
  // is read as the original program does: by SentencePiece as U+FFFD for each byte, by BPE as
  // U+FFFD for each unit of utf8.h, by bytes as it is.
  virtual void append(std::string_view text, std::vector<std::int32_t>& ids) const = 0;

  // Special ids decode to nothing. ContractError on an id outside the vocabulary.
  virtual std::string decode(std::span<const std::int32_t> ids) const = 0;

  // What the id adds to a text that is shown as it is generated: bytes that may end within a
  // character. `is_first` where the text has not begun yet: what stands for nothing there is left
  // out.
  virtual std::string piece(std::int32_t id, bool is_first) const = 0;
  // Whether a text has begun with this id, as it has with none that is special.
  virtual bool begins_text(std::int32_t id) const { return !piece(id, false).empty(); }

  // Hexadecimal, of all that ids depend on: equal for tokenizers that give equal ids, wherever they
  // lie.
  virtual std::string fingerprint() const = 0;

  // A folder of these opens as this tokenizer, of the same fingerprint; none for bytes. They are as
  // they were when it was opened, whatever has become of its path since.
  virtual const std::vector<TokenizerFile>& files() const = 0;

  std::vector<std::int32_t> encode(std::string_view text) const;

  // The ids that a document of `text` begins with, at least one: bos, if the tokenizer has it, and
  // those of the text. Where there is neither it is eos, behind which another document begins, and
  // where there is no eos id 0, because a model goes on from something.
  std::vector<std::int32_t> begin_document(std::string_view text) const;

 protected:
  // ContractError unless every id is within the vocabulary.
  void require_known(std::span<const std::int32_t> ids) const;
};

// data.tokenizer: "byte"; "none", for a null pointer; or a path, of a SentencePiece model, a
// tokenizer.json of BPE, a tokenizer.tok.json of Grok-2, a tiktoken file, or a folder with one of
// them under its usual name. Which it is, is told from its content. `pattern` cuts the text of a
// tiktoken file into words: gpt2, cl100k, o200k, llama3, qwen, a regular expression, or empty where
// the `pattern` of a tokenizer_config.json beside it tells, or the size of the vocabulary.
//
// DataError, with the file, where it is none of these, is damaged, or asks for what is not
// implemented: what would give other ids than the original is refused.
std::shared_ptr<const Tokenizer> open_tokenizer(const std::string& name,
                                                const std::string& pattern = {});

// Bytes as tokens: ids 0, 1 and 2 are pad, bos and eos (as in Grok-1's tokenizer), byte b is b + 3.
// Every text encodes and decodes to itself, whatever its encoding.
class ByteTokenizer final : public Tokenizer {
 public:
  static constexpr std::string_view kName = "byte";
  static constexpr std::int32_t kPad = 0;
  static constexpr std::int32_t kBos = 1;
  static constexpr std::int32_t kEos = 2;
  static constexpr std::int32_t kFirstByte = 3;
  static constexpr std::int32_t kVocabSize = kFirstByte + 256;

  static constexpr std::int32_t token_of(std::byte byte) {
    return kFirstByte + std::to_integer<std::int32_t>(byte);
  }

  std::string_view kind() const override { return kName; }
  std::int32_t vocab_size() const override { return kVocabSize; }
  SpecialTokens special() const override { return {.pad = kPad, .bos = kBos, .eos = kEos}; }
  void append(std::string_view text, std::vector<std::int32_t>& ids) const override;
  std::string decode(std::span<const std::int32_t> ids) const override;
  std::string piece(std::int32_t id, bool is_first) const override;
  std::string fingerprint() const override { return std::string(kName); }
  const std::vector<TokenizerFile>& files() const override;
};

}  // namespace memphis
