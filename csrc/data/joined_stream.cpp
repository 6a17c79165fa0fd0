// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/joined_stream.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>

#include "csrc/core/error.h"
#include "csrc/data/digest.h"

namespace memphis {
namespace {

class JoinedStream final : public TokenStream {
 public:
  explicit JoinedStream(std::vector<std::shared_ptr<const TokenStream>> streams)
      : streams_(std::move(streams)) {
    Digest digest;
    for (const auto& stream : streams_) {
      starts_.push_back(starts_.back() + stream->num_tokens());
      digest.update(stream->fingerprint());
    }
    fingerprint_ = digest.hex();
  }

  std::uint64_t num_tokens() const override { return starts_.back(); }
  const std::string& fingerprint() const override { return fingerprint_; }
  bool has_mask() const override {
    return std::any_of(
        streams_.begin(), streams_.end(), [](const auto& each) { return each->has_mask(); });
  }

  void read(std::uint64_t begin,
            std::span<std::int32_t> tokens,
            std::span<std::int32_t> position) const override {
    require_within(begin, tokens.size(), position.size());
    for_parts(
        begin,
        tokens.size(),
        [&](const TokenStream& stream, std::uint64_t at, std::size_t done, std::size_t count) {
          stream.read(at, tokens.subspan(done, count), position.subspan(done, count));
        });
  }

  void read_mask(std::uint64_t begin, std::span<std::uint8_t> learnt) const override {
    require_within(begin, learnt.size(), learnt.size());
    for_parts(
        begin,
        learnt.size(),
        [&](const TokenStream& stream, std::uint64_t at, std::size_t done, std::size_t count) {
          stream.read_mask(at, learnt.subspan(done, count));
        });
  }

 private:
  template <class Body>
  void for_parts(std::uint64_t begin, std::size_t size, const Body& body) const {
    const auto after = std::upper_bound(starts_.begin(), starts_.end(), begin);
    auto index = static_cast<std::size_t>(after - starts_.begin()) - 1;
    for (std::size_t done = 0; done < size; ++index) {
      const std::uint64_t at = begin + done - starts_[index];
      const std::size_t count =
          std::min<std::size_t>(size - done, streams_[index]->num_tokens() - at);
      if (count > 0) {
        body(*streams_[index], at, done, count);
      }
      done += count;
    }
  }

  std::vector<std::shared_ptr<const TokenStream>> streams_;
  std::vector<std::uint64_t> starts_{0};
  std::string fingerprint_;
};

}  // namespace

std::shared_ptr<const TokenStream> join(std::vector<std::shared_ptr<const TokenStream>> streams) {
  require(!streams.empty(), "there is a stream to join");
  return streams.size() == 1 ? std::move(streams.front())
                             : std::make_shared<const JoinedStream>(std::move(streams));
}

}  // namespace memphis
