// SPDX-License-Identifier: Apache-2.0
#include "csrc/comm/check.h"

#include <numeric>

#include <spdlog/fmt/fmt.h>

#include "csrc/core/dtype.h"

namespace memphis {
namespace {

class Check {
 public:
  Check(std::string_view name, std::string_view axis, int rank, int size, Stream stream)
      : name_(name), axis_(axis), rank_(rank), size_(size), stream_(stream) {}

  int rank() const { return rank_; }
  int size() const { return size_; }

  // The text is made only where it is needed: collectives are called within steps.
  template <class... Args>
  void expect(bool holds, fmt::format_string<const Args&...> problem, const Args&... args) const {
    if (!holds) {
      throw ContractError(fmt::format("{}: {} (rank {} of the {} {} ranks); see communicator.h",
                                      name_,
                                      fmt::format(problem, args...),
                                      rank_,
                                      size_,
                                      axis_));
    }
  }

  void tensors(const TensorView& y, const TensorView& x) const {
    expect(y.present() && x.present(), "an operand is absent");
    expect(y.dtype == x.dtype, "y is {} and x is {}", name_of(y.dtype), name_of(x.dtype));
    expect(y.device == stream_.device && x.device == stream_.device,
           "y is on {}, x on {}, the stream on {}",
           name_of(y.device),
           name_of(x.device),
           name_of(stream_.device));
    expect(y.dtype != DType::u8, "u8 is no dtype of a collective");
  }

  // `long_count` elements are those of `short_count` once for each rank, in whole blocks.
  void blocks(std::int64_t long_count, std::int64_t short_count, std::int64_t num_blocks) const {
    expect(long_count == short_count * size_,
           "{} elements are not {} times {}",
           long_count,
           size_,
           short_count);
    expect(num_blocks >= 1 && short_count % num_blocks == 0,
           "{} elements are not {} blocks",
           short_count,
           num_blocks);
  }

  void rows(const TensorView& view, std::span<const std::int64_t> rows, const char* which) const {
    expect(rows.size() == static_cast<std::size_t>(size_), "{} has {} entries", which, rows.size());
    for (const std::int64_t count : rows) {
      expect(count >= 0, "{} has {}", which, count);
    }
    const std::int64_t total = std::accumulate(rows.begin(), rows.end(), std::int64_t{0});
    expect(total <= view.dim(0), "{} is {} rows of a tensor of {}", which, total, view.dim(0));
  }

 private:
  std::string_view name_;
  std::string_view axis_;
  int rank_;
  int size_;
  Stream stream_;
};

void check(const AllReduce& op, const Check& check) {
  check.tensors(op.y, op.x);
  check.expect(op.y.num_elements() == op.x.num_elements(),
               "y has {} elements and x {}",
               op.y.num_elements(),
               op.x.num_elements());
}

void check(const AllGather& op, const Check& check) {
  check.tensors(op.y, op.x);
  check.blocks(op.y.num_elements(), op.x.num_elements(), op.num_blocks);
}

void check(const ReduceScatter& op, const Check& check) {
  check.tensors(op.y, op.x);
  check.blocks(op.x.num_elements(), op.y.num_elements(), op.num_blocks);
}

void check(const AllToAll& op, const Check& check) {
  check.tensors(op.y, op.x);
  check.expect(row_bytes_of(op.y) == row_bytes_of(op.x),
               "a row of y has {} bytes and one of x {}",
               row_bytes_of(op.y),
               row_bytes_of(op.x));
  check.rows(op.x, op.send_rows, "send_rows");
  check.rows(op.y, op.recv_rows, "recv_rows");
  const auto own = static_cast<std::size_t>(check.rank());
  check.expect(op.send_rows[own] == op.recv_rows[own],
               "{} rows go to this rank itself and {} come from it",
               op.send_rows[own],
               op.recv_rows[own]);
}

void check(const Broadcast& op, const Check& check) {
  check.tensors(op.x, op.x);
  check.expect(op.root >= 0 && op.root < check.size(), "root is {}", op.root);
}

void check(const Sums& op, const Check& checker) {
  for (const Sum& part : op.parts) {
    std::visit([&](const auto& sum) { check(sum, checker); }, part);
  }
}

}  // namespace

void check_collective(const Collective& collective,
                      std::string_view name,
                      std::string_view axis,
                      int rank,
                      int size,
                      Stream stream) {
  const Check checker(name, axis, rank, size, stream);
  std::visit([&](const auto& op) { check(op, checker); }, collective);
}

void throw_sizes_differ(std::string_view name,
                        int sender,
                        std::size_t sent_bytes,
                        int receiver,
                        std::size_t expected_bytes) {
  throw ContractError(
      fmt::format("{}: rank {} sends {} bytes and rank {} expects {} (the ranks do "
                  "not make the same calls); mend the caller",
                  name,
                  sender,
                  sent_bytes,
                  receiver,
                  expected_bytes));
}

void throw_hang(std::string_view name, double seconds, std::span<const int> missing) {
  throw CommunicationError(
      fmt::format("{} has waited for {:.0f} s; not arrived: {} {} (alive, or they would have been "
                  "missed, and not on their way); look into what they do, or raise "
                  "run.hang_seconds if a step takes so long",
                  name,
                  seconds,
                  missing.size() == 1 ? "rank" : "ranks",
                  list_ranks(missing)),
      ExitCode::hang);
}

std::size_t payload_bytes(const Collective& collective) {
  if (const auto* op = std::get_if<AllGather>(&collective)) {
    return op->y.bytes();
  }
  if (const auto* op = std::get_if<AllToAll>(&collective)) {
    const auto rows = std::accumulate(op->send_rows.begin(), op->send_rows.end(), std::int64_t{0});
    return static_cast<std::size_t>(rows) * row_bytes_of(op->x);
  }
  if (const auto* op = std::get_if<Sums>(&collective)) {
    std::size_t bytes = 0;
    for (const Sum& part : op->parts) {
      bytes += std::visit([](const auto& sum) { return sum.x.bytes(); }, part);
    }
    return bytes;
  }
  return std::visit(
      [](const auto& op) {
        if constexpr (requires { op.x; }) {
          return op.x.bytes();
        } else {
          return std::size_t{0};  // Sums, as above
        }
      },
      collective);
}

CommunicationRecord::Role role_in(const Collective& collective, int rank) {
  const auto* op = std::get_if<Broadcast>(&collective);
  if (op == nullptr) {
    return CommunicationRecord::Role::member;
  }
  return op->root == rank ? CommunicationRecord::Role::sender : CommunicationRecord::Role::receiver;
}

std::size_t row_bytes_of(const TensorView& view) {
  std::size_t bytes = size_of(view.dtype);
  for (int i = 1; i < view.num_dims; ++i) {
    bytes *= static_cast<std::size_t>(view.dim(i));
  }
  return bytes;
}

}  // namespace memphis
