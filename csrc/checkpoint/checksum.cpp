// SPDX-License-Identifier: Apache-2.0
#include "csrc/checkpoint/checksum.h"

#include <new>

#include <spdlog/fmt/fmt.h>
#include <xxhash.h>

namespace memphis {

void Checksum::Free::operator()(XXH3_state_s* state) const {
  XXH3_freeState(state);
}

Checksum::Checksum() : state_(XXH3_createState()) {
  if (!state_) {
    throw std::bad_alloc();
  }
  XXH3_64bits_reset(state_.get());
}

void Checksum::update(std::span<const std::byte> bytes) {
  XXH3_64bits_update(state_.get(), bytes.data(), bytes.size());
}

std::uint64_t Checksum::value() const {
  return XXH3_64bits_digest(state_.get());
}

std::uint64_t checksum_of(std::string_view text) {
  return XXH3_64bits(text.data(), text.size());
}

std::string checksum_text(std::uint64_t checksum) {
  return fmt::format("{:016x}", checksum);
}

ChecksumWriter::ChecksumWriter(const std::filesystem::path& path)
    : name_(path.filename().string()), writer_(path) {}

void ChecksumWriter::write(std::span<const std::byte> bytes) {
  checksum_.update(bytes);
  writer_.write(bytes);
}

void ChecksumWriter::write(std::string_view text) {
  write(std::as_bytes(std::span<const char>(text.data(), text.size())));
}

FileRecord ChecksumWriter::close() {
  writer_.close();
  return {.name = name_, .bytes = writer_.bytes_written(), .xxh3 = checksum_.value()};
}

}  // namespace memphis
