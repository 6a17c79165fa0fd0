// SPDX-License-Identifier: Apache-2.0
#include "csrc/comm/host_communicator.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include "csrc/comm/check.h"
#include "csrc/core/dtype.h"

namespace memphis {
namespace {

std::byte* bytes_of(const TensorView& view) {
  return static_cast<std::byte*>(view.data);
}

std::size_t begin_of(std::size_t count, int piece, int num_pieces) {
  return count * static_cast<std::size_t>(piece) / static_cast<std::size_t>(num_pieces);
}

// y[i] = x_0[i] + x_1[i] + ... in the order of ranks, or their maximum. Pieces lie `stride` bytes
// apart. A small block of sums stays in registers and the cache while the ranks pass by.
template <class T, class Acc>
void reduce(
    T* y, const std::byte* pieces, std::size_t stride, int n, std::size_t count, Reduce op) {
  constexpr std::size_t kBlock = 1024;
  Acc sums[kBlock];
  for (std::size_t begin = 0; begin < count; begin += kBlock) {
    const std::size_t length = std::min(kBlock, count - begin);
    for (int r = 0; r < n; ++r) {
      const T* x =
          reinterpret_cast<const T*>(pieces + static_cast<std::size_t>(r) * stride) + begin;
      for (std::size_t i = 0; i < length; ++i) {
        const Acc value = static_cast<Acc>(x[i]);
        if (r == 0) {
          sums[i] = value;
        } else if (op == Reduce::sum) {
          sums[i] = static_cast<Acc>(sums[i] + value);
        } else {
          sums[i] = std::max(sums[i], value);
        }
      }
    }
    for (std::size_t i = 0; i < length; ++i) {
      y[begin + i] = static_cast<T>(sums[i]);
    }
  }
}

void reduce_pieces(const TensorView& y,
                   const std::byte* pieces,
                   std::size_t stride,
                   int n,
                   std::size_t count,
                   Reduce op) {
  switch (y.dtype) {
    case DType::f64:
      reduce<double, double>(static_cast<double*>(y.data), pieces, stride, n, count, op);
      break;
    case DType::f32:
      reduce<float, float>(static_cast<float*>(y.data), pieces, stride, n, count, op);
      break;
    case DType::bf16:
      reduce<bf16, float>(static_cast<bf16*>(y.data), pieces, stride, n, count, op);
      break;
    case DType::i64:
      reduce<std::int64_t, std::int64_t>(
          static_cast<std::int64_t*>(y.data), pieces, stride, n, count, op);
      break;
    default:
      reduce<std::int32_t, std::int32_t>(
          static_cast<std::int32_t*>(y.data), pieces, stride, n, count, op);
      break;
  }
}

void grow(std::vector<std::byte>& buffer, std::size_t bytes) {
  if (buffer.size() < bytes) {
    buffer.resize(bytes);
  }
}

// Distance between pieces in a staging buffer: the widest element stays aligned.
std::size_t aligned(std::size_t bytes) {
  constexpr std::size_t kAlignment = 16;
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

}  // namespace

struct HostCommunicator::Task {
  Collective collective;
  Activity::Call call;
  std::vector<std::int64_t> send_rows;
  std::vector<std::int64_t> recv_rows;
  std::vector<Sum> sums;
  bool done = false;
  std::exception_ptr error;
};

class HostCommunicator::QueuedWork final : public Communicator::Work {
 public:
  QueuedWork(HostCommunicator& owner, std::shared_ptr<Task> task)
      : owner_(owner), task_(std::move(task)) {}

  // Operands may go once their work has gone. Where an exception unwinds this rank, the others may
  // never come, and hear of it only when it is caught.
  ~QueuedWork() override {
    std::unique_lock lock(owner_.mutex_);
    if (task_->done) {
      return;
    }
    std::optional<Activity::Waiting> waiting;
    if (std::uncaught_exceptions() > num_exceptions_) {
      owner_.transport_->leave();  // what it says of the end is said: it stands nowhere
    } else {
      waiting.emplace(owner_.activity_, task_->call);
    }
    owner_.changed_.wait(lock, [&] { return task_->done; });
  }

  void wait(Stream /*stream*/) override {
    const Activity::Waiting waiting(owner_.activity_, task_->call);
    std::unique_lock lock(owner_.mutex_);
    owner_.changed_.wait(lock, [&] { return task_->done; });
    if (task_->error) {
      std::rethrow_exception(task_->error);
    }
  }

