// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "csrc/config/config.h"
#include "csrc/core/device.h"
#include "csrc/core/dtype.h"
#include "csrc/plan/dims.h"
#include "csrc/plan/mesh.h"

// How ranks that share a sequence out come to each other's keys: csrc/model/context_attention.h.
namespace memphis {

// What gathering a layer's keys would take, over what attention does, forward: with c ranks, G / N
// key/value heads for a query head and S tokens a sequence, 2 (c - 1) (G / N) R / (S w). R is the
// rate of attention in FLOP/s and w what a rank sends in bytes/s: on a GPU an H100's and its links',
// NVLink's where the ranks are on one machine; on the CPU a few cores' and their memory's.
double gathered_share(const ModelConfig& model,
                      const RankGroup& context,
                      std::int64_t sequence_length,
                      Device device);

// As the config says; where that is automatic, a ring if gathering takes more than a tenth and the
// ring can be, else gather. A model that `trains` is refused the ring that it is to have with a
// ConfigError, where the parts that one merges are not whole 16 bytes, as kernels need them; one
// that writes samples, whose micro-batch is another, gathers then.
ContextExchange choose_key_exchange(const Config& config,
                                    const Dims& dims,
                                    const RankGroup& context,
                                    DType compute,
                                    Device device,
                                    bool trains);

// The ranks along `context`, in a ring: who this one sends to, and whom it receives from, if what
// moves goes `steps` ranks on; below 0, back.
struct RingStep {
  std::int64_t to = 0;
  std::int64_t from = 0;
};
RingStep ring_step(const Piece& ring, std::int64_t steps);

}  // namespace memphis
