// SPDX-License-Identifier: Apache-2.0
#include "kernels/device/simt/warpgroups.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <iterator>

#include "kernels/device/register_pool.h"

namespace memphis::kernels::simt {
namespace {

constexpr unsigned kAllLanes = 0xFFFFFFFFU;
constexpr int kWarpsInGroup = 4;
constexpr int kRows = 16;  // of d that a warp holds
constexpr int kDepth = 16;
constexpr int kChunk = 8;  // elements

// A signalling NaN that no arithmetic produces.
constexpr std::uint32_t kUnderWay = 0x7FA5'5A5AU;

// The fields of a matrix descriptor.
struct Descriptor {
  explicit Descriptor(std::uint64_t bits)
      : address(decode(bits)),
        leading_bytes(decode(bits >> 16U)),
        stride_bytes(decode(bits >> 32U)),
        base_offset(static_cast<std::uint32_t>(bits >> 49U & 7U)) {
    const auto mode = static_cast<std::uint8_t>(bits >> 62U);
    swizzle = mode == 0 ? Swizzle::none : static_cast<Swizzle>(4 - mode);
  }
  static std::uint32_t decode(std::uint64_t field) {
    return static_cast<std::uint32_t>(field & 0x3FFFU) << 4U;
  }

  std::uint32_t address;
  std::uint32_t leading_bytes;
  std::uint32_t stride_bytes;
  std::uint32_t base_offset;
  Swizzle swizzle;
};

// Where the 8 elements lie, contiguous along the major dimension, of which (mn, k) is the first.
// PTX ISA, "Strides" and the canonical layouts, in chunks of 16 bytes:
//   k,  none       ((8, m), 2)        : ((1, stride), leading)
//   k,  32/64/128  ((8, m), 2)        : ((span, stride), 1)
//   mn, none       (m, (8, 2))        : (stride, (1, leading))
//   mn, 32/64/128  ((span, m), (8, 2)): ((1, leading), (span, stride))
// with span = 2, 4, 8 chunks in a row of the swizzle, which is then applied to the address.
std::uint32_t chunk_address(const Descriptor& tile, Major major, int mn, int k) {
  const auto span = static_cast<std::uint32_t>(swizzle_bytes(tile.swizzle) / kChunkBytes);
  const auto fast = static_cast<std::uint32_t>(major == Major::k ? k : mn) / kChunk;
  const auto slow = static_cast<std::uint32_t>(major == Major::k ? mn : k);
  std::uint32_t offset = 0;
  if (tile.swizzle == Swizzle::none) {
    const bool by_k = major == Major::k;
    offset = slow % 8 * kChunkBytes + slow / 8 * (by_k ? tile.stride_bytes : tile.leading_bytes) +
             fast * (by_k ? tile.leading_bytes : tile.stride_bytes);
  } else {
    offset = slow % 8 * span * kChunkBytes + slow / 8 * tile.stride_bytes;
    offset += major == Major::k ? fast * kChunkBytes
                                : fast % span * kChunkBytes + fast / span * tile.leading_bytes;
  }
  return swizzled(tile.address + offset, tile.swizzle);
}

template <class Body>
void for_each_chunk(
    const Descriptor& tile, Major major, int first_mn, int end_mn, const Body& body) {
  const int step_mn = major == Major::mn ? kChunk : 1;
  const int step_k = major == Major::k ? kChunk : 1;
  for (int mn = first_mn; mn < end_mn; mn += step_mn) {
    for (int k = 0; k < kDepth; k += step_k) {
      body(chunk_address(tile, major, mn, k), mn, k);
    }
  }
}

double bf16_value(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16U);
}
double bf16_half(std::uint32_t pair, int half) {
  return bf16_value(static_cast<std::uint16_t>(half == 0 ? pair : pair >> 16U));
}

std::uint64_t hash_of(const std::vector<float>& values) {  // FNV-1a
  std::uint64_t hash = 0xCBF29CE484222325U;
  for (const float value : values) {
    hash = (hash ^ std::bit_cast<std::uint32_t>(value)) * 0x100000001B3U;
  }
  return hash;
}

bool is_under_way(const float* value) {
  std::uint32_t bits = 0;
  std::memcpy(&bits, value, sizeof(bits));
  return bits == kUnderWay;
}

}  // namespace

