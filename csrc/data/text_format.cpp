// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/text_format.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdint>
#include <cstring>
#include <fstream>

#include <spdlog/fmt/fmt.h>

#include "csrc/core/json.h"
#include "csrc/data/utf8.h"

namespace memphis {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using namespace std::string_view_literals;

std::string_view text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// What to do with a file, {} being its name.
constexpr auto kGunzip = "decompress it, as in `gunzip -k {}`, and name the result"sv;
constexpr auto kUnxz = "decompress it, as in `unxz -k {}`, and name the result"sv;
constexpr auto kUnlzma = "decompress it, as in `unlzma -k {}`, and name the result"sv;
constexpr auto kUnzstd = "decompress it, as in `unzstd {}`, and name the result"sv;
constexpr auto kUnlz4 = "decompress it, as in `unlz4 {}`, and name the result"sv;
constexpr auto kBunzip = "decompress it, as in `bunzip2 -k {}`, and name the result"sv;
constexpr auto kSnzip = "decompress it, as in `snzip -dk {}`, and name the result"sv;
constexpr auto kUnzip = "unpack it, as in `unzip {} -d text`, and name the folder"sv;
constexpr auto kUntar =
    "unpack it, as in `mkdir text && tar -C text -xf {}`, and name the folder"sv;
constexpr auto kUn7z = "unpack it, as in `7z x -otext {}`, and name the folder"sv;
constexpr auto kParquet =
    "write its text column to a file, as in `python3 -c 'import sys, pandas; "
    "sys.stdout.write(\"\\n\".join(pandas.read_parquet(sys.argv[1])[\"text\"]))' {} > text.txt`"sv;
constexpr auto kArrow =
    "write its text column to a file, as in `python3 -c 'import sys, datasets; "
    "sys.stdout.write(\"\\n\".join(datasets.Dataset.from_file(sys.argv[1])[\"text\"]))' {} > "
    "text.txt`"sv;
constexpr auto kOrc =
    "write its text column to a file, as in `python3 -c 'import sys, pandas; "
    "sys.stdout.write(\"\\n\".join(pandas.read_orc(sys.argv[1])[\"text\"]))' {} > text.txt`"sv;
constexpr auto kAvro = "write its texts to a file, as in `avrocat {} | jq -r .text > text.txt`"sv;
constexpr auto kTokens =
    "give the text that the tokens were made of, which the byte tokenizer reads as it is"sv;
constexpr auto kNumPy =
    "if it holds tokens, give the text that they were made of; if it holds strings, write them to "
    "a file, as in `python3 -c 'import sys, numpy; print(*numpy.load(sys.argv[1]).ravel(), "
    "sep=\"\\n\")' {} > text.txt`"sv;
constexpr auto kHdf5 =
    "write its texts to a file, as in `h5dump -d /text -y -o text.txt {}` for a dataset of that "
    "name"sv;
constexpr auto kSqlite =
    "write its texts to a file, as in `sqlite3 {} 'select text from documents' > text.txt`"sv;
constexpr auto kPickle =
    "write its texts to a file with the program that made it (to load a pickle runs what is in it)"sv;
constexpr auto kPdf = "extract its text, as in `pdftotext {} text.txt`, and name the result"sv;
constexpr auto kPandoc =
    "convert it, as in `pandoc -t plain -o text.txt {}`, and name the result"sv;
constexpr auto kOffice =
    "convert it, as in `soffice --headless --convert-to txt:Text {}`, and name the result"sv;
constexpr auto kRtf = "convert it, as in `unrtf --text {} > text.txt`, and name the result"sv;
constexpr auto kWeights =
    "text is trained on; weights are for `memphis generate`, `logits` and `export`"sv;
constexpr auto kTfrecord =
    "write its texts to a file, as in `python3 -c 'import sys, tensorflow as tf; "
    "[print(tf.train.Example.FromString(r.numpy()).features.feature[\"text\"].bytes_list.value[0]"
    ".decode()) for r in tf.data.TFRecordDataset(sys.argv[1])]' {} > text.txt`"sv;
constexpr auto kMds =
    "write its texts to a file with `streaming.StreamingDataset`, which reads its folder"sv;
constexpr auto kLfs = "fetch the file that it stands for, as in `git lfs pull`"sv;
constexpr auto kLeaveOut = "leave it out"sv;

struct Signature {
  std::string_view bytes;
  std::string_view name;
  std::string_view advice;
  std::size_t offset = 0;
  // Words that a text may begin with too: the format has a NUL byte near its beginning, text none.
  bool needs_nul = false;
  TextFormat::Kind kind = TextFormat::Kind::other;
};

// Sources: the formats' own descriptions, and file(1)'s tables for those that have none.
constexpr std::array kSignatures = {
    // Compressed, packed.
    Signature{"\x1F\x8B\x08"sv, "gzip-compressed data", kGunzip, 0, false, TextFormat::Kind::gzip},
    Signature{"\xFD\x37zXZ\0"sv, "xz-compressed data", kUnxz},
    Signature{"\x5D\0\0"sv, "LZMA-compressed data", kUnlzma},
    Signature{
        "\x28\xB5\x2F\xFD"sv, "zstd-compressed data", kUnzstd, 0, false, TextFormat::Kind::zstd},
    Signature{"\x04\x22\x4D\x18"sv, "LZ4-compressed data", kUnlz4},
    Signature{"1AY&SY"sv, "bzip2-compressed data", kBunzip, 4},
    Signature{"\xFF\x06\0\0sNaPpY"sv, "Snappy-compressed data", kSnzip},
    Signature{"7z\xBC\xAF\x27\x1C"sv, "a 7-Zip archive", kUn7z},
    Signature{"Rar!\x1A\x07"sv, "a RAR archive", kUn7z},
    Signature{
        "ustar"sv, "a tar archive (WebDataset shards are tar archives too)", kUntar, 257, true},
    // Tables and records.
    Signature{"PAR1"sv, "a Parquet table", kParquet, 0, true},
    Signature{"PARE"sv, "an encrypted Parquet table", kParquet, 0, true},
    Signature{"ARROW1"sv, "an Arrow table", kArrow, 0, true},
    Signature{"FEA1"sv, "a Feather table", kArrow, 0, true},
    Signature{"\xFF\xFF\xFF\xFF"sv, "an Arrow stream", kArrow, 0, true},
    Signature{"ORC"sv, "an ORC table", kOrc, 0, true},
    Signature{"Obj\x01"sv, "an Avro file", kAvro},
    Signature{"SQLite format 3\0"sv, "an SQLite database", kSqlite},
    Signature{"\x89HDF\r\n\x1A\n"sv, "an HDF5 file", kHdf5},
    Signature{"\x93NUMPY"sv, "a NumPy array", kNumPy},
    Signature{"\xDE\xC0\xEF\xBE"sv, "an LMDB database", kPickle, 16, true},
    // Tokens and weights.
    Signature{"MMIDIDX\0\0"sv,
              "the index of a Megatron dataset",
              kTokens,
              0,
              false,
              TextFormat::Kind::megatron_index},
    Signature{"TNTIDX\0\0"sv, "the index of a Megatron dataset", kTokens},
    Signature{"\x88\xD8\x34\x01"sv,
              "a shard of tokens of llm.c, of GPT-2",
              kTokens,
              0,
              true,
              TextFormat::Kind::token_file},
    Signature{"\xA1\xD9\x34\x01"sv,
              "a shard of tokens of llm.c, of Llama 3",
              kTokens,
              0,
              true,
              TextFormat::Kind::token_file},
    Signature{
        "BIN.TOK\n"sv, "a shard of tokens of llmq", kTokens, 0, true, TextFormat::Kind::token_file},
    Signature{"\xC6\xD7\x34\x01"sv, "a model of llm.c", kWeights, 0, true},
    Signature{"GGUF"sv, "a GGUF model", kWeights, 0, true},
    Signature{"version https://git-lfs.github.com/spec/"sv, "a pointer of Git LFS", kLfs},
    // Documents.
    Signature{"%PDF-"sv, "a PDF document", kPdf},
    Signature{"{\\rtf"sv, "an RTF document", kRtf},
    Signature{"\xD0\xCF\x11\xE0\xA1\xB1\x1A\xE1"sv, "a document of Microsoft Office", kOffice},
    Signature{"AT&TFORM"sv, "a DjVu document", kLeaveOut, 0, true},
    // Programs.
    Signature{"\x7F\x45LF"sv, "an ELF program or library", kLeaveOut},
    Signature{"MZ"sv, "a Windows program", kLeaveOut, 0, true},
    Signature{"\xCF\xFA\xED\xFE"sv, "a macOS program", kLeaveOut},
    Signature{"\xCA\xFE\xBA\xBE"sv, "a Java class or a macOS program", kLeaveOut},
    Signature{"\0asm"sv, "a WebAssembly program", kLeaveOut},
    Signature{"!<arch>\n"sv, "a static library", kLeaveOut},
    // Pictures, sound, film.
    Signature{"\x89PNG\r\n\x1A\n"sv, "a PNG picture", kLeaveOut},
    Signature{"\xFF\xD8\xFF"sv, "a JPEG picture", kLeaveOut},
    Signature{"GIF8"sv, "a GIF picture", kLeaveOut, 0, true},
    Signature{"II*\0"sv, "a TIFF picture", kLeaveOut},
    Signature{"MM\0*"sv, "a TIFF picture", kLeaveOut},
    Signature{"BM"sv, "a BMP picture", kLeaveOut, 0, true},
    Signature{"RIFF"sv, "a RIFF file (WebP, WAV, AVI)", kLeaveOut, 0, true},
    Signature{"OggS"sv, "an Ogg file", kLeaveOut, 0, true},
    Signature{"fLaC"sv, "a FLAC file", kLeaveOut, 0, true},
    Signature{"ID3"sv, "an MP3 file", kLeaveOut, 0, true},
    Signature{"ftyp"sv, "an MPEG-4 file", kLeaveOut, 4, true},
    Signature{"\x1A\x45\xDF\xA3"sv, "a Matroska file", kLeaveOut},
};

bool has_at(std::string_view text, std::size_t offset, std::string_view bytes) {
  return text.size() >= offset && text.substr(offset).starts_with(bytes);
}

// With `file` for every {} of it.
std::string advice_for(std::string_view advice, const std::string& file) {
  std::string result(advice);
  for (std::size_t at = result.find("{}"); at != std::string::npos;
       at = result.find("{}", at + file.size())) {
    result.replace(at, 2, file);
  }
  return result;
}

std::optional<TextFormat> other(std::string_view name,
                                std::string_view advice,
                                const fs::path& path,
                                TextFormat::Kind kind = TextFormat::Kind::other) {
  return TextFormat{.kind = kind,
                    .name = std::string(name),
                    .advice = advice_for(advice, shell_word(path.string()))};
}

// A zip archive is what its name says: many programs' files are one.
std::optional<TextFormat> zip_format(const fs::path& path) {
  const std::string extension = path.extension().string();
  const auto is_one_of = [&](std::initializer_list<std::string_view> all) {
    return std::find(all.begin(), all.end(), extension) != all.end();
  };
  if (is_one_of({".npz"})) {
    return other("an archive of NumPy arrays", kNumPy, path);
  }
  if (is_one_of({".pt", ".pth", ".bin", ".ckpt"})) {
    return other("a PyTorch file", kPickle, path);
  }
  if (is_one_of({".docx", ".odt", ".epub"})) {
    return other(fmt::format("a document ({})", extension.substr(1)), kPandoc, path);
  }
  if (is_one_of({".xlsx", ".ods", ".pptx", ".odp"})) {
    return other(fmt::format("a document ({})", extension.substr(1)), kOffice, path);
  }
  return other("a zip archive", kUnzip, path);
}

// CRC-32C (Castagnoli), bit by bit: of the eight bytes that begin a TFRecord.
std::uint32_t crc32c(std::string_view bytes) {
  constexpr std::uint32_t kPolynomial = 0x82F63B78;
  std::uint32_t crc = ~0U;
  for (const char c : bytes) {
    crc ^= static_cast<unsigned char>(c);
    for (int bit = 0; bit < 8; ++bit) {
      crc = (crc >> 1U) ^ ((crc & 1U) != 0 ? kPolynomial : 0);
    }
  }
  return ~crc;
}

// A record is its length, the length's masked checksum, and more.
// Source: tensorflow/core/lib/io/record_writer.h.
bool is_tfrecord(std::string_view head) {
  constexpr std::size_t kLengthBytes = 8;
  constexpr std::uint32_t kMask = 0xA282EAD8;
  std::uint32_t stored = 0;
  if (head.size() < kLengthBytes + sizeof(stored)) {
    return false;
  }
  std::memcpy(&stored, head.data() + kLengthBytes, sizeof(stored));
  const std::uint32_t crc = crc32c(head.substr(0, kLengthBytes));
  return stored == ((crc >> 15U) | (crc << 17U)) + kMask;
}

// Eight bytes of length, below the format's limit, and a JSON object.
bool is_safetensors(std::string_view head) {
  return head.size() > 9 && head.substr(4, 4) == "\0\0\0\0"sv && head[8] == '{';
}

// The magic of the index that says where the documents of tokens begin, which lies beside them.
std::string magic_of_index(const fs::path& path) {
  if (path.extension() != ".bin") {
    return {};
  }
  fs::path index = path;
  index.replace_extension(".idx");
  std::ifstream file(index, std::ios::binary);
  std::array<char, 9> magic{};
  file.read(magic.data(), magic.size());
  return {magic.data(), static_cast<std::size_t>(file.gcount())};
}

bool is_fairseq_index(const fs::path& path) {
  return magic_of_index(path).starts_with("TNTIDX\0\0"sv);
}

bool is_megatron_tokens(const fs::path& path) {
  return magic_of_index(path) == "MMIDIDX\0\0"sv || is_fairseq_index(path);
}

// The name of the encoding for iconv; empty for text that may be UTF-8.
std::string_view wide_encoding(std::string_view head) {
  if (head.starts_with("\xFF\xFE\0\0"sv) || head.starts_with("\0\0\xFE\xFF"sv)) {
    return "UTF-32";
  }
  if (head.starts_with("\xFF\xFE"sv) || head.starts_with("\xFE\xFF"sv)) {
    return "UTF-16";
  }
  // Without a mark: most characters of a European language, and line ends and spaces of any, have a
  // zero on one side.
  std::array<std::size_t, 4> zeros{};
  const std::size_t count = head.size() - head.size() % zeros.size();
  for (std::size_t i = 0; i < count; ++i) {
    zeros[i % zeros.size()] += head[i] == '\0' ? 1 : 0;
  }
  const std::size_t groups = count / zeros.size();
  const auto mostly = [&](std::size_t place) { return 10 * zeros[place] > 7 * groups; };
  const auto hardly = [&](std::size_t place) { return 50 * zeros[place] <= groups; };
  if (groups < 2) {
    return {};
  }
  if (mostly(2) && mostly(3) && hardly(0)) {
    return "UTF-32LE";
  }
  if (mostly(0) && mostly(1) && hardly(3)) {
    return "UTF-32BE";
  }
  if (mostly(1) && mostly(3) && hardly(0) && hardly(2)) {
    return "UTF-16LE";
  }
  if (mostly(0) && mostly(2) && hardly(1) && hardly(3)) {
    return "UTF-16BE";
  }
  return {};
}

constexpr auto kSpace = " \t\r\n"sv;

// The end of the object or list that `text` begins with; npos where it goes on behind `text`.
std::size_t end_of_value(std::string_view text) {
  int depth = 0;
  bool in_string = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      i += c == '\\' ? 1 : 0;
      in_string = c != '"';
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      ++depth;
    } else if ((c == '}' || c == ']') && --depth == 0) {
      return i + 1;
    }
  }
  return std::string_view::npos;
}