 private:
  HostCommunicator& owner_;
  std::shared_ptr<Task> task_;
  int num_exceptions_ = std::uncaught_exceptions();
};

HostCommunicator::HostCommunicator(std::string axis,
                                   std::unique_ptr<HostTransport> transport,
                                   Activity& activity)
    : axis_(std::move(axis)),
      transport_(std::move(transport)),
      activity_(activity),
      to_(static_cast<std::size_t>(transport_->size())),
      from_(static_cast<std::size_t>(transport_->size())) {}

HostCommunicator::~HostCommunicator() {
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
  }
  changed_.notify_all();
  if (worker_.joinable()) {
    worker_.join();
  }
}

Activity::Call HostCommunicator::call_of(const Collective& collective,
                                         std::string_view name) const {
  Activity::Call call{.axis = axis_,
                      .name = name,
                      .group = transport_.get(),
                      .peer = size() == 2 ? transport_->rank_in_job(1 - rank()) : -1};
  call.logged = activity_.log_call(call, role_in(collective, rank()), payload_bytes(collective));
  return call;
}

std::shared_ptr<HostCommunicator::Task> HostCommunicator::enqueue(const Collective& collective,
                                                                  const Activity::Call& call) {
  auto task = std::make_shared<Task>();
  task->collective = collective;
  task->call = call;
  if (auto* rows = std::get_if<AllToAll>(&task->collective)) {
    task->send_rows.assign(rows->send_rows.begin(), rows->send_rows.end());
    task->recv_rows.assign(rows->recv_rows.begin(), rows->recv_rows.end());
    rows->send_rows = task->send_rows;
    rows->recv_rows = task->recv_rows;
  }
  if (auto* sums = std::get_if<Sums>(&task->collective)) {
    task->sums.assign(sums->parts.begin(), sums->parts.end());
    sums->parts = task->sums;
  }
  {
    const std::lock_guard lock(mutex_);
    queue_.push_back(task);
    if (!worker_.joinable()) {
      worker_ = std::thread([this] { work(); });
    }
  }
  changed_.notify_all();
  return task;
}

void HostCommunicator::work() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return closing_ || !queue_.empty(); });
    if (queue_.empty()) {
      return;
    }
    const std::shared_ptr<Task> task = queue_.front();
    lock.unlock();
    std::exception_ptr error;
    try {
      execute(task->collective, task->call);
    } catch (...) {
      error = std::current_exception();
    }
    lock.lock();
    task->error = error;
    task->done = true;
    queue_.pop_front();
    changed_.notify_all();
  }
}

std::unique_ptr<Communicator::Work> HostCommunicator::start(const Collective& collective,
                                                            std::string_view name,
                                                            Stream stream) {
  check_collective(collective, name, axis_, rank(), size(), stream);
  return std::make_unique<QueuedWork>(*this, enqueue(collective, call_of(collective, name)));
}

void HostCommunicator::run(const Collective& collective, std::string_view name, Stream stream) {
  check_collective(collective, name, axis_, rank(), size(), stream);
  const Activity::Call call = call_of(collective, name);
  bool idle = false;
  {
    const std::lock_guard lock(mutex_);
    idle = queue_.empty();
  }
  if (idle) {
    const Activity::Waiting waiting(activity_, call);
    execute(collective, call);
  } else {
    QueuedWork(*this, enqueue(collective, call)).wait(stream);
  }
}

void HostCommunicator::execute(const Collective& collective, const Activity::Call& call) {
  const Activity::Transfer transfer(activity_, axis_.c_str(), call);
  std::visit([&](const auto& op) { execute(op, call.name); }, collective);
}

void HostCommunicator::exchange(std::string_view name) {
  transport_->exchange(to_, from_, name);
}

// This rank's range of a sum: from_[r] are to receive the ranks' terms, which lie in staging_.
void HostCommunicator::sum_pieces(const TensorView& y, Reduce reduce, std::string_view name) {
  const std::size_t stride = aligned(y.bytes());
  grow(staging_, stride * static_cast<std::size_t>(size()));
  for (int r = 0; r < size(); ++r) {
    from_[static_cast<std::size_t>(r)] = {staging_.data() + static_cast<std::size_t>(r) * stride,
                                          y.bytes()};
  }
  exchange(name);
  // In parts, since a rank that adds up for long would look to others as if it waited for them.
  constexpr std::size_t kPart = std::size_t{1} << 20U;
  const auto count = static_cast<std::size_t>(y.num_elements());
  const std::size_t width = size_of(y.dtype);
  for (std::size_t begin = 0; begin < count; begin += kPart) {
    const std::size_t length = std::min(kPart, count - begin);
    const TensorView part(
        bytes_of(y) + begin * width, {static_cast<std::int64_t>(length)}, y.dtype, Device::cpu);
    reduce_pieces(part, staging_.data() + begin * width, stride, size(), length, reduce);
    activity_.progress();
  }
}

