// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

#include "csrc/config/config.h"
#include "csrc/core/device.h"
#include "csrc/plan/dims.h"
#include "csrc/plan/range.h"

// How ranks that share a sequence out come to each other's keys: csrc/model/context_attention.h.
namespace memphis {

// What gathering a layer's keys would take, over what attention does, forward: with c ranks, G / N
// key/value heads for a query head and S tokens a sequence, 2 (c - 1) (G / N) R / (S w). R is the
// rate of attention in FLOP/s and w what a rank sends in bytes/s: on a GPU an H100's and its links',
// NVLink's where the ranks are on one machine; on the CPU a few cores' and their memory's.
// The same on every rank: of the ranks along `context` of the first.
double gathered_share(const Config& config, Device device);

// Whether the config says ring, or is automatic and gathering takes more than a tenth.
bool prefers_ring(const Config& config, Device device);

// As the config says; where that is automatic, a ring if gathering takes more than a tenth, else
// gather. A micro-batch whose tokens on a rank are no multiple of 16 gathers: that of a run that is
// to have a ring is refused with its config, so that this is one that writes samples.
ContextExchange choose_key_exchange(const Config& config, const Dims& dims, Device device);

// "8 ranks share out each sequence, 16384 tokens each (zigzag where it is one document, else
// blocks); keys travel in a ring (gathering them takes 20 % of what attention does forward)".
std::string describe_key_exchange(const Config& config, const Dims& dims);

// The ranks along `context`, in a ring: who this one sends to, and whom it receives from, if what
// moves goes `steps` ranks on; below 0, back.
struct RingStep {
  std::int64_t to = 0;
  std::int64_t from = 0;
};
RingStep ring_step(const Piece& ring, std::int64_t steps);

}  // namespace memphis
