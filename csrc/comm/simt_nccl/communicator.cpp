// SPDX-License-Identifier: Apache-2.0
#include "csrc/comm/simt_nccl/communicator.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <utility>

#include <spdlog/fmt/fmt.h>

#include "csrc/comm/activity.h"
#include "csrc/comm/simt_nccl/stall.h"
#include "csrc/core/simt_memory.h"

namespace memphis::simt_nccl {
namespace {

// Ranks are many more than cores.
constexpr int kNumYields = 50;
constexpr std::chrono::microseconds kLongestSleep{1000};
// The others' calls are compared once nothing has moved for this many pauses: some 50 ms.
constexpr std::size_t kPausesPerLook = 100;

// What NCCL takes by itself on 8 H100 (NVIDIA/nccl issue 1685), and keeps on the device in each
// channel for each peer of the same machine: 10 MiB to receive and 2 MiB to send
// (csrc/plan/communication.h has where these are from).
constexpr std::size_t kOwnChannels = 32;
constexpr std::size_t kBytesOfChannel = std::size_t{12} << 20;

// init.cc of 2.28, initTransportsRank: with NCCL_RUNTIME_CONNECT=0 rings and trees are connected,
// and have their buffers, when the communicator is made, and else when a collective is made for
// the first time.
bool connects_at_once() {
  const char* const value = std::getenv("NCCL_RUNTIME_CONNECT");
  return value != nullptr && std::atoi(value) == 0;
}

// Elements of a call that move at a time.
std::size_t chunk_count(const Terms& terms, int num_ranks) {
  const std::size_t count = Meeting::kStageBytes / bytes_of(terms.type);
  // A stage holds a piece for each rank.
  return terms.kind == Kind::reduce_scatter ? count / static_cast<std::size_t>(num_ranks) : count;
}

// At least one, so that ranks meet in a call of no elements, too.
std::size_t num_chunks(const Terms& terms, int num_ranks) {
  const std::size_t each = chunk_count(terms, num_ranks);
  return std::max<std::size_t>(1, (terms.count + each - 1) / each);
}

// Bytes of a chunk, within those of `count` elements.
struct Span {
  std::size_t begin;
  std::size_t bytes;
};

Span chunk_of(const Terms& terms, int num_ranks, std::size_t chunk) {
  const std::size_t each = chunk_count(terms, num_ranks);
  const std::size_t begin = chunk * each;
  const std::size_t count = std::min<std::size_t>(each, terms.count - begin);
  return {begin * bytes_of(terms.type), count * bytes_of(terms.type)};
}

// While the host and other communicators use memory beside it.
void read_device(std::byte* target, const std::byte* source, std::size_t bytes) {
  const simt_memory::HostAccess access(source, bytes);
  std::memcpy(target, source, bytes);
}

void write_device(std::byte* target, const std::byte* source, std::size_t bytes) {
  const simt_memory::HostAccess access(target, bytes);
  std::memcpy(target, source, bytes);
}

}  // namespace

Communicator::Communicator(
    std::string name, std::vector<ncclUniqueId> ids, int rank, int num_ranks, int num_channels)
    : name_(std::move(name)),
      ids_(std::move(ids)),
      rank_(rank),
      num_ranks_(num_ranks),
      num_channels_(num_channels > 0 ? static_cast<std::size_t>(num_channels) : kOwnChannels),
      peers_(static_cast<std::size_t>(num_ranks)),
      pause_(kNumYields, kLongestSleep) {
  start({.kind = Job::Kind::connect, .calls = {}, .work = {}});
  thread_ = std::thread([this] { run(); });
}

Communicator::~Communicator() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
  Meeting::close_ids(ids_);
}

Failure Communicator::status() const {
  const std::lock_guard lock(mutex_);
  if (failure_.status != ncclSuccess) {
    return failure_;
  }
  if (!connected_) {
    return {ncclInProgress, ""};
  }
  if (meeting_->has_failed()) {
    return meeting_->failure();
  }
  const bool parts = !jobs_.empty() && jobs_.back().kind == Job::Kind::part;
  return {parts || !all_have_come() ? ncclInProgress : ncclSuccess, ""};
}

