// SPDX-License-Identifier: Apache-2.0
//
// The losses of the whole model against the equations (1) to (18) of csrc/model/grok.cpp, written
// down once more, a token at a time and in double precision. Other tests compare the model with
// itself, in another layout or by differences: what all of its passes leave out they cannot see.
#include <algorithm>
#include <cmath>
#include <map>
#include <numbers>
#include <numeric>
#include <string>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>
#include <omp.h>

#include "csrc/comm/threads.h"
#include "kernels/op_profile.h"
#include "kernels/rmsnorm/rmsnorm.h"
#include "tests/support/tiny_model.h"

namespace memphis::test {
namespace {

using Row = std::vector<double>;

// The model keeps its multipliers in f32.
double as_f32(double value) {
  return static_cast<double>(static_cast<float>(value));
}

double capped(double x, double cap) {
  return cap > 0 ? cap * std::tanh(x / cap) : x;
}

double gelu(double x) {
  return x / 2 * (1 + std::tanh(std::sqrt(2 / std::numbers::pi) * (x + 0.044715 * x * x * x)));
}

double log_sum_exp(const Row& x) {
  const double largest = *std::max_element(x.begin(), x.end());
  double sum = 0;
  for (const double value : x) {
    sum += std::exp(value - largest);
  }
  return largest + std::log(sum);
}

struct Losses {
  double cross_entropy = 0;  // a mean over targets
  double balance = 0;        // a mean over sequences and layers
  double z = 0;              // a mean over valid tokens and layers
};

class Equations {
 public:
  Equations(const ModelConfig& model, const TinyModel& tiny, std::int64_t sequence_length)
      : model_(model), batch_(tiny.batch()), S_(static_cast<std::size_t>(sequence_length)) {
    for (const LogicalParameter& parameter : tiny.parameters().plan().logical) {
      weights_[parameter.name] = tiny.weights(parameter);
    }
  }

  Losses losses() {
    Losses result;
    std::vector<Row> h;
    const std::size_t D = static_cast<std::size_t>(model_.d_model);
    for (const std::int32_t token : batch_.tokens_T) {  // (2)
      const auto row = static_cast<std::size_t>(token) * D;
      h.emplace_back();
      for (std::size_t d = 0; d < D; ++d) {
        h.back().push_back(at("model.embed_tokens.weight")[row + d] *
                           as_f32(model_.embedding_multiplier));
      }
    }
    for (std::int64_t layer = 0; layer < model_.num_layers; ++layer) {
      prefix_ = "model.layers." + std::to_string(layer) + ".";
      add_normed(
          h, attention(normed(h, prefix_ + "pre_attn_norm.weight")), "post_attn_norm.weight");
      add_normed(
          h, experts(normed(h, prefix_ + "pre_moe_norm.weight"), result), "post_moe_norm.weight");
    }
    h = normed(h, "model.norm.weight");  // (17)
    const std::string head = model_.tie_embeddings ? "model.embed_tokens.weight" : "lm_head.weight";
    double num_targets = 0;
    for (std::size_t t = 0; t < h.size(); ++t) {
      if (batch_.targets_T[t] < 0) {
        continue;
      }
      Row logits = product(head, h[t]);  // (18)
      for (double& logit : logits) {
        logit = capped(as_f32(model_.output_multiplier) * logit, as_f32(model_.final_cap));
      }
      num_targets += 1;
      result.cross_entropy +=
          log_sum_exp(logits) - logits[static_cast<std::size_t>(batch_.targets_T[t])];
    }
    result.cross_entropy /= num_targets;
    return result;
  }

 private:
  const Row& at(const std::string& name) const { return weights_.at(name); }

  // W x of a matrix [out, in].
  Row product(const std::string& name, const Row& x) const {
    const Row& matrix = at(name);
    Row y(matrix.size() / x.size());
    for (std::size_t i = 0; i < y.size(); ++i) {
      y[i] = std::inner_product(
          x.begin(), x.end(), matrix.begin() + static_cast<std::ptrdiff_t>(i * x.size()), 0.0);
    }
    return y;
  }

  std::vector<Row> normed(const std::vector<Row>& rows, const std::string& name) const {
    std::vector<Row> result = rows;
    for (Row& row : result) {
      const double squares = std::inner_product(row.begin(), row.end(), row.begin(), 0.0);
      const double rms =
          std::sqrt(squares / static_cast<double>(row.size()) + as_f32(model_.norm_eps));
      for (std::size_t d = 0; d < row.size(); ++d) {
        row[d] *= at(name)[d] / rms;
      }
    }
    return result;
  }

