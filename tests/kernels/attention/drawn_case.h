// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "bench/attention/attention_cases.h"
#include "tests/support/draw.h"

// Attention of shapes that no table lists: what a seed draws among them, edges of tiles more often
// than others.
namespace memphis::test {

class CaseDraw : public Draw {
 public:
  explicit CaseDraw(const std::string& name) : Draw(name), name_(name) {}

  // Of heads 128 wide, which Hopper's kernels take in tiles of 128 queries and keys. B * N is a
  // multiple of 4, so that a part's sums are whole 16 bytes.
  AttentionCase attention() {
    struct Heads {
      std::int64_t B, N, G;
    };
    const auto [B, N, G] = one_of<Heads>({{2, 2, 2}, {2, 6, 1}, {1, 8, 1}, {1, 4, 2}, {4, 1, 1}});
    AttentionCase c = {.name = name_, .B = B, .S = tokens(1, 290), .N = N, .G = G, .H = 128};
    c.cap = one_of({0.0F, 5.0F, 30.0F, 50.0F, 90.0F});
    c.temperature_len = once_in(2) ? 0 : integer(2, 60);
    switch (integer(0, 3)) {
      case 0:
        break;
      case 1:
        c.document = tokens(1, c.S);
        c.began = integer(0, c.document - 1);
        break;
      default:
        for (std::int64_t left = c.S; left > 0; left -= c.documents.back()) {
          c.documents.push_back(once_in(4) ? 1 : integer(1, left));
        }
    }
    c.pad = once_in(2) ? 0 : integer(1, 12);
    // Far beyond what a cap leaves; without one, far below 0.
    c.apart = once_in(3) ? (c.cap > 0 ? 7 : 3) : 0;
    return c;
  }

  // Numbers of tokens in [low, high].
  std::int64_t tokens(std::int64_t low, std::int64_t high) {
    return integer_or_edge(low, high, {1, 127, 128, 129, 255, 256, 257});
  }

 private:
  std::string name_;
};

// What was drawn, for a test that fails.
inline std::string description_of(const AttentionCase& c) {
  std::string text = "B " + std::to_string(c.B) + " S " + std::to_string(c.S) + " N " +
                     std::to_string(c.N) + " G " + std::to_string(c.G) + " cap " +
                     std::to_string(c.cap) + " temperature_len " +
                     std::to_string(c.temperature_len) + " document " + std::to_string(c.document) +
                     " began " + std::to_string(c.began) + " pad " + std::to_string(c.pad) +
                     " apart " + std::to_string(c.apart) + " documents";
  for (const std::int64_t document : c.documents) {
    text += " " + std::to_string(document);
  }
  return text;
}

}  // namespace memphis::test