// NCCL connects ranks for a kind of call when it is made for the first time, and before it puts it
// on the stream: what those ranks do before that call, and whether they have done it, is all the
// same.
bool Communicator::all_have_come() const {
  for (int r = 0; r < num_ranks_; ++r) {
    const auto have_met = [](const std::atomic<std::uint64_t>& of_one,
                             const std::atomic<std::uint64_t>& of_other) {
      return of_one.load(std::memory_order_relaxed) == 0 ||
             of_other.load(std::memory_order_acquire) > 0;
    };
    const PairBoard& here = meeting_->of(rank_, r);
    const PairBoard& there = meeting_->of(r, rank_);
    if (meeting_->of(r).num_enqueued.load(std::memory_order_acquire) < num_awaited_ ||
        !have_met(here.num_enqueued_sends, there.num_enqueued_receives) ||
        !have_met(here.num_enqueued_receives, there.num_enqueued_sends)) {
      return false;
    }
  }
  return true;
}

void Communicator::make(std::vector<Call> calls) {
  Job job{.kind = Job::Kind::calls, .calls = std::move(calls), .work = {}};
  std::vector<cudaStream_t> streams;
  for (const Call& call : job.calls) {
    if (std::find(streams.begin(), streams.end(), call.stream) == streams.end()) {
      streams.push_back(call.stream);
      job.work.emplace_back(call.stream);
    }
  }
  const std::lock_guard lock(mutex_);
  note_enqueued(job.calls);
  start(std::move(job));
}

void Communicator::note_enqueued(const std::vector<Call>& calls) {
  for (const Call& call : calls) {
    const Kind kind = call.terms.kind;
    if (!is_collective(kind)) {
      keep_buffers_of(Connection::pair, call.terms.peer);
      PairBoard& pair = meeting_->of(rank_, call.terms.peer);
      (kind == Kind::send ? pair.num_enqueued_sends : pair.num_enqueued_receives)
          .fetch_add(1, std::memory_order_release);
      continue;
    }
    keep_buffers_of_ring();
    const std::uint64_t number = own().num_enqueued.fetch_add(1, std::memory_order_release) + 1;
    if (!std::exchange(made_[static_cast<std::size_t>(kind)], true)) {
      num_awaited_ = number;
    }
  }
}

void Communicator::keep_buffers_of_ring() {
  keep_buffers_of(Connection::ring, (rank_ + 1) % num_ranks_);
  keep_buffers_of(Connection::ring, (rank_ + num_ranks_ - 1) % num_ranks_);
}

void Communicator::keep_buffers_of(Connection connection, int peer) {
  const std::pair key(connection, peer);
  if (peer != rank_ && !buffers_.contains(key)) {
    buffers_.emplace(key, num_channels_ * kBytesOfChannel);
  }
}

void Communicator::finalize() {
  const std::lock_guard lock(mutex_);
  start({.kind = Job::Kind::part, .calls = {}, .work = {}});
}

void Communicator::start(Job job) {
  if (failure_.status != ncclSuccess) {
    give_up(job);  // it has failed since the caller asked
  }
  jobs_.push_back(std::move(job));
  changed_.notify_all();
}

void Communicator::give_up(Job& job) {
  for (simt_stream::PendingWork& work : job.work) {
    work.fail();
  }
}

void Communicator::fail(const Failure& failure) {
  meeting_->fail(failure, [] { std::this_thread::yield(); });
}

// The thread. It ends with the communicator, and so does what has failed.
void Communicator::run() noexcept {
  std::unique_lock lock(mutex_);
  while (!stop_) {
    if (jobs_.empty() || failure_.status != ncclSuccess) {
      changed_.wait(lock);
      continue;
    }
    const Job& job = jobs_.front();
    lock.unlock();
    Failure failure = failure_of(job);
    lock.lock();
    if (failure.status == ncclSuccess) {
      jobs_.pop_front();
      continue;
    }
    failure_ = std::move(failure);
    for (Job& failed : jobs_) {
      give_up(failed);
    }
  }
}

Failure Communicator::failure_of(const Job& job) noexcept {
  Failure failure;
  try {
    try {
      switch (job.kind) {
        case Job::Kind::connect:
          connect();
          break;
        case Job::Kind::calls:
          make_calls(job);
          break;
        case Job::Kind::part:
          part();
          break;
      }
    } catch (const Failure& thrown) {
      failure = thrown;
    } catch (const std::exception& error) {
      failure = {ncclInternalError, error.what()};
    }
    // The first one stays, so one that came from there does not change.
    if (failure.status != ncclSuccess && meeting_.has_value()) {
      meeting_->fail(failure, [this] { yield(); });
    }
  } catch (const Aborted&) {
    failure = {ncclInternalError, "aborted"};  // the thread ends, and nobody asks any more
  }
  return failure;
}

