// SPDX-License-Identifier: Apache-2.0
#include "csrc/cli/job.h"

#include <exception>
#include <memory>

#include "csrc/comm/together.h"
#include "csrc/comm/world.h"
#include "csrc/core/log.h"

namespace memphis {
namespace {

// Every rank comes to these at the same place of the same step, by numbers that all have.
bool all_ranks_meet(ExitCode code) {
  return code == ExitCode::preempted || code == ExitCode::diverged;
}

[[noreturn]] void end_job(World& world, ExitCode code, const char* message) {
  spdlog::error("memphis: rank {} of {}: {}", world.rank(), world.size(), message);
  world.abort(code, message);
  throw FailedElsewhere(code, message);  // it is printed already
}

}  // namespace

void run_as_job(const std::function<void(World&)>& body) {
  const std::unique_ptr<World> world = make_world();
  if (world->size() == 1) {
    body(*world);
    return;
  }
  if (world->rank() != 0) {
    spdlog::set_level(spdlog::level::warn);  // what the job does, the first rank says
  }
  try {
    body(*world);
  } catch (const FailedElsewhere&) {
    throw;
  } catch (const Error& error) {
    if (!all_ranks_meet(error.code())) {
      end_job(*world, error.code(), error.what());
    }
    if (world->rank() != 0) {
      throw FailedElsewhere(error.code(), error.what());
    }
    throw;
  } catch (const std::exception& error) {
    end_job(*world, ExitCode::internal, error.what());
  }
}

}  // namespace memphis
