// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/loader.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <new>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/core/error.h"
#include "csrc/core/rng.h"
#include "csrc/data/text_stream.h"
#include "csrc/data/tokenizer.h"
#include "tests/support/temporary_directory.h"

namespace {

std::atomic<std::uint64_t> g_num_allocations{0};

}  // namespace

// Replaced in this program, to count. Not inlined, or the compiler finds free() called on what came
// from new.
[[gnu::noinline]] void* operator new(std::size_t bytes) {
  ++g_num_allocations;
  if (void* data = std::malloc(std::max<std::size_t>(bytes, 1))) {
    return data;
  }
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* data) noexcept {
  std::free(data);
}
[[gnu::noinline]] void operator delete(void* data, std::size_t) noexcept {
  std::free(data);
}

namespace memphis {
namespace {

struct Sample {
  explicit Sample(std::size_t length)
      : tokens(length, -9), targets(length, -9), position(length, -9) {}
  SampleView view() { return {.tokens_S = tokens, .targets_S = targets, .position_S = position}; }
  bool operator==(const Sample&) const = default;

  std::vector<std::int32_t> tokens;
  std::vector<std::int32_t> targets;
  std::vector<std::int32_t> position;
  std::int64_t num_targets = 0;
};

template <class Loader>
Sample draw(const Loader& loader, std::uint64_t index, std::size_t length) {
  Sample sample(length);
  sample.num_targets = loader.sample(index, sample.view());
  return sample;
}

// Bytes 1 to 253 at random, so none of a mark of UTF-16: no stretch of eight tokens of a few hundred occurs twice (odds of
// 1e-14), so a sample's tokens tell where in the stream they were cut.
std::string random_text(std::size_t num_bytes, std::string_view name) {
  const CounterRng rng(1, name);
  std::string text;
  for (std::size_t i = 0; i < num_bytes; ++i) {
    text.push_back(static_cast<char>(1 + rng.word(i) % 253));
  }
  return text;
}

TextStream stream_of(const std::vector<std::string>& documents) {
  const test::TemporaryDirectory directory;  // an open file outlives its name
  std::vector<TextFile> files;
  files.reserve(documents.size());
  for (const std::string& text : documents) {
    files.push_back({.path = directory.write(std::to_string(files.size()), text)});
  }
  return TextStream(files);
}

TextStream random_stream(const std::vector<std::size_t>& document_bytes) {
  std::vector<std::string> documents;
  documents.reserve(document_bytes.size());
  for (const std::size_t num_bytes : document_bytes) {
    documents.push_back(random_text(num_bytes, "document " + std::to_string(documents.size())));
  }
  return stream_of(documents);
}

// All tokens and positions of a stream.
Sample whole(const TextStream& stream) {
  Sample all(stream.num_tokens());
  stream.read(0, all.tokens, all.position);
  return all;
}

// Where in a ring of tokens the inputs of a sample lie; the ring's size if nowhere.
std::size_t place_of(const Sample& sample, std::span<const std::int32_t> ring) {
  for (std::size_t first = 0; first < ring.size(); ++first) {
    std::size_t s = 0;
    while (s < sample.tokens.size() && sample.tokens[s] == ring[(first + s) % ring.size()]) {
      ++s;
    }
    if (s == sample.tokens.size()) {
      return first;
    }
  }
  return ring.size();
}

// How often each token of the range is an input in one epoch.
std::vector<int> count_inputs(const TrainingLoader& loader,
                              std::uint64_t epoch,
                              std::span<const std::int32_t> range,
                              std::size_t length) {
  std::vector<int> counts(range.size(), 0);
  for (std::uint64_t i = 0; i < loader.num_samples(); ++i) {
    const Sample sample = draw(loader, epoch * loader.num_samples() + i, length);
    const std::size_t first = place_of(sample, range);
    EXPECT_LT(first, range.size()) << "sample " << i << " is not one stretch of the range";
    for (std::size_t s = 0; s < length; ++s) {
      ++counts[(first + s) % range.size()];
    }
  }
  return counts;
}

TEST(Loader, AnEpochReadsEveryTokenOnce) {
  const TextStream stream = random_stream({40, 3, 77, 1, 30, 25});
  const Sample all = whole(stream);
  constexpr std::size_t kLength = 8;
  // Ranges whose remainder is nothing, something and nearly a whole sequence; one begins in a
  // document.
  for (const auto& [begin, end] : {std::pair{0U, 161U}, {0U, 165U}, {5U, 173U}, {10U, 19U}}) {
    const TokenRange range{.begin = begin, .end = end};
    const TrainingLoader loader(stream, range, kLength, 7);
    const auto tokens = std::span(all.tokens).subspan(begin, range.size());
    for (std::uint64_t epoch = 0; epoch < 12; ++epoch) {
      const std::vector<int> counts = count_inputs(loader, epoch, tokens, kLength);
      EXPECT_LE(*std::max_element(counts.begin(), counts.end()), 1);
      const auto num_unused = std::count(counts.begin(), counts.end(), 0);
      EXPECT_LE(num_unused, static_cast<std::ptrdiff_t>(kLength)) << "epoch " << epoch;
    }
  }
}

TEST(Loader, BordersOfChunksMoveBetweenEpochs) {
  const TextStream stream = random_stream({500});
  constexpr std::size_t kLength = 16;
  const TrainingLoader loader(stream, {.begin = 0, .end = stream.num_tokens()}, kLength, 1);
  const Sample all = whole(stream);
  std::set<std::size_t> offsets;
  for (std::uint64_t epoch = 0; epoch < 200; ++epoch) {
    const Sample sample = draw(loader, epoch * loader.num_samples(), kLength);
    offsets.insert(place_of(sample, all.tokens) % all.tokens.size() % kLength);
  }
  // 200 draws of 16 offsets miss a given one with odds of (15/16)^200 = 2.5e-6.
  EXPECT_EQ(offsets.size(), kLength);
}

// What a sample must be, from the definition, given where it was cut.
TEST(Loader, TargetsAndPositionsStayWithinTheDocumentAndTheSample) {
  const TextStream stream = random_stream({20, 2, 9, 1, 31});
  const Sample all = whole(stream);
  constexpr std::size_t kLength = 11;
  const std::size_t end = all.tokens.size() - 6;
  const TrainingLoader loader(stream, {.begin = 0, .end = end}, kLength, 3);
  int num_over_the_end = 0;
  for (std::uint64_t index = 0; index < 30 * loader.num_samples(); ++index) {
    const Sample sample = draw(loader, index, kLength);
    const std::size_t first = place_of(sample, std::span(all.tokens).first(end));
    ASSERT_LT(first, end);
    std::int64_t num_targets = 0;
    std::int32_t context = -1;
    for (std::size_t s = 0; s < kLength; ++s) {
      const std::size_t at = (first + s) % end;
      num_over_the_end += s > 0 && at == 0 ? 1 : 0;
      context = all.position[at] == 0 ? 0 : context + 1;
      EXPECT_EQ(sample.position[s], context);
      const bool ends = at + 1 == end || all.position[at + 1] == 0;
      EXPECT_EQ(sample.targets[s], ends ? kNoTarget : all.tokens[at + 1]);
      num_targets += ends ? 0 : 1;
    }
    EXPECT_EQ(sample.num_targets, num_targets);
  }
  EXPECT_GT(num_over_the_end, 0) << "no sample ran over the end of the range";
}

TEST(Loader, HeldOutTokensAreNeverRead) {
  const TextStream stream = stream_of({std::string(100, 'a') + std::string(60, 'Z')});
  const std::int32_t held = 'Z' + 3;
  const TrainingLoader loader(stream, {.begin = 0, .end = 101}, 7, 1);
  for (std::uint64_t index = 0; index < 20 * loader.num_samples(); ++index) {
    const Sample sample = draw(loader, index, 7);
    EXPECT_EQ(std::count(sample.tokens.begin(), sample.tokens.end(), held), 0);
    EXPECT_EQ(std::count(sample.targets.begin(), sample.targets.end(), held), 0);
  }
}

TEST(Loader, ASampleIsAFunctionOfItsIndex) {
  const TextStream stream = random_stream({400, 300});
  const TokenRange range{.begin = 0, .end = stream.num_tokens()};
  constexpr std::size_t kLength = 16;
  const TrainingLoader forward(stream, range, kLength, 5);
  const TrainingLoader backward(stream, range, kLength, 5);
  const std::uint64_t count = 3 * forward.num_samples();
  std::vector<Sample> samples;
  for (std::uint64_t index = 0; index < count; ++index) {
    samples.push_back(draw(forward, index, kLength));
  }
  for (std::uint64_t index = count; index-- > 0;) {
    EXPECT_EQ(draw(backward, index, kLength), samples[index]);
  }
}

TEST(Loader, SamplesDoNotAllocate) {
  const TextStream stream = random_stream({400, 300});
  const TokenRange range{.begin = 0, .end = stream.num_tokens()};
  const TrainingLoader training(stream, range, 16, 5);
  const ValidationLoader validation(stream, range, 16);
  Sample sample(16);
  const std::uint64_t before = g_num_allocations;
  for (std::uint64_t index = 0; index < 2 * training.num_samples(); ++index) {
    training.sample(index, sample.view());
    validation.sample(index, sample.view());
  }
  EXPECT_EQ(g_num_allocations, before);
}

TEST(Loader, SeedAndTextChooseTheOrder) {
  std::string text = random_text(4000, "text");
  const TextStream stream = stream_of({text});
  text.back() = static_cast<char>(text.back() ^ 1);
  const TextStream changed = stream_of({text});
  constexpr std::size_t kLength = 4;
  const TokenRange range{.begin = 0, .end = stream.num_tokens()};
  const TrainingLoader base(stream, range, kLength, 1);
  for (const TrainingLoader& other :
       {TrainingLoader(stream, range, kLength, 2), TrainingLoader(changed, range, kLength, 1)}) {
    int num_equal = 0;
    for (std::uint64_t index = 0; index < base.num_samples(); ++index) {
      num_equal += draw(base, index, kLength) == draw(other, index, kLength) ? 1 : 0;
    }
    // Two random permutations agree in a Poisson(1) number of places: more than 10 has odds of
    // 1e-8.
    EXPECT_LE(num_equal, 10);
  }
}

TEST(Loader, ValidationPredictsEveryTokenOnce) {
  const TextStream stream = random_stream({40, 3, 30, 25});
  const Sample all = whole(stream);
  constexpr std::size_t kLength = 8;
  for (const auto& [begin, end] :
       {std::pair{0U, 106U}, {10U, 19U}, {10U, 18U}, {10U, 20U}, {30U, 97U}, {50U, 52U}}) {
    const ValidationLoader loader(stream, {.begin = begin, .end = end}, kLength);
    ASSERT_EQ(loader.num_samples(), (end - begin - 1 + kLength - 1) / kLength);
    std::size_t at = begin;
    for (std::uint64_t index = 0; index < loader.num_samples(); ++index) {
      const Sample sample = draw(loader, index, kLength);
      std::int64_t num_targets = 0;
      for (std::size_t s = 0; s < kLength; ++s) {
        if (at + 1 < end) {
          EXPECT_EQ(sample.tokens[s], all.tokens[at]);
          EXPECT_EQ(sample.position[s], std::min(all.position[at], static_cast<std::int32_t>(s)));
          const bool ends = all.position[at + 1] == 0;
          EXPECT_EQ(sample.targets[s], ends ? kNoTarget : all.tokens[at + 1]);
          num_targets += ends ? 0 : 1;
          ++at;
        } else {
          EXPECT_EQ(sample.tokens[s], ByteTokenizer::kPad);
          EXPECT_EQ(sample.targets[s], kNoTarget);
          EXPECT_EQ(sample.position[s], 0);
        }
      }
      EXPECT_EQ(sample.num_targets, num_targets);
    }
    EXPECT_EQ(at + 1, end);
  }
}

TEST(Loader, ValidationBeyondItsEndIsPadding) {
  const TextStream stream = random_stream({40});
  for (const std::uint64_t end : {5U, 6U, 20U}) {
    const ValidationLoader loader(stream, {.begin = 5, .end = end}, 8);
    const Sample sample = draw(loader, loader.num_samples(), 8);
    EXPECT_EQ(sample.num_targets, 0);
    EXPECT_EQ(sample.tokens, std::vector<std::int32_t>(8, ByteTokenizer::kPad));
    EXPECT_EQ(sample.targets, std::vector<std::int32_t>(8, kNoTarget));
  }
  EXPECT_EQ(ValidationLoader(stream, {.begin = 5, .end = 6}, 8).num_samples(), 0U);
}

TEST(Loader, RefusesWhatItCannotHonour) {
  const TextStream stream = random_stream({40});
  EXPECT_NO_THROW(TrainingLoader(stream, {.begin = 0, .end = 9}, 8, 1));
  EXPECT_THROW(TrainingLoader(stream, {.begin = 0, .end = 8}, 8, 1), ContractError);
  EXPECT_THROW(TrainingLoader(stream, {.begin = 0, .end = 43}, 8, 1), ContractError);
  EXPECT_THROW(ValidationLoader(stream, {.begin = 9, .end = 8}, 8), ContractError);
  const TrainingLoader loader(stream, {.begin = 0, .end = 42}, 8, 1);
  EXPECT_THROW(draw(loader, 0, 7), ContractError);
}

}  // namespace
}  // namespace memphis
