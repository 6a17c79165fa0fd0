// SPDX-License-Identifier: Apache-2.0
#include "csrc/comm/together.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <numeric>
#include <sstream>
#include <utility>
#include <vector>

#include <spdlog/fmt/fmt.h>

namespace memphis {

std::unique_ptr<Communicator> create_group_of_all(World& world, std::string axis, Device device) {
  std::vector<int> ranks(static_cast<std::size_t>(world.size()));
  std::iota(ranks.begin(), ranks.end(), 0);
  return world.create_group(std::move(axis), ranks, device);
}

void sum_over_ranks(Communicator& host, std::span<std::int64_t> values, std::string_view name) {
  const TensorView view(
      values.data(), {static_cast<std::int64_t>(values.size())}, DType::i64, Device::cpu);
  host.run(AllReduce{.y = view, .x = view}, name, {});
}

std::int64_t largest_of_all(Communicator& all_host, std::int64_t value, std::string_view name) {
  const TensorView view(&value, {1}, DType::i64, Device::cpu);
  all_host.run(AllReduce{.y = view, .x = view, .reduce = Reduce::max}, name, {});
  return value;
}

std::string text_of_rank(Communicator& all_host,
                         int root,
                         std::string_view text,
                         std::string_view name) {
  const bool tells = all_host.rank() == root;
  const std::int64_t size =
      largest_of_all(all_host, tells ? static_cast<std::int64_t>(text.size()) : 0, name);
  constexpr std::int64_t kWord = sizeof(std::int64_t);
  std::vector<std::int64_t> words(static_cast<std::size_t>(size / kWord + 1));
  if (tells) {
    std::memcpy(words.data(), text.data(), text.size());
  }
  all_host.run(
      Broadcast{
          .x = {words.data(), {static_cast<std::int64_t>(words.size())}, DType::i64, Device::cpu},
          .root = root},
      name,
      {});
  return {reinterpret_cast<const char*>(words.data()), static_cast<std::size_t>(size)};
}

void require_same(Communicator& all_host,
                  std::string_view what,
                  const std::string& text,
                  ExitCode code) {
  const std::string first = text_of_rank(all_host, 0, text, "same.text");
  together(all_host, "same", [&] {
    std::istringstream expected(first);
    std::istringstream actual(text);
    std::string expected_line;
    std::string actual_line;
    for (int line = 1; first != text; ++line) {
      const bool more = static_cast<bool>(std::getline(expected, expected_line));
      const bool own_more = static_cast<bool>(std::getline(actual, actual_line));
      if (expected_line != actual_line || !more || !own_more) {
        throw Error(
            code,
            fmt::format(
                "{} of rank {} differs from that of rank 0: its line {} is `{}` and not `{}` (all "
                "ranks of a job train one model); start every rank with the same files and "
                "arguments",
                what,
                all_host.rank(),
                line,
                own_more ? actual_line : "",
                more ? expected_line : ""));
      }
    }
  });
}

namespace {

// How an action has ended on this rank.
struct Ending {
  std::exception_ptr error;  // null: well
  ExitCode code = ExitCode::done;
};

Ending ending_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const CommunicationError&) {
    throw;  // the others cannot be told
  } catch (const Error& error) {
    return {.error = std::current_exception(), .code = error.code()};
  } catch (const std::exception&) {
    return {.error = std::current_exception(), .code = ExitCode::internal};
  }
  return {};
}

[[noreturn]] void throw_first(const Ending& own,
                              const Communicator& all_host,
                              std::int64_t rank,
                              std::int64_t code,
                              std::string_view name) {
  if (rank == all_host.rank()) {
    std::rethrow_exception(own.error);
  }
  throw FailedElsewhere(static_cast<ExitCode>(code),
                        std::string(name) + " failed on rank " + std::to_string(rank) +
                            " (all ranks do it or none); see that rank's message");
}

}  // namespace

void together(Communicator& all_host, std::string_view name, const std::function<void()>& action) {
  const Ending own = ending_of(action);
  // The first rank that failed comes out largest, with its code.
  constexpr std::int64_t kCodes = 256;
  const std::int64_t size = all_host.size();
  const std::int64_t own_report =
      own.error ? (size - all_host.rank()) * kCodes + static_cast<std::int64_t>(own.code) : 0;
  const std::int64_t report = largest_of_all(all_host, own_report, name);
  if (report != 0) {
    throw_first(own, all_host, size - report / kCodes, report % kCodes, name);
  }
}

RollCall::RollCall(Communicator& all_host, std::size_t num_words)
    : all_host_(all_host),
      num_words_(num_words),
      own_(1 + num_words),
      all_(static_cast<std::size_t>(all_host.size()) * own_.size()) {}

std::span<std::int64_t> RollCall::own() {
  return std::span(own_).subspan(1);
}

void RollCall::take(std::string_view name, const std::function<void()>& action) {
  const Ending own = ending_of(action);
  own_[0] = own.error ? 1 + static_cast<std::int64_t>(own.code) : 0;
  const auto view = [](std::vector<std::int64_t>& words) {
    return TensorView(
        words.data(), {static_cast<std::int64_t>(words.size())}, DType::i64, Device::cpu);
  };
  all_host_.run(AllGather{.y = view(all_), .x = view(own_)}, name, {});
  for (std::int64_t rank = 0; rank < all_host_.size(); ++rank) {
    const std::int64_t report = all_[static_cast<std::size_t>(rank) * own_.size()];
    if (report != 0) {
      throw_first(own, all_host_, rank, report - 1, name);
    }
  }
}

std::int64_t RollCall::said(int rank, std::size_t word) const {
  require(word < num_words_, "a rank says as many words as a roll call is made for");
  return all_[static_cast<std::size_t>(rank) * own_.size() + 1 + word];
}

std::int64_t RollCall::largest(std::size_t word) const {
  std::int64_t result = said(0, word);
  for (int rank = 1; rank < all_host_.size(); ++rank) {
    result = std::max(result, said(rank, word));
  }
  return result;
}

}  // namespace memphis
