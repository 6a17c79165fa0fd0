// SPDX-License-Identifier: Apache-2.0
#include "csrc/comm/nccl.h"

#include <algorithm>
#include <bit>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <deque>
#include <exception>
#include <mutex>
#include <utility>
#include <vector>

#include <spdlog/fmt/fmt.h>

#include "csrc/comm/check.h"
#include "csrc/comm/nccl_check.h"
#include "csrc/comm/nccl_warnings.h"
#include "csrc/comm/nccl_watch.h"
#include "csrc/core/dtype.h"
#include "csrc/core/log.h"
#include "csrc/core/pause.h"

namespace memphis {
namespace {

using Clock = std::chrono::steady_clock;

// How long ranks may take to connect. On 96 Ki GPUs 265 s were measured (Meta's NCCLX); the first
// term is for the network's own timeouts.
std::chrono::milliseconds connect_limit(int size) {
  return std::chrono::seconds(120) + std::chrono::milliseconds(10) * size;
}

// How long the ranks may take to part, once all have done what they were asked.
constexpr std::chrono::seconds kPartLimit{30};

// NCCL has a block for each so many bytes of a collective at least (MinTrafficPerChannel in
// enqueue.cc of 2.28).
constexpr std::size_t kLeastBytesOfChannel = std::size_t{32} << 10;

// Most of what NCCL does in the background takes less than so many.
constexpr int kNumYields = 1000;
constexpr std::chrono::microseconds kLongestSleep{50};

bool is_error(ncclResult_t status) {
  return status != ncclSuccess && status != ncclInProgress;
}

ncclDataType_t nccl_type(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return ncclFloat64;
    case DType::f32:
      return ncclFloat32;
    case DType::bf16:
      return ncclBfloat16;
    case DType::i64:
      return ncclInt64;
    default:
      return ncclInt32;  // check_collective lets no other through
  }
}

std::byte* bytes_of(const TensorView& view) {
  return static_cast<std::byte*>(view.data);
}

class NcclCommunicator final : public Communicator, public NcclWatch::Member {
 public:
  // Ids are those of ncclGetUniqueId, the same on all ranks.
  NcclCommunicator(std::string axis,
                   int rank,
                   int size,
                   std::vector<ncclUniqueId> ids,
                   Activity& activity,
                   int num_channels)
      : axis_(std::move(axis)),
        track_(axis_ + " on the gpu"),
        rank_(rank),
        size_(size),
        num_channels_(num_channels),
        activity_(activity),
        stream_(Device::cuda, StreamPriority::highest),
        ready_(Device::cuda, Event::Use::ordering) {
    constexpr std::size_t kNameBytes = 64;
    name_.reserve(kNameBytes);
    const std::lock_guard lock(NcclWatch::instance().mutex());
    try {
      connect(ids);
    } catch (...) {
      if (comm_ != nullptr) {
        (void)ncclCommAbort(comm_);
      }
      throw;
    }
    NcclWatch::instance().add(*this);
  }

  ~NcclCommunicator() override {
    const std::lock_guard lock(NcclWatch::instance().mutex());
    if (std::uncaught_exceptions() > num_exceptions_) {
      NcclWatch::instance().give_up_locked("this rank failed");  // this one too
    }
    NcclWatch::instance().remove(*this);
    part();
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }

  std::unique_ptr<Work> start(const Collective& collective,
                              std::string_view name,
                              Stream stream) override {
    auto work = std::make_unique<StartedWork>(*this, name);
    work->set_started(enqueue(collective, name, stream));
    hold(multiprocessors_of(collective), stream);
    return work;
  }

  void run(const Collective& collective, std::string_view name, Stream stream) override {
    make_wait(enqueue(collective, name, stream), name, stream);
  }

  const EnqueuedCollective* oldest() override {
    while (num_done_ < pending_.size() && pending_[num_done_].done.is_done()) {
      ++num_done_;
    }
    return num_done_ < pending_.size() ? &pending_[num_done_] : nullptr;
  }

  void stand_in(const EnqueuedCollective& collective) const override {
    activity_.stand_on_gpu(axis_, collective.name);
  }
  void stand_no_more() const override { activity_.stand_no_more(); }

  void check() const override {
    require_living(name_);
    if (const ncclResult_t status = state(); is_error(status)) {
      throw CommunicationError(
          fmt::format("{}: {} (NCCL found it in the background); see what "
                      "the other ranks say",
                      place(name_),
                      nccl_error_text(status)));
    }
  }

