// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

#include "csrc/comm/activity.h"
#include "csrc/core/error.h"
#include "csrc/core/tensor.h"

// What ranks say to each other. `plan` decides who is in a group, a Communicator moves, the model
// calls; a group of one moves nothing, so nobody asks how many ranks there are.
namespace memphis {

// A rank died, stopped answering (ExitCode::hang), or does not do what the others do.
class CommunicationError : public Error {
 public:
  explicit CommunicationError(const std::string& message, ExitCode code = ExitCode::rank_lost)
      : Error(code, message) {}
};

enum class Reduce : std::uint8_t { sum, max };

// The collectives. `n` is the number of ranks of the group. Tensors are contiguous, lie on the
// stream's device and agree in dtype: f64, f32, bf16, i64 or i32. Any count, zero too.

// y = the reduction of all ranks' x, on every rank. y may be x.
struct AllReduce {
  TensorView y;
  TensorView x;
  Reduce reduce = Reduce::sum;
};

// x is [num_blocks, m] on every rank; y is [num_blocks, n, m]: block by block the ranks' pieces, in
// the order of ranks. With a sequence a block, sequences that were split over ranks are whole
// again. x may be its piece of y where num_blocks is 1.
struct AllGather {
  TensorView y;
  TensorView x;
  std::int64_t num_blocks = 1;
};

// Its transpose: x is [num_blocks, n, m], y is [num_blocks, m], the sum over ranks of piece `rank`.
// y may be x where num_blocks is 1 and y is its piece.
struct ReduceScatter {
  TensorView y;
  TensorView x;
  std::int64_t num_blocks = 1;
};

// Rows of x, sorted by the rank that they go to: send_rows[r] of them to rank r. Rows of y, sorted
// by the rank that they come from: recv_rows[r] of them from rank r. A row is what follows the
// first dim; y and x may hold more rows than that. The spans are read before start() returns.
struct AllToAll {
  TensorView y;
  TensorView x;
  std::span<const std::int64_t> send_rows;
  std::span<const std::int64_t> recv_rows;
};

// x of rank `root`, on every rank.
struct Broadcast {
  TensorView x;
  int root = 0;
};

// Several sums in one call, whatever their sizes and dtypes: on the host to the bits that one after
// the other has. On GPUs they are one launch, whose order of terms is NCCL's own. The span is read
// before start() returns.
using Sum = std::variant<AllReduce, ReduceScatter>;
struct Sums {
  std::span<const Sum> parts;
};

using Collective = std::variant<AllReduce, AllGather, ReduceScatter, AllToAll, Broadcast, Sums>;

// A group of ranks along one axis of the mesh.
//
// Calls       every rank of the group makes the same calls in the same order. One thread at a time
//             calls a communicator.
// Accumulate  sums in f32 for bf16, else in the dtype; one rounding, at the store. NCCL adds bf16
//             in bf16: each of the n - 1 additions rounds, but for those in NVLink's switch (NVLS),
//             which adds in f32. That meets activations and their gradients, summed over tensor
//             ranks; gradients of weights are f32, in whose sums n - 1 roundings are of f32.
// Order       sums run in the order of ranks: the same bits on every rank, in every run, and for
//             groups of threads and of processes alike. NCCL promises the same bits for the same
//             topology only.
// Async       start() returns once the collective is enqueued behind what lies on `stream`; Work
//             says when it is done. Operands must outlive it, and are nobody else's until then. On
//             the GPU a collective has a stream of its own, and the first one of its kind returns
//             only when all ranks have come: in these, ranks that are in several groups come to
//             all of them in one order. In the others they need not, as long as the kernels of
//             all groups of a rank fit on its GPU side by side (`num_channels` of create_group).
// Errors      ContractError on shapes and dtypes; CommunicationError, naming the axis, the rank and
//             the collective, when a member is lost or does not arrive. On the GPU it is thrown by
//             a later call, or by who waits for the GPU; sizes that differ between ranks are not
//             found there.
class Communicator {
 public:
  // A collective under way. Its destructor waits for it too, and must come before the
  // communicator's.
  class Work {
   public:
    virtual ~Work() = default;
    // What follows on `stream` sees the result. The CPU waits here; on the GPU the stream does.
    virtual void wait(Stream stream) = 0;
  };

  virtual ~Communicator() = default;
  Communicator() = default;
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  virtual int rank() const = 0;  // in the group
  virtual int size() const = 0;

  // `name` says what for ("moe.dispatch"): the log, the watchdog and the trace show it. It is a
  // literal, or outlives the work.
  virtual std::unique_ptr<Work> start(const Collective& collective,
                                      std::string_view name,
                                      Stream stream) = 0;

  // The same, done (on the CPU) or enqueued on `stream` (on the GPU) when it returns. Does not
  // allocate on the host for a group of one.
  virtual void run(const Collective& collective, std::string_view name, Stream stream) = 0;
};

// Multiprocessors that a collective's kernel takes on a GPU, at most, where nothing else is asked
// for. Each is a channel, with buffers of its own.
constexpr int kCollectiveChannels = 32;

// All ranks of the job, and where groups of them come from.
class World {
 public:
  virtual ~World() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual int local_rank() const = 0;  // among those of this machine

  // What this rank does, which its groups and whoever drives it write down.
  virtual Activity& activity() = 0;

  // The group of `ranks`, ascending, this rank among them, for operands on `device`. Every member
  // calls, and members of several groups create them in the same order. `axis` names it in
  // messages. On a GPU its kernels take as many multiprocessors as `num_channels` at most, the same
  // on all members.
  virtual std::unique_ptr<Communicator> create_group(std::string axis,
                                                     std::span<const int> ranks,
                                                     Device device,
                                                     int num_channels) = 0;
  std::unique_ptr<Communicator> create_group(std::string axis,
                                             std::span<const int> ranks,
                                             Device device) {
    return create_group(std::move(axis), ranks, device, kCollectiveChannels);
  }

  // Ends the job on every rank: this one cannot go on, for `reason`, which is printed once for the
  // job, with where this rank is. May return; what others wait for then fails.
  virtual void abort(ExitCode code, std::string_view reason) noexcept = 0;

  // Every rank has come to the end: returns once all that this one hears from have, and groups are
  // gone. A world that is not closed is taken to have failed.
  virtual void close() = 0;
};

}  // namespace memphis
