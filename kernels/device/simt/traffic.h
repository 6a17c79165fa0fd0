// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <string>
#include <unordered_map>
#include <vector>

#include "kernels/device/simt/fault.h"
#include "kernels/device/simt/lanes.h"

// What kernels ask of the memory system, by counting: where a GPU would be slow for how lanes are
// laid over memory, and not for how much of it there is. Counted where Options::count_traffic says so.
namespace memphis::kernels::simt {

constexpr std::size_t kSectorBytes = 32;
constexpr std::size_t kNumBanks = 32;
constexpr std::size_t kBankBytes = 4;

// Where accesses go. Those of TMA are a thread's, and not a warp's.
enum class Path : std::uint8_t { global, shared, bulk };

struct Traffic {
  std::int64_t instructions = 0;  // of a warp; of one thread in bulk
  std::int64_t bytes = 0;         // that their lanes named, each byte once an instruction
  // Of device memory the sectors of 32 bytes that each instruction touches; of shared memory the
  // passes over its banks: one for 128 bytes of neighbouring lanes, more where two of these lanes
  // want different words of one bank.
  std::int64_t cost = 0;
  std::int64_t least = 0;  // of instructions that name as many bytes, laid well
};
Traffic& operator+=(Traffic& sum, const Traffic& more);

// Of one line of a kernel.
struct LineTraffic {
  std::string kernel;  // "rmsnorm_forward_kernel<float, false>"
  std::string place;   // "kernels/rmsnorm/rmsnorm.cu:58"
  Path path = Path::global;
  Access access = Access::read;
  Traffic traffic;
};

// All that was counted since the program began or forget_traffic(), by kernel and place.
std::vector<LineTraffic> traffic();
void forget_traffic();
// A table for people: a line of a kernel each, those first that cost more than they need.
std::string describe(const std::vector<LineTraffic>& lines);

// Counts for the block that a thread of the machine runs. Lanes run one after the other: the nth
// time that one of them passes a place since the warp was last together is the same instruction as
// the nth time of another.
class TrafficCounter {
 public:
  void begin_block(int num_warps);
  // An access of one lane; `present` are the lanes of its warp that have not left.
  void note(std::uintptr_t address,
            std::size_t bytes,
            Access access,
            bool shared,
            int thread,
            unsigned present,
            const void* pc);
  // The lanes of a warp are together: who has not made an access until now did not take part.
  void converge(int warp);
  void converge_all();
  // Adds what was counted to the program's.
  void end_block(const void* kernel);

 private:
  struct Request {
    unsigned lanes = 0;
    std::size_t bytes = 0;  // of a lane
    std::array<std::uintptr_t, kWarpSize> addresses{};
  };
  // An instruction. One may have two paths: cp.async reads on one and writes on the other.
  struct Site {
    const void* pc = nullptr;
    Path path = Path::global;
    Access access = Access::read;
    bool operator==(const Site&) const = default;
  };
  struct HashOfSite {
    std::size_t operator()(const Site& site) const {
      return reinterpret_cast<std::size_t>(site.pc) * 16 + static_cast<std::size_t>(site.path);
    }
  };
  // What is known of it for one warp.
  struct Passage {
    std::deque<Request> open;  // not all lanes have come yet, from the oldest
    std::uint32_t num_closed = 0;
    // That a lane was here since the warp was together.
    std::array<std::uint32_t, kWarpSize> times{};
  };
  using Passages = std::unordered_map<Site, Passage, HashOfSite>;

  void note_bulk(std::uintptr_t address, std::size_t bytes, Access access, const void* pc);
  void close(const Site& site, Passage& passage);
  static Traffic of_global(const Request& request);
  static Traffic of_shared(const Request& request, bool atomic);

  std::vector<Passages> warps_;
  std::unordered_map<Site, Traffic, HashOfSite> sums_;
  std::uintptr_t last_bulk_sector_ = 0;
  const void* last_bulk_pc_ = nullptr;
};

}  // namespace memphis::kernels::simt
