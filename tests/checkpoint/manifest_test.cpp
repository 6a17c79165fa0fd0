// SPDX-License-Identifier: Apache-2.0
#include "csrc/checkpoint/manifest.h"

#include <gtest/gtest.h>

#include "csrc/core/error.h"
#include "tests/support/error_text.h"

namespace memphis {
namespace {

Manifest example() {
  return {
      .step = 420,
      .samples = INT64_MAX,
      .seed = -1,
      .dataset_fingerprint = "0123456789abcdef",
      .validation_fingerprint = "fedcba9876543210",
      .tokenizer_fingerprint = "byte",
      .loss_reference = 0.1,  // which no binary fraction is
      .loss_window = {5.5, 0.1, 1e-300},
      .exploded_at = 7,
      .calm_steps = 3,
      .skipped_steps = 11,
      .skipped_in_a_row = 2,
      .products = "loops compiled for avx2, fma",
      .config = "model:\n  preset: \"grok-1\"  # \u00e9\n",
      .files = {{"model.safetensors", 0, ~std::uint64_t{0}},
                {"optimizer-1.safetensors", 9, 1},
                {"optimizer-2.safetensors", 8193, 2, {~std::uint32_t{0}, 0, 0x1a}}},
  };
}

TEST(Manifest, RoundTrips) {
  const std::string text = write_manifest(example());
  EXPECT_EQ(read_manifest(text, "manifest.json"), example());
  EXPECT_NE(text.find("\"xxh3\": \"0000000000000001\""), std::string::npos) << text;
}

TEST(Manifest, ReadsThoseThatSayLess) {
  std::string text = write_manifest(example());
  for (const char* line : {" \"validation_fingerprint\": \"fedcba9876543210\",\n",
                           " \"tokenizer_fingerprint\": \"byte\",\n",
                           " \"loss_reference\": 0.1,\n",
                           " \"loss_window\": [\n  5.5,\n  0.1,\n  1e-300\n ],\n",
                           " \"exploded_at\": 7,\n",
                           " \"calm_steps\": 3,\n",
                           " \"skipped_steps\": 11,\n",
                           " \"skipped_in_a_row\": 2,\n",
                           " \"products\": \"loops compiled for avx2, fma\",\n",
                           ",\n   \"blocks\": \"ffffffff000000000000001a\""}) {
    const std::size_t place = text.find(line);
    ASSERT_NE(place, std::string::npos) << text;
    text.erase(place, std::string(line).size());
  }
  Manifest expected = example();
  expected.validation_fingerprint.clear();
  expected.tokenizer_fingerprint.clear();
  expected.loss_reference = 0;
  expected.loss_window.clear();
  expected.exploded_at = 0;
  expected.calm_steps = 0;
  expected.skipped_steps = 0;
  expected.skipped_in_a_row = 0;
  expected.products.clear();
  expected.files[2].blocks.clear();
  EXPECT_EQ(read_manifest(text, "manifest.json"), expected);
}

TEST(Manifest, RefusesWhatItDoesNotWrite) {
  struct Row {
    const char* from;
    const char* to;
    const char* problem;
  };
  const Row rows[] = {
      {"\"format_version\": 1", "\"format_version\": 2", "format_version is 2, not 1"},
      {"\"format_version\": 1,", "", "'format_version' is missing"},
      {"\"step\": 420", "\"step\": -420", "'step' is -420, not a whole number from 0 to 2^63 - 1"},
      {"\"step\": 420", "\"step\": 42e1", "'step' is 420.0, not a whole number from 0 to 2^63 - 1"},
      {"\"step\": 420", "\"step\": 420, \"step\": 421", "key 'step' stands twice in its JSON"},
      {"\"seed\": -1", "\"seed\": \"1\"", "'seed' is \"1\", not a whole number"},
      {"\"step\": 420", "\"step\": 420, \"url\": \"\"", "there are 17 fields where 16 are known"},
      {"\"products\": \"loops compiled for avx2, fma\"",
       "\"products\": 7",
       "'products' is 7, not a text"},
      {"\"calm_steps\": 3", "\"calm_steps\": -3", "'calm_steps' is -3, not a whole number"},
      {"\"exploded_at\": 7",
       "\"exploded_at\": \"7\"",
       "'exploded_at' is \"7\", not a whole number"},
      {"\"bytes\": 9", "\"bytes\": 9, \"mode\": 1", "there are 4 fields where 3 are known"},
      {"\"bytes\": 9", "\"bytes\": \"9\"", "'bytes' is \"9\", not a whole number"},
      {"0000000000000001", "1", "'xxh3' is '1', not 16 hexadecimal digits"},
      {"0000000000000001", "000000000000000g", "not 16 hexadecimal digits"},
      {"0000000000000001", "-000000000000001", "not 16 hexadecimal digits"},
      {"000000000000001a", "000000000000001", "'blocks' has not 3 times 8 hexadecimal digits"},
      {"000000000000001a", "000000000000001g", "'blocks' has not 3 times 8 hexadecimal digits"},
      {"\"bytes\": 8193", "\"bytes\": 8192", "'blocks' has not 2 times 8 hexadecimal digits"},
      {"5.5", "\"5.5\"", "'loss_window' has \"5.5\", not a number"},
      {"optimizer-1.safetensors", "../x", "the file name '../x' is not a bare name"},
      {"optimizer-1.safetensors", "a/b", "the file name 'a/b' is not a bare name"},
      {"optimizer-1.safetensors", "", "the file name '' is not a bare name"},
      {"optimizer-1.safetensors",
       "a\\u0000\\u001b[2J",
       "the file name 'a\\u0000\\u001b[2J' is not a bare name"},
      {"optimizer-1.", "model.", "the file 'model.safetensors' is listed twice"},
      {"\"files\": [", "\"files\": [7, ", "an entry of 'files' is not an object"},
  };
  for (const Row& row : rows) {
    std::string text = write_manifest(example());
    const std::size_t place = text.find(row.from);
    ASSERT_NE(place, std::string::npos) << row.from;
    text.replace(place, std::string(row.from).size(), row.to);
    const std::string error =
        test::error_text<CheckpointError>([&] { read_manifest(text, "run/manifest.json"); });
    EXPECT_TRUE(error.starts_with("run/manifest.json: ")) << error;
    EXPECT_NE(error.find(row.problem), std::string::npos) << error;
    EXPECT_TRUE(test::follows_grammar(error));
  }
}

TEST(Manifest, BareNamesCannotLeaveTheirDirectory) {
  for (const char* name : {"a", "model-00001-of-00002.safetensors", "A_9.-", "a..b"}) {
    EXPECT_TRUE(is_bare_name(name)) << name;
  }
  for (const std::string name :
       {"", ".", "..", ".a", "a/b", "/a", "a\\b", "a b", "a\n", "\xC3\xA9"}) {
    EXPECT_FALSE(is_bare_name(name)) << name;
  }
  EXPECT_FALSE(is_bare_name(std::string_view("a\0b", 3)));
}

}  // namespace
}  // namespace memphis
