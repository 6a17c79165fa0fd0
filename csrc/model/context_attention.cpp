// SPDX-License-Identifier: Apache-2.0
#include "csrc/model/context_attention.h"

#include <memory>
#include <vector>

#include "csrc/model/attention_heads.h"
#include "csrc/plan/context_exchange.h"
#include "kernels/attention/attention_merge.h"
#include "kernels/attention/gather_heads.h"

namespace memphis {

using namespace kernels;

namespace {

// Row `index` of what has several, each of them a tensor of its own.
TensorView part_of(const TensorView& parts, std::int64_t index) {
  TensorView part = parts.rows(index, 1);
  --part.num_dims;
  for (int i = 0; i < part.num_dims; ++i) {
    part.dims[i] = parts.dims[i + 1];
  }
  return part;
}

// Heads [0, G) of keys and [G, 2G) of values.
HeadsView keys_in(const TensorView& keys_UCH) {
  return {keys_UCH, 0, keys_UCH.dim(1) / 2};
}
HeadsView values_in(const TensorView& keys_UCH) {
  return {keys_UCH, keys_UCH.dim(1) / 2, keys_UCH.dim(1) / 2};
}

// ---- gather

// The piece of shared.numbered_keys_UCH that this rank sends, or receives.
TensorView own_keys(const BlockContext& context) {
  return context.shared.numbered_keys_UCH.rows(context.dims.own_U.begin, context.dims.own_U.count);
}

// To shared.keys_UCH.
void gather_keys(const BlockContext& context, const Layer& layer) {
  const SharedActivations<TensorView>& shared = context.shared;
  const TensorView own_TCH = own_keys(context);
  gather_heads({.y_TCH = own_TCH, .x_UCH = keys_and_values_of(layer.qkv_TCH, context.dims)},
               context.stream);
  context.groups.context().run(
      AllGather{.y = shared.numbered_keys_UCH, .x = own_TCH}, "context.keys", context.stream);
  gather_heads({.y_TCH = shared.keys_UCH,
                .x_UCH = shared.numbered_keys_UCH,
                .source_T = context.batch.key_number_U},
               context.stream);
}

void gathered_forward(const BlockContext& context, const Layer& layer) {
  gather_keys(context, layer);
  attention_forward({.out_TNH = layer.heads_TNH,
                     .lse_BNS = layer.lse_BNS,
                     .q_TNH = queries_of(layer.qkv_TCH, context.dims),
                     .k_UGH = keys_in(context.shared.keys_UCH),
                     .v_UGH = values_in(context.shared.keys_UCH),
                     .position_T = context.batch.position_T,
                     .place_T = context.batch.place_T,
                     .key_valid_U = context.key_valid_U,
                     .score = score_of(context.model)},
                    context.stream);
}

void gathered_backward(const BlockContext& context,
                       const Layer& layer,
                       const LayerGradients<TensorView>& kept,
                       const AttentionBackward& scores) {
  const SharedActivations<TensorView>& shared = context.shared;
  const TensorView& dkeys_UCH = context.scratch.dkeys_UCH;
  gather_keys(context, layer);
  AttentionBackward op = scores;
  op.dk_UGH = keys_in(dkeys_UCH);
  op.dv_UGH = values_in(dkeys_UCH);
  op.k_UGH = keys_in(shared.keys_UCH);
  op.v_UGH = values_in(shared.keys_UCH);
  op.place_T = context.batch.place_T;
  differentiate_attention(op, context.stream);
  // Each rank has a term of every key's.
  gather_heads({.y_TCH = shared.numbered_keys_UCH,
                .x_UCH = dkeys_UCH,
                .source_T = context.batch.key_of_number_U},
               context.stream);
  const TensorView own_TCH = own_keys(context);
  context.groups.context().run(
      ReduceScatter{.y = own_TCH, .x = shared.numbered_keys_UCH}, "context.dkeys", context.stream);
  gather_heads({.y_TCH = keys_and_values_of(kept.dqkv_TCH, context.dims), .x_UCH = own_TCH},
               context.stream);
}

// ---- ring

// Exchanges in which each rank sends `count` rows to one rank and receives as many from one.
std::unique_ptr<Communicator::Work> start_shift(const BlockContext& context,
                                                const TensorView& to,
                                                const TensorView& from,
                                                const RingStep& step,
                                                const char* name) {
  Communicator& ranks = context.groups.context();
  std::vector<std::int64_t> send_rows(static_cast<std::size_t>(ranks.size()), 0);
  std::vector<std::int64_t> recv_rows(send_rows.size(), 0);
  send_rows[static_cast<std::size_t>(step.to)] = from.dim(0);
  recv_rows[static_cast<std::size_t>(step.from)] = to.dim(0);
  return ranks.start(AllToAll{.y = to, .x = from, .send_rows = send_rows, .recv_rows = recv_rows},
                     name,
                     context.stream);
}

// Calls visit(rank, keys_TCH) with the keys and values of each rank along `context`, this one's first,
// while the next ones come.
template <class Visit>
void for_each_in_ring(const BlockContext& context, const Layer& layer, const Visit& visit) {
  const TensorView& ring_keys_2TCH = context.shared.ring_keys_2TCH;
  const Piece ring = context.dims.context();
  gather_heads({.y_TCH = part_of(ring_keys_2TCH, 0),
                .x_UCH = keys_and_values_of(layer.qkv_TCH, context.dims)},
               context.stream);
  for (std::int64_t i = 0; i < ring.count; ++i) {
    const TensorView here_TCH = part_of(ring_keys_2TCH, i % 2);
    std::unique_ptr<Communicator::Work> next;
    if (i + 1 < ring.count) {
      next = start_shift(context,
                         part_of(ring_keys_2TCH, (i + 1) % 2),
                         here_TCH,
                         ring_step(ring, 1),
                         "context.ring");
    }
    visit(i, ring_step(ring, i).from, here_TCH);
    if (next) {
      next->wait(context.stream);
    }
  }
}

// Of the keys of `rank`, which lie by their numbers.
TensorView of_rank(const BlockContext& context, const TensorView& keys_U, std::int64_t rank) {
  return keys_U.present() ? keys_U.rows(rank * context.dims.T, context.dims.T) : keys_U;
}

void ring_forward(const BlockContext& context, const Layer& layer) {
  const SharedActivations<TensorView>& shared = context.shared;
  for_each_in_ring(
      context, layer, [&](std::int64_t /*i*/, std::int64_t rank, const TensorView& keys_TCH) {
        attention_forward({.out_TNH = part_of(shared.part_out_PTNH, rank),
                           .lse_BNS = part_of(shared.part_lse_PBNS, rank),
                           .q_TNH = queries_of(layer.qkv_TCH, context.dims),
                           .k_UGH = keys_in(keys_TCH),
                           .v_UGH = values_in(keys_TCH),
                           .position_T = context.batch.position_T,
                           .place_T = context.batch.place_T,
                           .key_place_U = of_rank(context, context.batch.key_place_U, rank),
                           .key_valid_U = of_rank(context, context.key_valid_U, rank),
                           .score = score_of(context.model)},
                          context.stream);
      });
  attention_merge({.out_TNH = layer.heads_TNH,
                   .lse_BNS = layer.lse_BNS,
                   .part_out_PTNH = shared.part_out_PTNH,
                   .part_lse_PBNS = shared.part_lse_PBNS,
                   .num_keys_P = shared.part_keys_P},
                  context.stream);
}

void ring_backward(const BlockContext& context,
                   const Layer& layer,
                   const LayerGradients<TensorView>& kept,
                   const AttentionBackward& scores) {
  const Dims& d = context.dims;
  const Piece ring = d.context();
  const TensorView& dqueries_PTNH = context.shared.part_out_PTNH;
  const TensorView& dkeys_UCH = context.scratch.dkeys_UCH;
  // Of the two places a step's is on its way while the next one's is found.
  std::unique_ptr<Communicator::Work> on_its_way;
  for_each_in_ring(
      context, layer, [&](std::int64_t i, std::int64_t rank, const TensorView& keys_TCH) {
        const TensorView found_TCH = rank == ring.index
                                         ? of_rank(context, dkeys_UCH, rank)
                                         : part_of(context.scratch.ring_dkeys_2TCH, i % 2);
        AttentionBackward op = scores;
        op.dq_TNH = part_of(dqueries_PTNH, rank);
        op.dk_UGH = keys_in(found_TCH);
        op.dv_UGH = values_in(found_TCH);
        op.k_UGH = keys_in(keys_TCH);
        op.v_UGH = values_in(keys_TCH);
        op.place_T = context.batch.place_T;
        op.key_place_U = of_rank(context, context.batch.key_place_U, rank);
        op.key_valid_U = of_rank(context, context.key_valid_U, rank);
        op.sequence_keys = d.whole_S;
        differentiate_attention(op, context.stream);
        if (on_its_way) {
          on_its_way->wait(context.stream);
        }
        if (rank != ring.index) {
          // To whose keys they are; meanwhile the rank as far the other way has found this one's.
          const RingStep home = ring_step(ring, -i);
          on_its_way = start_shift(
              context, of_rank(context, dkeys_UCH, home.from), found_TCH, home, "context.dkeys");
        }
      });
  if (on_its_way) {
    on_its_way->wait(context.stream);
  }
  TensorView dqueries_UNH = dqueries_PTNH.reshape({ring.count * d.T, d.local_N, d.H});
  gather_heads(
      {.y_TCH = queries_of(kept.dqkv_TCH, d), .x_UCH = dqueries_UNH, .num_parts = ring.count},
      context.stream);
  gather_heads(
      {.y_TCH = keys_and_values_of(kept.dqkv_TCH, d), .x_UCH = dkeys_UCH, .num_parts = ring.count},
      context.stream);
}

// ---- all to all

// Rows [T, ...] of each rank to each rank.
void all_to_all(const BlockContext& context,
                const TensorView& to_UCH,
                const TensorView& from_UCH,
                const char* name) {
  Communicator& ranks = context.groups.context();
  const std::vector<std::int64_t> rows(static_cast<std::size_t>(ranks.size()), context.dims.T);
  ranks.run(AllToAll{.y = to_UCH, .x = from_UCH, .send_rows = rows, .recv_rows = rows},
            name,
            context.stream);
}

// Of a token's queries, keys and values, those heads that are `rank`'s; and where they lie in a
// token of that rank.
struct HeadsOfRank {
  HeadsView of_token;
  HeadsView of_rank;
};
template <class Visit>
void for_each_run(const Dims& d,
                  const TensorView& qkv_TCH,
                  const TensorView& rank_TCH,
                  std::int64_t rank,
                  const Visit& visit) {
  const Dims::AttentionCall call = d.attention_call();
  visit(HeadsOfRank{{qkv_TCH, rank * call.N, call.N}, {rank_TCH, 0, call.N}});
  visit(HeadsOfRank{{qkv_TCH, d.local_N + rank * call.G, call.G}, {rank_TCH, call.N, call.G}});
  visit(HeadsOfRank{{qkv_TCH, d.local_N + d.local_G + rank * call.G, call.G},
                    {rank_TCH, call.N + call.G, call.G}});
}

// Heads of this rank's tokens to whole sequences of this rank's heads, in whole_UCH; `numbered_UCH` is
// scratch of its size.
void to_whole_sequences(const BlockContext& context,
                        const TensorView& whole_UCH,
                        const TensorView& numbered_UCH,
                        const char* name) {
  all_to_all(context, numbered_UCH, whole_UCH, name);
  gather_heads({.y_TCH = whole_UCH, .x_UCH = numbered_UCH, .source_T = context.batch.key_number_U},
               context.stream);
}
// And back: to whole_UCH, rank by rank.
void to_own_tokens(const BlockContext& context,
                   const TensorView& whole_UCH,
                   const TensorView& numbered_UCH,
                   const char* name) {
  gather_heads(
      {.y_TCH = numbered_UCH, .x_UCH = whole_UCH, .source_T = context.batch.key_of_number_U},
      context.stream);
  all_to_all(context, whole_UCH, numbered_UCH, name);
}

// Queries, keys and values of whole sequences, to shared.keys_UCH.
void exchange_heads(const BlockContext& context, const Layer& layer) {
  const Dims& d = context.dims;
  const TensorView& keys_UCH = context.shared.keys_UCH;
  for (std::int64_t rank = 0; rank < d.context().count; ++rank) {
    for_each_run(
        d, layer.qkv_TCH, of_rank(context, keys_UCH, rank), rank, [&](const HeadsOfRank& heads) {
          gather_heads({.y_TCH = heads.of_rank, .x_UCH = heads.of_token}, context.stream);
        });
  }
  to_whole_sequences(context, keys_UCH, context.shared.numbered_keys_UCH, "context.heads");
}

// [T, N, H] of this rank's tokens to [U, N / ranks, H] of whole sequences.
void exchange_outputs(const BlockContext& context,
                      const TensorView& out_UNH,
                      const TensorView& out_TNH,
                      const char* name) {
  const std::int64_t N = context.dims.attention_call().N;
  for (std::int64_t rank = 0; rank < context.dims.context().count; ++rank) {
    gather_heads({.y_TCH = of_rank(context, out_UNH, rank), .x_UCH = {out_TNH, rank * N, N}},
                 context.stream);
  }
  to_whole_sequences(context, out_UNH, context.shared.numbered_out_UNH, name);
}

struct WholeHeads {
  HeadsView q_UNH;
  HeadsView k_UGH;
  HeadsView v_UGH;
};
WholeHeads whole_heads(const BlockContext& context, const TensorView& keys_UCH) {
  const Dims::AttentionCall call = context.dims.attention_call();
  return {.q_UNH = {keys_UCH, 0, call.N},
          .k_UGH = {keys_UCH, call.N, call.G},
          .v_UGH = {keys_UCH, call.N + call.G, call.G}};
}

void all_to_all_forward(const BlockContext& context, const Layer& layer) {
  const SharedActivations<TensorView>& shared = context.shared;
  const std::int64_t N = context.dims.attention_call().N;
  exchange_heads(context, layer);
  const WholeHeads heads = whole_heads(context, shared.keys_UCH);
  attention_forward({.out_TNH = shared.out_UNH,
                     .lse_BNS = layer.lse_BNS,
                     .q_TNH = heads.q_UNH,
                     .k_UGH = heads.k_UGH,
                     .v_UGH = heads.v_UGH,
                     .position_T = context.batch.key_position_U,
                     .key_valid_U = context.key_valid_U,
                     .score = score_of(context.model)},
                    context.stream);
  to_own_tokens(context, shared.out_UNH, shared.numbered_out_UNH, "context.out");
  for (std::int64_t rank = 0; rank < context.dims.context().count; ++rank) {
    gather_heads(
        {.y_TCH = {layer.heads_TNH, rank * N, N}, .x_UCH = of_rank(context, shared.out_UNH, rank)},
        context.stream);
  }
}

void all_to_all_backward(const BlockContext& context,
                         const Layer& layer,
                         const LayerGradients<TensorView>& kept,
                         const AttentionBackward& scores) {
  const Dims& d = context.dims;
  const SharedActivations<TensorView>& shared = context.shared;
  const TensorView& dkeys_UCH = context.scratch.dkeys_UCH;
  const TensorView& dout_UNH = context.scratch.dout_UNH;
  exchange_heads(context, layer);
  exchange_outputs(context, dout_UNH, scores.dout_TNH, "context.dout");
  exchange_outputs(context, shared.out_UNH, layer.heads_TNH, "context.out");
  const WholeHeads heads = whole_heads(context, shared.keys_UCH);
  const WholeHeads gradients = whole_heads(context, dkeys_UCH);
  AttentionBackward op = scores;
  op.dq_TNH = gradients.q_UNH;
  op.dk_UGH = gradients.k_UGH;
  op.dv_UGH = gradients.v_UGH;
  op.dout_TNH = dout_UNH;
  op.out_TNH = shared.out_UNH;
  op.q_TNH = heads.q_UNH;
  op.k_UGH = heads.k_UGH;
  op.v_UGH = heads.v_UGH;
  op.position_T = context.batch.key_position_U;
  differentiate_attention(op, context.stream);
  to_own_tokens(context, dkeys_UCH, shared.numbered_keys_UCH, "context.dheads");
  for (std::int64_t rank = 0; rank < d.context().count; ++rank) {
    for_each_run(
        d, kept.dqkv_TCH, of_rank(context, dkeys_UCH, rank), rank, [&](const HeadsOfRank& run) {
          gather_heads({.y_TCH = run.of_token, .x_UCH = run.of_rank}, context.stream);
        });
  }
}

}  // namespace

void context_attention_forward(const BlockContext& context, const Layer& layer) {
  switch (context.dims.key_exchange) {
    case ContextExchange::ring:
      return ring_forward(context, layer);
    case ContextExchange::all_to_all:
      return all_to_all_forward(context, layer);
    default:
      return gathered_forward(context, layer);
  }
}

void context_attention_backward(const BlockContext& context,
                                const Layer& layer,
                                const LayerGradients<TensorView>& kept,
                                const AttentionBackward& scores) {
  switch (context.dims.key_exchange) {
    case ContextExchange::ring:
      return ring_backward(context, layer, kept, scores);
    case ContextExchange::all_to_all:
      return all_to_all_backward(context, layer, kept, scores);
    default:
      return gathered_backward(context, layer, kept, scores);
  }
}

}  // namespace memphis