struct Warpgroups::Request : Call {
  int count;
  bool gives_up;
  const void* pc;
};

struct Warpgroups::Pending : Call {
  int groups;
};

struct Warpgroups::Operand : Call {
  const Wgmma* what;
  float* d;
  const std::uint32_t* a;
  const void* pc;
};

template <class T>
const T& Warpgroups::call_of_all(void* const (&operands)[32], unsigned lanes) {
  const auto* const given = std::find_if(
      std::begin(operands), std::end(operands), [](void* one) { return one != nullptr; });
  const auto& call = *static_cast<const Call*>(*given);
  if (lanes != kAllLanes) {
    // A lane that leaves the kernel while the others wait has no place of its own there but the
    // kernel's.
    UnitHost& block = call.self->block_;
    block.stop({.what = "leaves the kernel while its warp waits for it at a wgmma or setmaxnreg",
                .advice = "let whole warpgroups leave, or none",
                .pc = block.kernel_pc()});
  }
  return static_cast<const T&>(call);
}

void Warpgroups::begin_block(int num_warps) {
  num_warps_ = num_warps;
  warps_.resize(std::max(warps_.size(), static_cast<std::size_t>(num_warps)));
  steps_.resize(warps_.size() / kWarpsInGroup + 1);
  num_free_registers_ = 0;
  if (any_instructions_) {
    std::fill(warps_.begin(), warps_.end(), Warp{});
    std::fill(steps_.begin(), steps_.end(), std::vector<Step>{});
    any_instructions_ = false;
  }
  for (Warp& warp : warps_) {
    warp.num_registers = registers_at_launch(num_warps * kWarpSize);
    warp.wanted_registers = warp.num_registers;
  }
}

int Warpgroups::warp_index() const {
  return block_.thread_id() / kWarpSize;
}

Warpgroups::Warp& Warpgroups::warp() {
  return warps_[static_cast<std::size_t>(warp_index())];
}

void Warpgroups::require_warpgroup(const void* pc) {
  any_instructions_ = true;
  const int first = warp_index() / kWarpsInGroup * kWarpsInGroup;
  if (block_.lanes_present() != kAllLanes || first + kWarpsInGroup > num_warps_) {
    block_.stop(
        {.what = "needs all 128 threads of its warpgroup, four warps from a multiple of four",
         .advice = "let whole warpgroups leave, or none",
         .pc = pc});
  }
}

void Warpgroups::take_step(const Step& step, const void* pc) {
  std::vector<Step>& steps = steps_[static_cast<std::size_t>(warp_index() / kWarpsInGroup)];
  std::size_t& own = warp().num_steps;
  if (own == steps.size()) {
    steps.push_back(step);
  } else if (!(steps[own] == step)) {
    block_.stop({.what = "executes another instruction of the warpgroup, or other operands of it, "
                         "than another of the four warps did",
                 .advice = "give all four the same",
                 .pc = pc});
  }
  ++own;
}

// The other three have come as far as this warp: hardware would wait for them too.
void Warpgroups::wait_for_warpgroup(const void* pc) {
  struct Awaited {
    const std::vector<Warp>* warps;
    std::size_t first;
    std::size_t num_steps;
  };
  Awaited awaited = {
      .warps = &warps_,
      .first = static_cast<std::size_t>(warp_index() / kWarpsInGroup * kWarpsInGroup),
      .num_steps = warp().num_steps};
  const auto are_there = [](void* argument) {
    const auto& self = *static_cast<const Awaited*>(argument);
    for (std::size_t i = 0; i < kWarpsInGroup; ++i) {
      if ((*self.warps)[self.first + i].num_steps < self.num_steps) {
        return false;
      }
    }
    return true;
  };
  if (!are_there(&awaited)) {
    block_.wait_until("the other warps of its warpgroup", are_there, &awaited, pc);
  }
}

