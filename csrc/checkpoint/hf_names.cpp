// SPDX-License-Identifier: Apache-2.0
#include "csrc/checkpoint/hf_names.h"

#include <array>
#include <cctype>
#include <optional>
#include <vector>

namespace memphis {
namespace {

// '#' stands for a number: of the layer, then of the expert.
struct Renaming {
  std::string_view from;
  std::string_view to;
};

constexpr std::array kRenamings{
    // Form A.
    Renaming{"model.layers.#.attn.q_proj.weight", "model.layers.#.self_attn.q_proj.weight"},
    Renaming{"model.layers.#.attn.k_proj.weight", "model.layers.#.self_attn.k_proj.weight"},
    Renaming{"model.layers.#.attn.v_proj.weight", "model.layers.#.self_attn.v_proj.weight"},
    Renaming{"model.layers.#.attn.o_proj.weight", "model.layers.#.self_attn.o_proj.weight"},
    Renaming{"model.layers.#.moe_block.gate.weight", "model.layers.#.block_sparse_moe.gate.weight"},
    Renaming{"model.layers.#.moe_block.experts.#.linear.weight",
             "model.layers.#.block_sparse_moe.experts.#.w1.weight"},
    Renaming{"model.layers.#.moe_block.experts.#.linear_v.weight",
             "model.layers.#.block_sparse_moe.experts.#.w3.weight"},
    Renaming{"model.layers.#.moe_block.experts.#.linear_1.weight",
             "model.layers.#.block_sparse_moe.experts.#.w2.weight"},
    Renaming{"model.layers.#.pre_attn_norm.scale", "model.layers.#.pre_attn_norm.weight"},
    Renaming{"model.layers.#.post_attn_norm.scale", "model.layers.#.post_attn_norm.weight"},
    Renaming{"model.layers.#.pre_moe_norm.scale", "model.layers.#.pre_moe_norm.weight"},
    Renaming{"model.layers.#.post_moe_norm.scale", "model.layers.#.post_moe_norm.weight"},
    Renaming{"model.norm.scale", "model.norm.weight"},
    // Form C: the names of xai-org/grok-1's own checkpoint, with dots.
    Renaming{"transformer.in_out_embed.weight", "model.embed_tokens.weight"},
    Renaming{"transformer.decoder_layer.#.multi_head_attention.query.weight",
             "model.layers.#.self_attn.q_proj.weight"},
    Renaming{"transformer.decoder_layer.#.multi_head_attention.key.weight",
             "model.layers.#.self_attn.k_proj.weight"},
    Renaming{"transformer.decoder_layer.#.multi_head_attention.value.weight",
             "model.layers.#.self_attn.v_proj.weight"},
    Renaming{"transformer.decoder_layer.#.multi_head_attention.linear.weight",
             "model.layers.#.self_attn.o_proj.weight"},
    Renaming{"transformer.decoder_layer.#.router.weight",
             "model.layers.#.block_sparse_moe.gate.weight"},
    Renaming{"transformer.decoder_layer.#.moe.#.linear.weight",
             "model.layers.#.block_sparse_moe.experts.#.w1.weight"},
    Renaming{"transformer.decoder_layer.#.moe.#.linear_v.weight",
             "model.layers.#.block_sparse_moe.experts.#.w3.weight"},
    Renaming{"transformer.decoder_layer.#.moe.#.linear_1.weight",
             "model.layers.#.block_sparse_moe.experts.#.w2.weight"},
    Renaming{"transformer.decoder_layer.#.rms_norm.weight", "model.layers.#.pre_attn_norm.weight"},
    Renaming{"transformer.decoder_layer.#.rms_norm_1.weight",
             "model.layers.#.post_attn_norm.weight"},
    Renaming{"transformer.decoder_layer.#.rms_norm_2.weight", "model.layers.#.pre_moe_norm.weight"},
    Renaming{"transformer.decoder_layer.#.rms_norm_3.weight",
             "model.layers.#.post_moe_norm.weight"},
    Renaming{"transformer.rms_norm.weight", "model.norm.weight"},
};

// The numbers in `name` where `pattern` has '#'; nothing if it does not fit.
std::optional<std::vector<std::string_view>> numbers_of(std::string_view name,
                                                        std::string_view pattern) {
  std::vector<std::string_view> numbers;
  std::size_t at = 0;
  for (const char c : pattern) {
    if (c != '#') {
      if (at >= name.size() || name[at] != c) {
        return {};
      }
      ++at;
      continue;
    }
    const std::size_t begin = at;
    while (at < name.size() && std::isdigit(static_cast<unsigned char>(name[at])) != 0) {
      ++at;
    }
    if (at == begin) {
      return {};
    }
    numbers.push_back(name.substr(begin, at - begin));
  }
  return at == name.size() ? std::optional(numbers) : std::nullopt;
}

}  // namespace

std::string form_b_name(std::string_view name) {
  for (const Renaming& renaming : kRenamings) {
    const auto numbers = numbers_of(name, renaming.from);
    if (!numbers) {
      continue;
    }
    std::string result;
    std::size_t next = 0;
    for (const char c : renaming.to) {
      if (c == '#') {
        result += (*numbers)[next++];
      } else {
        result += c;
      }
    }
    return result;
  }
  return std::string(name);
}

}  // namespace memphis