  // (10), (16)
  void add_normed(std::vector<Row>& h,
                  const std::vector<Row>& branch,
                  const std::string& name) const {
    const std::vector<Row> scaled = normed(branch, prefix_ + name);
    for (std::size_t t = 0; t < h.size(); ++t) {
      for (std::size_t d = 0; d < h[t].size(); ++d) {
        h[t][d] += scaled[t][d];
      }
    }
  }

  // (5)
  void rotate(Row& heads, std::int32_t position) const {
    const auto H = static_cast<std::size_t>(model_.head_dim);
    for (std::size_t head = 0; head < heads.size(); head += H) {
      for (std::size_t j = 0; j < H / 2; ++j) {
        const double angle =
            position *
            std::pow(model_.rope_theta, -2.0 * static_cast<double>(j) / static_cast<double>(H));
        double& x1 = heads[head + j];
        double& x2 = heads[head + H / 2 + j];
        const double first = x1 * std::cos(angle) - x2 * std::sin(angle);
        x2 = x2 * std::cos(angle) + x1 * std::sin(angle);
        x1 = first;
      }
    }
  }

  // (4) to (9)
  std::vector<Row> attention(const std::vector<Row>& u) const {
    const std::string name = prefix_ + "self_attn.";
    const auto H = static_cast<std::size_t>(model_.head_dim);
    const auto N = static_cast<std::size_t>(model_.num_heads);
    const std::size_t group = N / static_cast<std::size_t>(model_.num_kv_heads);
    std::vector<Row> q;
    std::vector<Row> k;
    std::vector<Row> v;
    for (std::size_t t = 0; t < u.size(); ++t) {
      q.push_back(product(name + "q_proj.weight", u[t]));
      k.push_back(product(name + "k_proj.weight", u[t]));
      v.push_back(product(name + "v_proj.weight", u[t]));
      rotate(q.back(), batch_.positions_T[t]);
      rotate(k.back(), batch_.positions_T[t]);
    }
    std::vector<Row> out;
    for (std::size_t t = 0; t < u.size(); ++t) {
      const std::size_t sequence = t / S_ * S_;
      const auto position = static_cast<std::size_t>(batch_.positions_T[t]);
      const auto length = static_cast<double>(model_.attention_temperature_len);
      const double temperature = length > 0 && static_cast<double>(position) > length
                                     ? std::log2(static_cast<double>(position)) / std::log2(length)
                                     : 1;
      Row heads(N * H);
      for (std::size_t n = 0; n < N; ++n) {
        Row scores;
        std::vector<std::size_t> keys;
        for (std::size_t s = t - std::min(position, t - sequence); s <= t; ++s) {
          if (batch_.any_padding && batch_.valid_T[s] == 0) {
            continue;
          }
          double dot = 0;
          for (std::size_t i = 0; i < H; ++i) {
            dot += q[t][n * H + i] * k[s][n / group * H + i];
          }
          keys.push_back(s);
          scores.push_back(temperature * capped(as_f32(model_.attention_multiplier) * dot,
                                                as_f32(model_.attention_cap)));
        }
        if (keys.empty()) {  // the mean over the sequence
          keys.resize(S_);
          std::iota(keys.begin(), keys.end(), sequence);
          scores.assign(S_, 0.0);
        }
        const double lse = log_sum_exp(scores);
        for (std::size_t i = 0; i < keys.size(); ++i) {
          for (std::size_t j = 0; j < H; ++j) {
            heads[n * H + j] += std::exp(scores[i] - lse) * v[keys[i]][n / group * H + j];
          }
        }
      }
      out.push_back(product(name + "o_proj.weight", heads));
    }
    return out;
  }

  Row gated(const std::string& gate,
            const std::string& up,
            const std::string& down,
            const Row& u) const {
    Row hidden = product(gate, u);
    const Row factor = product(up, u);
    for (std::size_t f = 0; f < hidden.size(); ++f) {
      hidden[f] = gelu(hidden[f]) * factor[f];
    }
    return product(down, hidden);
  }