  void abort() noexcept override {
    if (comm_ != nullptr) {
      (void)ncclCommAbort(std::exchange(comm_, nullptr));
    }
  }

 private:
  class StartedWork final : public Work {
   public:
    StartedWork(NcclCommunicator& owner, std::string_view name) : owner_(owner), name_(name) {}

    // Operands may go once their work has gone. Where an exception unwinds this rank, the others
    // may never come.
    ~StartedWork() override {
      if (!started_ || waited_) {
        return;
      }
      owner_.let_go();
      if (std::uncaught_exceptions() > num_exceptions_) {
        NcclWatch::instance().give_up();
      } else {
        wait_on_host();
      }
    }

    void wait(Stream stream) override {
      owner_.make_wait(number_, name_, stream);
      if (!std::exchange(waited_, true)) {
        owner_.let_go();
      }
    }

    void set_started(std::uint64_t number) {
      number_ = number;
      started_ = true;
    }

   private:
    void wait_on_host() noexcept {
      try {
        if (const EnqueuedCollective* collective = owner_.find(number_)) {
          collective->done.wait();
        }
      } catch (const std::exception& error) {
        log_error("{}", error.what());  // the next call throws of it
      }
    }

    NcclCommunicator& owner_;
    std::string_view name_;
    std::uint64_t number_ = 0;
    bool started_ = false;
    bool waited_ = false;
    int num_exceptions_ = std::uncaught_exceptions();
  };

  // For as long as this rank waits for NCCL to reach the others.
  class Standing {
   public:
    explicit Standing(const NcclCommunicator& owner) : activity_(owner.activity_) {
      activity_.stand_on_gpu(owner.axis_, owner.name_);
    }
    ~Standing() { activity_.stand_no_more(); }
    Standing(const Standing&) = delete;
    Standing& operator=(const Standing&) = delete;

   private:
    Activity& activity_;
  };

  std::string place(std::string_view name) const {
    return fmt::format("{} ({} rank {} of {})", name, axis_, rank_, size_);
  }

  void require_living(std::string_view name) const {
    if (comm_ == nullptr) {
      throw CommunicationError(fmt::format("{} was given up ({}); see what failed first",
                                           place(name),
                                           NcclWatch::instance().reason()));
    }
  }

  ncclResult_t state() const {
    ncclResult_t status = ncclSuccess;
    const ncclResult_t call = ncclCommGetAsyncError(comm_, &status);
    return call == ncclSuccess ? status : call;
  }

  // Returns when what was called is no longer in progress, or at `limit`; throws its error.
  ncclResult_t settle(Clock::time_point limit, const char* call) {
    Pause pause(kNumYields, kLongestSleep);
    ncclResult_t status = state();
    while (status == ncclInProgress && Clock::now() < limit) {
      NcclWatch::instance().check_locked(this);
      pause();
      status = state();
    }
    nccl_check(status, call);
    return status;
  }

  void connect(std::vector<ncclUniqueId>& ids) {
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;  // only so can a communicator be aborted whatever it does
    config.commName = axis_.c_str();
    config.maxCTAs = num_channels_;
    // By itself NCCL launches clusters of four blocks, which begin when one part of the GPU has four
    // multiprocessors free: that kernels of all groups fit side by side would not be enough.
    config.cgaClusterSize = 1;
    const char* const call = "ncclCommInitRankScalable";
    const std::chrono::milliseconds limit = connect_limit(size_);
    ncclResult_t status = ncclInProgress;
    try {
      nccl_check(ncclCommInitRankScalable(
                     &comm_, size_, rank_, static_cast<int>(ids.size()), ids.data(), &config),
                 call);
      status = settle(Clock::now() + limit, call);
    } catch (const CommunicationError& error) {
      throw CommunicationError(fmt::format("{}: {}", place("connecting"), error.what()));
    }
    log_nccl_warnings();
    if (status == ncclInProgress) {
      throw CommunicationError(
          fmt::format("{}: nothing after {} s (a rank did not come, or is not reached over the "
                      "network); see what the other ranks say, and which network NCCL takes with "
                      "NCCL_DEBUG=INFO (NCCL_SOCKET_IFNAME names another)",
                      place("connecting"),
                      std::chrono::duration_cast<std::chrono::seconds>(limit).count()));
    }
  }

