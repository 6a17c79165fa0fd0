// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

#include "kernels/device/simt/unit_host.h"
#include "kernels/device/swizzle.h"

namespace memphis::kernels::simt {

// wgmma.mma_async.m64nNk16 of bf16, d = a b (+ d): what all lanes of the four warps agree on.
struct Wgmma {
  int n = 0;
  bool a_in_registers = false;
  std::uint64_t a = 0;  // matrix descriptor, unless a is in registers
  std::uint64_t b = 0;
  Major major_a = Major::k;
  Major major_b = Major::k;
  bool accumulate = false;

  bool operator==(const Wgmma&) const = default;
};

// What warpgroups (four warps from a multiple of four) do together. A product is formed when its
// warp waits for it, from the shared memory of that moment: until then nobody may write the
// operands there, and the accumulators hold a NaN that nobody may overwrite. Fragments of `a` in
// registers are taken at the issue: the compiler keeps those.
//
// Functions are called by all lanes of a warp and are of the running thread, which is at `pc`.
class Warpgroups {
 public:
  explicit Warpgroups(UnitHost& block) : block_(block) {}

  void begin_block(int num_warps);
  // By a thread that leaves the kernel.
  void leave();

  void fence(const void* pc);
  // `d` are n / 2 accumulators, `a` is the fragment of 4 registers or null.
  void multiply(const Wgmma& product, float* d, const std::uint32_t* a, const void* pc);
  void commit(const void* pc);
  // Fragments that the compiler must keep until the wait which follows: they are compared with what
  // the products under way took of them.
  void keep(const std::uint32_t* a, std::size_t bytes, const void* pc);
  void wait(int pending, const void* pc);
  // `gives_up` as it is said: setmaxnreg.dec, or .inc, which waits until the block has so many.
  void set_max_registers(int count, bool gives_up, const void* pc);

 private:
  // Accumulators of a warp's lanes with products under way: their values are here meanwhile.
  struct Accumulators {
    std::array<float*, 32> registers{};
    int count = 0;              // a lane
    std::vector<float> values;  // [lane][count]
    int num_products = 0;
  };
  struct Product {
    Wgmma what;
    std::array<std::array<std::uint32_t, 4>, 32> a;
    std::array<const std::uint32_t*, 32> fragments;  // where `a` was taken from
    float* accumulators = nullptr;                   // of lane 0: names them
    const void* pc = nullptr;
  };
  struct Warp {
    std::deque<std::vector<Product>> groups;  // committed, oldest first
    std::vector<Product> open_group;
    std::vector<Accumulators> accumulators;
    std::size_t num_steps = 0;  // of its warpgroup's
    int num_registers = 0;      // of each of its threads
    int wanted_registers = 0;   // as its last setmaxnreg says
    // Whether registers are ordered before the next product: by a fence since the last wait, or
    // because these accumulators are still as that wait left them.
    bool fenced = false;
    float* settled = nullptr;
    std::uint64_t settled_hash = 0;
  };
  // An instruction that all four warps execute.
  struct Step {
    Wgmma product;
    int max_registers = 0;
    bool gives_up = false;

    bool operator==(const Step&) const = default;
  };
  // What each lane hands to the last of its warp to arrive at an instruction, which acts for all.
  struct Call {
    Warpgroups* self;
  };
  struct Request;  // of setmaxnreg
  struct Operand;  // of wgmma
  struct Pending;  // of a wait
  // Of the calls of a warp's lanes, the first as what it is; stops a thread that is not among them.
  template <class T>
  static const T& call_of_all(void* const (&operands)[32], unsigned lanes);

  static const Operand& operand_of(void* call);
  int warp_index() const;
  Warp& warp();
  void require_warpgroup(const void* pc);
  void take_step(const Step& step, const void* pc);
  void request_registers(const Request& request);
  bool get_registers(Warp& warp);
  void wait_for_warpgroup(const void* pc);
  void issue(void* const (&operands)[32]);
  Accumulators& accumulators_of(Warp& warp, void* const (&operands)[32]);
  void finish(int warp, const Product& product);
  void settle(Warp& warp, Accumulators& accumulators, const void* pc);
  void form(int warp, const Product& product, Accumulators& accumulators);
  template <class Body>
  void for_each_operand_chunk(int warp, const Wgmma& product, const Body& body);
  const std::byte* pointer(std::uint32_t address);

  UnitHost& block_;
  // Kept from block to block, as making them allocates: few kernels have such instructions.
  std::vector<Warp> warps_;
  std::vector<std::vector<Step>> steps_;  // by warpgroup
  bool any_instructions_ = false;         // since they were last cleared
  int num_warps_ = 0;                     // of the block
  int num_free_registers_ = 0;            // a lane, that warps of the block have given up
};

}  // namespace memphis::kernels::simt
