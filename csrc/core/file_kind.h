// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <filesystem>
#include <optional>
#include <span>
#include <string>

namespace memphis {

// What a file turns out to be that was taken for another, as an error says it:
// "<file> is <what> (<why>); <advice>".
struct FileKind {
  std::string what;    // "a Git LFS pointer to 261336 bytes"
  std::string why;     // how such a file comes here
  std::string advice;  // what to do
};

// The text of an error about the file.
std::string describe(const std::filesystem::path& path, const FileKind& kind);

// As much of a file as is looked at: pages begin with white space and comments.
constexpr std::size_t kKindBytes = 512;

// By its first bytes (and, of an archive, those at 257): what downloads leave in the place of a
// file (pointers, pages of a web server, nothing at all), archives, and what other programs keep
// weights in. Nothing where the bytes are none of these, as of text and of JSON in general.
std::optional<FileKind> recognise(std::span<const std::byte> bytes);

// The same where the file is to be binary: text, and JSON, are recognised too, with their
// beginning.
std::optional<FileKind> recognise_binary(std::span<const std::byte> bytes);

}  // namespace memphis
