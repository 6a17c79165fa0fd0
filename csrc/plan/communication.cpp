// SPDX-License-Identifier: Apache-2.0
#include "csrc/plan/communication.h"

#include <algorithm>
#include <bit>
#include <string_view>
#include <vector>

#include <spdlog/fmt/fmt.h>

#include "csrc/core/dtype.h"
#include "csrc/core/round.h"
#include "csrc/plan/memory.h"
#include "csrc/plan/schedule_messages.h"

namespace memphis {
namespace {

std::int64_t machine_of(std::int64_t rank) {
  return rank / NcclMemory::gpus_of_machine;
}

// Of a group of neighbours, how many others lie on this rank's machine.
std::int64_t others_of_machine(const PlannedGroup& group) {
  const std::int64_t own = machine_of(group.ranks.first + group.index * group.ranks.stride);
  std::int64_t others = -1;
  for (std::int64_t i = 0; i < group.ranks.count; ++i) {
    others += machine_of(group.ranks.first + i * group.ranks.stride) == own ? 1 : 0;
  }
  return others;
}

// The most that the collectives of one group leave in HostCommunicator's two buffers, which grow
// and do not shrink.
class HostBuffers {
 public:
  explicit HostBuffers(const PlannedGroup& group)
      : num_ranks_(group.ranks.count), index_(group.index) {}

  void all_reduce(std::int64_t count, DType dtype) {
    const std::int64_t own = count * (index_ + 1) / num_ranks_ - count * index_ / num_ranks_;
    const std::size_t bytes = static_cast<std::size_t>(own) * size_of(dtype);
    sum(bytes);
    pack(bytes);
  }
  void all_reduce(const TensorSpec& x) { all_reduce(x.num_elements(), x.dtype); }

  // `part` is this rank's.
  void reduce_scatter(const TensorSpec& part, std::int64_t num_blocks = 1) {
    sum(part.bytes());
    if (num_blocks > 1) {
      pack(static_cast<std::size_t>(num_ranks_) * part.bytes());
    }
  }
  void all_gather(const TensorSpec& part, std::int64_t num_blocks) {
    if (num_blocks > 1) {
      pack(static_cast<std::size_t>(num_ranks_) * part.bytes());
    }
  }

  std::size_t bytes() const { return terms_ + packed_; }

 private:
  void sum(std::size_t bytes) {
    constexpr std::size_t kAlignment = 16;  // of each rank's term
    terms_ = std::max(terms_, static_cast<std::size_t>(num_ranks_) * round_up(bytes, kAlignment));
  }
  void pack(std::size_t bytes) { packed_ = std::max(packed_, bytes); }