// The jq filter for the texts of records like this one.
std::string filter_for(const Json& record) {
  for (const char* key : {"text", "content", "raw_content", "body", "document", "completion"}) {
    if (const auto found = record.find(key); found != record.end() && found->is_string()) {
      return fmt::format(".{}", key);
    }
  }
  for (const auto& [list, text] : {std::pair{"messages", "content"}, {"conversations", "value"}}) {
    if (record.contains(list)) {
      return fmt::format(".{}[].{}", list, text);
    }
  }
  std::string longest = "text";
  std::size_t length = 0;
  for (const auto& [key, value] : record.items()) {
    const bool plain = !key.empty() && std::all_of(key.begin(), key.end(), [](unsigned char c) {
      return std::isalnum(c) != 0 || c == '_';
    });
    if (plain && std::isdigit(static_cast<unsigned char>(key[0])) == 0 && value.is_string() &&
        value.get_ref<const std::string&>().size() > length) {
      longest = key;
      length = value.get_ref<const std::string&>().size();
    }
  }
  return fmt::format(".{}", longest);
}

TextFormat json_format(TextFormat::Kind kind,
                       std::string_view name,
                       const fs::path& path,
                       const std::string& filter) {
  return {
      .kind = kind,
      .name = fmt::format(
          "{}, which {} not parsed", name, kind == TextFormat::Kind::json_document ? "is" : "are"),
      .advice = fmt::format("extract its text, as in `jq -r '{}' {} > text.txt`, and name the "
                            "result",
                            filter,
                            shell_word(path.string()))};
}

