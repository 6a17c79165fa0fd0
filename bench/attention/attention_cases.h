// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "bench/filled_tensor.h"
#include "kernels/attention/attention.h"

namespace memphis::bench {

struct AttentionCase {
  std::string name;
  std::int64_t B;
  std::int64_t S;
  std::int64_t N;
  std::int64_t G;
  std::int64_t H;
  float cap = 30.0F;
  std::int64_t temperature_len = 0;
  std::int64_t document = 0;                 // tokens; 0: a sequence is one document
  std::vector<std::int64_t> documents = {};  // their tokens, where they differ
  std::int64_t began = 0;  // tokens of its first document that lie before the sequence
  // Every `pad`-th token from the sequence's first is no key; 0: all are keys. Queries of the first
  // token then see no key, and in documents that begin with such a token the first query neither.
  std::int64_t pad = 0;
  // Queries lie on one side of the origin and keys on the other, this far: all scores are below 0.
  double apart = 0;

  std::int64_t T() const { return B * S; }
  std::int64_t C() const { return N + 2 * G; }
  kernels::AttentionScore score() const {
    return {.scale = 1.0F / std::sqrt(static_cast<float>(H)),
            .cap = cap,
            .temperature_len = temperature_len};
  }

  std::vector<double> positions() const {
    std::vector<double> result;
    for (std::int64_t b = 0; b < B && !documents.empty(); ++b) {
      for (const std::int64_t count : documents) {
        for (std::int64_t p = 0; p < count; ++p) {
          result.push_back(static_cast<double>(p));
        }
      }
    }
    for (std::int64_t t = 0; t < T() && documents.empty(); ++t) {
      const std::int64_t p = t % S + began;
      result.push_back(static_cast<double>(document == 0 ? p : p % document));
    }
    return result;
  }
  std::vector<double> key_valid() const {
    std::vector<double> result;
    for (std::int64_t t = 0; t < T(); ++t) {
      result.push_back(pad != 0 && t % S % pad == 0 ? 0 : 1);
    }
    return result;
  }
  // Wide enough that the caps bend the largest scores.
  std::vector<double> qkv() const {
    std::vector<double> values = random_normal(T() * C() * H, "qkv " + name, 2.0);
    for (std::int64_t i = 0; i < T() * C() * H; ++i) {
      const std::int64_t head = i / H % C();
      values[static_cast<std::size_t>(i)] += head < N ? apart : head < N + G ? -apart : 0;
    }
    return values;
  }
  // Queries, keys and values in a buffer of them all.
  kernels::HeadsView queries(const TensorView& qkv_TCH) const { return {qkv_TCH, 0, N}; }
  kernels::HeadsView keys(const TensorView& qkv_TCH) const { return {qkv_TCH, N, G}; }
  kernels::HeadsView values(const TensorView& qkv_TCH) const { return {qkv_TCH, N + G, G}; }
  std::vector<double> dout() const { return random_normal(T() * N * H, "dout " + name); }
};

inline std::vector<AttentionCase> attention_cases() {
  return {
      {.name = "one_token", .B = 3, .S = 1, .N = 4, .G = 2, .H = 8},
      {.name = "no_tokens", .B = 0, .S = 16, .N = 2, .G = 1, .H = 16},
      {.name = "one_head", .B = 2, .S = 40, .N = 1, .G = 1, .H = 32},
      {.name = "grouped", .B = 1, .S = 33, .N = 6, .G = 2, .H = 16},
      {.name = "no_cap", .B = 1, .S = 70, .N = 2, .G = 1, .H = 64, .cap = 0},
      {.name = "wide_head", .B = 1, .S = 65, .N = 1, .G = 1, .H = 128},
      {.name = "width_of_no_tile", .B = 1, .S = 37, .N = 2, .G = 2, .H = 24},
      {.name = "temperature", .B = 1, .S = 50, .N = 2, .G = 1, .H = 40, .temperature_len = 7},
      {.name = "documents", .B = 1, .S = 150, .N = 2, .G = 1, .H = 32, .document = 41},
      // Each document holds a whole tile of keys, wherever it begins. They begin at every place
      // within a warp's rows, in every warp, and beside the edges of blocks and tiles.
      {.name = "document_edges",
       .B = 1,
       .S = 2 * 129 + 4 * 127 + 16 * 145,
       .N = 1,
       .G = 1,
       .H = 8,
       .documents = {129, 129, 127, 127, 127, 127, 145, 145, 145, 145, 145,
                     145, 145, 145, 145, 145, 145, 145, 145, 145, 145, 145}},
      // The first document lies before the sequence in part, and ends in it.
      {.name = "began_before",
       .B = 2,
       .S = 90,
       .N = 2,
       .G = 1,
       .H = 16,
       .temperature_len = 30,
       .document = 100,
       .began = 60},
      {.name = "padding", .B = 2, .S = 40, .N = 4, .G = 2, .H = 32, .pad = 5},
      // exp of any score underflows in f32.
      {.name = "scores_far_below_0",
       .B = 1,
       .S = 35,
       .N = 1,
       .G = 1,
       .H = 16,
       .cap = 0,
       .apart = 7},
      {.name = "six_heads_a_key", .B = 1, .S = 129, .N = 6, .G = 1, .H = 16, .cap = 50},
      {.name = "eight_heads_a_key", .B = 2, .S = 127, .N = 8, .G = 1, .H = 8, .cap = 5},
      {.name = "short_documents",
       .B = 1,
       .S = 128,
       .N = 2,
       .G = 1,
       .H = 16,
       .documents = {1, 1, 30, 1, 1, 62, 1, 31}},
      // All that the cap leaves is the sign.
      {.name = "scores_far_beyond_the_cap", .B = 1, .S = 66, .N = 1, .G = 1, .H = 64, .apart = 7},
      // Enough tiles of keys that the GPU's backward pass shares none out.
      {.name = "many_key_tiles", .B = 44, .S = 129, .N = 3, .G = 3, .H = 8, .document = 70},
      // More queries than a work item of the CPU, and tiles of the GPU in each direction.
      {.name = "everything",
       .B = 1,
       .S = 270,
       .N = 2,
       .G = 1,
       .H = 24,
       .cap = 5,
       .temperature_len = 16,
       .document = 90,
       .pad = 9},
      // Heads of the width that Hopper's kernels take, in tiles of 128 queries and keys.
      {.name = "hopper_one_token", .B = 3, .S = 1, .N = 6, .G = 1, .H = 128},
      {.name = "hopper_short_tile", .B = 2, .S = 127, .N = 2, .G = 2, .H = 128, .cap = 5},
      {.name = "hopper_whole_tile", .B = 1, .S = 128, .N = 2, .G = 1, .H = 128, .cap = 0},
      {.name = "hopper_tile_and_one", .B = 1, .S = 129, .N = 8, .G = 1, .H = 128, .cap = 50},
      {.name = "hopper_tiles", .B = 1, .S = 300, .N = 6, .G = 1, .H = 128},
      {.name = "hopper_no_cap", .B = 2, .S = 270, .N = 1, .G = 1, .H = 128, .cap = 0},
      // Edges inside of tiles, beside them and on them; documents of one token; one that ends among
      // queries before which it fills a tile of keys.
      {.name = "hopper_documents",
       .B = 1,
       .S = 1 + 126 + 1 + 1 + 127 + 1 + 300 + 60,
       .N = 2,
       .G = 1,
       .H = 128,
       .documents = {1, 126, 1, 1, 127, 1, 300, 60}},
      {.name = "hopper_temperature",
       .B = 2,
       .S = 140,
       .N = 1,
       .G = 1,
       .H = 128,
       .temperature_len = 16,
       .document = 200,
       .began = 90},
      {.name = "hopper_large_cap", .B = 1, .S = 140, .N = 1, .G = 1, .H = 128, .cap = 90},
      // The first queries' logits have a fixed offset, those of later ones are too large for it.
      {.name = "hopper_hot",
       .B = 1,
       .S = 140,
       .N = 1,
       .G = 1,
       .H = 128,
       .cap = 50,
       .temperature_len = 4,
       .document = 20},
      // In documents without and with tiles of keys that all of a tile of queries may see.
      {.name = "hopper_padding",
       .B = 2,
       .S = 49 + 211,
       .N = 2,
       .G = 2,
       .H = 128,
       .documents = {49, 211},
       .pad = 7},
      // The same without a cap, whose largest logit has the row's temperature as a factor.
      {.name = "hopper_no_cap_padding",
       .B = 1,
       .S = 49 + 161,
       .N = 2,
       .G = 1,
       .H = 128,
       .cap = 0,
       .temperature_len = 16,
       .documents = {49, 161},
       .pad = 7},
      // Far beyond the cap: all that is left is the sign.
      {.name = "hopper_far_beyond", .B = 1, .S = 150, .N = 1, .G = 1, .H = 128, .apart = 7},
      {.name = "hopper_beyond_on_both_sides",
       .B = 1,
       .S = 40,
       .N = 1,
       .G = 1,
       .H = 128,
       .cap = 0.1F},
      {.name = "hopper_far_below_0",
       .B = 1,
       .S = 150,
       .N = 1,
       .G = 1,
       .H = 128,
       .cap = 0,
       .apart = 3},
  };
}

// The model of configs/ that the CPU trains, Grok-1's heads, and a width between.
inline std::vector<AttentionCase> attention_bench_cases() {
  return {
      {.name = "small", .B = 16, .S = 256, .N = 4, .G = 2, .H = 32},
      {.name = "medium", .B = 4, .S = 2048, .N = 12, .G = 4, .H = 64},
      {.name = "grok_1", .B = 1, .S = 8192, .N = 48, .G = 8, .H = 128},
  };
}

}  // namespace memphis::bench
