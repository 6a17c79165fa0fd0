// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>

#include "csrc/comm/communicator.h"
#include "csrc/core/trace.h"

namespace memphis {

// Writes what each rank's `trace` holds to `dir`/rank-00003.json, and once all are there, of jobs
// of up to 64 ranks, all together to `dir`/all.json. Every rank calls. ui.perfetto.dev and
// chrome://tracing open each: a rank is a process, its tracks are threads. "step": phases of the
// rank's own thread; "waiting": collectives that it stands in; "gpu": when the GPU passes these
// phases; "gpu waiting": collectives that the phases stand in; the others: what the groups of these
// names move, on threads of their own, or "... on the gpu", on streams of their own. Clocks agree
// where ranks share a machine.
//
// Errors      DataError where a file cannot be written, on every rank.
// Source      Trace Event Format, JSON array of complete events ("ph": "X"), times in us.
void write_traces(const std::filesystem::path& dir, const Trace& trace, Communicator& all_host);

}  // namespace memphis