// What files of lines of JSON are called.
bool is_named_as_lines(const fs::path& path) {
  std::string extension = path.extension().string();
  std::transform(extension.begin(), extension.end(), extension.begin(), [](unsigned char c) {
    return static_cast<char>(std::tolower(c));
  });
  return extension == ".jsonl" || extension == ".ndjson";
}

// By the content alone, but for a single value, of which the name says whether it is a line.
std::optional<TextFormat> recognise_values(const fs::path& path,
                                           std::string_view head,
                                           bool is_whole) {
  using Kind = TextFormat::Kind;
  if (head.starts_with(kUtf8Mark)) {
    head.remove_prefix(kUtf8Mark.size());
  }
  const auto skip_space = [&] {
    head.remove_prefix(std::min(head.find_first_not_of(kSpace), head.size()));
  };
  skip_space();
  if (head.empty() || (head[0] != '{' && head[0] != '[')) {
    return {};
  }
  const bool is_list = head[0] == '[';
  const std::size_t first_inside = head.find_first_not_of(kSpace, 1);
  const bool of_objects =
      is_list && first_inside != std::string_view::npos && head[first_inside] == '{';
  const std::size_t end = end_of_value(head);
  if (end == std::string_view::npos) {
    // One value that is longer than what was read: of a single line it is the first of several.
    if (is_whole || !begins_json(head)) {
      return {};
    }
    if (of_objects) {
      return json_format(Kind::json_records, "JSON records", path, ".[].text");
    }
    return head.find('\n') == std::string_view::npos
               ? json_format(Kind::json_lines, "JSON lines", path, ".text")
               : json_format(Kind::json_document, "JSON", path, ".. | strings");
  }
  const std::optional<Json> first = parse_json(head.substr(0, end));
  if (!first) {
    return {};
  }
  const bool named_lines = is_named_as_lines(path);
  // Lines of JSON are objects of a line each; what is laid out otherwise is not read so.
  const bool is_line = !is_list && head.substr(0, end).find('\n') == std::string_view::npos;
  const Kind of_several = is_line ? Kind::json_lines : Kind::json_records;
  head.remove_prefix(end);
  skip_space();
  if (head.empty() && (is_whole || !named_lines)) {
    if (named_lines && !is_list) {
      return json_format(of_several, "JSON lines", path, filter_for(*first));
    }
    return of_objects ? json_format(Kind::json_records,
                                    "JSON records",
                                    path,
                                    fmt::format(".[]{}", filter_for(first->front())))
                      : json_format(Kind::json_document, "JSON", path, ".. | strings");
  }
  const std::size_t second = end_of_value(head);
  const bool another = head.empty() || ((head[0] == '{' || head[0] == '[') &&
                                        (second == std::string_view::npos
                                             ? !is_whole && begins_json(head)
                                             : parse_json(head.substr(0, second)).has_value()));
  if (!another) {
    return {};
  }
  return json_format(of_several, "JSON lines", path, is_list ? ".[]" : filter_for(*first));
}