void Communicator::connect() {
  meeting_.emplace(ids_, rank_, num_ranks_, [this] { pause(); });
  begin_to_wait();
  while (!meeting_->all_are_here()) {
    pause();
  }
  Meeting::close_ids(ids_);
  if (connects_at_once()) {
    keep_buffers_of_ring();
  }
  connected_ = true;
}

void Communicator::make_calls(const Job& job) {
  begin_to_wait();
  const auto may_begin = [](const simt_stream::PendingWork& work) { return work.may_begin(); };
  while (!std::all_of(job.work.begin(), job.work.end(), may_begin)) {
    pause_unless_failed();
  }
  for (const Call& call : job.calls) {
    if (is_collective(call.terms.kind)) {
      collectives_.push_back(call);
    } else {
      Peer& peer = peers_[static_cast<std::size_t>(call.terms.peer)];
      (call.terms.kind == Kind::send ? peer.sends : peer.receives).push_back({call});
    }
  }
  locked([&] {
    own().state = State::busy;
    copy_text(own().calls, describe(job.calls));
    own().num_collectives += collectives_.size();
    for (int p = 0; p < num_ranks_; ++p) {
      const Peer& peer = peers_[static_cast<std::size_t>(p)];
      meeting_->of(rank_, p).num_sends += peer.sends.size();
      meeting_->of(rank_, p).num_receives += peer.receives.size();
    }
  });
  const auto is_done = [](const Peer& peer) { return peer.sends.empty() && peer.receives.empty(); };
  begin_to_wait();
  while (!collectives_.empty() || !std::all_of(peers_.begin(), peers_.end(), is_done)) {
    const bool collective = advance_collective();
    const bool sends = advance_sends();
    const bool receives = advance_receives();
    if (collective || sends || receives) {
      begin_to_wait();
    } else {
      pause();
    }
  }
  locked([&] { own().state = State::idle; });
}

void Communicator::part() {
  locked([&] {
    own().state = State::parting;
    copy_text(own().calls, "ncclCommFinalize");
  });
  bool all_part = false;
  begin_to_wait();
  while (!all_part) {
    locked([&] {
      all_part = true;
      for (int r = 0; r < num_ranks_; ++r) {
        all_part = all_part && meeting_->of(r).state == State::parting;
      }
    });
    if (!all_part) {
      pause();
    }
  }
}

// Chunk by chunk: each rank lays its own into a stage and, once all have, makes its result of all
// stages. It fills one stage while others still read the other.
bool Communicator::advance_collective() {
  if (collectives_.empty()) {
    return false;
  }
  const Call& call = collectives_.front();
  const std::uint64_t number = num_collectives_ + 1;
  bool moved = false;
  if (own().collective.number.load(std::memory_order_relaxed) != number) {
    own().collective.terms = call.terms;
    own().collective.number.store(number, std::memory_order_release);
    moved = true;
  }
  if (!agreed_) {
    for (int r = 0; r < num_ranks_; ++r) {
      if (meeting_->of(r).collective.number.load(std::memory_order_acquire) < number) {
        return moved;
      }
    }
    expect_same_on_all(call);
    agreed_ = true;
  }
  moved = fill(call) || moved;
  moved = drain(call) || moved;
  if (num_drained_ == num_chunks(call.terms, num_ranks_)) {
    num_chunks_ += std::exchange(num_drained_, 0);
    num_filled_ = 0;
    agreed_ = false;
    ++num_collectives_;
    collectives_.pop_front();
  }
  return moved;
}

bool Communicator::fill(const Call& call) {
  if (num_filled_ == num_chunks(call.terms, num_ranks_)) {
    return false;
  }
  const std::uint64_t chunk = num_chunks_ + num_filled_;
  for (int r = 0; r < num_ranks_; ++r) {
    // The chunk before the last one lies in the same stage.
    if (meeting_->of(r).num_drained.load(std::memory_order_acquire) + 1 < chunk) {
      return false;
    }
  }
  copy_to_stage(call, num_filled_, meeting_->stage(rank_, chunk % 2));
  ++num_filled_;
  own().num_filled.store(chunk + 1, std::memory_order_release);
  return true;
}

