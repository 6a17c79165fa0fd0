// SPDX-License-Identifier: Apache-2.0
#include "kernels/device/simt/instructions.h"

#include <bit>
#include <cstring>

#include "kernels/device/simt/block.h"
#include "kernels/device/simt/grid_waits.h"

namespace memphis::kernels::simt {
namespace {

constexpr unsigned kFullMask = 0xFFFFFFFFU;

template <class Operand>
Operand& operand_of(void* const (&operands)[kWarpSize], int lane) {
  return *static_cast<Operand*>(operands[lane]);
}

struct Shuffle {
  std::uint64_t value;
  int source;
  std::uint64_t result;
  bool missing;
};

void compute_shuffle(void* const (&operands)[kWarpSize], unsigned lanes) {
  for_lanes(lanes, [&](int lane) {
    auto& own = operand_of<Shuffle>(operands, lane);
    own.missing = (lanes >> static_cast<unsigned>(own.source) & 1U) == 0;
    own.result = own.missing ? 0 : operand_of<Shuffle>(operands, own.source).value;
  });
}

struct Vote {
  std::uint32_t value;
  unsigned result;
};

struct Election {
  int chosen;
  bool elected;
};

void compute_election(void* const (&operands)[kWarpSize], unsigned lanes) {
  for_lanes(lanes, [&](int lane) {
    auto& own = operand_of<Election>(operands, lane);
    own.elected = lane == own.chosen;
  });
}

void compute_ballot(void* const (&operands)[kWarpSize], unsigned lanes) {
  unsigned result = 0;
  for_lanes(lanes, [&](int lane) {
    result |= operand_of<Vote>(operands, lane).value << static_cast<unsigned>(lane);
  });
  for_lanes(lanes, [&](int lane) { operand_of<Vote>(operands, lane).result = result; });
}

void compute_match(void* const (&operands)[kWarpSize], unsigned lanes) {
  for_lanes(lanes, [&](int lane) {
    auto& own = operand_of<Vote>(operands, lane);
    own.result = 0;
    for_lanes(lanes, [&](int other) {
      if (operand_of<Vote>(operands, other).value == own.value) {
        own.result |= 1U << static_cast<unsigned>(other);
      }
    });
  });
}

struct LoadMatrix {
  const std::byte* row;
  std::uint32_t fragment[4];
};

std::uint16_t element(const std::byte* row, int column) {
  std::uint16_t bits = 0;
  std::memcpy(&bits, row + column * 2, sizeof(bits));
  return bits;
}

// Lane i gives row i % 8 of matrix i / 8. Lane l receives of each matrix the elements (l / 4,
// 2 (l % 4)) and the next of its row; of a transposed one, of its column.
template <bool kTransposed>
void compute_load_matrix(void* const (&operands)[kWarpSize], unsigned lanes) {
  for_lanes(lanes, [&](int lane) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      const auto at = [&](int row, int column) {
        return std::uint32_t{
            element(operand_of<LoadMatrix>(operands, matrix * 8 + row).row, column)};
      };
      const int outer = lane / 4;
      const int inner = lane % 4 * 2;
      const std::uint32_t low = kTransposed ? at(inner, outer) : at(outer, inner);
      const std::uint32_t high = kTransposed ? at(inner + 1, outer) : at(outer, inner + 1);
      operand_of<LoadMatrix>(operands, lane).fragment[matrix] = low | high << 16U;
    }
  });
}

struct StoreMatrix {
  std::byte* row;
  std::uint32_t fragment[4];
};

// The inverse of the load: element (row, column) of a matrix comes from the lane that a load would
// give it to.
template <bool kTransposed>
void compute_store_matrix(void* const (&operands)[kWarpSize], unsigned lanes) {
  for_lanes(lanes, [&](int given) {
    std::byte* const to = operand_of<StoreMatrix>(operands, given).row;
    const int matrix = given / 8;
    const int row = given % 8;
    for (int column = 0; column < 8; ++column) {
      const int outer = kTransposed ? column : row;
      const int inner = kTransposed ? row : column;
      const auto& from = operand_of<StoreMatrix>(operands, outer * 4 + inner / 2);
      const auto bits = static_cast<std::uint16_t>(from.fragment[matrix] >> (inner % 2 * 16));
      std::memcpy(to + column * 2, &bits, sizeof(bits));
    }
  });
}