  // Ends this rank's part, together with the others if all is well.
  void part() noexcept {
    if (comm_ == nullptr) {
      return;
    }
    try {
      MEMPHIS_NCCL(ncclCommFinalize(comm_));
      if (settle(Clock::now() + kPartLimit, "ncclCommFinalize") == ncclSuccess) {
        (void)ncclCommDestroy(std::exchange(comm_, nullptr));
        return;
      }
      log_warning("{}: the other ranks did not within {} s (one has ended before); nothing is lost",
                  place("parting"),
                  kPartLimit.count());
    } catch (const std::exception& error) {
      try {
        log_warning("{}: {}", place("parting"), error.what());
      } catch (...) {
        // It parts all the same.
      }
    }
    abort();
  }

  // At most. A message holds those of its receiver, which may wait for it: whoever sends finds the
  // receiver there.
  std::int64_t multiprocessors_of(const Collective& collective) const {
    const auto* const message = std::get_if<Broadcast>(&collective);
    const std::size_t bytes = payload_bytes(collective);
    if (bytes == 0 || (message != nullptr && message->root == rank_)) {
      return 0;
    }
    return std::min<std::int64_t>(static_cast<std::int64_t>((bytes - 1) / kLeastBytesOfChannel) + 1,
                                  num_channels_);
  }

  // Those of the largest collective that was started and is not waited for: one comes after the
  // other. What is put on `stream` meanwhile is told.
  void hold(std::int64_t multiprocessors, Stream stream) {
    if (num_started_++ == 0) {
      held_of_ = stream.held_elsewhere;
    }
    const std::int64_t more = std::max(multiprocessors - num_held_, std::int64_t{0});
    num_held_ += more;
    if (held_of_ != nullptr) {
      *held_of_ += more;
    }
  }
  void let_go() {
    if (--num_started_ > 0) {
      return;
    }
    if (held_of_ != nullptr) {
      *held_of_ -= num_held_;
    }
    num_held_ = 0;
  }

  // Null once it was seen to be done.
  const EnqueuedCollective* find(std::uint64_t number) const {
    const auto found = std::lower_bound(pending_.begin(),
                                        pending_.end(),
                                        number,
                                        [](const EnqueuedCollective& collective, std::uint64_t n) {
                                          return collective.number < n;
                                        });
    return found != pending_.end() && found->number == number ? &*found : nullptr;
  }

  void make_wait(std::uint64_t number, std::string_view name, Stream stream) {
    const EnqueuedCollective* const collective = find(number);
    if (collective == nullptr) {
      return;
    }
    StreamSpans* const spans = activity_.gpu_spans();
    if (spans == nullptr) {
      collective->done.make_wait(stream);
      return;
    }
    const std::size_t span = spans->begin(
        {.kind = StreamSpans::Kind::waiting, .track = "gpu waiting", .name = name}, stream);
    collective->done.make_wait(stream);
    spans->end(span, stream);
  }

  // Room for one more, that of one which is done if there is any.
  EnqueuedCollective make_room() {
    (void)oldest();  // counts those that are done
    if (num_done_ > 0) {
      EnqueuedCollective first = std::move(pending_.front());
      pending_.pop_front();
      --num_done_;
      return first;
    }
    return {};
  }

  // Behind what lies on `stream`. Returns its number.
  std::uint64_t enqueue(const Collective& collective, std::string_view name, Stream stream) {
    require(stream.device == Device::cuda, "a group serves the device that it was made for");
    check_collective(collective, name, axis_, rank_, size_, stream);
    // Not under the lock, which a watched wait takes: the simulated device has the host wait here
    // for what is pending on `stream`.
    ready_.record(stream);
    ready_.make_wait(stream_.view());
    const std::lock_guard lock(NcclWatch::instance().mutex());
    require_living(name);
    NcclWatch::instance().check_locked();
    name_.assign(name);
    activity_.note_enqueued(axis_, name);
    activity_.log_call(
        {.axis = axis_, .name = name}, role_in(collective, rank_), payload_bytes(collective));
    StreamSpans* const spans = activity_.gpu_spans();
    std::size_t span = 0;
    if (spans != nullptr) {
      span =
          spans->begin({.kind = StreamSpans::Kind::transfer, .track = track_.c_str(), .name = name},
                       stream_.view());
    }
    EnqueuedCollective enqueued = make_room();
    enqueued.number = NcclWatch::instance().next_number();
    enqueued.name = name;
    enqueued.begun.record(stream_.view());
    try {
      std::visit([&](const auto& op) { issue(op); }, collective);
    } catch (const CommunicationError& error) {
      NcclWatch::instance().give_up_locked(error.what());
      throw CommunicationError(fmt::format("{}: {}", place(name), error.what()));
    }
    enqueued.done.record(stream_.view());
    if (spans != nullptr) {
      spans->end(span, stream_.view());
    }
    return pending_.emplace_back(std::move(enqueued)).number;
  }

