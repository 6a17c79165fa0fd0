// SPDX-License-Identifier: Apache-2.0
#include "csrc/config/words.h"

#include <algorithm>
#include <cstddef>

namespace memphis {
namespace {

// Words of other programs, and what they mean here.
struct Synonym {
  std::string_view theirs;
  std::string_view ours;
};
constexpr Synonym kSynonyms[] = {
    {"gpu", "cuda"},
    {"nvidia", "cuda"},
    {"host", "cpu"},
    {"float64", "f64"},
    {"fp64", "f64"},
    {"double", "f64"},
    {"float32", "f32"},
    {"fp32", "f32"},
    {"float", "f32"},
    {"bfloat16", "bf16"},
    {"lr", "learning_rate"},
    {"wd", "weight_decay"},
    {"grad_clip", "clip_norm"},
    {"max_grad_norm", "clip_norm"},
    {"max_steps", "steps"},
    {"iterations", "steps"},
    {"warmup", "warmup_steps"},
    {"batch_size", "global_batch"},
    {"seq_len", "sequence_length"},
    {"block_size", "sequence_length"},
    {"hidden_size", "d_model"},
    {"dim", "d_model"},
    {"n_layer", "num_layers"},
    {"n_layers", "num_layers"},
    {"layers", "num_layers"},
    {"n_head", "num_heads"},
    {"n_heads", "num_heads"},
    {"heads", "num_heads"},
    {"intermediate_size", "ffn_dim"},
    {"top_k", "experts_per_token"},
    {"output_dir", "dir"},
    {"infer", "generate"},
    {"sample", "generate"},
    {"benchmark", "bench"},
};

// Optimal string alignment distance (Damerau 1964, Levenshtein 1966).
std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::vector<std::size_t>> d(a.size() + 1, std::vector<std::size_t>(b.size() + 1));
  for (std::size_t i = 0; i <= a.size(); ++i) {
    for (std::size_t j = 0; j <= b.size(); ++j) {
      if (i == 0 || j == 0) {
        d[i][j] = i + j;
        continue;
      }
      const std::size_t change = a[i - 1] == b[j - 1] ? 0 : 1;
      d[i][j] = std::min({d[i - 1][j] + 1, d[i][j - 1] + 1, d[i - 1][j - 1] + change});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
      }
    }
  }
  return d[a.size()][b.size()];
}

}  // namespace

std::string_view nearest_word(std::string_view word,
                              const std::vector<std::string_view>& candidates) {
  constexpr std::size_t kMaxLength = 64;  // longer ones are no typing error, and cost length^2
  if (word.size() > kMaxLength) {
    return {};
  }
  for (const Synonym& synonym : kSynonyms) {
    if (synonym.theirs == word &&
        std::find(candidates.begin(), candidates.end(), synonym.ours) != candidates.end()) {
      return synonym.ours;
    }
  }
  // A third of the letters, at least two, but never so many that nothing of a short word is left.
  const std::size_t limit = std::min(std::max<std::size_t>(2, word.size() / 3), word.size() / 2);
  std::string_view nearest;
  std::size_t nearest_distance = limit + 1;
  for (const std::string_view candidate : candidates) {
    const std::size_t distance = edit_distance(word, candidate);
    if (distance < nearest_distance) {
      nearest = candidate;
      nearest_distance = distance;
    }
  }
  return nearest;
}

std::string join_words(const std::vector<std::string_view>& words, std::string_view last) {
  std::string text;
  for (std::size_t i = 0; i < words.size(); ++i) {
    if (i > 0 && i + 1 == words.size()) {
      text += ' ';
      text += last;
      text += ' ';
    } else if (i > 0) {
      text += ", ";
    }
    text += words[i];
  }
  return text;
}

std::string quote(std::string_view text) {
  constexpr std::string_view kHex = "0123456789abcdef";
  std::string quoted = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      quoted += '\\';
      quoted += c;
    } else if (c == '\n') {
      quoted += "\\n";
    } else if (byte < 0x20 || byte == 0x7F) {
      quoted += "\\u00";
      quoted += kHex[byte >> 4U];
      quoted += kHex[byte & 0xFU];
    } else {
      quoted += c;
    }
  }
  return quoted + '"';
}

}  // namespace memphis
