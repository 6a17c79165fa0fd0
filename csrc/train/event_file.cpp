// SPDX-License-Identifier: Apache-2.0
#include "csrc/train/event_file.h"

#include <array>
#include <bit>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <utility>

#include <fcntl.h>
#include <spdlog/fmt/fmt.h>
#include <unistd.h>

#include "csrc/core/error.h"
#include "csrc/core/file.h"

namespace memphis {
namespace {

// CRC-32C (Castagnoli), reflected, a byte at a time: some kilobytes a step.
std::uint32_t crc32c(std::string_view bytes) {
  static const std::array<std::uint32_t, 256> table = [] {
    std::array<std::uint32_t, 256> made{};
    for (std::uint32_t n = 0; n < made.size(); ++n) {
      std::uint32_t value = n;
      for (int bit = 0; bit < 8; ++bit) {
        constexpr std::uint32_t kPolynomial = 0x82f63b78U;
        value = (value & 1U) != 0 ? (value >> 1U) ^ kPolynomial : value >> 1U;
      }
      made[n] = value;
    }
    return made;
  }();
  std::uint32_t crc = ~0U;
  for (const char byte : bytes) {
    crc = table[(crc ^ static_cast<unsigned char>(byte)) & 0xffU] ^ (crc >> 8U);
  }
  return ~crc;
}

// A checksum of bytes that hold checksums is no good one: so records mask theirs.
std::uint32_t masked_crc(std::string_view bytes) {
  constexpr std::uint32_t kMask = 0xa282ead8U;
  return std::rotr(crc32c(bytes), 15) + kMask;
}

template <class T>
std::string raw(T value) {
  std::string bytes(sizeof(T), '\0');
  std::memcpy(bytes.data(), &value, sizeof(T));  // little-endian, as all that memphis runs on is
  return bytes;
}

// A message of protobuf, field by field.
class Message {
 public:
  Message& number(unsigned field, std::uint64_t value) {
    key(field, 0);
    varint(value);
    return *this;
  }
  Message& real(unsigned field, double value) {
    key(field, 1);
    bytes_ += raw(value);
    return *this;
  }
  Message& real32(unsigned field, float value) {
    key(field, 5);
    bytes_ += raw(value);
    return *this;
  }
  Message& text(unsigned field, std::string_view value) {
    key(field, 2);
    varint(value.size());
    bytes_ += value;
    return *this;
  }
  Message& message(unsigned field, const Message& value) { return text(field, value.bytes_); }
  Message& reals(unsigned field, std::span<const double> values) {
    std::string packed;
    for (const double value : values) {
      packed += raw(value);
    }
    return text(field, packed);
  }
  const std::string& bytes() const { return bytes_; }

 private:
  void key(unsigned field, unsigned wire_type) { varint(field << 3U | wire_type); }
  void varint(std::uint64_t value) {
    constexpr std::uint64_t kMore = 0x80;
    for (; value >= kMore; value >>= 7U) {
      bytes_ += static_cast<char>(value | kMore);
    }
    bytes_ += static_cast<char>(value);
  }

  std::string bytes_;
};

Message event_of(std::int64_t step) {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  Message event;
  event.real(1, std::chrono::duration<double>(now).count());
  event.number(2, static_cast<std::uint64_t>(step));
  return event;
}

[[noreturn]] void throw_open_error(const std::filesystem::path& path, int error) {
  throw PreflightError(
      fmt::format("cannot open {} for writing ({}); check run.dir and its permissions, or set "
                  "metrics.tensorboard to false",
                  path.string(),
                  system_reason(error)));
}

}  // namespace

EventFile::EventFile(const std::filesystem::path& dir, std::int64_t step) {
  if (const int error = make_directories(dir); error != 0) {
    throw_open_error(dir, error);
  }
  constexpr std::size_t kMostName = 256;
  std::array<char, kMostName> host{};
  ::gethostname(host.data(), host.size() - 1);
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(now).count();
  // TensorBoard knows them by the middle, and reads them in the order of their names.
  Descriptor descriptor;
  for (int number = 0; !descriptor.is_open(); ++number) {
    path_ =
        dir / fmt::format(
                  "events.out.tfevents.{:010}.{}.{}.{}", seconds, host.data(), ::getpid(), number);
    constexpr mode_t kMode = 0666;  // less the umask
    descriptor = open_path(path_, O_WRONLY | O_CREAT | O_EXCL | O_APPEND, kMode);
    if (!descriptor.is_open() && errno != EEXIST) {
      throw_open_error(path_, errno);
    }
  }
  records_ = RecordFile(std::move(descriptor), path_);
  Message version = event_of(0);
  write_record(version.text(3, "brain.Event:2").bytes());
  // Of a session that starts: TensorBoard drops what an earlier one had from this step on.
  constexpr std::uint64_t kStart = 1;
  Message start = event_of(step);
  write_record(start.message(7, Message().number(1, kStart)).bytes());
}

void EventFile::write_record(const std::string& event) {
  const std::string length = raw(static_cast<std::uint64_t>(event.size()));
  records_.append(length + raw(masked_crc(length)) + event + raw(masked_crc(event)));
}

void EventFile::write_scalars(std::int64_t step, std::span<const Scalar> scalars) {
  Message summary;
  for (const Scalar& scalar : scalars) {
    Message value;
    value.text(1, scalar.tag).real32(2, static_cast<float>(scalar.value));
    summary.message(1, value);
  }
  Message event = event_of(step);
  write_record(event.message(5, summary).bytes());
}

void EventFile::write_text(std::int64_t step, std::string_view tag, std::string_view text) {
  constexpr std::uint64_t kString = 7;  // DT_STRING
  Message shape;
  shape.message(2, Message().number(1, 1));
  Message tensor;
  tensor.number(1, kString).message(2, shape).text(8, text);
  Message metadata;
  metadata.message(1, Message().text(1, "text"));
  Message value;
  value.text(1, tag).message(8, tensor).message(9, metadata);
  Message event = event_of(step);
  write_record(event.message(5, Message().message(1, value)).bytes());
}

void EventFile::write_histograms(std::int64_t step, std::span<const Histogram> histograms) {
  Message summary;
  for (const Histogram& histogram : histograms) {
    std::vector<double> limits;
    double num = 0;
    double sum = 0;
    double squares = 0;
    for (const double count : histogram.buckets) {
      constexpr double kMiddle = 0.5;
      const double at = static_cast<double>(limits.size()) + kMiddle;
      num += count;
      sum += count * at;
      squares += count * at * at;
      limits.push_back(static_cast<double>(limits.size() + 1));
    }
    Message histo;
    histo.real(1, 0)
        .real(2, static_cast<double>(histogram.buckets.size()))
        .real(3, num)
        .real(4, sum)
        .real(5, squares)
        .reals(6, limits)
        .reals(7, histogram.buckets);
    Message value;
    value.text(1, histogram.tag).message(5, histo);
    summary.message(1, value);
  }
  Message event = event_of(step);
  write_record(event.message(5, summary).bytes());
}

}  // namespace memphis
