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
  std::unique_ptr<Communicator> all;
  std::exception_ptr met_by_all;
  const auto as_rank = [&](const std::function<void()>& work) {
    try {
      work();
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
  };
  as_rank([&] {
    // Before the body, so that a rank waits at the end in a collective, which hang_seconds holds for.
    all = create_group_of_all(*world, "job.end");
    body(*world);
  });
  // MPI_Finalize has seconds, and a rank may have had more to do than that behind its last collective.
  as_rank([&] { largest_of_all(*all, 0, "job.end"); });
  all.reset();
  world->close();
  if (met_by_all) {
    std::rethrow_exception(met_by_all);
  }
}

}  // namespace memphis
