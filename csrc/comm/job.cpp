// SPDX-License-Identifier: Apache-2.0
#include "csrc/comm/job.h"

#include <chrono>
#include <exception>
#include <memory>
#include <thread>

#include "csrc/comm/together.h"
#include "csrc/comm/world.h"
#include "csrc/core/log.h"

namespace memphis {
namespace {

// Every rank comes to these at the same place of the same step, by numbers that all have.
bool all_ranks_meet(ExitCode code) {
  return code == ExitCode::preempted || code == ExitCode::diverged;
}

// A scheduler that starts jobs again looks at the code: a rank that fails for a reason that is not
// the user's is lost to the others.
ExitCode code_of_job(ExitCode code) {
  return code == ExitCode::internal ? ExitCode::rank_lost : code;
}

[[noreturn]] void end_job(World& world, ExitCode code, const char* message) {
  world.abort(code, message);
  throw FailedElsewhere(code, message);  // it is printed already
}

// The rank that has more to say ends the job and with it this process.
void await_the_end() {
  constexpr std::chrono::seconds kGrace{5};
  std::this_thread::sleep_for(kGrace);
}

// The last thing that ranks do may take one of them long, and what lies behind here gives them seconds:
// by then nothing is left to do.
void meet_at_the_end(World& world) {
  world.activity().enter("the end");
  const std::unique_ptr<Communicator> all = create_group_of_all(world, "job.end");
  largest_of_all(*all, 0, "job.end");
}

}  // namespace

void run_as_job(const std::function<void(World&)>& body) {
  const std::unique_ptr<World> world = make_world();
  if (world->size() == 1) {
    body(*world);
    world->close();
    return;
  }
  if (world->rank() != 0) {
    log_warnings_alone();  // what the job does, the first rank says
  }
  std::exception_ptr met_by_all;
  try {
    body(*world);
  } catch (const FailedElsewhere&) {
    await_the_end();
    throw;
  } catch (const Error& error) {
    if (!all_ranks_meet(error.code())) {
      end_job(*world, code_of_job(error.code()), error.what());
    }
    // Before this rank closes, which all wait for: once one of them has exited, its launcher ends
    // the others.
    if (world->rank() == 0) {
      log_error("memphis: {}", error.what());
    }
    met_by_all = std::make_exception_ptr(FailedElsewhere(error.code(), error.what()));
  } catch (const std::exception& error) {
    end_job(*world, ExitCode::rank_lost, error.what());
  }
  meet_at_the_end(*world);
  world->close();
  if (met_by_all) {
    std::rethrow_exception(met_by_all);
  }
}

}  // namespace memphis