bool Communicator::drain(const Call& call) {
  const std::uint64_t chunk = num_chunks_ + num_drained_;
  for (int r = 0; r < num_ranks_; ++r) {
    if (meeting_->of(r).num_filled.load(std::memory_order_acquire) <= chunk) {
      return false;
    }
  }
  copy_from_stages(call, num_drained_, chunk % 2);
  ++num_drained_;
  own().num_drained.store(chunk + 1, std::memory_order_release);
  return true;
}

void Communicator::copy_to_stage(const Call& call, std::size_t chunk, std::byte* stage) const {
  const Terms& terms = call.terms;
  const Span span = chunk_of(terms, num_ranks_, chunk);
  if (span.bytes == 0 || (terms.kind == Kind::broadcast && terms.peer != rank_)) {
    return;
  }
  const bool has_pieces = terms.kind == Kind::reduce_scatter;
  const std::size_t num_pieces = has_pieces ? static_cast<std::size_t>(num_ranks_) : 1;
  const std::size_t piece_bytes = terms.count * bytes_of(terms.type);
  const std::size_t stride = chunk_count(terms, num_ranks_) * bytes_of(terms.type);
  for (std::size_t p = 0; p < num_pieces; ++p) {
    read_device(stage + p * stride, call.send + p * piece_bytes + span.begin, span.bytes);
  }
}

void Communicator::copy_from_stages(const Call& call, std::size_t chunk, std::size_t half) const {
  const Terms& terms = call.terms;
  const Span span = chunk_of(terms, num_ranks_, chunk);
  if (span.bytes == 0) {
    return;
  }
  std::byte* const target = call.receive + span.begin;
  if (terms.kind == Kind::broadcast) {
    write_device(target, meeting_->stage(terms.peer, half), span.bytes);
    return;
  }
  if (terms.kind == Kind::all_gather) {
    const std::size_t piece_bytes = terms.count * bytes_of(terms.type);
    for (int r = 0; r < num_ranks_; ++r) {
      write_device(
          target + static_cast<std::size_t>(r) * piece_bytes, meeting_->stage(r, half), span.bytes);
    }
    return;
  }
  const std::size_t stride = chunk_count(terms, num_ranks_) * bytes_of(terms.type);
  const std::size_t offset =
      terms.kind == Kind::reduce_scatter ? static_cast<std::size_t>(rank_) * stride : 0;
  std::vector<const std::byte*> pieces;
  for (int r = 0; r < num_ranks_; ++r) {
    pieces.push_back(meeting_->stage(r, half) + offset);
  }
  std::vector<std::byte> result(span.bytes);
  reduce(terms, pieces, result.data(), span.bytes / bytes_of(terms.type));
  write_device(target, result.data(), span.bytes);
}

bool Communicator::advance_sends() {
  bool moved = false;
  for (int p = 0; p < num_ranks_; ++p) {
    const Peer& peer = peers_[static_cast<std::size_t>(p)];
    Posted& posted = meeting_->of(rank_, p).send;
    if (!peer.sends.empty() && posted.number.load(std::memory_order_relaxed) != peer.num_sent + 1) {
      posted.terms = peer.sends.front().call.terms;
      posted.number.store(peer.num_sent + 1, std::memory_order_release);
      moved = true;
    }
  }
  if (own().box.load(std::memory_order_acquire) != 0) {
    return moved;
  }
  Peer& last = peers_[static_cast<std::size_t>(box_peer_)];
  if (!last.sends.empty() &&
      last.sends.front().num_moved == num_chunks(last.sends.front().call.terms, num_ranks_)) {
    last.sends.pop_front();
    ++last.num_sent;
    return true;
  }
  return put_into_box() || moved;
}

// A chunk for a rank that has come to the receive, or the box would keep others' chunks waiting.
bool Communicator::put_into_box() {
  for (int i = 1; i <= num_ranks_; ++i) {
    const int p = (box_peer_ + i) % num_ranks_;  // each in turn
    Peer& peer = peers_[static_cast<std::size_t>(p)];
    const Posted& receive = meeting_->of(p, rank_).receive;
    if (peer.sends.empty() || receive.number.load(std::memory_order_acquire) != peer.num_sent + 1) {
      continue;
    }
    Transfer& transfer = peer.sends.front();
    expect_match(p, transfer.call.terms, receive.terms);
    const Span span = chunk_of(transfer.call.terms, num_ranks_, transfer.num_moved);
    if (span.bytes > 0) {
      read_device(
          meeting_->stage(rank_, Meeting::kBox), transfer.call.send + span.begin, span.bytes);
    }
    ++transfer.num_moved;
    box_peer_ = p;
    own().box.store(p + 1, std::memory_order_release);
    return true;
  }
  return false;
}