std::optional<TextFormat> recognise_json(const fs::path& path,
                                         std::string_view head,
                                         bool is_whole) {
  using Kind = TextFormat::Kind;
  std::optional<TextFormat> format = recognise_values(path, head, is_whole);
  if (!is_named_as_lines(path)) {
    return format;
  }
  // Where the first lines have a fault, what such a name promises is the only sign of what they
  // are. Taken for text they would be trained on with all their brackets and escapes; the reader of
  // lines names the fault.
  if (!format) {
    return json_format(Kind::json_lines, "JSON lines", path, ".text");
  }
  // A part of a source tree has another name.
  if (format->kind == Kind::json_document) {
    format->kind = Kind::json_records;
  }
  return format;
}

}  // namespace

std::optional<TextFormat> recognise_format(const fs::path& path,
                                           std::span<const std::byte> bytes,
                                           bool is_whole) {
  const std::string_view head = text_of(bytes);
  const bool has_nul = head.find('\0') != std::string_view::npos;
  // Ids of 16 bits look like UTF-16.
  if (is_megatron_tokens(path)) {
    return other(
        "the tokens of a Megatron dataset, by the index beside it",
        kTokens,
        path,
        is_fairseq_index(path) ? TextFormat::Kind::other : TextFormat::Kind::megatron_tokens);
  }
  const auto begins_as = [&](const Signature& signature) {
    return has_at(head, signature.offset, signature.bytes) && (has_nul || !signature.needs_nul);
  };
  // Likewise ids of 32 bits, most of which have their upper half empty; their mark tells.
  for (const Signature& signature : kSignatures) {
    if (signature.kind == TextFormat::Kind::token_file && begins_as(signature)) {
      return other(signature.name, signature.advice, path, signature.kind);
    }
  }
  if (const std::string_view encoding = wide_encoding(head); !encoding.empty()) {
    // Arrow's streams and UTF-16 begin differently: 0xFFFF is no character.
    const std::string file = shell_word(path.string());
    return TextFormat{.kind = TextFormat::Kind::other,
                      .name = fmt::format("{} text, and text is UTF-8 here", encoding),
                      .advice = fmt::format(
                          "convert it, as in `iconv -f {} -t UTF-8 {} > text.txt`, and name the "
                          "result",
                          encoding,
                          file)};
  }
  for (const Signature& signature : kSignatures) {
    if (begins_as(signature)) {
      return other(signature.name, signature.advice, path, signature.kind);
    }
  }
  if (head.starts_with("PK\x03\x04"sv) || head.starts_with("PK\x05\x06"sv)) {
    return zip_format(path);
  }
  if (has_nul && is_safetensors(head)) {
    return other("a safetensors file of weights", kWeights, path);
  }
  if (has_nul && is_tfrecord(head)) {
    return other("a TFRecord file", kTfrecord, path);
  }
  // Protocols 2 to 5, whose number follows the opcode.
  if (head.size() > 2 && head[0] == '\x80' && head[1] >= 2 && head[1] <= 5 && has_nul) {
    return other("a Python pickle", kPickle, path);
  }
  if (has_nul && path.extension() == ".mds") {
    return other("a shard of a MosaicML streaming dataset", kMds, path);
  }
  if (has_nul && path.extension() == ".bin") {
    return other(
        "a binary file without a mark, tokens perhaps (as nanoGPT writes them)", kTokens, path);
  }
  return recognise_json(path, head, is_whole);
}

