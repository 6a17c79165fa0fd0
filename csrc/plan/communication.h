// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "csrc/config/config.h"
#include "csrc/core/device.h"
#include "csrc/plan/activations.h"
#include "csrc/plan/dims.h"
#include "csrc/plan/mesh.h"
#include "csrc/plan/parameters.h"
#include "csrc/plan/schedule_messages.h"

// The groups that a rank talks in about what lies on its device, and the memory that their
// communicators take there for themselves.
namespace memphis {

// What a group does, which decides how much memory its communicator takes.
//   collectives  sums and gathers tensors, with its neighbours in a ring or a tree
//   rows         sends rows from every rank to every rank
//   numbers      the same as collectives, of a few numbers
//   messages     between two ranks
enum class GroupUse : std::uint8_t { collectives, rows, numbers, messages };

// Names of groups that are no axis's.
inline constexpr const char* kKvSharers = "kv_sharers";
inline constexpr const char* kTiedEmbedding = "tied_embedding";
constexpr const char* queue_name(MessageKind kind) {
  return kind == MessageKind::activation ? "pipeline_activations" : "pipeline_gradients";
}

struct PlannedGroup {
  std::string name;  // as Groups calls it
  GroupUse use = GroupUse::collectives;
  RankGroup ranks;
  std::int64_t index = 0;           // of this rank among them
  std::int64_t num_channels = 0;    // multiprocessors that its kernels take, at most
  bool may_send_rows = false;       // of `rows`, or beside what else it does
  bool is_connected_ahead = false;  // for all that it could be asked, as in a pipeline
};

// The one that Groups::sequence_ranks() is: who shares a sequence out, along context, tensor or
// both.
std::string_view sequence_group(const Dims& dims);

// Of an H100 and an H200.
constexpr std::int64_t kMultiprocessors = 132;

// Those of more than one rank that `rank` makes, in the order in which it makes them. One of a rank
// alone takes nothing. Their channels are `num_multiprocessors` together at most, on every rank: as
// each group has a kernel on the GPU at a time, all of them run, and ranks may start them in any
// order. Numbers and messages have kFewChannels, the others kMostChannels, which NCCL takes by
// itself on 8 H100 (NVIDIA/nccl issue 1685), or as many as are left. Those of groups that send rows
// are a power of two, to which NCCL rounds them up (paths.cc, ncclTopoComputeP2pChannels), and at
// most twice as many as others have. Where one each is too many, the sum is larger all the same.
constexpr std::int64_t kFewChannels = 2;
constexpr std::int64_t kMostChannels = 32;
std::vector<PlannedGroup> planned_groups(const ModelConfig& model,
                                         const Mesh& mesh,
                                         std::int64_t rank,
                                         std::int64_t num_multiprocessors = kMultiprocessors);

// What NCCL takes on a GPU, as its documentation and its sources say (2.28: init.cc for the
// sizes, transport/p2p.cc and transport/net.cc for who allocates them); nothing of this is measured
// here. A communicator has channels, one for each multiprocessor that its kernels run on, and each
// channel has buffers for each peer that it is connected with, in both directions:
//
//   receiving  one buffer for each of three protocols: LL 512 KiB, LL128 4,800 KiB and Simple
//              4 MiB (NCCL_BUFFSIZE), which are 10 MiB in the steps of 2 MiB that memory to be
//              shared is given out in
//   sending    to a GPU of the same machine 2 MiB, over the network LL128 and Simple: 10 MiB
//
// Peers are the two neighbours of a ring, which are those of a tree in a machine; where rows go
// from all to all, every rank. Those of other machines share one buffer a direction then, of 16
// chunks of 128 KiB a channel. On 8 H100, NVIDIA/nccl issue 1685 reports 32 channels a peer and
// buffers of 10 and 2 MiB, and 3.28 GB taken by the first exchange of rows, for which this is 2.82
// GB.
//
// All connections are counted that may be made; NCCL makes those of an algorithm when it is first
// used, and in a pipeline when the group is created: there a group that sends rows has its ring too.
// Buffers of the switch's own sums (NVLS) and
// the few MiB of a communicator's tables are not counted.
struct NcclMemory {
  static constexpr std::size_t receive_bytes = std::size_t{10} << 20;
  static constexpr std::size_t send_bytes = std::size_t{2} << 20;
  static constexpr std::size_t network_send_bytes = std::size_t{10} << 20;
  static constexpr std::size_t shared_bytes_of_channel = std::size_t{2} << 20;

  // GPUs that NVLink connects, of an HGX H100.
  static constexpr std::int64_t gpus_of_machine = 8;
};
// Whether NVLink connects them, where neighbouring ranks fill machine after machine.
bool lies_on_one_machine(const RankGroup& group);
// Of one group's communicator.
std::size_t nccl_bytes(const PlannedGroup& group);

struct CommunicationPlan {
  struct Group {
    PlannedGroup group;
    std::size_t bytes = 0;  // of its communicator
  };
  std::vector<Group> groups;

  std::size_t bytes() const;
};

// What the tensors are that a rank's groups sum and gather.
struct CommunicatedTensors {
  const Dims& dims;
  const ActivationPlan& activations;
  const ParameterPlan& parameters;
  const TensorSpec& layer_norms_LW;          // NormScratch's
  const ActivationPlan* sampling = nullptr;  // of the model that writes samples, if there is one
  DType compute = DType::f32;
};

// On Device::cuda of NCCL's communicators. On the CPU what HostCommunicator keeps between its
// collectives: the terms of a sum, the sum, and blocks that are put in another order; groups of
// host memory beside those of the device sum a few numbers and are not counted, nor is what an MPI
// keeps.
CommunicationPlan plan_communication(const ModelConfig& model,
                                     const Mesh& mesh,
                                     std::int64_t rank,
                                     Device device,
                                     const CommunicatedTensors& tensors);

// "tensor of 4 ranks 768.00 MiB, expert_ranks of 8 ranks 2.62 GiB"; "nothing".
std::string describe(const CommunicationPlan& plan);

}  // namespace memphis