void Warpgroups::set_max_registers(int count, bool gives_up, const void* pc) {
  require_warpgroup(pc);
  Request request = {{this}, count, gives_up, pc};
  block_.collective(
      "setmaxnreg",
      kAllLanes,
      static_cast<Call*>(&request),
      [](void* const(&operands)[32], unsigned lanes) {
        const auto& first = call_of_all<Request>(operands, lanes);
        first.self->request_registers(first);
      },
      pc);
  wait_for_warpgroup(pc);
  struct Awaited {
    Warpgroups* self;
    Warp* warp;
  } awaited = {this, &warp()};
  const auto has_them = [](void* argument) {
    const auto& [self, warp] = *static_cast<const Awaited*>(argument);
    return self->get_registers(*warp);
  };
  if (!has_them(&awaited)) {
    block_.wait_until("registers that another warpgroup gives up", has_them, &awaited, pc);
  }
}

void Warpgroups::request_registers(const Request& request) {
  take_step({.product = {}, .max_registers = request.count, .gives_up = request.gives_up},
            request.pc);
  Warp& own = warp();
  if (request.gives_up ? request.count > own.num_registers : request.count < own.num_registers) {
    block_.stop({.what = request.gives_up ? "gives up registers and names more than it has"
                                          : "asks for registers and names fewer than it has",
                 .advice = "decrease_max_registers where there are to be fewer, else "
                           "increase_max_registers",
                 .pc = request.pc});
  }
  own.wanted_registers = request.count;
  get_registers(own);
}

// What a warp gives up goes to the block, and what it gets comes from there: registers of the
// multiprocessor that the launch left free are nobody's.
bool Warpgroups::get_registers(Warp& warp) {
  const int missing = warp.wanted_registers - warp.num_registers;
  if (missing > num_free_registers_) {
    return false;
  }
  num_free_registers_ -= missing;
  warp.num_registers = warp.wanted_registers;
  return true;
}

void Warpgroups::fence(const void* pc) {
  require_warpgroup(pc);
  Call call = {this};
  block_.collective(
      "wgmma.fence",
      kAllLanes,
      &call,
      [](void* const(&operands)[32], unsigned lanes) {
        call_of_all<Call>(operands, lanes).self->warp().fenced = true;
      },
      pc);
}

void Warpgroups::multiply(const Wgmma& product, float* d, const std::uint32_t* a, const void* pc) {
  require_warpgroup(pc);
  Operand operand = {{this}, &product, d, a, pc};
  block_.collective(
      "wgmma.mma_async",
      kAllLanes,
      static_cast<Call*>(&operand),
      [](void* const(&operands)[32], unsigned lanes) {
        call_of_all<Operand>(operands, lanes).self->issue(operands);
      },
      pc);
}

const Warpgroups::Operand& Warpgroups::operand_of(void* call) {
  return *static_cast<const Operand*>(static_cast<const Call*>(call));
}