  // Makes `calls` as one, and returns when the GPU has them all: before that, nothing else may be
  // put on the stream.
  template <class Calls>
  void group(const Calls& calls) {
    MEMPHIS_NCCL(ncclGroupStart());
    try {
      calls();
    } catch (...) {
      (void)ncclGroupEnd();
      throw;
    }
    MEMPHIS_NCCL(ncclGroupEnd());
    // The first collective of a kind connects the ranks, and so waits for them. How long is for
    // who watches collectives to say.
    if (state() == ncclInProgress) {
      const Standing standing(*this);
      settle(Clock::time_point::max(), "ncclGroupEnd");
    } else {
      settle(Clock::now(), "ncclGroupEnd");
    }
  }

  cudaStream_t cuda_stream() const { return static_cast<cudaStream_t>(stream_.view().handle); }

  // Of a group.
  void call(const AllReduce& op) {
    if (op.x.num_elements() > 0) {
      MEMPHIS_NCCL(ncclAllReduce(op.x.data,
                                 op.y.data,
                                 static_cast<std::size_t>(op.x.num_elements()),
                                 nccl_type(op.x.dtype),
                                 op.reduce == Reduce::max ? ncclMax : ncclSum,
                                 comm_,
                                 cuda_stream()));
    }
  }

  void call(const ReduceScatter& op) {
    const auto num_blocks = static_cast<std::size_t>(op.num_blocks);
    const std::size_t count = static_cast<std::size_t>(op.y.num_elements()) / num_blocks;
    const std::size_t bytes = count * size_of(op.y.dtype);
    const std::size_t all_bytes = bytes * static_cast<std::size_t>(size_);
    for (std::size_t b = 0; b < num_blocks && count > 0; ++b) {
      MEMPHIS_NCCL(ncclReduceScatter(bytes_of(op.x) + b * all_bytes,
                                     bytes_of(op.y) + b * bytes,
                                     count,
                                     nccl_type(op.y.dtype),
                                     ncclSum,
                                     comm_,
                                     cuda_stream()));
    }
  }

  void issue(const AllReduce& op) {
    if (op.x.num_elements() > 0) {
      group([&] { call(op); });
    }
  }

  void issue(const Sums& op) {
    const auto is_empty = [](const Sum& part) {
      return std::visit([](const auto& sum) { return sum.x.num_elements() == 0; }, part);
    };
    if (std::all_of(op.parts.begin(), op.parts.end(), is_empty)) {
      return;
    }
    group([&] {
      for (const Sum& part : op.parts) {
        std::visit([&](const auto& sum) { call(sum); }, part);
      }
    });
  }

  void issue(const AllGather& op) {
    const auto num_blocks = static_cast<std::size_t>(op.num_blocks);
    const std::size_t count = static_cast<std::size_t>(op.x.num_elements()) / num_blocks;
    if (count == 0) {
      return;
    }
    const std::size_t bytes = count * size_of(op.x.dtype);
    const std::size_t all_bytes = bytes * static_cast<std::size_t>(size_);
    group([&] {
      for (std::size_t b = 0; b < num_blocks; ++b) {
        MEMPHIS_NCCL(ncclAllGather(bytes_of(op.x) + b * bytes,
                                   bytes_of(op.y) + b * all_bytes,
                                   count,
                                   nccl_type(op.x.dtype),
                                   comm_,
                                   cuda_stream()));
      }
    });
  }

  void issue(const ReduceScatter& op) {
    if (op.x.num_elements() > 0) {
      group([&] { call(op); });
    }
  }

