// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "csrc/comm/communicator.h"
#include "csrc/config/config.h"
#include "csrc/core/device.h"
#include "csrc/core/memory_pools.h"
#include "csrc/data/dataset.h"
#include "csrc/plan/memory.h"
#include "csrc/plan/mesh.h"
#include "csrc/plan/training_plan.h"

// What all ranks of a run have alike, and have at all, before one of them allocates or writes.
// Every rank calls unless a function says otherwise, and where one rank refuses all throw.
namespace memphis {

// `config`, which is that of every rank. From here on ranks watch each other as it says.
const Config& agreed_config(const Config& config, World& world, Communicator& all);

// The device that the config asks for; on the GPU this rank's own, before anything is asked of it.
Device take_device(const RunConfig& run, const World& world, Communicator& all);

// Who multiplies on this rank's device, kernels::matmul_library(), which need not be alike on all:
// PreflightError, on all ranks, where one finds no such library.
std::string take_products(Device device, Communicator& all);

// The same text on every rank. The first one speaks for all, of what is wrong with the text too.
Dataset open_text(const Config& config,
                  const std::vector<std::string>& default_roots,
                  Communicator& all);

// What is free of the device's own memory; nothing where that is the machine's, of which text takes
// some before there is a plan. Once all ranks have their devices and before one has groups, which
// take of it when they are made, or as late as their first collective (prepare_nccl): the plan
// counts their memory with all else that a rank needs, and so is held to what is free without them.
// Not collective.
std::vector<MemoryPool> free_before_groups(Device device);

// This rank's plan for what there is room for on all of them: each has an equal part of the memory
// that it shares, or config.memory.budget_gib if that is less. `before`: free_before_groups().
TrainingPlan agreed_plan(const Config& config,
                         DType compute,
                         Device device,
                         const std::vector<MemoryPool>& before,
                         const Mesh& mesh,
                         Communicator& all);

// What all ranks that share a memory will take of it is there, of their devices' and of their
// machine's, and is within memory.budget_gib: PreflightError, with the table of `plan` and what
// could be changed, where it is not. None allocates before all have looked, but for groups and
// matmul's library, which are open.
void require_memory(const MemoryPlan& plan,
                    const Config& config,
                    DType compute,
                    Device device,
                    const std::vector<MemoryPool>& before,
                    Communicator& all);

// run.dir is this rank's too, before there is work that it cannot save: PreflightError where it is
// another one than the first rank's, or cannot be written to. Of one rank.
void require_shared(const std::filesystem::path& dir);

}  // namespace memphis
