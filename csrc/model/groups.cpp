// SPDX-License-Identifier: Apache-2.0
#include "csrc/model/groups.h"

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "csrc/comm/nccl.h"
#include "csrc/comm/solo.h"
#include "csrc/core/arena.h"
#include "csrc/core/error.h"
#include "csrc/plan/communication.h"
#include "csrc/plan/dims.h"
#include "csrc/plan/schedule_messages.h"

namespace memphis {

namespace {

// The plan does not see csrc/comm.
static_assert(kMostChannels == kCollectiveChannels);

// Of the smallest GPU of all ranks, but no more than the memory plan counts on.
std::int64_t num_multiprocessors(Device device, Communicator& all_host) {
  std::int64_t own = kMultiprocessors;
  if (device == Device::cuda && !device_info(device).simulated) {
    own = std::min<std::int64_t>(device_info(device).num_multiprocessors, own);
  }
  std::int64_t negative = -own;
  const TensorView least(&negative, TensorSpec({1}, DType::i64), Device::cpu);
  all_host.run(AllReduce{.y = least, .x = least, .reduce = Reduce::max}, "groups.size", {});
  return -negative;
}

// The first collective of a kind returns only when its ranks have come: here, where they come to
// all groups in one order, and not in a step, where a receive is started before there is a sender.
// NCCL takes memory of the device and of the host for it, too, which may wait for all that is on
// the GPU.
void connect(Communicator& pair) {
  const OwnedStream stream(Device::cuda);
  Arena arena("connecting", kArenaAlignment, Device::cuda);
  pair.run(Broadcast{.x = arena.allocate({{1}, DType::f32})}, "groups.connecting", stream.view());
  synchronize(stream.view());
}

// From each rank to each.
void connect_rows(Communicator& group) {
  const std::vector<std::int64_t> rows(static_cast<std::size_t>(group.size()), 1);
  const OwnedStream stream(Device::cuda);
  const TensorSpec spec({group.size(), 1}, DType::f32);
  Arena arena("connecting", 2 * arena_bytes(spec), Device::cuda);
  group.run(AllToAll{.y = arena.allocate(spec),
                     .x = arena.allocate(spec),
                     .send_rows = rows,
                     .recv_rows = rows},
            "groups.connecting",
            stream.view());
  synchronize(stream.view());
}

}  // namespace

Groups::Groups(World& world,
               const Mesh& mesh,
               const ModelConfig& model,
               Device device,
               std::unique_ptr<Communicator> all_host)
    : activity_(&world.activity()), all_host_(std::move(all_host)) {
  require(mesh.num_ranks() == world.size(), "the mesh folds the ranks of the job");
  const std::int64_t multiprocessors = num_multiprocessors(device, *all_host_);
  const std::vector<PlannedGroup> planned =
      planned_groups(model, mesh, world.rank(), multiprocessors);
  const bool has_messages = std::any_of(planned.begin(), planned.end(), [](const auto& group) {
    return group.use == GroupUse::messages;
  });
  if (device == Device::cuda) {
    std::int64_t num_channels = 0;
    for (const PlannedGroup& group : planned) {
      num_channels += group.num_channels;
    }
    prepare_nccl({.num_groups = static_cast<std::int64_t>(planned.size()),
                  .num_channels = num_channels,
                  .has_messages = has_messages,
                  .num_multiprocessors = multiprocessors});
  }
  // One of a rank alone is not planned, and takes none.
  const auto channels_of = [&](std::string_view name) {
    const auto found = std::find_if(planned.begin(), planned.end(), [&](const PlannedGroup& group) {
      return group.name == name;
    });
    return found == planned.end() ? 1 : static_cast<int>(found->num_channels);
  };
  const auto create = [&](Axis axis, Device where, const char* suffix = "") {
    return world.create_group(std::string(name_of(axis)) + suffix,
                              mesh.group(axis, world.rank()).ranks(),
                              where,
                              channels_of(name_of(axis)));
  };
  tensor_ = create(Axis::tensor, device);
  context_ = create(Axis::context, device);
  if (mesh.degree(Axis::tensor) > 1 && mesh.degree(Axis::context) > 1) {
    sequence_ranks_ = create(Axis::sequence_ranks, device);
  }
  kv_sharers_ = world.create_group(kKvSharers,
                                   kv_sharer_ranks(model, mesh, world.rank()).ranks(),
                                   device,
                                   channels_of(kKvSharers));
  data_context_ = create(Axis::data_context, device);
  expert_ranks_ = create(Axis::expert_ranks, device);
  expert_data_ = create(Axis::expert_data, device);
  stage_ranks_ = create(Axis::stage_ranks, device);
  pipeline_ = create(Axis::pipeline, device);
  const PipelineShape shape = pipeline_shape(mesh.parallel(), 1);
  // Of two ranks along the pipeline; all ranks come to these in one order, so that none waits for
  // another that waits for it.
  const auto create_pair = [&](std::int64_t a, std::int64_t b, const char* name) {
    const std::int64_t own = mesh.index(Axis::pipeline, world.rank());
    if (own != a && own != b) {
      return std::unique_ptr<Communicator>();
    }
    std::vector<int> ranks;
    for (const std::int64_t place : {std::min(a, b), std::max(a, b)}) {
      ranks.push_back(static_cast<int>(mesh.at(Axis::pipeline, place, world.rank())));
    }
    return world.create_group(name, ranks, device, channels_of(name));
  };
  for (const MessageQueue& queue : message_queues(shape)) {
    queues_.push_back(create_pair(queue.from_rank, queue.to_rank, queue_name(queue.kind)));
    if (queues_.back() && device == Device::cuda) {
      connect(*queues_.back());
      if (queue.to_rank == mesh.index(Axis::pipeline, world.rank())) {
        receiving_multiprocessors_ += channels_of(queue_name(queue.kind));
      }
    }
  }
  const std::int64_t first = shape.place_of(0).rank;
  const std::int64_t last = shape.place_of(shape.num_stages() - 1).rank;
  if (model.tie_embeddings && first != last) {
    tied_ = create_pair(first, last, kTiedEmbedding);
  }
  if (!tied_) {
    tied_ = make_solo(device);
  }
  connects_ahead_ = device == Device::cuda && has_messages;
  if (connects_ahead_ && expert_ranks_->size() > 1) {
    connect_rows(*expert_ranks_);
  }
  // Names of their own: what two groups move at one time lies on two tracks of the trace.
  data_context_host_ = create(Axis::data_context, Device::cpu, "_host");
}

Groups::Groups(Device device)
    : own_activity_(std::make_unique<Activity>()),
      activity_(own_activity_.get()),
      tensor_(make_solo(device)),
      context_(make_solo(device)),
      kv_sharers_(make_solo(device)),
      data_context_(make_solo(device)),
      expert_ranks_(make_solo(device)),
      expert_data_(make_solo(device)),
      stage_ranks_(make_solo(device)),
      pipeline_(make_solo(device)),
      tied_(make_solo(device)),
      data_context_host_(make_solo(Device::cpu)),
      all_host_(make_solo(Device::cpu)) {}

void Groups::connect_context() {
  if (connects_ahead_ && context_->size() > 1) {
    connect_rows(*context_);
  }
}

Communicator& Groups::sequence_ranks() const {
  return sequence_ranks_ ? *sequence_ranks_ : context_->size() > 1 ? *context_ : *tensor_;
}

Communicator& Groups::replicas(Axis axis) const {
  switch (axis) {
    case Axis::data_context:
      return data_context();
    case Axis::expert_data:
      return expert_data();
    case Axis::stage_ranks:
      return stage_ranks();
    default:
      throw ContractError("no segment of parameters is replicated along " +
                          std::string(name_of(axis)));
  }
}

}  // namespace memphis