bool Communicator::advance_receives() {
  bool moved = false;
  for (int p = 0; p < num_ranks_; ++p) {
    const Peer& peer = peers_[static_cast<std::size_t>(p)];
    if (peer.receives.empty()) {
      continue;
    }
    Posted& posted = meeting_->of(rank_, p).receive;
    if (posted.number.load(std::memory_order_relaxed) != peer.num_received + 1) {
      posted.terms = peer.receives.front().call.terms;
      posted.number.store(peer.num_received + 1, std::memory_order_release);
      moved = true;
    }
    moved = take_from_box(p) || moved;
  }
  return moved;
}

bool Communicator::take_from_box(int sender) {
  Peer& peer = peers_[static_cast<std::size_t>(sender)];
  Transfer& transfer = peer.receives.front();
  const Posted& send = meeting_->of(sender, rank_).send;
  if (send.number.load(std::memory_order_acquire) != peer.num_received + 1) {
    return false;
  }
  expect_match(sender, transfer.call.terms, send.terms);
  std::atomic<std::int32_t>& box = meeting_->of(sender).box;
  if (box.load(std::memory_order_acquire) != rank_ + 1) {
    return false;
  }
  const Terms terms = transfer.call.terms;
  const Span span = chunk_of(terms, num_ranks_, transfer.num_moved);
  if (span.bytes > 0) {
    write_device(
        transfer.call.receive + span.begin, meeting_->stage(sender, Meeting::kBox), span.bytes);
  }
  if (++transfer.num_moved == num_chunks(terms, num_ranks_)) {
    peer.receives.pop_front();
    ++peer.num_received;
  }
  box.store(0, std::memory_order_release);
  return true;
}

void Communicator::expect_same_on_all(const Call& call) const {
  for (int r = 0; r < num_ranks_; ++r) {
    const Terms& other = meeting_->of(r).collective.terms;
    if (other == call.terms) {
      continue;
    }
    // In one order, so that all ranks say the same.
    const auto [first, second] = std::minmax(r, rank_);
    throw Failure{ncclInvalidUsage,
                  fmt::format("{}: collective {} of rank {} is {} and that of rank {} {} (on GPUs "
                              "they would wait for ever, or take others' memory); let all ranks "
                              "make the same calls",
                              name_,
                              num_collectives_ + 1,
                              first,
                              describe(first == r ? other : call.terms),
                              second,
                              describe(second == r ? other : call.terms))};
  }
}

void Communicator::expect_match(int peer, const Terms& own_terms, const Terms& other) const {
  if (own_terms.count == other.count && own_terms.type == other.type) {
    return;
  }
  const bool sends = own_terms.kind == Kind::send;
  throw Failure{ncclInvalidUsage,
                fmt::format("{}: rank {} makes {} and rank {} {} (on GPUs they would wait for "
                            "ever, or write past the end); let both move the same",
                            name_,
                            sends ? rank_ : peer,
                            describe(sends ? own_terms : other),
                            sends ? peer : rank_,
                            describe(sends ? other : own_terms))};
}

void Communicator::locked(const std::function<void()>& body) {
  meeting_->locked([this] { pause(); }, body);
}

void Communicator::yield() {
  if (stop_) {
    throw Aborted{};
  }
  std::this_thread::yield();
}

void Communicator::begin_to_wait() {
  num_pauses_ = 0;
  pause_.reset();
}

void Communicator::pause_unless_failed() {
  if (stop_) {
    throw Aborted{};
  }
  if (meeting_.has_value() && meeting_->has_failed()) {
    throw meeting_->failure();
  }
  pause_();
}

void Communicator::pause() {
  pause_unless_failed();
  ++num_pauses_;
  if (meeting_.has_value() && num_pauses_ % kPausesPerLook == 0) {
    const auto yield_for_lock = [this] { yield(); };
    look_for_a_circle(name_, *meeting_, yield_for_lock);
    look_for_the_lost(name_, *meeting_, yield_for_lock);
  }
}

}  // namespace memphis::simt_nccl