void Warpgroups::issue(void* const (&operands)[32]) {
  const auto lane_operand = [&](std::size_t lane) -> const Operand& {
    return operand_of(operands[lane]);
  };
  const Wgmma& what = *lane_operand(0).what;
  const void* const pc = lane_operand(0).pc;
  for (std::size_t lane = 1; lane < kWarpSize; ++lane) {
    if (!(*lane_operand(lane).what == what)) {
      block_.stop(
          {.what = "gives a wgmma another descriptor or scale than another lane of the warp",
           .advice = "form them from values that are the same in all lanes",
           .pc = pc});
    }
  }
  if (Descriptor(what.b).base_offset != 0 ||
      (!what.a_in_registers && Descriptor(what.a).base_offset != 0)) {
    block_.stop({.what = "gives a wgmma a descriptor with a base offset, which the executor does "
                         "not know",
                 .advice = "let the tile begin at a multiple of 8 rows of the swizzle",
                 .pc = pc});
  }
  take_step({.product = what, .max_registers = 0}, pc);

  Warp& self = warp();
  Accumulators& accumulators = accumulators_of(self, operands);
  ++accumulators.num_products;
  SharedMemory& shared = block_.shared();
  const int reader = warp_index() * kWarpSize;
  for_each_operand_chunk(warp_index(), what, [&](std::uint32_t address) {
    const auto at = address_of(pointer(address));
    Fault fault;
    if (!shared.access(at, kChunkBytes, Access::async_read, reader, pc, fault)) {
      block_.stop(fault);
    }
    shared.begin_reading(at, kChunkBytes);
  });
  Product& product = self.open_group.emplace_back();
  product.what = what;
  product.accumulators = lane_operand(0).d;
  product.pc = pc;
  if (what.a_in_registers) {
    for (std::size_t lane = 0; lane < kWarpSize; ++lane) {
      std::memcpy(product.a[lane].data(), lane_operand(lane).a, sizeof(product.a[lane]));
      product.fragments[lane] = lane_operand(lane).a;
    }
  }
}

// Takes the values from the registers of all lanes, unless earlier products have them already.
Warpgroups::Accumulators& Warpgroups::accumulators_of(Warp& warp, void* const (&operands)[32]) {
  const Operand& first = operand_of(operands[0]);
  const int count = first.what->n / 2;
  for (Accumulators& known : warp.accumulators) {
    if (known.registers[0] != first.d) {
      continue;
    }
    if (known.count != count) {
      block_.stop({.what = "gives a wgmma the accumulators of one of another shape under way",
                   .advice = "wait for that one first",
                   .pc = first.pc});
    }
    return known;
  }
  // In the warp's list from the start: stop() never returns, and frees nothing.
  Accumulators& added = warp.accumulators.emplace_back();
  added.count = count;
  for (std::size_t lane = 0; lane < kWarpSize; ++lane) {
    float* const registers = operand_of(operands[lane]).d;
    added.registers[lane] = registers;
    added.values.insert(added.values.end(), registers, registers + count);
  }
  const bool as_settled = warp.settled == first.d && warp.settled_hash == hash_of(added.values);
  if (!warp.fenced && (first.what->a_in_registers || !as_settled)) {
    block_.stop({.what = "starts a wgmma with no wgmma.fence since its registers were written",
                 .advice = "call wgmma_fence after the last write to accumulators and fragments",
                 .pc = first.pc});
  }
  for (float* const registers : added.registers) {
    for (int i = 0; i < count; ++i) {
      std::memcpy(registers + i, &kUnderWay, sizeof(kUnderWay));
    }
  }
  return added;
}

void Warpgroups::commit(const void* pc) {
  require_warpgroup(pc);
  Call call = {this};
  block_.collective(
      "wgmma.commit_group",
      kAllLanes,
      &call,
      [](void* const(&operands)[32], unsigned lanes) {
        Warp& self = call_of_all<Call>(operands, lanes).self->warp();
        self.groups.push_back(std::move(self.open_group));
        self.open_group.clear();
      },
      pc);
}

void Warpgroups::keep(const std::uint32_t* a, std::size_t bytes, const void* pc) {
  const auto lane = static_cast<std::size_t>(block_.thread_id() % kWarpSize);
  const std::uint32_t* const end = a + bytes / sizeof(*a);
  const auto check = [&](const std::vector<Product>& group) {
    for (const Product& product : group) {
      const std::uint32_t* const from = product.fragments[lane];
      if (product.what.a_in_registers && from >= a && from < end &&
          std::memcmp(from, product.a[lane].data(), sizeof(product.a[lane])) != 0) {
        block_.stop({.what = "has written a fragment of a wgmma before its wait",
                     .advice = "call wgmma_wait first",
                     .pc = pc,
                     .has_other = true,
                     .other_thread = block_.thread_id(),
                     .other_pc = product.pc});
      }
    }
  };
  const Warp& self = warp();
  std::for_each(self.groups.begin(), self.groups.end(), check);
  check(self.open_group);
}

