// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "csrc/plan/machine.h"
#include "csrc/plan/run_work.h"

// How long a step takes on a machine, and what of it is spent where: the work of csrc/plan/run_work.h
// at the machine's rates, its stages simulated by their schedule.
namespace memphis {

// What no machine's file and no paper says. These were fitted together on the runs of
// tests/plan/published/runs.csv, by fit.py beside it, with a twelfth: the rate of a 500 W GPU, which
// configs/machines/h100_500w.yaml has. docs/planner.md has the errors, and what becomes of the runs of
// each source when they are left out. Nothing else is fitted.
struct TimeConstants {
  // Of the rate that large products reach when they are measured alone.
  double dense_products = 0.808;
  double fp8_products = 0.806;
  double fp8_expert_products = 0.663;
  // Of what kernels of attention are said to reach alone.
  double attention = 1.064;
  // How many times the bytes that are counted lie between products where each op is a kernel of its
  // own.
  double eager_streams = 2.52;
  // Of gathers and sums of tensor ranks, what is seen of those that overlap.
  double tensor_seen = 0.309;
  // Of exchanges of rows, what is seen of those that overlap.
  double rows_seen = 0.515;
  // How many times longer ranks that hold pieces of an expert take to gather rows and sum them.
  double pieces = 2.25;
  // Seconds that the products of an expert take to start, where experts come one after the other.
  double start_seconds = 87e-6;
  // Of the experts' time, what the largest load adds where ranks share experts out, for each expert
  // that there is for a chosen one, beyond the first.
  double imbalance = 0.029;
  // Of all work, what each doubling of the replicas adds: they wait for the slowest.
  double straggling = 0.0051;

  static constexpr int count = 11;
  std::array<double*, count> values();
  static const std::array<const char*, count>& names();
};

// Where time goes.
enum class StepPart : std::uint8_t {
  products,
  expert_products,
  attention,
  streams,  // between products
  starts,   // of experts one after the other
  again,    // all that is computed again
  tensor,   // exchanges, as far as they are seen
  rows,
  context,
  weights,
  pipeline,  // bubble, stages that differ, messages
  data,      // gradients and weights of replicas
  optimizer,
  straggling,
};
constexpr int kNumParts = 14;
std::string_view name_of(StepPart part);

struct StepTime {
  double seconds = 0;
  std::array<double, kNumParts> parts = {};  // of the rank with most work; their sum is `seconds`
  double tokens_per_second_of_rank = 0;
  double mfu = 0;           // of the machine's peak, attention's causal half counted
  double unhalved_mfu = 0;  // its whole square counted
  double model_tflops = 0;  // of a rank, halved

  double& of(StepPart part) { return parts[static_cast<std::size_t>(part)]; }
  // The part that takes most.
  StepPart binding() const;
  double of(StepPart part) const { return parts[static_cast<std::size_t>(part)]; }
};

// ConfigError where the machine has no products of the run's kind.
//
// `slowest`  of the others' rate, what one rank works at, all others being alike: of the pipeline's
//            busiest place, so that it costs as much as it can. Those that exchange with it wait for
//            it, so that its whole place is as slow.
StepTime step_time(const RunWork& work,
                   const Machine& machine,
                   const TimeConstants& constants = {},
                   double slowest = 1);

// Seconds of one exchange that nothing else is done beside.
double exchange_seconds(const Exchange& exchange, const Machine& machine);
// Seconds of one product, of which others of its pass take their time before and behind.
double product_seconds(const Product& product,
                       Products kind,
                       const Machine& machine,
                       const TimeConstants& constants);

}  // namespace memphis
