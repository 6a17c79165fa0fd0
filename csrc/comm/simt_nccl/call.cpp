// SPDX-License-Identifier: Apache-2.0
#include "csrc/comm/simt_nccl/call.h"

#include <algorithm>
#include <type_traits>

#include <spdlog/fmt/fmt.h>

#include "csrc/core/dtype.h"
#include "csrc/core/simt_memory.h"

namespace memphis::simt_nccl {
namespace {

const char* name_of(Kind kind) {
  switch (kind) {
    case Kind::all_reduce:
      return "ncclAllReduce";
    case Kind::all_gather:
      return "ncclAllGather";
    case Kind::reduce_scatter:
      return "ncclReduceScatter";
    case Kind::broadcast:
      return "ncclBroadcast";
    case Kind::send:
      return "ncclSend";
    case Kind::receive:
      return "ncclRecv";
  }
  return "?";
}

const char* name_of(ncclDataType_t type) {
  switch (type) {
    case ncclInt32:
      return "ncclInt32";
    case ncclInt64:
      return "ncclInt64";
    case ncclFloat32:
      return "ncclFloat32";
    case ncclFloat64:
      return "ncclFloat64";
    case ncclBfloat16:
      return "ncclBfloat16";
  }
  return "?";
}

struct Range {
  const char* name;
  const std::byte* begin;
  std::size_t bytes;
};

// Empty if the range is this device's to read and write.
std::string problem_of(const Range& range) {
  const auto address = reinterpret_cast<std::uintptr_t>(range.begin);
  if (!simt_memory::contains(address)) {
    return fmt::format("{} is no memory of the device (the GPU would fault there)", range.name);
  }
  if (!simt_memory::is_live(address, range.bytes)) {
    return fmt::format(
        "{} has {} bytes, beginning {} (the GPU would fault there, or use what is others')",
        range.name,
        range.bytes,
        simt_memory::describe(address));
  }
  return {};
}

bool overlap(const Range& a, const Range& b) {
  return a.begin < b.begin + b.bytes && b.begin < a.begin + a.bytes;
}

template <class T>
T reduced(ncclRedOp_t op, T a, T b) {
  if (op == ncclMax) {
    return std::max(a, b);
  }
  if constexpr (std::is_integral_v<T>) {
    using Unsigned = std::make_unsigned_t<T>;  // which wraps, as on the GPU
    return static_cast<T>(static_cast<Unsigned>(a) + static_cast<Unsigned>(b));
  } else {
    return static_cast<T>(a + b);  // of bf16: of two f32, rounded
  }
}

template <class T>
void reduce_as(ncclRedOp_t op,
               std::span<const std::byte* const> pieces,
               std::byte* result,
               std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) {
    T value = reinterpret_cast<const T*>(pieces.front())[i];
    for (const std::byte* piece : pieces.subspan(1)) {
      value = reduced(op, value, reinterpret_cast<const T*>(piece)[i]);
    }
    reinterpret_cast<T*>(result)[i] = value;
  }
}

}  // namespace

bool is_collective(Kind kind) {
  return kind != Kind::send && kind != Kind::receive;
}

std::size_t bytes_of(ncclDataType_t type) {
  switch (type) {
    case ncclInt32:
    case ncclFloat32:
      return 4;
    case ncclInt64:
    case ncclFloat64:
      return 8;
    case ncclBfloat16:
      return 2;
  }
  return 0;
}

std::string describe(const Terms& terms) {
  std::string text =
      fmt::format("{}(count {}, {}", name_of(terms.kind), terms.count, name_of(terms.type));
  switch (terms.kind) {
    case Kind::all_reduce:
    case Kind::reduce_scatter:
      text += terms.op == ncclMax ? ", ncclMax" : ", ncclSum";
      break;
    case Kind::broadcast:
      text += fmt::format(", root {}", terms.peer);
      break;
    case Kind::send:
      text += fmt::format(", to rank {}", terms.peer);
      break;
    case Kind::receive:
      text += fmt::format(", from rank {}", terms.peer);
      break;
    case Kind::all_gather:
      break;
  }
  return text + ")";
}

std::string describe(std::span<const Call> calls) {
  constexpr std::size_t kNumShown = 4;
  std::string text;
  for (const Call& call : calls.first(std::min(calls.size(), kNumShown))) {
    text += (text.empty() ? "" : ", ") + describe(call.terms);
  }
  if (calls.size() > kNumShown) {
    text += fmt::format(" and {} more", calls.size() - kNumShown);
  }
  return text;
}

std::string problem_of(const Call& call, int rank, int num_ranks) {
  const Terms& terms = call.terms;
  if (bytes_of(terms.type) == 0) {
    return fmt::format("type {} is not simulated", static_cast<int>(terms.type));
  }
  if (terms.op != ncclSum && terms.op != ncclMax) {
    return fmt::format("op {} is not simulated", static_cast<int>(terms.op));
  }
  const bool has_peer = terms.kind == Kind::broadcast || !is_collective(terms.kind);
  if (has_peer && (terms.peer < 0 || terms.peer >= num_ranks)) {
    return fmt::format("rank {} is none of {}", terms.peer, num_ranks);
  }
  if (terms.count == 0) {
    return {};
  }
  const std::size_t one = terms.count * bytes_of(terms.type);
  const std::size_t all = one * static_cast<std::size_t>(num_ranks);
  const std::size_t offset = one * static_cast<std::size_t>(rank);
  const Range send{"send", call.send, terms.kind == Kind::reduce_scatter ? all : one};
  const Range receive{"receive", call.receive, terms.kind == Kind::all_gather ? all : one};
  const bool reads =
      terms.kind != Kind::receive && (terms.kind != Kind::broadcast || terms.peer == rank);
  const bool writes = terms.kind != Kind::send;
  for (const auto& [used, range] : {std::pair(reads, send), std::pair(writes, receive)}) {
    if (const std::string problem = used ? problem_of(range) : ""; !problem.empty()) {
      return problem;
    }
  }
  const std::byte* in_place = receive.begin;
  if (terms.kind == Kind::all_gather) {
    in_place += offset;
  } else if (terms.kind == Kind::reduce_scatter) {
    in_place -= offset;
  }
  if (reads && writes && overlap(send, receive) && send.begin != in_place) {
    return "send and receive overlap (what is read would already be written)";
  }
  return {};
}

void reduce(const Terms& terms,
            std::span<const std::byte* const> pieces,
            std::byte* result,
            std::size_t count) {
  switch (terms.type) {
    case ncclInt32:
      return reduce_as<std::int32_t>(terms.op, pieces, result, count);
    case ncclInt64:
      return reduce_as<std::int64_t>(terms.op, pieces, result, count);
    case ncclFloat32:
      return reduce_as<float>(terms.op, pieces, result, count);
    case ncclFloat64:
      return reduce_as<double>(terms.op, pieces, result, count);
    case ncclBfloat16:
      return reduce_as<bf16>(terms.op, pieces, result, count);
  }
}

}  // namespace memphis::simt_nccl
