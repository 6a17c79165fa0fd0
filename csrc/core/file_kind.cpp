// SPDX-License-Identifier: Apache-2.0
#include "csrc/core/file_kind.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <string_view>

namespace memphis {
namespace {

using std::string_view_literals::operator""sv;

// As much of a text as an error shows.
constexpr std::size_t kShown = 60;

constexpr std::string_view kDownload = "download the file again from its source";
constexpr std::string_view kUnpack = "unpack it in its folder";
constexpr std::string_view kServed = "what a server answers where a file is not, or needs a login";
constexpr std::string_view kLogIn =
    "log in or accept the model's terms at its source and download the file again";
constexpr std::string_view kConvert = "convert the weights to safetensors";

struct Magic {
  std::string_view bytes;
  std::string_view what;
  std::string_view why;
  std::string_view advice;
};

constexpr std::string_view kCodeRunner = "its pickles can run code when they are read";
constexpr std::string_view kConvertPickle =
    "convert it: python3 -c \"import sys, torch, safetensors.torch as s; "
    "s.save_file({k: v.contiguous().clone() for k, v in torch.load(sys.argv[1], "
    "map_location='cpu', weights_only=True).items()}, sys.argv[2])\" FILE model.safetensors";
constexpr std::string_view kCompressed = "it is compressed";
constexpr std::string_view kOtherFormat = "another program's format";

constexpr std::array kMagics{
    Magic{"\x1f\x8b\x08"sv, "a gzip archive", kCompressed, kUnpack},
    Magic{"\x28\xb5\x2f\xfd"sv, "a zstd archive", kCompressed, kUnpack},
    Magic{"\xfd"
          "7zXZ"sv,
          "an xz archive",
          kCompressed,
          kUnpack},
    Magic{"BZh"sv, "a bzip2 archive", kCompressed, kUnpack},
    Magic{"7z\xbc\xaf\x27\x1c"sv, "a 7z archive", kCompressed, kUnpack},
    Magic{"PK\x03\x04"sv, "a zip archive, as torch.save writes", kCodeRunner, kConvertPickle},
    Magic{"PK\x05\x06"sv, "an empty zip archive", "it holds no file", kDownload},
    Magic{"\x80\x02"sv, "a Python pickle", kCodeRunner, kConvertPickle},
    Magic{"\x80\x03"sv, "a Python pickle", kCodeRunner, kConvertPickle},
    Magic{"\x80\x04"sv, "a Python pickle", kCodeRunner, kConvertPickle},
    Magic{"\x80\x05"sv, "a Python pickle", kCodeRunner, kConvertPickle},
    Magic{"GGUF"sv, "a GGUF file", "llama.cpp's format", kConvert},
    Magic{"\x89HDF\r\n"sv, "an HDF5 file", kOtherFormat, kConvert},
    Magic{"\x93NUMPY"sv, "a NumPy array", kOtherFormat, kConvert},
    Magic{"PAR1"sv, "a Parquet file", kOtherFormat, kDownload},
    Magic{"%PDF-"sv, "a PDF document", kOtherFormat, kDownload},
};

std::string_view text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), std::min(bytes.size(), kKindBytes)};
}

bool is_space(char c) {
  return std::isspace(static_cast<unsigned char>(c)) != 0;
}

// Without the byte order mark and the white space in front, in small letters.
std::string folded(std::string_view text) {
  if (text.starts_with("\xef\xbb\xbf")) {
    text.remove_prefix(3);
  }
  const auto* begin = std::find_if_not(text.begin(), text.end(), is_space);
  std::string result(begin, text.end());
  std::transform(result.begin(), result.end(), result.begin(), [](unsigned char c) {
    return static_cast<char>(std::tolower(c));
  });
  return result;
}

// What follows `key` up to the end of its line.
std::string value_of(std::string_view text, std::string_view key) {
  const std::size_t at = text.find(key);
  if (at == std::string_view::npos) {
    return {};
  }
  const std::string_view rest = text.substr(at + key.size());
  std::string value(rest.substr(0, rest.find_first_of("\r\n")));
  std::erase_if(value, [](char c) { return std::isdigit(static_cast<unsigned char>(c)) == 0; });
  return value;
}

