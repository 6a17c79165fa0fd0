// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/sentence_piece.h"

#include <utility>

#include <sentencepiece_processor.h>

#include "csrc/core/error.h"
#include "csrc/data/digest.h"

namespace memphis {
namespace {

constexpr std::string_view kSpaceMark = "\xE2\x96\x81";  // U+2581, for a space

class SentencePieceTokenizer final : public Tokenizer {
 public:
  SentencePieceTokenizer(std::filesystem::path path, const std::string& content)
      : path_(std::move(path)),
        fingerprint_(digest_of(content)),
        files_{{.name = "tokenizer.model", .content = content}} {
    const sentencepiece::util::Status status = processor_.LoadFromSerializedProto(content);
    if (!status.ok()) {
      throw DataError("cannot read the tokenizer " + path_.string() +
                      " (it is neither JSON, nor tiktoken's lines of base64 and a rank, and as a "
                      "SentencePiece model: " +
                      std::string(status.message()) +
                      "); name a tokenizer of one of these kinds, whole");
    }
    // How a text decodes that begins with spaces, which the model says and the library does not tell.
    for (std::int32_t id = 0; id < processor_.GetPieceSize(); ++id) {
      if (processor_.IdToPiece(id).starts_with(kSpaceMark)) {
        hides_first_space_ = !decode({&id, 1}).starts_with(' ');
        break;
      }
    }
    const std::int32_t space =
        processor_.PieceToId(absl::string_view(kSpaceMark.data(), kSpaceMark.size()));
    hides_spaces_ = !processor_.IsUnknown(space) && decode(std::vector{space, space}).empty();
  }

  std::string_view kind() const override { return "SentencePiece"; }
  std::int32_t vocab_size() const override { return processor_.GetPieceSize(); }
  SpecialTokens special() const override {
    return {.pad = processor_.pad_id(), .bos = processor_.bos_id(), .eos = processor_.eos_id()};
  }

  void append(std::string_view text, std::vector<std::int32_t>& ids) const override {
    std::vector<int> own;
    const sentencepiece::util::Status status =
        processor_.Encode(absl::string_view(text.data(), text.size()), &own);
    if (!status.ok()) {
      throw DataError("SentencePiece cannot encode a text of " + std::to_string(text.size()) +
                      " bytes with " + path_.string() + " (" + std::string(status.message()) +
                      "); leave it out");
    }
    ids.insert(ids.end(), own.begin(), own.end());
  }

  std::string decode(std::span<const std::int32_t> ids) const override {
    require_known(ids);
    std::string text;
    const sentencepiece::util::Status status =
        processor_.Decode(std::vector<int>(ids.begin(), ids.end()), &text);
    require(status.ok(), "ids of the vocabulary decode");
    return text;
  }

  std::string piece(std::int32_t id, bool is_first) const override {
    require_known({&id, 1});
    if (processor_.IsControl(id)) {
      return {};
    }
    if (processor_.IsByte(id)) {  // <0xE2>
      return std::string(
          1, static_cast<char>(std::stoi(processor_.IdToPiece(id).substr(3, 2), nullptr, 16)));
    }
    if (processor_.IsUnknown(id)) {
      return decode({&id, 1});
    }
    const std::string& marked = processor_.IdToPiece(id);
    std::string text;
    for (std::size_t at = 0; at < marked.size();) {
      const bool is_space = std::string_view(marked).substr(at).starts_with(kSpaceMark);
      text.push_back(is_space ? ' ' : marked[at]);
      at += is_space ? kSpaceMark.size() : 1;
    }
    if (is_first && hides_first_space_ && text.starts_with(' ')) {
      text.erase(0, 1);
    }
    return text;
  }

  bool begins_text(std::int32_t id) const override { return !piece(id, hides_spaces_).empty(); }

  std::string fingerprint() const override { return fingerprint_; }
  const std::vector<TokenizerFile>& files() const override { return files_; }

 private:
  std::filesystem::path path_;
  std::string fingerprint_;
  std::vector<TokenizerFile> files_;
  sentencepiece::SentencePieceProcessor processor_;
  bool hides_first_space_ = false;  // that a text begins with, which is put in front of every one
  bool hides_spaces_ = false;       // and so of each piece, until the text has begun
};

}  // namespace

std::shared_ptr<const Tokenizer> open_sentence_piece(const std::filesystem::path& path,
                                                     const std::string& content) {
  return std::make_shared<const SentencePieceTokenizer>(path, content);
}

}  // namespace memphis