void HostCommunicator::execute(const AllReduce& op, std::string_view name) {
  const auto count = static_cast<std::size_t>(op.x.num_elements());
  const std::size_t width = size_of(op.x.dtype);
  const auto piece = [&](const TensorView& view, int r) {
    const std::size_t begin = begin_of(count, r, size());
    return std::span(bytes_of(view) + begin * width,
                     (begin_of(count, r + 1, size()) - begin) * width);
  };
  for (int r = 0; r < size(); ++r) {
    to_[static_cast<std::size_t>(r)] = piece(op.x, r);
  }
  // Sums go to a buffer of their own: y may be x, which others may still be reading.
  const std::size_t own_bytes = piece(op.x, rank()).size();
  grow(packed_, own_bytes);
  const TensorView own(
      packed_.data(), {static_cast<std::int64_t>(own_bytes / width)}, op.x.dtype, Device::cpu);
  sum_pieces(own, op.reduce, name);
  for (int r = 0; r < size(); ++r) {
    to_[static_cast<std::size_t>(r)] = {packed_.data(), own_bytes};
    from_[static_cast<std::size_t>(r)] = piece(op.y, r);
  }
  exchange(name);
}

void HostCommunicator::execute(const ReduceScatter& op, std::string_view name) {
  const std::size_t bytes = op.y.bytes();
  const auto num_blocks = static_cast<std::size_t>(op.num_blocks);
  const auto n = static_cast<std::size_t>(size());
  if (num_blocks == 1) {
    for (std::size_t r = 0; r < n; ++r) {
      to_[r] = {bytes_of(op.x) + r * bytes, bytes};
    }
    sum_pieces(op.y, Reduce::sum, name);
    return;
  }
  // [blocks, n, m] -> [n, blocks, m]
  const std::size_t block_bytes = bytes / num_blocks;
  grow(packed_, bytes * n);
  for (std::size_t r = 0; r < n; ++r) {
    for (std::size_t b = 0; b < num_blocks && block_bytes > 0; ++b) {
      std::memcpy(packed_.data() + r * bytes + b * block_bytes,
                  bytes_of(op.x) + (b * n + r) * block_bytes,
                  block_bytes);
    }
    to_[r] = {packed_.data() + r * bytes, bytes};
  }
  sum_pieces(op.y, Reduce::sum, name);
}

void HostCommunicator::execute(const AllGather& op, std::string_view name) {
  const std::size_t bytes = op.x.bytes();
  const auto num_blocks = static_cast<std::size_t>(op.num_blocks);
  const auto n = static_cast<std::size_t>(size());
  std::byte* target = bytes_of(op.y);
  if (num_blocks > 1) {
    grow(packed_, bytes * n);
    target = packed_.data();
  }
  for (std::size_t r = 0; r < n; ++r) {
    to_[r] = {bytes_of(op.x), bytes};
    from_[r] = {target + r * bytes, bytes};
  }
  exchange(name);
  const std::size_t block_bytes = bytes / num_blocks;
  for (std::size_t r = 0; num_blocks > 1 && r < n; ++r) {
    for (std::size_t b = 0; b < num_blocks && block_bytes > 0; ++b) {
      std::memcpy(bytes_of(op.y) + (b * n + r) * block_bytes,
                  packed_.data() + r * bytes + b * block_bytes,
                  block_bytes);
    }
  }
}

void HostCommunicator::execute(const AllToAll& op, std::string_view name) {
  const std::size_t row_bytes = row_bytes_of(op.x);
  std::size_t sent = 0;
  std::size_t received = 0;
  for (std::size_t r = 0; r < to_.size(); ++r) {
    const std::size_t send = static_cast<std::size_t>(op.send_rows[r]) * row_bytes;
    const std::size_t receive = static_cast<std::size_t>(op.recv_rows[r]) * row_bytes;
    to_[r] = {bytes_of(op.x) + sent, send};
    from_[r] = {bytes_of(op.y) + received, receive};
    sent += send;
    received += receive;
  }
  exchange(name);
}

void HostCommunicator::execute(const Broadcast& op, std::string_view name) {
  const std::span<std::byte> all(bytes_of(op.x), op.x.bytes());
  for (int r = 0; r < size(); ++r) {
    const auto i = static_cast<std::size_t>(r);
    to_[i] = rank() == op.root && r != rank() ? std::span<const std::byte>(all)
                                              : std::span<const std::byte>();
    from_[i] = r == op.root && rank() != op.root ? all : std::span<std::byte>();
  }
  exchange(name);
}

void HostCommunicator::execute(const Sums& op, std::string_view name) {
  for (const Sum& part : op.parts) {
    std::visit([&](const auto& sum) { execute(sum, name); }, part);
  }
}

}  // namespace memphis
