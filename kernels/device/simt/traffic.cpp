// SPDX-License-Identifier: Apache-2.0
#include "kernels/device/simt/traffic.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <string_view>
#include <tuple>

#include <fmt/format.h>

#include "kernels/device/simt/sanitizer.h"
#include "kernels/device/simt/symbols.h"
#include "kernels/launch.h"

namespace memphis::kernels::simt {
namespace {

// What all ops load and store by is no op's choice: a place is the line that calls it.
constexpr std::string_view kOfAllOps = "kernels/device/";

// Of all blocks that have ended, by kernel, place, path and access.
struct Totals {
  std::mutex mutex;
  std::map<std::tuple<const void*, const void*, Path, Access>, Traffic> sums;
};

Totals& totals() {
  static Totals totals;
  return totals;
}

// The numbers of the units of `unit` bytes that lanes touch, each once, ascending.
std::vector<std::uintptr_t> units(const std::array<std::uintptr_t, kWarpSize>& addresses,
                                  unsigned lanes,
                                  std::size_t bytes,
                                  std::size_t unit) {
  std::vector<std::uintptr_t> result;
  for_lanes(lanes, [&](int lane) {
    const std::uintptr_t first = addresses[static_cast<std::size_t>(lane)];
    for (std::uintptr_t i = first / unit; i <= (first + bytes - 1) / unit; ++i) {
      result.push_back(i);
    }
  });
  std::sort(result.begin(), result.end());
  result.erase(std::unique(result.begin(), result.end()), result.end());
  return result;
}

const char* verb(const LineTraffic& line) {
  if (line.access == Access::atomic) {
    return "adds to";
  }
  return is_read(line.access) ? "reads" : "writes";
}

}  // namespace

Traffic& operator+=(Traffic& sum, const Traffic& more) {
  sum.instructions += more.instructions;
  sum.bytes += more.bytes;
  sum.cost += more.cost;
  sum.least += more.least;
  return sum;
}

void TrafficCounter::begin_block(int num_warps) {
  warps_.resize(static_cast<std::size_t>(num_warps));
  for (Passages& passages : warps_) {
    passages.clear();
  }
}

void TrafficCounter::note(std::uintptr_t address,
                          std::size_t bytes,
                          Access access,
                          bool shared,
                          int thread,
                          unsigned present,
                          const void* pc) {
  if (access == Access::async_read || access == Access::async_write) {
    if (!shared) {  // TMA lays boxes into shared memory as their swizzle says
      note_bulk(address, bytes, access, pc);
    }
    return;
  }
  const Site site = {.pc = pc, .path = shared ? Path::shared : Path::global, .access = access};
  Passage& passage = warps_[static_cast<std::size_t>(thread / kWarpSize)][site];
  const auto lane = static_cast<std::size_t>(thread % kWarpSize);
  const std::size_t place = passage.times[lane]++ - passage.num_closed;
  if (place == passage.open.size()) {
    passage.open.emplace_back();
  }
  Request& request = passage.open[place];
  request.lanes |= 1U << lane;
  request.bytes = std::max(request.bytes, bytes);
  request.addresses[lane] = address;
  while (!passage.open.empty() && (present & ~passage.open.front().lanes) == 0) {
    close(site, passage);
  }
}

// A box comes in chunks, row by row: neighbours of one sector are one.
void TrafficCounter::note_bulk(std::uintptr_t address,
                               std::size_t bytes,
                               Access access,
                               const void* pc) {
  const std::uintptr_t first = address / kSectorBytes;
  const std::uintptr_t last = (address + bytes - 1) / kSectorBytes;
  const bool is_known = last_bulk_pc_ == pc && last_bulk_sector_ == first;
  sums_[{.pc = pc, .path = Path::bulk, .access = access}] +=
      {.instructions = 1,
       .bytes = static_cast<std::int64_t>(bytes),
       .cost = static_cast<std::int64_t>(last - first) + (is_known ? 0 : 1),
       .least = 0};
  last_bulk_pc_ = pc;
  last_bulk_sector_ = last;
}

// The oldest instruction of the passage has all lanes that will come.
void TrafficCounter::close(const Site& site, Passage& passage) {
  const Request& request = passage.open.front();
  sums_[site] += site.path == Path::shared ? of_shared(request, site.access == Access::atomic)
                                           : of_global(request);
  passage.open.pop_front();
  ++passage.num_closed;
}

Traffic TrafficCounter::of_global(const Request& request) {
  const auto bytes =
      static_cast<std::int64_t>(units(request.addresses, request.lanes, request.bytes, 1).size());
  return {.instructions = 1,
          .bytes = bytes,
          .cost = static_cast<std::int64_t>(
              units(request.addresses, request.lanes, request.bytes, kSectorBytes).size()),
          .least = ceil_div(bytes, kSectorBytes)};
}

// A pass serves neighbouring lanes that name 128 bytes together. Lanes that name the same word are
// served at once, but for those that add to it.
Traffic TrafficCounter::of_shared(const Request& request, bool atomic) {
  constexpr std::size_t kPassBytes = kNumBanks * kBankBytes;
  const std::size_t width = std::clamp(request.bytes, kBankBytes, kPassBytes);
  const auto num_lanes = static_cast<unsigned>(kPassBytes / width);
  Traffic result = {.instructions = 1,
                    .bytes = static_cast<std::int64_t>(
                        units(request.addresses, request.lanes, request.bytes, 1).size()),
                    .cost = 0,
                    .least = 0};
  for (unsigned first = 0; first < kWarpSize; first += num_lanes) {
    const unsigned group =
        num_lanes == kWarpSize ? request.lanes : request.lanes & ((1U << num_lanes) - 1U) << first;
    if (group == 0) {
      continue;
    }
    std::array<std::int64_t, kNumBanks> of_bank{};
    if (atomic) {
      for_lanes(group, [&](int lane) {
        ++of_bank[request.addresses[static_cast<std::size_t>(lane)] / kBankBytes % kNumBanks];
      });
    } else {
      for (const std::uintptr_t word : units(request.addresses, group, request.bytes, kBankBytes)) {
        ++of_bank[word % kNumBanks];
      }
    }
    result.cost += *std::max_element(of_bank.begin(), of_bank.end());
    ++result.least;
  }
  return result;
}

void TrafficCounter::converge(int warp) {
  for (auto& [site, passage] : warps_[static_cast<std::size_t>(warp)]) {
    while (!passage.open.empty()) {
      close(site, passage);
    }
    passage.num_closed = 0;
    passage.times.fill(0);
  }
}

void TrafficCounter::converge_all() {
  for (std::size_t warp = 0; warp < warps_.size(); ++warp) {
    converge(static_cast<int>(warp));
  }
}

void TrafficCounter::end_block(const void* kernel) {
  converge_all();
  last_bulk_pc_ = nullptr;
  Totals& all = totals();
  const std::lock_guard lock(all.mutex);
  for (const auto& [site, traffic] : sums_) {
    all.sums[{kernel, site.pc, site.path, site.access}] += traffic;
  }
  sums_.clear();
}

std::vector<LineTraffic> traffic() {
  Totals& all = totals();
  const std::lock_guard lock(all.mutex);
  // Addresses of one line of the source, which the compiler has copied, are one.
  std::map<std::tuple<std::string, std::string, Path, Access>, Traffic> sums;
  for (const auto& [key, sum] : all.sums) {
    const auto& [kernel, pc, path, access] = key;
    sums[{Symbols::instance().kernel(kernel).name,
          kernel_place(pc, kOfAllOps).text(),
          path,
          access}] += sum;
  }
  std::vector<LineTraffic> result;
  for (const auto& [key, sum] : sums) {
    const auto& [kernel, place, path, access] = key;
    result.push_back(
        {.kernel = kernel, .place = place, .path = path, .access = access, .traffic = sum});
    Traffic& own = result.back().traffic;
    if (path == Path::bulk) {
      own.least = ceil_div(own.bytes, kSectorBytes);
    }
  }
  return result;
}

void forget_traffic() {
  Totals& all = totals();
  const std::lock_guard lock(all.mutex);
  all.sums.clear();
}

std::string describe(const std::vector<LineTraffic>& lines) {
  std::vector<const LineTraffic*> order;
  for (const LineTraffic& line : lines) {
    order.push_back(&line);
  }
  const auto excess = [](const LineTraffic& line) {
    return line.traffic.cost - line.traffic.least;
  };
  std::stable_sort(order.begin(), order.end(), [&](const auto* a, const auto* b) {
    return a->kernel != b->kernel ? a->kernel < b->kernel : excess(*a) > excess(*b);
  });
  std::string text;
  std::string kernel;
  for (const LineTraffic* line : order) {
    if (line->kernel != kernel) {
      kernel = line->kernel;
      text += kernel + "\n";
    }
    const Traffic& own = line->traffic;
    text += fmt::format("  {:<60} {:<8} {:<14} {:>10} {} for {} bytes, {} would do{}\n",
                        line->place,
                        verb(*line),
                        line->path == Path::shared ? "shared memory" : "device memory",
                        own.cost,
                        line->path == Path::shared ? "passes" : "sectors",
                        own.bytes,
                        own.least,
                        own.cost > own.least ? "  <--" : "");
  }
  return text;
}

}  // namespace memphis::kernels::simt