  // (12) to (15), and what the layer adds to the auxiliary losses.
  std::vector<Row> experts(const std::vector<Row>& u, Losses& losses) const {
    const auto E = static_cast<std::size_t>(model_.num_experts);
    const auto K = static_cast<std::size_t>(model_.experts_per_token);
    const std::size_t num_sequences = u.size() / S_;
    const double layers = static_cast<double>(model_.num_layers);
    const auto is_valid = [&](std::size_t t) {
      return !batch_.any_padding || batch_.valid_T[t] != 0;
    };
    double num_valid = 0;
    for (std::size_t t = 0; t < u.size(); ++t) {
      num_valid += is_valid(t) ? 1 : 0;
    }
    std::vector<Row> out;
    Row counts(num_sequences * E);
    Row probabilities(num_sequences * E);
    Row valid(num_sequences);
    for (std::size_t t = 0; t < u.size(); ++t) {
      const Row raw = product(prefix_ + "block_sparse_moe.gate.weight", u[t]);
      Row logits = raw;
      for (double& logit : logits) {
        logit = capped(logit, as_f32(model_.router_cap));
      }
      const double lse = log_sum_exp(logits);
      std::vector<std::size_t> order(E);
      std::iota(order.begin(), order.end(), std::size_t{0});
      std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
        return logits[a] > logits[b];
      });
      Row m(u[t].size());
      for (std::size_t k = 0; k < K; ++k) {
        const std::string name =
            prefix_ + "block_sparse_moe.experts." + std::to_string(order[k]) + ".";
        const Row y = gated(name + "w1.weight", name + "w3.weight", name + "w2.weight", u[t]);
        for (std::size_t d = 0; d < m.size(); ++d) {
          m[d] += std::exp(logits[order[k]] - lse) * y[d];
        }
      }
      if (model_.dense_ffn_dim > 0) {
        const std::string name = prefix_ + "mlp.";
        const Row y = gated(
            name + "gate_proj.weight", name + "up_proj.weight", name + "down_proj.weight", u[t]);
        for (std::size_t d = 0; d < m.size(); ++d) {
          m[d] = (m[d] + y[d]) * as_f32(1 / std::numbers::sqrt2);
        }
      }
      out.push_back(m);
      if (!is_valid(t)) {
        continue;
      }
      losses.z += std::pow(log_sum_exp(raw), 2) / num_valid / layers;
      valid[t / S_] += 1;
      for (std::size_t e = 0; e < E; ++e) {
        probabilities[t / S_ * E + e] += std::exp(logits[e] - lse);
        counts[t / S_ * E + order[e]] += e < K ? 1 : 0;
      }
    }
    for (std::size_t b = 0; b < num_sequences; ++b) {
      for (std::size_t e = 0; e < E; ++e) {
        losses.balance += static_cast<double>(E) * counts[b * E + e] /
                          (valid[b] * static_cast<double>(K)) * probabilities[b * E + e] /
                          valid[b] / static_cast<double>(num_sequences) / layers;
      }
    }
    return out;
  }

  ModelConfig model_;
  HostBatch batch_;
  std::size_t S_;
  std::map<std::string, Row> weights_;
  std::string prefix_;
};

// Every number of the config is one that changes the result, and none is a default.
std::vector<std::pair<std::string, ModelConfig>> models() {
  ModelConfig grok1 = tiny_grok1();
  grok1.num_layers = 2;
  grok1.attention_cap = 0.7;
  grok1.norm_eps = 0.05;
  grok1.rope_theta = 50;
  grok1.attention_multiplier = 0.9;
  grok1.embedding_multiplier = 1.7;
  grok1.output_multiplier = 3.1;
  ModelConfig grok2 = tiny_grok2();
  grok2.num_layers = 2;
  grok2.norm_eps = 0.02;
  grok2.attention_temperature_len = 2;
  grok2.router_cap = 0.5;
  grok2.final_cap = 1.3;
  grok2.rope_theta = 300;
  grok2.output_multiplier = 2.2;
  ModelConfig no_pads = grok1;
  no_pads.pad_id = -1;
  no_pads.num_kv_heads = 1;
  no_pads.experts_per_token = 3;
  return {{"Grok-1", grok1}, {"Grok-2", grok2}, {"no pads", no_pads}};
}

TEST(Equations, GiveTheLossesOfTheModel) {
  omp_set_num_threads(1);
  constexpr std::int64_t kLength = 10;
  for (const auto& [name, model] : models()) {
    SCOPED_TRACE(name);
    TinyModel tiny(model, 3, kLength, DType::f64, Device::cpu);
    tiny.load_random_batch(11);
    tiny.total_loss();
    const Losses expected = Equations(model, tiny, kLength).losses();
    // Scales are f32; all else rounds in f64.
    EXPECT_NEAR(tiny.stat(Stat::loss), expected.cross_entropy, 1e-7 * expected.cross_entropy);
    EXPECT_NEAR(tiny.stat(Stat::balance), expected.balance, 1e-7 * expected.balance);
    EXPECT_NEAR(tiny.stat(Stat::z), expected.z, 1e-7 * expected.z);
  }
}