// Of a text, without what would move the cursor of a terminal.
std::string beginning_of(std::string_view text) {
  std::string shown(text.substr(0, kShown));
  std::transform(shown.begin(), shown.end(), shown.begin(), [](unsigned char c) {
    return c < ' ' || c > '~' ? ' ' : static_cast<char>(c);
  });
  return "'" + shown + (text.size() > kShown ? "...'" : "'");
}

bool is_text(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](unsigned char c) {
    return c >= ' ' || is_space(static_cast<char>(c));
  });
}

// A header's length, below 2^32, and its brace.
bool begins_like_safetensors(std::string_view text) {
  return text.size() > 8 && text.substr(4, 5) == "\0\0\0\0{"sv;
}

FileKind kind_of(std::string_view what, std::string_view why, std::string_view advice) {
  return {.what = std::string(what), .why = std::string(why), .advice = std::string(advice)};
}

}  // namespace

std::string describe(const std::filesystem::path& path, const FileKind& kind) {
  return path.string() + " is " + kind.what + " (" + kind.why + "); " + kind.advice;
}

std::optional<FileKind> recognise(std::span<const std::byte> bytes) {
  if (bytes.empty()) {
    return kind_of("empty", "it has 0 bytes: a download or a copy that did not begin", kDownload);
  }
  const std::string_view text = text_of(bytes);
  if (text.starts_with("version https://git-lfs.github.com/spec/") ||
      text.starts_with("version https://hawser.github.com/spec/")) {
    return kind_of("a Git LFS pointer to " + value_of(text, "\nsize ") + " bytes",
                   "git clone without git-lfs leaves these in place of files",
                   "run `git lfs install && git lfs pull` in its folder");
  }
  if (text.starts_with("# xet version")) {
    return kind_of("a Xet pointer",
                   "git clone without git-xet leaves these in place of files",
                   "run `git xet install` and clone again, or download with `hf download`");
  }
  if (text.starts_with("/annex/objects/") || text.starts_with("../.git/annex/objects/") ||
      text.starts_with(".git/annex/objects/")) {
    return kind_of("a git-annex pointer",
                   "git clone without git-annex leaves these in place of files",
                   "run `git annex get` on it");
  }
  if (begins_like_safetensors(text)) {
    return {};  // the length in front may read as any of those below
  }
  const std::string small = folded(text);
  if (small.starts_with("<!doctype html") || small.starts_with("<html") ||
      small.starts_with("<head")) {
    return kind_of("an HTML page", kServed, kLogIn);
  }
  if (small.starts_with("<?xml") && small.find("<error") != std::string::npos) {
    return kind_of("an XML error of a server: " + beginning_of(text), kServed, kLogIn);
  }
  std::string dense = small;
  std::erase_if(dense, is_space);
  if (dense.starts_with("{\"error") || dense.starts_with("{\"message\":") ||
      dense.starts_with("{\"detail\":")) {
    return kind_of("an error of a server in JSON: " + beginning_of(text), kServed, kLogIn);
  }
  for (const Magic& magic : kMagics) {
    if (text.starts_with(magic.bytes)) {
      return kind_of(magic.what, magic.why, magic.advice);
    }
  }
  constexpr std::size_t kTarMagic = 257;
  if (text.size() > kTarMagic && text.substr(kTarMagic).starts_with("ustar")) {
    return kind_of("a tar archive", "it holds files", kUnpack);
  }
  // Not fewer: eight bytes of zero begin a safetensors file without a header, which has its own
  // error.
  constexpr std::size_t kManyZeros = 16;
  if (text.size() >= kManyZeros &&
      std::all_of(text.begin(), text.end(), [](char c) { return c == '\0'; })) {
    return kind_of("nothing but zeros at its beginning",
                   "a download made room for it and did not come to it",
                   kDownload);
  }
  return {};
}

std::optional<FileKind> recognise_binary(std::span<const std::byte> bytes) {
  if (const auto kind = recognise(bytes)) {
    return kind;
  }
  const std::string_view text = text_of(bytes);
  // A length of eight bytes in front of JSON is none of these: its upper bytes are zeros.
  if (!is_text(text)) {
    return {};
  }
  const bool is_json = folded(text).starts_with("{") || folded(text).starts_with("[");
  return kind_of((is_json ? "JSON: " : "text: ") + beginning_of(text), kServed, kDownload);
}

}  // namespace memphis
