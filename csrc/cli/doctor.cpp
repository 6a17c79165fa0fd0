// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cctype>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <spdlog/fmt/fmt.h>

#include "csrc/cli/commands.h"
#include "csrc/cli/output_file.h"
#include "csrc/cli/source_tree.h"
#include "csrc/cli/threads.h"
#include "csrc/comm/activity.h"
#include "csrc/comm/deadline.h"
#include "csrc/comm/gpu_of_rank.h"
#include "csrc/comm/job.h"
#include "csrc/comm/launch_environment.h"
#include "csrc/comm/together.h"
#include "csrc/core/error.h"
#include "csrc/core/file.h"
#include "csrc/core/log.h"
#include "csrc/doctor/diagnosis.h"

namespace memphis {
namespace {

struct DoctorArguments {
  ConfigArguments config;
  std::string good_file = "doctor_good_nodes.txt";
  std::string bad_file = "doctor_bad_nodes.txt";
  std::string root = "/";
};

std::string launcher(const Variables& variables, int size) {
  const bool mpirun = variables.contains("OMPI_COMM_WORLD_SIZE");
  const bool pmix = variables.contains("PMIX_RANK");
  const std::string program = mpirun ? "mpirun" : variables.contains("SLURM_PROCID") ? "srun" : "";
  if (program.empty()) {
    return size == 1 ? "started alone" : "started by another launcher";
  }
  return fmt::format("started by {}, {}", program, pmix ? "over PMIx" : "not over PMIx");
}

doctor::Finding finding_of(std::string what, const Error& error) {
  doctor::Finding finding = doctor::bad(std::move(what), error.what(), {});
  finding.code = error.code();
  return finding;
}

// "data 2, tensor 4".
std::string degrees_text(const ParallelConfig& parallel) {
  std::string text;
  for (const auto& [name, degree] : {std::pair("pipeline", parallel.pipeline),
                                     std::pair("data", parallel.data),
                                     std::pair("context", parallel.context),
                                     std::pair("tensor", parallel.tensor),
                                     std::pair("expert", parallel.expert),
                                     std::pair("expert_tensor", parallel.expert_tensor)}) {
    if (degree > 1) {
      text += fmt::format("{}{} {}", text.empty() ? "" : ", ", name, degree);
    }
  }
  return text.empty() ? "every degree is 1" : text;
}

// The config, or why there is none.
void read_config_of_job(const DoctorArguments& arguments,
                        World& world,
                        doctor::Question& question) {
  if (arguments.config.file.empty()) {
    question.config_finding = doctor::unchecked("config", "none was given");
    return;
  }
  try {
    question.config = load_config_of_job(arguments.config, world);
    question.config_finding =
        doctor::good("config",
                     fmt::format("{} for {}: {}",
                                 arguments.config.file,
                                 world.size() == 1 ? std::string("1 rank")
                                                   : fmt::format("{} ranks", world.size()),
                                 degrees_text(question.config->parallel)));
  } catch (const CommunicationError&) {
    throw;
  } catch (const Error& error) {
    question.config_finding = finding_of("config", error);
  }
}

// Each rank's own GPU, or on all of them the processor and a line that says why.
void choose_device(World& world, Communicator& all, doctor::Question& question) {
  auto device = Device::cpu;
  try {
    device =
        resolve_device(question.config ? question.config->run.device : DeviceChoice::automatic);
  } catch (const Error& error) {
    question.config_finding = finding_of("run.device", error);
  }
  // GPUs are chosen together.
  const bool all_have = largest_of_all(all, device == Device::cpu ? 1 : 0, "doctor.device") == 0;
  if (!all_have) {
    return;
  }
  try {
    use_own_gpu(all, world.local_rank(), Device::cuda);
    question.device = Device::cuda;
  } catch (const CommunicationError&) {
    throw;
  } catch (const Error& error) {
    question.config_finding = finding_of("run.device", error);
  }
}

bool may_name_host(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '-' || c == '.' || c == '_';
}

// Before anything is measured: a name that was mistaken is not to cost its file.
void require_lists(const DoctorArguments& arguments) {
  if (arguments.bad_file == arguments.good_file) {
    throw ConfigError(
        fmt::format("--bad and --good are both {} (each is a list of its own); name two files",
                    arguments.bad_file));
  }
  for (const auto& [argument, file] :
       {std::pair("--bad", arguments.bad_file), std::pair("--good", arguments.good_file)}) {
    require_may_write({.argument = argument,
                       .path = file,
                       .what = "list of nodes, a name a line",
                       .is_one = [](std::string_view beginning) {
                         return beginning.find("\n\n") == std::string_view::npos &&
                                std::all_of(beginning.begin(), beginning.end(), [](char c) {
                                  return c == '\n' || may_name_host(c);
                                });
                       }});
  }
}

void write_list(const std::string& file, const std::vector<std::string>& nodes) {
  std::string text;
  for (const std::string& node : nodes) {
    text += node + "\n";
  }
  write_output([&] { write_text_atomically(file, text); });
}

ExitCode examine(const DoctorArguments& arguments, World& world) {
  // A rank that stops is named by the others well before the time is up.
  world.activity().set_limits({.lost_seconds = 10, .hang_seconds = 25});
  share_cores(world);
  const std::unique_ptr<Communicator> all = create_group_of_all(world, "doctor.job");
  together(*all, "doctor.lists", [&] {
    if (world.rank() == 0) {
      require_lists(arguments);
    }
  });
  doctor::Question question;
  question.default_roots = own_text_roots();
  question.launched_by = launcher(launch_variables(), world.size());
  read_config_of_job(arguments, world, question);
  choose_device(world, *all, question);
  const doctor::Diagnosis diagnosis =
      doctor::diagnose(world, question, doctor::instruments_of(question.device, arguments.root));
  together(*all, "doctor.report", [&] {
    if (world.rank() != 0) {
      return;
    }
    fmt::print("{}", diagnosis.text());
    const std::vector<std::string> sick = diagnosis.nodes_that_are(/*good=*/false);
    write_list(arguments.bad_file, sick);
    write_list(arguments.good_file, diagnosis.nodes_that_are(/*good=*/true));
    fmt::print("{} of {} node{} bad{}\n",
               sick.size(),
               diagnosis.nodes.size(),
               diagnosis.nodes.size() == 1 ? " is" : "s are",
               sick.empty() ? std::string()
                            : fmt::format(": see {}, which `srun --exclude` takes as a path",
                                          arguments.bad_file));
  });
  return static_cast<ExitCode>(
      largest_of_all(*all, static_cast<std::int64_t>(diagnosis.code()), "doctor.code"));
}

}  // namespace

void add_doctor_command(CLI::App& program) {
  CLI::App* command = program.add_subcommand(
      "doctor",
      "Looks for what is wrong with the machines of a job, and with what its config names");
  auto arguments = std::make_shared<DoctorArguments>();
  command->add_option("config", arguments->config.file, "The config of the run that is to come");
  command->add_option("overrides",
                      arguments->config.overrides,
                      "section.key=value, as often as needed: takes the place of the file's value");
  command->add_option("--good", arguments->good_file, "Where good nodes are listed, one a line");
  command->add_option("--bad",
                      arguments->bad_file,
                      "Where bad nodes are listed, as `srun --exclude=./FILE` takes them");
  command->add_option(
      "--root", arguments->root, "A folder with sys and dev/shm in place of those of /");
  command->callback([arguments] {
    // A launcher takes some seconds more to end the others.
    constexpr double kSeconds = 50;
    constexpr int kStaggered = 3;
    const int rank = rank_of(launch_variables());
    std::mutex mutex;
    const Activity* known = nullptr;  // while it is there
    bool is_done = false;
    const Deadline deadline(kSeconds + std::min(rank, kStaggered), ExitCode::hang, [&] {
      const std::lock_guard lock(mutex);
      return fmt::format(
          "doctor: {} has not come to an end within {:.0f} s ({}); look at that node, or at those "
          "that it waits for",
          known != nullptr ? known->describe() : fmt::format("rank {} on {}", rank, host_name()),
          kSeconds,
          known != nullptr ? "it stands there"
          : is_done        ? "it is done and waits for the others"
                           : "it waits in MPI_Init for the others");
    });
    auto code = ExitCode::done;
    run_as_job([&](World& world) {
      const auto set_known = [&](const Activity* activity) {
        const std::lock_guard lock(mutex);
        known = activity;
      };
      set_known(&world.activity());
      try {
        code = examine(*arguments, world);
      } catch (...) {
        set_known(nullptr);
        throw;
      }
      set_known(nullptr);
      const std::lock_guard lock(mutex);
      is_done = true;
    });
    if (code != ExitCode::done) {
      throw FailedElsewhere(code, "what is wrong is printed");
    }
  });
}

}  // namespace memphis