void Warpgroups::wait(int pending, const void* pc) {
  require_warpgroup(pc);
  wait_for_warpgroup(pc);
  Pending call = {{this}, pending};
  block_.collective(
      "wgmma.wait_group",
      kAllLanes,
      static_cast<Call*>(&call),
      [](void* const(&operands)[32], unsigned lanes) {
        const auto& first = call_of_all<Pending>(operands, lanes);
        Warpgroups& all = *first.self;
        Warp& self = all.warp();
        while (self.groups.size() > static_cast<std::size_t>(first.groups)) {
          for (const Product& product : self.groups.front()) {
            all.finish(all.warp_index(), product);
          }
          self.groups.pop_front();
        }
      },
      pc);
}

void Warpgroups::finish(int warp, const Product& product) {
  SharedMemory& shared = block_.shared();
  const int reader = warp * kWarpSize;
  for_each_operand_chunk(warp, product.what, [&](std::uint32_t address) {
    const auto at = address_of(pointer(address));
    shared.end_reading(at, kChunkBytes);
    // Noted again, as a read between the issue and now: who overwrites must come after the wait.
    Fault fault;
    if (!shared.access(at, kChunkBytes, Access::async_read, reader, product.pc, fault)) {
      block_.stop(fault);
    }
  });
  // The reads are the first lane's in the notes; all lanes have waited for them.
  {
    Carried reads;
    shared.clocks().release(reader, reads);
    for (int lane = 1; lane < kWarpSize; ++lane) {
      shared.clocks().acquire(reader + lane, reads);
    }
  }

  Warp& self = warps_[static_cast<std::size_t>(warp)];
  for (std::size_t i = 0; i < self.accumulators.size(); ++i) {
    Accumulators& accumulators = self.accumulators[i];
    if (accumulators.registers[0] != product.accumulators) {
      continue;
    }
    form(warp, product, accumulators);
    if (--accumulators.num_products == 0) {
      settle(self, accumulators, product.pc);
      self.accumulators.erase(self.accumulators.begin() + static_cast<std::ptrdiff_t>(i));
    }
    break;
  }
}

// Gives the registers their values back.
void Warpgroups::settle(Warp& warp, Accumulators& accumulators, const void* pc) {
  for (std::size_t lane = 0; lane < kWarpSize; ++lane) {
    for (int i = 0; i < accumulators.count; ++i) {
      float* const value = accumulators.registers[lane] + i;
      if (!is_under_way(value)) {
        block_.stop({.what = "issued a wgmma whose accumulators were written before its wait",
                     .advice = "call wgmma_wait first",
                     .pc = pc});
      }
      *value = accumulators.values[lane * static_cast<std::size_t>(accumulators.count) +
                                   static_cast<std::size_t>(i)];
    }
  }
  warp.fenced = false;
  warp.settled = accumulators.registers[0];
  warp.settled_hash = hash_of(accumulators.values);
}

