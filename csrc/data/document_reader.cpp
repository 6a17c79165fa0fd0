// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/document_reader.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

#include <spdlog/fmt/fmt.h>
#include <zlib.h>
#include <zstd.h>

#include "csrc/core/error.h"
#include "csrc/core/file.h"

namespace memphis {
namespace {

constexpr std::size_t kBufferBytes = std::size_t{256} << 10U;
constexpr std::string_view kUtf8Mark = "\xEF\xBB\xBF";

[[noreturn]] void refuse(const std::filesystem::path& path, const std::string& why) {
  throw DataError(fmt::format(
      "cannot read {} ({}); fetch it again, whole, and start again", path.string(), why));
}

// The bytes of a file in order.
class Source {
 public:
  explicit Source(const std::filesystem::path& path) : file_(path) {}
  virtual ~Source() = default;
  Source(const Source&) = delete;
  Source& operator=(const Source&) = delete;

  // As many unpacked bytes as there are and `out` has room for, at least one unless it is the end.
  virtual std::size_t read(std::span<std::byte> out) = 0;
  // Leaves out so many, all of which must be there.
  virtual void skip(std::uint64_t count) {
    std::vector<std::byte> buffer(kBufferBytes);
    while (count > 0) {
      const std::size_t got =
          read(std::span(buffer).first(std::min<std::uint64_t>(buffer.size(), count)));
      if (got == 0) {
        refuse(file_.path(), "it ends before the place where it was left, and has changed");
      }
      count -= got;
    }
  }

  const InputFile& file() const { return file_; }
  std::uint64_t place() const { return place_; }

  // Of the file as it was opened, which a copy that is still growing is not.
  void require_unchanged() const {
    const InputFile now(file_.path());
    if (now.size() != file_.size() || now.modified_ns() != file_.modified_ns()) {
      throw DataError(fmt::format(
          "{} has changed while it was read (it has {} bytes and had {}, or was written to); let "
          "what writes it end, and start again",
          file_.path().string(),
          now.size(),
          file_.size()));
    }
  }

 protected:
  std::span<std::byte> raw(std::span<std::byte> out) {
    const auto part = out.first(std::min<std::uint64_t>(out.size(), file_.size() - place_));
    file_.read(place_, part);
    place_ += part.size();
    return part;
  }

  void move(std::uint64_t count) {
    if (count > file_.size() - place_) {
      refuse(file_.path(), "it ends before the place where it was left, and has changed");
    }
    place_ += count;
  }

 private:
  InputFile file_;
  std::uint64_t place_ = 0;
};

class PlainSource final : public Source {
 public:
  using Source::Source;
  std::size_t read(std::span<std::byte> out) override { return raw(out).size(); }
  void skip(std::uint64_t count) override { move(count); }
};

class GzipSource final : public Source {
 public:
  explicit GzipSource(const std::filesystem::path& path) : Source(path), buffer_(kBufferBytes) {
    constexpr int kGzipAlone = 15 + 16;  // of zlib.h: the largest window, and gzip's header
    if (inflateInit2(&stream_, kGzipAlone) != Z_OK) {
      throw std::bad_alloc();
    }
  }
  ~GzipSource() override { inflateEnd(&stream_); }

  std::size_t read(std::span<std::byte> out) override {
    stream_.next_out = reinterpret_cast<Bytef*>(out.data());
    stream_.avail_out = static_cast<uInt>(out.size());
    while (stream_.avail_out == out.size()) {
      if (stream_.avail_in == 0) {
        const auto input = raw(buffer_);
        stream_.next_in = reinterpret_cast<Bytef*>(input.data());
        stream_.avail_in = static_cast<uInt>(input.size());
        if (input.empty()) {
          if (!between_members_) {
            refuse(file().path(), fmt::format("its gzip data break off at byte {}", place()));
          }
          return 0;
        }
      }
      if (between_members_) {  // another one, or zeros that fill up a block of a tape
        if (*stream_.next_in == 0) {
          ++stream_.next_in;
          --stream_.avail_in;
          continue;
        }
        inflateReset(&stream_);
        between_members_ = false;
      }
      const int result = inflate(&stream_, Z_NO_FLUSH);
      if (result == Z_STREAM_END) {
        between_members_ = true;
      } else if (result != Z_OK && result != Z_BUF_ERROR) {
        refuse(file().path(),
               fmt::format("its gzip data are damaged before byte {}: {}",
                           place() - stream_.avail_in,
                           stream_.msg != nullptr ? stream_.msg : "they make no sense"));
      }
    }
    return out.size() - stream_.avail_out;
  }

 private:
  std::vector<std::byte> buffer_;
  z_stream stream_{};
  bool between_members_ = false;
};

class ZstdSource final : public Source {
 public:
  explicit ZstdSource(const std::filesystem::path& path)
      : Source(path), buffer_(kBufferBytes), stream_(ZSTD_createDStream()) {
    if (stream_ == nullptr) {
      throw std::bad_alloc();
    }
    // What `zstd --long=31` writes, too: up to 2 GiB, of frames that ask for it.
    ZSTD_DCtx_setParameter(stream_, ZSTD_d_windowLogMax, 31);
  }
  ~ZstdSource() override { ZSTD_freeDStream(stream_); }

  std::size_t read(std::span<std::byte> out) override {
    ZSTD_outBuffer output{out.data(), out.size(), 0};
    while (output.pos == 0) {
      if (input_.pos == input_.size && !flushing_) {
        const auto input = raw(buffer_);
        input_ = {input.data(), input.size(), 0};
        if (input.empty()) {
          if (in_frame_) {
            refuse(file().path(), fmt::format("its zstd data break off at byte {}", place()));
          }
          return 0;
        }
      }
      const std::size_t result = ZSTD_decompressStream(stream_, &output, &input_);
      if (ZSTD_isError(result) != 0) {
        refuse(file().path(),
               fmt::format("its zstd data are damaged before byte {}: {}",
                           place() - (input_.size - input_.pos),
                           ZSTD_getErrorName(result)));
      }
      in_frame_ = result != 0;
      flushing_ = in_frame_ && output.pos == output.size;  // there may be more without more input
    }
    return output.pos;
  }

 private:
  std::vector<std::byte> buffer_;
  ZSTD_DStream* stream_;
  ZSTD_inBuffer input_{nullptr, 0, 0};
  bool in_frame_ = false;
  bool flushing_ = false;
};

std::unique_ptr<Source> open_source(const CorpusFile& file) {
  switch (file.packing) {
    case Packing::gzip:
      return std::make_unique<GzipSource>(file.path);
    case Packing::zstd:
      return std::make_unique<ZstdSource>(file.path);
    case Packing::none:
      break;
  }
  return std::make_unique<PlainSource>(file.path);
}

}  // namespace

struct DocumentReader::State {
  std::unique_ptr<Source> source;
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
  state_->source = open_source(file);
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
  const std::unique_ptr<Source> source = open_source(file);
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
