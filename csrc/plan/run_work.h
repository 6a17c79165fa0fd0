// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "csrc/plan/mesh.h"
#include "csrc/plan/run_description.h"
#include "csrc/plan/schedule_messages.h"
#include "csrc/plan/stages.h"
#include "csrc/plan/step_operations.h"
#include "csrc/plan/training_plan.h"

// What one rank does in a step, as numbers that a machine can be asked the time of: products by
// their sizes, scores, bytes of what lies between products, and what ranks send each other.
namespace memphis {

// [M, K] times [K, N], `count` of them.
struct Product {
  double M = 0;
  double N = 0;
  double K = 0;
  double count = 1;
  bool of_experts = false;
  bool in_fp8 = false;
  bool together = true;     // they share the multiprocessors; if not, one follows the other
  double result_bytes = 2;  // of an element that is written, or read and written where it adds

  double flops() const { return 2 * M * N * K * count; }
};

enum class ExchangeKind : std::uint8_t {
  tensor,   // sums and gathers of tensor ranks, beside products
  pieces,   // of ranks that hold pieces of an expert
  rows,     // to experts and back
  context,  // keys and values of other ranks
  weights,  // gathered for a pass
  numbers,  // few bytes
};

struct Exchange {
  ExchangeKind kind = ExchangeKind::tensor;
  Pattern pattern = Pattern::all_gather;
  double bytes = 0;  // of the larger operand, as StepOperation::bytes
  RankGroup group;
  bool beside = false;  // it has products of its pass beside it
  // Of rows, if each crosses the network once for all ranks of a node: those of one sender's tokens.
  double tokens_bytes = 0;
  double choices = 0;
  double most_nodes = 0;  // that the choices of a token lie on; 0: any
};

// One pass of a micro-batch through a layer.
struct PassWork {
  std::vector<Product> products;
  double scores = 0;   // FLOP, of the causal half, forward
  double streams = 0;  // bytes that kernels between products read and write
  std::vector<Exchange> exchanges;
  double starts = 0;  // of experts' products, each of which follows those before
};

struct LayerWork {
  PassWork forward;
  PassWork again;  // before the backward pass
  PassWork backward_inputs;
  PassWork backward_weights;
};

struct RunWork {
  RunDescription run;
  PipelineSchedule schedule;
  StageLayout layout;
  std::vector<LayerWork> kinds;
  std::vector<std::size_t> kind_of_layer;
  LayerWork head;
  double message_bytes = 0;
  RankGroup message_group;
  // Once a step, on the rank that has most of it: sums of gradients, gathers of weights, and the
  // elements that it updates.
  std::vector<Exchange> reductions;
  std::vector<Exchange> gathers;
  double updated_elements = 0;
};

// ConfigError where there is no such schedule. `schedule`, if there is one, is that of the run's shape;
// where it has no lists, no rank waits for another.
RunWork run_work(const RunDescription& run, const PipelineSchedule* schedule = nullptr);

// What a rank has of weights, gradients and the optimizer's state, on the rank that has most; the
// embedding counted once, and norms and routers not at all, so that no plan takes less.
double least_state_bytes(const RunDescription& run);

// The same of a config and its plan: what it computes again is that of the plan, and its exchanges,
// reductions and gathers are those of step_operations.
RunWork run_work(const Config& config, DType compute, const Mesh& mesh, const StagePlans& plans);

}  // namespace memphis