// Lane l of warp w holds, with group l / 4 and t = l % 4, in this order:
//   d: for each 8 columns, row 16 w + group, columns 2 t and 2 t + 1, then the same of row + 8
//   a: rows group and group + 8 at k = 2 t, 2 t + 1 (registers 0, 1), then at k + 8 (2, 3)
// The sum is exact, then rounded once; hardware truncates, so bits agree where sums are exact.
void Warpgroups::form(int warp, const Product& product, Accumulators& accumulators) {
  const Wgmma& what = product.what;
  double a[kRows][kDepth];
  std::vector<std::array<double, kDepth>> b(static_cast<std::size_t>(what.n));
  const auto elements = [&](std::uint32_t address) {
    std::array<std::uint16_t, kChunk> result{};
    std::memcpy(result.data(), pointer(address), kChunkBytes);
    return result;
  };
  const int first_row = warp % kWarpsInGroup * kRows;
  if (what.a_in_registers) {
    for (int lane = 0; lane < kWarpSize; ++lane) {
      for (int i = 0; i < 8; ++i) {
        const int row = lane / 4 + i / 2 % 2 * 8;
        const int k = lane % 4 * 2 + i / 4 * 8 + i % 2;
        a[row][k] = bf16_half(
            product.a[static_cast<std::size_t>(lane)][static_cast<std::size_t>(i / 2)], i % 2);
      }
    }
  } else {
    for_each_chunk(Descriptor(what.a),
                   what.major_a,
                   first_row,
                   first_row + kRows,
                   [&](std::uint32_t address, int m, int k) {
                     const auto chunk = elements(address);
                     for (int i = 0; i < kChunk; ++i) {
                       const bool by_k = what.major_a == Major::k;
                       a[m - first_row + (by_k ? 0 : i)][k + (by_k ? i : 0)] =
                           bf16_value(chunk[static_cast<std::size_t>(i)]);
                     }
                   });
  }
  for_each_chunk(
      Descriptor(what.b), what.major_b, 0, what.n, [&](std::uint32_t address, int n, int k) {
        const auto chunk = elements(address);
        for (int i = 0; i < kChunk; ++i) {
          const bool by_k = what.major_b == Major::k;
          b[static_cast<std::size_t>(n + (by_k ? 0 : i))]
           [static_cast<std::size_t>(k + (by_k ? i : 0))] =
               bf16_value(chunk[static_cast<std::size_t>(i)]);
        }
      });

  for (int lane = 0; lane < kWarpSize; ++lane) {
    float* const d =
        accumulators.values.data() + static_cast<std::ptrdiff_t>(lane) * accumulators.count;
    for (int i = 0; i < accumulators.count; ++i) {
      const int row = lane / 4 + i / 2 % 2 * 8;
      const int column = i / 4 * 8 + lane % 4 * 2 + i % 2;
      const auto& b_column = b[static_cast<std::size_t>(column)];
      double sum = what.accumulate ? d[i] : 0.0;
      for (std::size_t k = 0; k < kDepth; ++k) {
        sum += a[row][k] * b_column[k];
      }
      d[i] = static_cast<float>(sum);
    }
  }
}

// What one warp reads: its 16 rows of a, unless they are in registers, and all of b.
template <class Body>
void Warpgroups::for_each_operand_chunk(int warp, const Wgmma& product, const Body& body) {
  const auto visit = [&](std::uint32_t address, int /*mn*/, int /*k*/) { body(address); };
  if (!product.a_in_registers) {
    const int first_row = warp % kWarpsInGroup * kRows;
    for_each_chunk(Descriptor(product.a), product.major_a, first_row, first_row + kRows, visit);
  }
  for_each_chunk(Descriptor(product.b), product.major_b, 0, product.n, visit);
}

const std::byte* Warpgroups::pointer(std::uint32_t address) {
  return block_.shared().dynamic() + (static_cast<std::ptrdiff_t>(address) -
                                      static_cast<std::ptrdiff_t>(SharedMemory::kWindowBegin));
}

void Warpgroups::leave() {
  const Warp& self = warp();
  const Product* unfinished = self.open_group.empty() ? nullptr : &self.open_group.front();
  for (const std::vector<Product>& group : self.groups) {
    unfinished = group.empty() ? unfinished : &group.front();
  }
  if (unfinished != nullptr) {
    block_.stop({.what = "issued a wgmma that it has not waited for when it left the kernel",
                 .advice = "call wgmma_commit and wgmma_wait",
                 .pc = unfinished->pc});
  }
}

}  // namespace memphis::kernels::simt