  void issue(const AllToAll& op) {
    const std::size_t row_bytes = row_bytes_of(op.x);
    const std::size_t row_count = row_bytes / size_of(op.x.dtype);
    const auto is_zero = [](std::int64_t rows) { return rows == 0; };
    if (row_count == 0 || (std::all_of(op.send_rows.begin(), op.send_rows.end(), is_zero) &&
                           std::all_of(op.recv_rows.begin(), op.recv_rows.end(), is_zero))) {
      return;
    }
    group([&] {
      std::size_t sent = 0;
      std::size_t received = 0;
      for (int r = 0; r < size_; ++r) {
        const auto send = static_cast<std::size_t>(op.send_rows[static_cast<std::size_t>(r)]);
        const auto receive = static_cast<std::size_t>(op.recv_rows[static_cast<std::size_t>(r)]);
        if (send > 0) {
          MEMPHIS_NCCL(ncclSend(bytes_of(op.x) + sent * row_bytes,
                                send * row_count,
                                nccl_type(op.x.dtype),
                                r,
                                comm_,
                                cuda_stream()));
        }
        if (receive > 0) {
          MEMPHIS_NCCL(ncclRecv(bytes_of(op.y) + received * row_bytes,
                                receive * row_count,
                                nccl_type(op.y.dtype),
                                r,
                                comm_,
                                cuda_stream()));
        }
        sent += send;
        received += receive;
      }
    });
  }

  void issue(const Broadcast& op) {
    const auto count = static_cast<std::size_t>(op.x.num_elements());
    if (count == 0) {
      return;
    }
    group([&] {
      MEMPHIS_NCCL(ncclBroadcast(
          op.x.data, op.x.data, count, nccl_type(op.x.dtype), op.root, comm_, cuda_stream()));
    });
  }

  std::string axis_;
  std::string track_;  // of the trace
  int rank_;
  int size_;
  int num_channels_;
  Activity& activity_;
  std::int64_t* held_of_ = nullptr;  // of the stream that the first was started beside
  std::int64_t num_held_ = 0;
  int num_started_ = 0;
  // Of its own, so that what does not wait for a collective runs beside it; and first, as the few
  // blocks of a collective would else queue behind all those of the kernel that is at work, on each of
  // the ranks that wait for each other.
  OwnedStream stream_;
  Event ready_;  // what lies before a collective is done
  // In their order, of which the first num_done_ are done.
  std::deque<EnqueuedCollective> pending_;
  std::size_t num_done_ = 0;
  ncclComm_t comm_ = nullptr;        // null once it is given up
  std::string name_ = "connecting";  // the latest collective
  int num_exceptions_ = std::uncaught_exceptions();
};

// Ids are spread evenly over the ranks; where `rank` makes one, its number (rankHasRoot of NCCL's
// user guide, "Creating a communicator using multiple ncclUniqueIds").
int root_of_id(int id, int num_ids, int size) {
  return id * (size / num_ids) + std::min(id, size % num_ids);
}

// The library is the machine's, and may be older than the one that this was built with. What it
// lacks would end the process at the first call, with the name of a function.
void require_nccl_version() {
  int version = 0;
  MEMPHIS_NCCL(ncclGetVersion(&version));
  constexpr int kLeast = 22700;  // of CMake's find_package
  if (version < kLeast) {
    throw PreflightError(fmt::format(
        "NCCL is {}.{}.{} (groups of GPUs need 2.27 or newer); install one, or set LD_LIBRARY_PATH "
        "to where it is",
        version / 10000,
        version / 100 % 100,
        version % 100));
  }
}

std::vector<ncclUniqueId> exchange_ids(Communicator& host, int ranks_per_id) {
  const int num_ids = (host.size() + ranks_per_id - 1) / ranks_per_id;
  std::vector<ncclUniqueId> ids(static_cast<std::size_t>(num_ids));
  for (int i = 0; i < num_ids; ++i) {
    ncclUniqueId& id = ids[static_cast<std::size_t>(i)];
    const int root = root_of_id(i, num_ids, host.size());
    if (host.rank() == root) {
      MEMPHIS_NCCL(ncclGetUniqueId(&id));
    }
    constexpr auto kWords = static_cast<std::int64_t>(sizeof(ncclUniqueId) / sizeof(std::int64_t));
    host.run(Broadcast{.x = TensorView(&id, {kWords}, DType::i64, Device::cpu), .root = root},
             "nccl.id",
             {});
  }
  return ids;
}

}  // namespace

std::string nccl_error_text(ncclResult_t status) {
  std::vector<std::string> warnings = take_nccl_warnings();
  if (warnings.empty()) {
    // NCCL's own copy of its last one, whoever has taken that.
    if (std::string last = ncclGetLastError(nullptr); !last.empty()) {
      warnings.push_back(std::move(last));
    }
  }
  return with_warnings(ncclGetErrorString(status), warnings);
}