// Chunks of the head against all of it at once: sums over chunks round otherwise.
void expect_same_losses_and_gradients(TinyModel& chunks, TinyModel& whole) {
  EXPECT_DOUBLE_EQ(chunks.total_loss(), whole.total_loss());
  EXPECT_DOUBLE_EQ(chunks.total_loss_and_gradient(), whole.total_loss_and_gradient());
  for (const LogicalParameter& parameter : whole.parameters().plan().logical) {
    const std::vector<double> actual = chunks.gradient(parameter);
    const std::vector<double> expected = whole.gradient(parameter);
    const double largest =
        std::abs(*std::max_element(expected.begin(), expected.end(), [](double a, double b) {
          return std::abs(a) < std::abs(b);
        }));
    for (std::size_t i = 0; i < expected.size(); ++i) {
      ASSERT_NEAR(actual[i], expected[i], 1e-12 * largest) << parameter.name << "[" << i << "]";
    }
  }
}

// The head's logits of all tokens are there at one time in small models and in no large one. A chunk
// of eight, and the last is of six tokens.
TEST(HeadInChunks, ChangesNothing) {
  for (const auto& [name, model] : models()) {
    SCOPED_TRACE(name);
    TinyModel whole(model, 3, 10, DType::f64, Device::cpu);
    TinyModel chunks(model, 3, 10, DType::f64, Device::cpu, 8);
    whole.load_random_batch(11);
    chunks.load_random_batch(11);
    expect_same_losses_and_gradients(chunks, whole);
  }
}

// Nor where two ranks have half of the vocabulary each and join what each knows of a chunk.
TEST(HeadInChunks, ChangesNothingOnTensorRanks) {
  for (const auto& [name, model] : models()) {
    SCOPED_TRACE(name);
    TinyModel alone(model, 3, 10, DType::f64, Device::cpu);
    alone.load_random_batch(11);
    alone.total_loss();
    const double exact = alone.stat(Stat::loss);
    run_threads(2, [&](World& world) {
      ParallelConfig parallel;
      parallel.data = 1;
      parallel.tensor = 2;
      parallel.zero = 0;  // each rank has the gradients of all that it holds
      TinyModel whole(world, parallel, model, 3, 10, DType::f64, 0);
      TinyModel chunks(world, parallel, model, 3, 10, DType::f64, 8);
      whole.load_random_batch(11);
      chunks.load_random_batch(11);
      expect_same_losses_and_gradients(chunks, whole);
      EXPECT_NEAR(whole.stat(Stat::loss), exact, 1e-12 * exact);
    });
  }
}

// A layer ends and the next one, or the head, begins in one pass over the residual stream, and the
// branches of a layer meet in another: in tensors of the stream's size the forward pass moves 8 a
// layer and 2 for the norm that the first one begins with, the backward pass 10 and 3. Norms one by
// one would move 9 and 2, and 11 and 3.
TEST(Norms, MoveEachTensorOfTheStreamOnce) {
  constexpr std::int64_t kTokens = 30;
  const ModelConfig config = tiny_grok1();
  TinyModel model(config, 3, 10, DType::f32, Device::cpu);
  model.load_random_batch(11);
  std::vector<kernels::OpTotals> totals;
  {
    const kernels::OpProfile profile(model.stream(), 1000);
    model.total_loss_and_gradient();
    ASSERT_EQ(profile.num_left_out(), 0);
    totals = profile.totals();
  }
  const auto find = [&](std::string_view op) {
    const auto found = std::find_if(
        totals.begin(), totals.end(), [&](const kernels::OpTotals& each) { return each.op == op; });
    return found != totals.end() ? *found : kernels::OpTotals{};
  };
  const std::int64_t passes = 2 * config.num_layers + 1;
  const std::int64_t norms = 4 * config.num_layers + 1;
  const auto bytes = [&](std::int64_t stream, std::int64_t columns, std::int64_t rows) {
    return 4.0 * static_cast<double>(stream * kTokens * config.d_model + columns * kTokens +
                                     rows * config.d_model);
  };
  EXPECT_EQ(find("rmsnorm_forward").calls, passes);
  EXPECT_EQ(find("rmsnorm_forward").bytes, bytes(8 * config.num_layers + 2, norms, norms));
  // A weight, its gradient, and the sums of all runs.
  const std::int64_t rows = 2 + kernels::kRmsNormPartials;
  EXPECT_EQ(find("rmsnorm_backward").calls, passes);
  EXPECT_EQ(find("rmsnorm_backward").bytes, bytes(10 * config.num_layers + 3, norms, norms * rows));
}

}  // namespace
}  // namespace memphis::test
