// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <exception>

#include <omp.h>

namespace memphis {

// Calls body(chunk) for chunk in [0, num_chunks), spread over the OpenMP threads. What a chunk
// computes must not depend on who computes it: the caller cuts the work by shape alone, so the bits
// of a result do not depend on the number of threads. Chunks are handed out as threads become free,
// because experts and causal rows are uneven. The first exception of a chunk is rethrown.
template <class Body>
void parallel_chunks(std::int64_t num_chunks, const Body& body) {
  if (num_chunks <= 1 || omp_get_max_threads() == 1 || omp_in_parallel() != 0) {
    for (std::int64_t chunk = 0; chunk < num_chunks; ++chunk) {
      body(chunk);
    }
    return;
  }
  std::exception_ptr failure;  // an exception must not leave an OpenMP region
#pragma omp parallel for schedule(dynamic, 1)
  for (std::int64_t chunk = 0; chunk < num_chunks; ++chunk) {
    try {
      body(chunk);
    } catch (...) {
#pragma omp critical(memphis_parallel_chunks)
      failure = std::current_exception();
    }
  }
  if (failure) {
    std::rethrow_exception(failure);
  }
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