std::size_t count_bytes_outside_utf8(std::span<const std::byte> bytes) {
  const auto byte = [&](std::size_t i) { return std::to_integer<unsigned>(bytes[i]); };
  std::size_t outside = 0;
  for (std::size_t i = 0; i < bytes.size();) {
    const unsigned first = byte(i);
    const std::size_t length = first < 0x80   ? 1
                               : first < 0xC2 ? 0
                               : first < 0xE0 ? 2
                               : first < 0xF0 ? 3
                               : first < 0xF5 ? 4
                                              : 0;
    std::size_t found = length == 0 ? 0 : 1;
    while (found < length && i + found < bytes.size() && (byte(i + found) & 0xC0U) == 0x80) {
      ++found;
    }
    if (length == 0 || (found < length && i + found < bytes.size())) {
      ++outside;
      ++i;
    } else {
      i += found;
    }
  }
  return outside;
}

std::string shell_word(const std::string& text) {
  constexpr auto kPlain =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_./-+=:,@%"sv;
  if (!text.empty() && text.find_first_not_of(kPlain) == std::string::npos) {
    return text;
  }
  std::string word(1, '\'');
  for (const char c : text) {
    word += c == '\'' ? "'\\'" : "";
    word += c;
  }
  word += '\'';
  return word;
}

}  // namespace memphis
