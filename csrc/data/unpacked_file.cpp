// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/unpacked_file.h"

#include <algorithm>
#include <new>
#include <string>
#include <vector>

#include <spdlog/fmt/fmt.h>
#include <zlib.h>
#include <zstd.h>

#include "csrc/core/error.h"

namespace memphis {
namespace {

constexpr std::size_t kPackedBytes = std::size_t{256} << 10U;  // of a file at a time

[[noreturn]] void refuse(const std::filesystem::path& path, const std::string& why) {
  throw DataError(fmt::format(
      "cannot read {} ({}); fetch it again, whole, and start again", path.string(), why));
}

class PlainFile final : public UnpackedFile {
 public:
  using UnpackedFile::UnpackedFile;
  std::size_t read(std::span<std::byte> out) override { return raw(out).size(); }
  void skip(std::uint64_t count) override { move(count); }
};

class GzipFile final : public UnpackedFile {
 public:
  explicit GzipFile(const std::filesystem::path& path) : UnpackedFile(path), buffer_(kPackedBytes) {
    constexpr int kGzipAlone = 15 + 16;  // of zlib.h: the largest window, and gzip's header
    if (inflateInit2(&stream_, kGzipAlone) != Z_OK) {
      throw std::bad_alloc();
    }
  }
  ~GzipFile() override { inflateEnd(&stream_); }

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

class ZstdFile final : public UnpackedFile {
 public:
  explicit ZstdFile(const std::filesystem::path& path)
      : UnpackedFile(path), buffer_(kPackedBytes), stream_(ZSTD_createDStream()) {
    if (stream_ == nullptr) {
      throw std::bad_alloc();
    }
    // What `zstd --long=31` writes, too: up to 2 GiB, of frames that ask for it.
    ZSTD_DCtx_setParameter(stream_, ZSTD_d_windowLogMax, 31);
  }
  ~ZstdFile() override { ZSTD_freeDStream(stream_); }

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

}  // namespace

void UnpackedFile::skip(std::uint64_t count) {
  std::vector<std::byte> buffer(kPackedBytes);
  while (count > 0) {
    const std::size_t got =
        read(std::span(buffer).first(std::min<std::uint64_t>(buffer.size(), count)));
    if (got == 0) {
      refuse(file_.path(), "it ends before the place where it was left, and has changed");
    }
    count -= got;
  }
}

void UnpackedFile::require_unchanged() const {
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

std::span<std::byte> UnpackedFile::raw(std::span<std::byte> out) {
  const auto part = out.first(std::min<std::uint64_t>(out.size(), file_.size() - place_));
  file_.read(place_, part);
  place_ += part.size();
  return part;
}

void UnpackedFile::move(std::uint64_t count) {
  if (count > file_.size() - place_) {
    refuse(file_.path(), "it ends before the place where it was left, and has changed");
  }
  place_ += count;
}

std::unique_ptr<UnpackedFile> open_unpacked(const std::filesystem::path& path, Packing packing) {
  switch (packing) {
    case Packing::gzip:
      return std::make_unique<GzipFile>(path);
    case Packing::zstd:
      return std::make_unique<ZstdFile>(path);
    case Packing::none:
      break;
  }
  return std::make_unique<PlainFile>(path);
}

}  // namespace memphis
