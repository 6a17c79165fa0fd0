// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include <omp.h>

namespace memphis {

// The threads that share an op's chunks out: the calling thread and a team that it keeps, as many
// together as omp_get_max_threads() says (OMP_NUM_THREADS, omp_set_num_threads, and at most
// OMP_THREAD_LIMIT). They are memphis's own and not OpenMP's, whose threads all meet at the end of
// a region: beside other work that is to wait for one which is not on a core and has nothing to do.
// Here the caller waits for chunks that somebody has begun, and for no thread; those that wake up
// late find nothing. OMP_PROC_BIND, OMP_PLACES, OMP_WAIT_POLICY and GOMP_SPINCOUNT hold for them.
namespace team {

using Chunk = void (*)(const void* body, std::int64_t chunk);

// Every chunk of [0, num_chunks) once. The first exception of one is rethrown when all are done.
void run(std::int64_t num_chunks, Chunk chunk, const void* body);

// Threads that a region of the calling thread has, itself among them.
int num_threads();

// True in a chunk that a team runs, where a region of its own is run by the thread alone.
bool is_inside();

// Of the calling thread in the team whose chunk it runs; its caller is 0.
int thread_index();

// How often a waiting thread looks before it sleeps: what OMP_WAIT_POLICY or GOMP_SPINCOUNT say,
// given as text or null, as libgomp understands them; the default for a null of both and for what
// is no policy and no number, which libgomp warns of.
std::int64_t num_spins(const char* wait_policy, const char* spin_count);

}  // namespace team

// Calls body(chunk) for chunk in [0, num_chunks), spread over the threads of a team. What a chunk
// computes must not depend on who computes it: the caller cuts the work by shape alone, so the bits
// of a result do not depend on the number of threads. Chunks are handed out as threads become free,
// because experts and causal rows are uneven. The first exception of a chunk is rethrown.
template <class Body>
void parallel_chunks(std::int64_t num_chunks, const Body& body) {
  if (num_chunks <= 1 || team::num_threads() == 1 || team::is_inside()) {
    for (std::int64_t chunk = 0; chunk < num_chunks; ++chunk) {
      body(chunk);
    }
    return;
  }
  team::run(
      num_chunks,
      [](const void* untyped, std::int64_t chunk) { (*static_cast<const Body*>(untyped))(chunk); },
      &body);
}

// Calls body(begin, end) over [0, count) in pieces of at most `grain`.
template <class Body>
void parallel_ranges(std::int64_t count, std::int64_t grain, const Body& body) {
  parallel_chunks((count + grain - 1) / grain, [&](std::int64_t chunk) {
    const std::int64_t begin = chunk * grain;
    const std::int64_t end = begin + grain < count ? begin + grain : count;
    body(begin, end);
  });
}

}  // namespace memphis