struct Mma {
  float d[4];
  std::uint32_t a[4];
  std::uint32_t b[2];
};

double bf16_half(std::uint32_t pair, int half) {
  return std::bit_cast<float>((half == 0 ? pair << 16U : pair & 0xFFFF0000U));
}

// Lane l holds, with group l / 4 and t = l % 4:
//   a: rows group and group + 8 (registers 0, 1), then the same at k + 8 (2, 3); k = 2 t, 2 t + 1
//   b: column group; k = 2 t, 2 t + 1 (register 0), the same + 8 (1)
//   d: row group, columns 2 t and 2 t + 1 (elements 0, 1), row group + 8 (2, 3)
void compute_mma(void* const (&operands)[kWarpSize], unsigned lanes) {
  double a[16][16];
  double b[16][8];
  for_lanes(lanes, [&](int lane) {
    const auto& own = operand_of<Mma>(operands, lane);
    const int group = lane / 4;
    for (int half = 0; half < 2; ++half) {
      const int k = lane % 4 * 2 + half;
      a[group][k] = bf16_half(own.a[0], half);
      a[group + 8][k] = bf16_half(own.a[1], half);
      a[group][k + 8] = bf16_half(own.a[2], half);
      a[group + 8][k + 8] = bf16_half(own.a[3], half);
      b[k][group] = bf16_half(own.b[0], half);
      b[k + 8][group] = bf16_half(own.b[1], half);
    }
  });
  for_lanes(lanes, [&](int lane) {
    auto& own = operand_of<Mma>(operands, lane);
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8;
      const int column = lane % 4 * 2 + i % 2;
      double sum = own.d[i];
      for (int k = 0; k < 16; ++k) {
        sum += a[row][k] * b[k][column];
      }
      own.d[i] = static_cast<float>(sum);
    }
  });
}

void gather(
    const char* instruction, unsigned mask, void* operand, Compute compute, const void* pc) {
  ExecutorCall()->collective(instruction, mask, operand, compute, pc);
}

// Of the .aligned instructions, which every lane executes.
void require_whole_warp(unsigned present, const void* pc) {
  if (present != kFullMask) {
    ExecutorCall()->stop({.what = "needs all 32 lanes of the warp, of which some have left",
                          .advice = "let whole warps leave, or none",
                          .pc = pc});
  }
}

// Of ldmatrix and stmatrix.
void require_matrix_row(const void* row, const char* what, const void* pc) {
  constexpr std::uintptr_t kRowBytes = 16;
  const auto address = reinterpret_cast<std::uintptr_t>(row);
  const ExecutorCall block;
  if (address % kRowBytes != 0 || !block->shared().contains(address)) {
    block->stop({.what = what, .advice = "align the row and its stride", .pc = pc});
  }
}

}  // namespace

bool elect_one(unsigned mask) {
  constexpr std::uint64_t kStride = 13;  // neither the first nor the last for most seeds
  Election operand = {.chosen = static_cast<int>(options().seed * kStride % kWarpSize),
                      .elected = false};
  const void* const pc = __builtin_return_address(0);
  require_whole_warp(Block::running()->lanes_present(), pc);
  gather("elect", mask, &operand, &compute_election, pc);
  return operand.elected;
}

std::uint64_t shuffle(unsigned mask, std::uint64_t value, int source) {
  const void* const pc = __builtin_return_address(0);
  Shuffle operand = {
      .value = value, .source = source & (kWarpSize - 1), .result = 0, .missing = false};
  gather("shfl", mask, &operand, &compute_shuffle, pc);
  if (operand.missing) {
    ExecutorCall()->stop({.what = "shuffles from a lane that has left the kernel, or is not in "
                                  "the mask",
                          .advice = "let whole warps leave, or none",
                          .pc = pc});
  }
  return operand.result;
}

unsigned ballot(unsigned mask, bool vote) {
  Vote operand = {.value = vote ? 1U : 0U, .result = 0};
  gather("ballot", mask, &operand, &compute_ballot, __builtin_return_address(0));
  return operand.result;
}