void nccl_check(ncclResult_t status, const char* call, const char* file, int line) {
  if (is_error(status)) {
    throw CommunicationError(
        fmt::format("{} (from {}, {}:{}); see what the other ranks say, and "
                    "more with NCCL_DEBUG=INFO",
                    nccl_error_text(status),
                    call,
                    file,
                    line));
  }
}

bool has_nccl() {
  return true;
}

void set_nccl_defaults() {
  const auto set = [](const char* name, const char* value) { setenv(name, value, 0); };
  // Each has a stream of its own. Streams that share a queue of the GPU wait for each other, and of
  // these there are 8 unless more are asked for, 32 at most.
  set("CUDA_DEVICE_MAX_CONNECTIONS", "32");
  // A rank with fewer network cards than the others slows all of them down, and nobody would know.
  // Since 2.30 NCCL can refuse it, with an error that names this variable; older ones do not look.
  set("NCCL_IGNORE_NET_MISMATCH", "0");
  collect_nccl_warnings();
}

// Collectives of several communicators lie on the GPU at once, each on its stream, and ranks start
// them in different orders. None waits for another for ever as long as all of them run: so the
// kernels of all communicators of a rank fit on its GPU side by side (csrc/plan/communication.h).
// NCCL could instead start them in the order of the calls (NCCL_LAUNCH_ORDER_IMPLICIT), each when
// the one before it has begun (enqueue.cc of 2.28, ncclLaunchPrepare and ncclLaunchFinish). Then
// the second receive that a rank of a pipeline starts ahead, which begins when the first is done,
// holds back the sends that it waits for; and the sums of a layer wait until the gradients of all
// that were handed on before have begun to move.
void prepare_nccl(const NcclGroups& groups) {
  if (groups.has_messages) {
    for (const char* const name : {"NCCL_LAUNCH_ORDER_IMPLICIT", "NCCL_RUNTIME_CONNECT"}) {
      const char* const value = std::getenv(name);
      if (value != nullptr && std::atoi(value) != 0) {
        throw PreflightError(
            fmt::format("{} is {} (a rank of a pipeline starts receives before it sends what they "
                        "wait for, and with it NCCL holds the sends back); unset it",
                        name,
                        value));
      }
    }
    setenv("NCCL_RUNTIME_CONNECT", "0", 0);
    setenv("NCCL_SET_STACK_SIZE", "1", 0);
  }
  const char* const limit = std::getenv("NCCL_MAX_CTAS");
  if (limit == nullptr) {
    if (groups.num_channels > groups.num_multiprocessors) {
      throw PreflightError(fmt::format(
          "the {} groups of a rank take {} multiprocessors (their kernels must fit on its GPU side "
          "by side, which has {}); use a larger GPU, or set NCCL_MAX_CTAS to 1",
          groups.num_groups,
          groups.num_channels,
          groups.num_multiprocessors));
    }
    return;
  }
  // Of rows NCCL takes the next power of two.
  const auto each = std::bit_ceil(static_cast<std::uint64_t>(std::max(1, std::atoi(limit))));
  if (static_cast<std::int64_t>(each) * groups.num_groups > groups.num_multiprocessors) {
    throw PreflightError(fmt::format(
        "NCCL_MAX_CTAS is {} (kernels of the {} groups of a rank must fit on its GPU side by side, "
        "of which {} multiprocessors are counted on); unset it, or set it to {} at most",
        limit,
        groups.num_groups,
        groups.num_multiprocessors,
        std::bit_floor(static_cast<std::uint64_t>(
            std::max<std::int64_t>(1, groups.num_multiprocessors / groups.num_groups)))));
  }
}

std::unique_ptr<Communicator> make_nccl_communicator(
    std::string axis, Communicator& host, Activity& activity, int num_channels, int ranks_per_id) {
  if (!device_available(Device::cuda)) {
    throw PreflightError(fmt::format("the {} group has {} ranks on GPUs ({}); use run.device cpu",
                                     axis,
                                     host.size(),
                                     device_unavailable_reason()));
  }
  require_nccl_version();
  std::vector<ncclUniqueId> ids = exchange_ids(host, ranks_per_id);
  return std::make_unique<NcclCommunicator>(
      std::move(axis), host.rank(), host.size(), std::move(ids), activity, num_channels);
}

}  // namespace memphis