  std::int64_t num_ranks_;
  std::int64_t index_;
  std::size_t terms_ = 0;
  std::size_t packed_ = 0;
};

bool has_layers(const ActivationPlan& activations) {
  return std::any_of(activations.chunks.begin(),
                     activations.chunks.end(),
                     [](const ChunkActivations& chunk) { return chunk.stage.layers.count > 0; });
}

bool has_head(const ActivationPlan& activations) {
  return std::any_of(activations.chunks.begin(),
                     activations.chunks.end(),
                     [](const ChunkActivations& chunk) { return chunk.stage.head; });
}

// Of one micro-batch of `num_sequences`, through the layers.
void add_layers(HostBuffers& buffers,
                const ActivationPlan& activations,
                std::int64_t num_sequences,
                bool split_sequences) {
  const SharedActivations<TensorSpec>& shared = activations.shared;
  const TensorSpec& residual_TD = activations.batch.hidden_TD;
  if (split_sequences) {
    buffers.all_gather(residual_TD, num_sequences);
    buffers.reduce_scatter(residual_TD, num_sequences);
  } else {
    buffers.all_reduce(shared.partial_TD);
    buffers.all_gather(shared.routed_out_TD, num_sequences);
  }
}

// What balances the experts of a sequence, over the ranks that share it out.
void add_balance(HostBuffers& buffers, const ActivationPlan& activations) {
  if (!has_layers(activations)) {
    return;
  }
  const LayerActivations<LayerTensor>& layer = activations.layer;
  for (const LayerTensor* sums : {&layer.counts_BE, &layer.probs_sum_BE, &layer.valid_B}) {
    buffers.all_reduce(sums->spec);
  }
}

// Gradients of the keys and values of a layer's sequences, where they are gathered: that by itself
// takes nothing, nor do the rows of the other ways.
void add_keys(HostBuffers& buffers, const CommunicatedTensors& tensors) {
  const Dims& d = tensors.dims;
  if (d.key_exchange == ContextExchange::gather && has_layers(tensors.activations)) {
    buffers.reduce_scatter({{d.T, 2 * d.local_G, d.H}, tensors.compute});
  }
}

void add_tensor(HostBuffers& buffers, const CommunicatedTensors& tensors) {
  const ActivationPlan& activations = tensors.activations;
  const bool split = tensors.dims.split_sequences;
  // An embedding of a piece of the vocabulary is a term too.
  const bool sums = has_layers(activations) ||
                    std::any_of(activations.chunks.begin(),
                                activations.chunks.end(),
                                [](const auto& chunk) { return chunk.stage.embedding; });
  if (sums) {
    add_layers(buffers, activations, tensors.dims.B, split);
  }
  if (has_head(activations)) {
    buffers.all_gather(activations.shared.vocab_stats_2C, 2);
    if (split) {
      buffers.all_gather(activations.batch.final_in_TD, tensors.dims.B);
      buffers.reduce_scatter(activations.batch.final_in_TD, tensors.dims.B);
    } else {
      buffers.all_reduce(activations.shared.partial_TD);
    }
  }
  const Range z = stat_rows(Stat::z, tensors.dims.L);
  buffers.all_reduce(z.count * kStatWidth, activations.shared.stats.dtype);
  if (tensors.sampling != nullptr) {
    if (has_layers(*tensors.sampling)) {
      add_layers(buffers, *tensors.sampling, 1, split);
    }
    if (has_head(*tensors.sampling) && tensors.sampling->shared.row_logits_V.present()) {
      buffers.all_reduce(tensors.sampling->shared.row_logits_V);
    }
  }
}

void add_gradients(HostBuffers& buffers, const CommunicatedTensors& tensors, Axis replicas) {
  const DType wide = accumulation_dtype(tensors.compute);
  for (const Segment& segment : tensors.parameters.segments) {
    if (segment.replicas != replicas || !segment.replicated()) {
      continue;
    }
    if (segment.sharded()) {
      buffers.reduce_scatter({{segment.piece.count}, wide});
    } else {
      buffers.all_reduce(segment.num_elements, wide);
    }
  }
}

std::size_t host_bytes(const PlannedGroup& group, const CommunicatedTensors& tensors) {
  HostBuffers buffers(group);
  const DType wide = accumulation_dtype(tensors.compute);
  const TensorSpec& stats = tensors.activations.shared.stats;
  if (group.name == sequence_group(tensors.dims)) {
    add_balance(buffers, tensors.activations);
    if (tensors.sampling != nullptr) {
      add_balance(buffers, *tensors.sampling);
    }
  }
  if (group.name == name_of(Axis::tensor)) {
    add_tensor(buffers, tensors);
  } else if (group.name == name_of(Axis::context)) {
    add_keys(buffers, tensors);
  } else if (group.name == kKvSharers) {
    for (const LayerRun& run : tensors.parameters.shared_kv) {
      buffers.all_reduce(run.elements.count, wide);
    }
  } else if (group.name == name_of(Axis::data_context)) {
    add_gradients(buffers, tensors, Axis::data_context);
    buffers.all_reduce(stats);
  } else if (group.name == name_of(Axis::expert_data)) {
    add_gradients(buffers, tensors, Axis::expert_data);
  } else if (group.name == name_of(Axis::stage_ranks)) {
    add_gradients(buffers, tensors, Axis::stage_ranks);
  } else if (group.name == name_of(Axis::pipeline)) {
    buffers.all_reduce(tensors.layer_norms_LW);
    buffers.all_reduce(stats);
  } else if (group.name == kTiedEmbedding) {
    for (const Segment& segment : tensors.parameters.segments) {
      if (segment.tied != Tied::no) {
        buffers.all_reduce(segment.owned.count, wide);
      }
    }
  }
  return buffers.bytes();
}

}  // namespace

std::string_view sequence_group(const Dims& dims) {
  return name_of(!dims.exchange_keys    ? Axis::tensor
                 : dims.tensor_parallel ? Axis::sequence_ranks
                                        : Axis::context);
}

namespace {

// What the groups are, but for their channels.
std::vector<PlannedGroup> groups_of(const ModelConfig& model, const Mesh& mesh, std::int64_t rank) {
  std::vector<PlannedGroup> groups;
  const auto add = [&](std::string_view name, GroupUse use, const RankGroup& ranks) {
    if (ranks.count > 1) {
      groups.push_back({.name = std::string(name),
                        .use = use,
                        .ranks = ranks,
                        .index = (rank - ranks.first) / ranks.stride,
                        .may_send_rows = use == GroupUse::rows || name == name_of(Axis::context)});
    }
  };
  const auto add_axis = [&](Axis axis, GroupUse use) {
    add(name_of(axis), use, mesh.group(axis, rank));
  };
  add_axis(Axis::tensor, GroupUse::collectives);
  add_axis(Axis::context, GroupUse::collectives);
  if (mesh.degree(Axis::tensor) > 1 && mesh.degree(Axis::context) > 1) {
    add_axis(Axis::sequence_ranks, GroupUse::numbers);
  }
  add(kKvSharers, GroupUse::collectives, kv_sharer_ranks(model, mesh, rank));
  add_axis(Axis::data_context, GroupUse::collectives);
  add_axis(Axis::expert_ranks, GroupUse::rows);
  add_axis(Axis::expert_data, GroupUse::collectives);
  add_axis(Axis::stage_ranks, GroupUse::numbers);
  add_axis(Axis::pipeline, GroupUse::numbers);

  const PipelineShape shape = pipeline_shape(mesh.parallel(), 1);
  const std::int64_t own = mesh.index(Axis::pipeline, rank);
  const auto add_pair = [&](std::int64_t a, std::int64_t b, std::string_view name) {
    if (own == a || own == b) {
      const std::int64_t first = mesh.at(Axis::pipeline, std::min(a, b), rank);
      const std::int64_t last = mesh.at(Axis::pipeline, std::max(a, b), rank);
      add(name, GroupUse::messages, {.first = first, .stride = last - first, .count = 2});
    }
  };
  for (const MessageQueue& queue : message_queues(shape)) {
    add_pair(queue.from_rank, queue.to_rank, queue_name(queue.kind));
  }
  const std::int64_t first = shape.place_of(0).rank;
  const std::int64_t last = shape.place_of(shape.num_stages() - 1).rank;
  if (model.tie_embeddings && first != last) {
    add_pair(first, last, kTiedEmbedding);
  }
  return groups;
}

struct Channels {
  std::int64_t rows;
  std::int64_t collectives;
};

// What is left of a rank's multiprocessors beside its groups that take few.
Channels share_out(const std::vector<PlannedGroup>& groups, std::int64_t num_multiprocessors) {
  const auto count = [&](GroupUse use) {
    return std::count_if(
        groups.begin(), groups.end(), [&](const PlannedGroup& group) { return group.use == use; });
  };
  const std::int64_t num_rows = count(GroupUse::rows);
  const std::int64_t num_collectives = count(GroupUse::collectives);
  const std::int64_t num_few =
      static_cast<std::int64_t>(groups.size()) - num_rows - num_collectives;
  const std::int64_t left = num_multiprocessors - num_few * kFewChannels;
  const auto beside = [&](std::int64_t rows) {
    return num_collectives == 0
               ? kMostChannels
               : std::min(kMostChannels, (left - rows * num_rows) / num_collectives);
  };
  std::int64_t rows = kMostChannels;
  while (rows > 1 && (beside(rows) < rows / 2 || rows * num_rows > left)) {
    rows /= 2;
  }
  return {.rows = rows, .collectives = std::max<std::int64_t>(1, beside(rows))};
}

}  // namespace

std::vector<PlannedGroup> planned_groups(const ModelConfig& model,
                                         const Mesh& mesh,
                                         std::int64_t rank,
                                         std::int64_t num_multiprocessors) {
  // All members of a group take the same, and ranks at other places of the pipeline have more
  // messages or fewer.
  Channels least = {.rows = kMostChannels, .collectives = kMostChannels};
  for (std::int64_t place = 0; place < mesh.degree(Axis::pipeline); ++place) {
    const Channels there = share_out(groups_of(model, mesh, mesh.at(Axis::pipeline, place, rank)),
                                     num_multiprocessors);
    least = {.rows = std::min(least.rows, there.rows),
             .collectives = std::min(least.collectives, there.collectives)};
  }
  std::vector<PlannedGroup> groups = groups_of(model, mesh, rank);
  const bool is_pipeline = mesh.degree(Axis::pipeline) > 1;
  for (PlannedGroup& group : groups) {
    group.is_connected_ahead = is_pipeline;
    group.num_channels = group.use == GroupUse::rows          ? least.rows
                         : group.use == GroupUse::collectives ? least.collectives
                                                              : kFewChannels;
    if (group.may_send_rows) {
      group.num_channels =
          static_cast<std::int64_t>(std::bit_floor(static_cast<std::uint64_t>(group.num_channels)));
    }
  }
  return groups;
}

bool lies_on_one_machine(const RankGroup& group) {
  return machine_of(group.first) == machine_of(group.first + (group.count - 1) * group.stride);
}

std::size_t nccl_bytes(const PlannedGroup& group) {
  const std::int64_t num_others = group.ranks.count - 1;
  const std::int64_t near = others_of_machine(group);
  const std::int64_t far = num_others - near;
  constexpr std::size_t kNearBytes = NcclMemory::receive_bytes + NcclMemory::send_bytes;
  constexpr std::size_t kFarBytes = NcclMemory::receive_bytes + NcclMemory::network_send_bytes;
  const std::int64_t neighbours = std::min<std::int64_t>(num_others, 2);
  const std::size_t of_ring = static_cast<std::size_t>(group.num_channels * neighbours) *
                              (far > 0 ? kFarBytes : kNearBytes);
  if (group.use != GroupUse::rows) {
    return of_ring;
  }
  // Ranks of several machines have as many channels a peer as serve all peers in one round of as
  // many as a kernel takes, 8.
  constexpr std::int64_t kPeersOfRound = 8;
  std::int64_t channels = group.num_channels;
  const std::int64_t rounds = (group.ranks.count + kPeersOfRound - 1) / kPeersOfRound;
  while (channels > 1 && channels * rounds > group.num_channels) {
    channels /= 2;
  }
  const std::size_t shared = far > 0 ? 2 * static_cast<std::size_t>(group.num_channels) *
                                           NcclMemory::shared_bytes_of_channel
                                     : 0;
  return static_cast<std::size_t>(channels * near) * kNearBytes + shared +
         (group.is_connected_ahead ? of_ring : 0);
}

std::size_t CommunicationPlan::bytes() const {
  std::size_t total = 0;
  for (const Group& each : groups) {
    total += each.bytes;
  }
  return total;
}

CommunicationPlan plan_communication(const ModelConfig& model,
                                     const Mesh& mesh,
                                     std::int64_t rank,
                                     Device device,
                                     const CommunicatedTensors& tensors) {
  CommunicationPlan plan;
  for (PlannedGroup& group : planned_groups(model, mesh, rank)) {
    std::size_t bytes = device == Device::cuda ? nccl_bytes(group) : host_bytes(group, tensors);
    if (device == Device::cuda && group.name == name_of(Axis::context) &&
        tensors.dims.key_exchange != ContextExchange::gather) {
      PlannedGroup of_rows = group;
      of_rows.use = GroupUse::rows;
      of_rows.is_connected_ahead = false;  // its ring is counted
      bytes += nccl_bytes(of_rows);
    }
    plan.groups.push_back({.group = std::move(group), .bytes = bytes});
  }
  return plan;
}

std::string describe(const CommunicationPlan& plan) {
  std::vector<std::string> words;
  for (const CommunicationPlan::Group& each : plan.groups) {
    words.push_back(fmt::format(
        "{} of {} ranks {}", each.group.name, each.group.ranks.count, human_bytes(each.bytes)));
  }
  return words.empty() ? "nothing" : fmt::format("{}", fmt::join(words, ", "));
}

}  // namespace memphis
