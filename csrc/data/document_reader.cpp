// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/document_reader.h"

#include <cstring>
#include <utility>

#include <spdlog/fmt/fmt.h>

#include "csrc/core/error.h"
#include "csrc/data/utf8.h"

namespace memphis {
namespace {

constexpr std::size_t kBufferBytes = std::size_t{256} << 10U;

}  // namespace

struct DocumentReader::State {
  std::unique_ptr<UnpackedFile> source;
  Framing framing;
  bool is_plain;
  std::uint64_t max_bytes;
  std::uint64_t offset;
  std::uint64_t line;
  std::vector<std::byte> buffer = std::vector<std::byte>(kBufferBytes);
  std::size_t begin = 0;  // what of the buffer is not yet given out
  std::size_t end = 0;
  bool ended = false;

  // False at the end of the file.
  bool fill() {
    begin = 0;
    end = source->read(buffer);
    if (end == 0 && !ended) {
      ended = true;
      source->require_unchanged();
    }
    return end > 0;
  }

  [[noreturn]] void refuse_large() const {
    throw DataError(fmt::format(
        "{} has a {} of more than {} bytes, from byte {} of its text on{} (a tokenizer is given a "
        "document at once, and that many bytes are its most); split it into several",
        source->file().path().string(),
        framing == Framing::lines ? "line" : "document",
        max_bytes,
        offset,
        framing == Framing::lines ? fmt::format(", line {}", line + 1) : std::string()));
  }

  void take(std::string& document, std::size_t count) {
    if (document.size() + count > max_bytes) {
      refuse_large();
    }
    document.append(reinterpret_cast<const char*>(buffer.data() + begin), count);
    begin += count;
  }
};

DocumentReader::DocumentReader(const CorpusFile& file,
                               std::uint64_t max_bytes,
                               std::uint64_t offset,
                               std::uint64_t line)
    : state_(std::make_unique<State>()) {
  state_->source = open_unpacked(file.path, file.packing);
  state_->framing = file.framing;
  state_->is_plain = file.packing == Packing::none;
  state_->max_bytes = max_bytes;
  state_->offset = offset;
  state_->line = line;
  state_->source->skip(offset);
}

DocumentReader::~DocumentReader() = default;
DocumentReader::DocumentReader(DocumentReader&& other) noexcept = default;
DocumentReader& DocumentReader::operator=(DocumentReader&& other) noexcept = default;

bool DocumentReader::next(std::string& document) {
  State& state = *state_;
  document.clear();
  if (state.framing == Framing::whole) {
    if (state.offset > 0) {
      return false;
    }
    if (state.is_plain && state.source->file().size() > state.max_bytes) {
      state.refuse_large();  // before as much of it is read
    }
    while (state.begin < state.end || state.fill()) {
      state.take(document, state.end - state.begin);
    }
    state.offset += document.size();
    return !document.empty();
  }
  std::uint64_t consumed = 0;
  bool found = false;
  while (!found && (state.begin < state.end || state.fill())) {
    const std::byte* const from = state.buffer.data() + state.begin;
    const void* const newline = std::memchr(from, '\n', state.end - state.begin);
    const std::size_t count =
        newline == nullptr
            ? state.end - state.begin
            : static_cast<std::size_t>(static_cast<const std::byte*>(newline) - from);
    state.take(document, count);
    consumed += count;
    if (newline != nullptr) {
      ++state.begin;
      ++consumed;
      found = true;
    }
  }
  if (consumed == 0) {
    return false;
  }
  if (state.offset == 0 && document.starts_with(kUtf8Mark)) {
    document.erase(0, kUtf8Mark.size());
  }
  state.offset += consumed;
  ++state.line;
  return true;
}

std::uint64_t DocumentReader::offset() const {
  return state_->offset;
}

std::uint64_t DocumentReader::line() const {
  return state_->line;
}

std::uint64_t DocumentReader::bytes_read() const {
  return state_->source->place();
}

std::uint64_t DocumentReader::num_bytes() const {
  return state_->source->file().size();
}

std::vector<std::byte> unpacked_beginning(const CorpusFile& file, std::size_t most) {
  const std::unique_ptr<UnpackedFile> source = open_unpacked(file.path, file.packing);
  std::vector<std::byte> bytes(most);
  std::size_t count = 0;
  while (count < most) {
    const std::size_t got = source->read(std::span(bytes).subspan(count));
    if (got == 0) {
      break;
    }
    count += got;
  }
  bytes.resize(count);
  return bytes;
}

}  // namespace memphis
