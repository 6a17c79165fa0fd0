// SPDX-License-Identifier: Apache-2.0
#include "csrc/train/agreement.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <optional>
#include <utility>

#include <spdlog/fmt/fmt.h>
#include <unistd.h>

#include "csrc/comm/gpu_of_rank.h"
#include "csrc/comm/sharing.h"
#include "csrc/comm/together.h"
#include "csrc/config/load.h"
#include "csrc/core/error.h"
#include "csrc/core/file.h"
#include "csrc/core/log.h"
#include "csrc/core/memory_pools.h"
#include "csrc/core/progress.h"
#include "csrc/data/dataset_preparation.h"
#include "csrc/data/id_scan.h"
#include "csrc/plan/range.h"
#include "csrc/plan/ways_to_fit.h"
#include "csrc/train/run_directory.h"
#include "kernels/matmul/matmul.h"

namespace memphis {
namespace {

// Each rank has opened what its machine has at these paths, and a step takes samples of all.
Dataset agreed(Dataset dataset, Communicator& all) {
  const auto describe = [](const char* key, const auto& texts) {
    std::string lines = texts.empty() ? fmt::format("{}: nothing\n", key) : std::string();
    for (const auto& text : texts) {
      lines += fmt::format("{}: {} of {} tokens, fingerprint {}\n",
                           text.name.empty() ? key : fmt::format("{} ({})", key, text.name),
                           text.range.size(),
                           text.stream->num_tokens(),
                           text.stream->fingerprint());
    }
    return lines;
  };
  require_same(all,
               "the text",
               describe("data.train", dataset.sources) +
                   describe("data.validation", dataset.validation) +
                   (dataset.tokenizer ? dataset.tokenizer->fingerprint() : std::string("none")),
               ExitCode::data);
  return dataset;
}

// Of each of `pools`, which this rank has a part of, what all that share it take if this one takes
// `bytes`. Collective.
std::vector<MemoryDemand> demands_of_all(std::size_t bytes,
                                         const std::vector<MemoryPool>& pools,
                                         Communicator& all) {
  const std::int64_t most =
      largest_of_all(all, static_cast<std::int64_t>(pools.size()), "memory.pools");
  std::vector<MemoryDemand> demands;
  for (std::size_t i = 0; i < static_cast<std::size_t>(most); ++i) {
    // A rank that has fewer of them takes nothing of one that no rank has.
    const bool own = i < pools.size();
    const std::array<std::int64_t, 2> key =
        own ? pools[i].identity : std::array<std::int64_t, 2>{-1, -1};
    const Sharing sharing =
        sum_of_those_with(all, key, static_cast<std::int64_t>(bytes), "memory.shared");
    if (own) {
      demands.push_back({.pool = pools[i].name,
                         .free_bytes = pools[i].free_bytes,
                         .num_ranks = sharing.num_ranks,
                         .needed_bytes = static_cast<std::size_t>(sharing.sum)});
    }
  }
  return demands;
}

// The memories of `device`: its own with what was free `before` its groups took of it.
std::vector<MemoryPool> pools_of(Device device, const std::vector<MemoryPool>& before) {
  return before.empty() ? memory_pools(device) : before;
}

// Each rank reads its piece of the ids that no start has read yet, and the first one keeps what all
// have found. `preparation` is the first one's.
void read_ids(const Config& config,
              const std::optional<DatasetPreparation>& preparation,
              Communicator& all) {
  constexpr double kPieceSeconds = 1;
  constexpr std::uint64_t kChunkMib = kScanBytes >> 20U;
  std::string unread;
  together(all, "data.unread", [&] {
    if (preparation) {
      unread = IdScan::to_text(preparation->unread_ids(config.model.vocab_size));
    }
  });
  const std::vector<IdScan::Column> columns =
      IdScan::from_text(text_of_rank(all, 0, unread, "data.unread"));
  if (columns.empty()) {
    return;
  }
  std::optional<IdScan> scan;
  together(all, "data.ids", [&] {
    scan.emplace(columns, config.model.vocab_size);
    const Piece piece{.index = all.rank(), .count = all.size()};
    const Range own = piece.of(static_cast<std::int64_t>(scan->num_chunks()));
    scan->take(static_cast<std::uint64_t>(own.begin), static_cast<std::uint64_t>(own.end()));
  });
  std::optional<Progress> progress;
  if (all.rank() == 0) {
    progress.emplace(
        "reading ids", static_cast<std::int64_t>(scan->num_chunks() * kChunkMib), "MiB");
  }
  for (bool done = false; !done;) {
    bool more = false;
    together(all, "data.ids", [&] { more = scan->advance(kPieceSeconds); });
    std::array<std::int64_t, 2> sums{static_cast<std::int64_t>(scan->num_read() * kChunkMib),
                                     more ? 1 : 0};
    sum_over_ranks(all, sums, "data.ids");
    if (progress) {
      progress->update(sums[0]);
    }
    done = sums[1] == 0;
  }
  std::string results;
  for (int rank = 0; rank < all.size(); ++rank) {
    results += text_of_rank(all, rank, scan->result(), "data.ids");
  }
  together(all, "data.ids.keep", [&] {
    if (preparation) {
      preparation->keep(*scan, results);
    }
  });
}

}  // namespace

const Config& agreed_config(const Config& config, World& world, Communicator& all) {
  world.activity().set_limits(
      {.lost_seconds = config.run.lost_seconds, .hang_seconds = config.run.hang_seconds});
  require_same(all, "the config", to_yaml(config));
  together(all, "run.config", [&] {
    if (all.rank() == 0) {
      require_own_files(config.run.dir);
    }
  });
  return config;
}

Device take_device(const RunConfig& run, const World& world, Communicator& all) {
  const Device device = resolve_device(run.device);
  use_own_gpu(all, world.local_rank(), device);
  return device;
}

std::string take_products(Device device, Communicator& all) {
  std::string products;
  together(all, "run.products", [&] { products = kernels::matmul_library(device); });
  return products;
}

Dataset open_text(const Config& config,
                  const std::vector<std::string>& default_roots,
                  Communicator& all) {
  // What takes long is done once, in pieces: between two of them all ranks meet, so that none of
  // them takes the others for lost.
  constexpr double kPieceSeconds = 5;
  const bool leads = all.rank() == 0;
  std::optional<DatasetPreparation> preparation;
  // Again where what was read shows that tokens of an earlier start are damaged, which are made
  // anew: what is damaged after that is an error of whoever opens it.
  bool damaged = true;
  for (int round = 0; round < 2 && damaged; ++round) {
    for (bool prepared = false; !prepared;) {
      bool more = false;
      together(all, "data.prepare", [&] {
        if (leads) {
          if (!preparation) {
            preparation.emplace(config.data, default_roots, config.run.dir);
          }
          more = preparation->advance(kPieceSeconds);
        }
      });
      prepared = largest_of_all(all, more ? 1 : 0, "data.prepare") == 0;
    }
    read_ids(config, preparation, all);
    damaged = false;
    if (round == 0) {
      together(all, "data.damage", [&] { damaged = leads && preparation->discard_damaged(); });
      damaged = largest_of_all(all, damaged ? 1 : 0, "data.damage") != 0;
    }
  }
  Dataset dataset;
  const auto open = [&] {
    dataset = open_dataset(config.data,
                           config.batch.sequence_length,
                           default_roots,
                           config.run.dir,
                           {.vocab_size = config.model.vocab_size, .pad_id = config.model.pad_id});
  };
  // The first rank keeps what it has learnt of the files, and the others need not read them.
  for (const bool first : {true, false}) {
    together(all, "data.open", [&] {
      if (leads == first) {
        open();
      }
    });
  }
  if (all.rank() == 0) {
    for (const std::string& warning : dataset.warnings) {
      log_warning("{}", warning);
    }
  }
  return agreed(std::move(dataset), all);
}

std::vector<MemoryPool> free_before_groups(Device device) {
  return device_info(device).has_own_memory ? memory_pools(device) : std::vector<MemoryPool>();
}

TrainingPlan agreed_plan(const Config& config,
                         DType compute,
                         Device device,
                         const std::vector<MemoryPool>& before,
                         const Mesh& mesh,
                         Communicator& all) {
  // What is free is not all for tensors, nor free for ever: kernels that are loaded later, and what
  // libraries take that no plan counts. What decides between plans leaves a twentieth of it.
  constexpr std::size_t kSpared = 20;
  DeviceRoom room{.device = device,
                  .library_bytes = kernels::matmul_workspace_bytes(device),
                  .budget_bytes = budget_bytes(config.memory)};
  for (const MemoryDemand& demand : demands_of_all(0, pools_of(device, before), all)) {
    const std::size_t part = demand.free_bytes / static_cast<std::size_t>(demand.num_ranks);
    room.budget_bytes = std::min(room.budget_bytes, part - part / kSpared);
  }
  if (device != Device::cpu) {
    for (const MemoryDemand& demand : demands_of_all(0, memory_pools(Device::cpu), all)) {
      const std::size_t part = demand.free_bytes / static_cast<std::size_t>(demand.num_ranks);
      room.host_budget_bytes = std::min(room.host_budget_bytes, part - part / kSpared);
    }
  }
  const std::int64_t rank = all.rank();
  // What fits one rank may be more than another has room for, which then goes on from there.
  TrainingPlan plan = plan_training(config, compute, room, mesh, rank);
  for (;;) {
    const auto most = static_cast<std::size_t>(
        largest_of_all(all, static_cast<std::int64_t>(plan.recompute_option), "memory.recompute"));
    const bool background =
        largest_of_all(all, plan.saves_in_background ? 0 : 1, "memory.snapshot") == 0;
    const bool differs = plan.recompute_option != most || plan.saves_in_background != background;
    if (largest_of_all(all, differs ? 1 : 0, "memory.recompute") == 0) {
      return plan;
    }
    if (differs) {
      plan = plan_training(config, compute, room, mesh, rank, most, background);
    }
  }
}

void require_memory(const MemoryPlan& plan,
                    const Config& config,
                    DType compute,
                    Device device,
                    const std::vector<MemoryPool>& before,
                    Communicator& all) {
  std::vector<MemoryDemand> demands =
      demands_of_all(plan.needed_bytes(device), pools_of(device, before), all);
  if (device != Device::cpu) {
    // Groups and the library of products may have taken more than the plan counts for them, which
    // nothing else can have: with what is counted, no more is to be had than is free now.
    const std::vector<MemoryDemand> now =
        demands_of_all(plan.communication_bytes + plan.library_bytes, memory_pools(device), all);
    for (std::size_t i = 0; i < demands.size(); ++i) {
      demands[i].free_bytes =
          std::min(demands[i].free_bytes, now[i].free_bytes + now[i].needed_bytes);
    }
    for (MemoryDemand& demand :
         demands_of_all(plan.host.total_bytes(), memory_pools(Device::cpu), all)) {
      demand.is_host = true;
      demands.push_back(std::move(demand));
    }
  }
  if (config.memory.budget_gib > 0) {
    demands.push_back({.pool = "the budget of memory.budget_gib",
                       .free_bytes = budget_bytes(config.memory),
                       .num_ranks = 1,
                       .needed_bytes = plan.needed_bytes(device),
                       .is_budget = true});
  }
  together(all, "memory", [&] {
    for (const MemoryDemand& demand : demands) {
      // An equal part each, as in agreed_plan. What helps a GPU does not help its host.
      const auto ways = [&] {
        const DeviceRoom room{
            .device = device,
            .library_bytes = plan.library_bytes,
            .budget_bytes = demand.free_bytes / static_cast<std::size_t>(demand.num_ranks)};
        return demand.is_host
                   ? std::string()
                   : describe(ways_to_fit(config, compute, room, all.size()), all.size());
      };
      require_fits(plan, demand, config.memory, device, ways);
    }
  });
}

void require_shared(const std::filesystem::path& dir) {
  // A machine that has looked for it in vain may believe so for half a minute yet, on NFS, unless
  // it asks for more than a look.
  make_directories(dir);
  std::error_code ignored;
  if (!std::filesystem::exists(dir / kRunConfigName, ignored)) {
    throw PreflightError(fmt::format(
        "run.dir {} is not that of rank 0 (there is no {} that it wrote, seen from {}, and each "
        "rank writes its part of a checkpoint); use one that all machines share",
        dir.string(),
        kRunConfigName,
        std::filesystem::current_path().string()));
  }
  if (::access(dir.c_str(), W_OK | X_OK) != 0) {
    throw PreflightError(
        fmt::format("cannot write to run.dir {} ({}; each rank writes its part of a checkpoint); "
                    "fix permissions or choose another run.dir",
                    dir.string(),
                    system_reason(errno)));
  }
}

}  // namespace memphis