unsigned match_any(unsigned mask, std::uint32_t value) {
  Vote operand = {.value = value, .result = 0};
  gather("match.any", mask, &operand, &compute_match, __builtin_return_address(0));
  return operand.result;
}

void load_matrix_x4(std::uint32_t (&fragment)[4], const void* row, bool transposed) {
  constexpr std::size_t kRowBytes = 16;
  const void* const pc = __builtin_return_address(0);
  const ExecutorCall call;
  Block& block = *Block::running();
  require_whole_warp(block.lanes_present(), pc);
  require_matrix_row(row,
                     "gives ldmatrix a row that is not in shared memory, or not at a multiple of "
                     "16 bytes",
                     pc);
  block.access(row, kRowBytes, Access::read, pc);
  LoadMatrix operand = {.row = static_cast<const std::byte*>(row), .fragment = {}};
  gather(transposed ? "ldmatrix.trans" : "ldmatrix",
         kFullMask,
         &operand,
         transposed ? &compute_load_matrix<true> : &compute_load_matrix<false>,
         pc);
  std::memcpy(fragment, operand.fragment, sizeof(fragment));
}

void store_matrix_x4(void* row, const std::uint32_t (&fragment)[4], bool transposed) {
  constexpr std::size_t kRowBytes = 16;
  const void* const pc = __builtin_return_address(0);
  const ExecutorCall call;
  Block& block = *Block::running();
  require_whole_warp(block.lanes_present(), pc);
  require_matrix_row(row,
                     "gives stmatrix a row that is not in shared memory, or not at a multiple of "
                     "16 bytes",
                     pc);
  block.access(row, kRowBytes, Access::write, pc);
  StoreMatrix operand = {.row = static_cast<std::byte*>(row), .fragment = {}};
  std::memcpy(operand.fragment, fragment, sizeof(operand.fragment));
  gather(transposed ? "stmatrix.trans" : "stmatrix",
         kFullMask,
         &operand,
         transposed ? &compute_store_matrix<true> : &compute_store_matrix<false>,
         pc);
}

void mma_m16n8k16(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  const void* const pc = __builtin_return_address(0);
  require_whole_warp(Block::running()->lanes_present(), pc);
  Mma operand = {.d = {d[0], d[1], d[2], d[3]}, .a = {a[0], a[1], a[2], a[3]}, .b = {b0, b1}};
  gather("mma", kFullMask, &operand, &compute_mma, pc);
  std::memcpy(d, operand.d, sizeof(d));
}

void atomic_add(int* counter, int value) {
  const ExecutorCall block;
  block->access(counter, sizeof(int), Access::atomic, __builtin_return_address(0));
  __atomic_fetch_add(counter, value, __ATOMIC_RELAXED);
  block->call().grid_waits->note_write();
}

int fetch_add(int* counter, int value) {
  const ExecutorCall block;
  block->access(counter, sizeof(int), Access::atomic, __builtin_return_address(0));
  const int before = __atomic_fetch_add(counter, value, __ATOMIC_RELAXED);
  block->call().grid_waits->note_write();
  return before;
}

void store_release(int* flag, int value) {
  const ExecutorCall block;
  block->access(flag, sizeof(int), Access::write, __builtin_return_address(0));
  __atomic_store_n(flag, value, __ATOMIC_RELEASE);
  block->call().grid_waits->note_write();
}

int load_acquire(const int* flag) {
  ExecutorCall()->access(flag, sizeof(int), Access::read, __builtin_return_address(0));
  return __atomic_load_n(flag, __ATOMIC_ACQUIRE);
}

void wait_at_least(const int* flag, int value) {
  struct Flag {
    const int* flag;
    int value;
  };
  const void* const pc = __builtin_return_address(0);
  const ExecutorCall block;
  block->access(flag, sizeof(int), Access::read, pc);
  Flag wanted = {.flag = flag, .value = value};
  const auto ready = [](void* argument) {
    const auto& self = *static_cast<Flag*>(argument);
    return __atomic_load_n(self.flag, __ATOMIC_ACQUIRE) >= self.value;
  };
  if (!ready(&wanted)) {
    block->wait_for_grid("a flag that another block raises", ready, &wanted, pc);
  }
}

}  // namespace memphis::kernels::simt
