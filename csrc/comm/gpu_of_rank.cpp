// SPDX-License-Identifier: Apache-2.0
#include "csrc/comm/gpu_of_rank.h"

#include <algorithm>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include <spdlog/fmt/fmt.h>

#include "csrc/comm/nccl.h"
#include "csrc/comm/together.h"
#include "csrc/core/log.h"

namespace memphis {
namespace {

constexpr std::size_t kWords = sizeof(GpuClaim) / sizeof(std::int64_t);

TensorView words_of(std::span<GpuClaim> claims) {
  return {
      claims.data(), {static_cast<std::int64_t>(claims.size() * kWords)}, DType::i64, Device::cpu};
}

// The launcher hides a rank's GPUs from the others of its machine.
bool some_are_hidden(std::span<const GpuClaim> claims) {
  return std::any_of(claims.begin(), claims.end(), [](const GpuClaim& claim) {
    return claim.num_gpus == 1 && claim.local_rank > 0 && claim.may_share == 0;
  });
}

}  // namespace

int gpu_of_rank(int local_rank, int num_gpus, bool may_share) {
  if (local_rank < num_gpus) {
    return local_rank;
  }
  if (may_share) {
    return local_rank % num_gpus;
  }
  if (num_gpus == 1) {
    return 0;
  }
  throw PreflightError(
      fmt::format("this rank is number {} of its machine, counted from 0, and sees {} GPUs (a rank "
                  "needs a GPU of its own); start at most {} ranks a machine, as in `srun "
                  "--ntasks-per-node={} --gpus-per-node={}` or `mpirun --map-by ppr:{}:node`",
                  local_rank,
                  num_gpus,
                  num_gpus,
                  num_gpus,
                  num_gpus,
                  num_gpus));
}

void check_claims(std::span<const GpuClaim> claims) {
  std::map<std::array<std::int64_t, 2>, std::size_t> first_with;
  for (std::size_t rank = 0; rank < claims.size(); ++rank) {
    const GpuClaim& claim = claims[rank];
    if (claim.on_gpu != claims.front().on_gpu) {
      throw PreflightError(
          fmt::format("rank {} is on a GPU and rank {} is not (its machine has none that it can "
                      "use); mend or leave out that machine, or set run.device to cpu",
                      claim.on_gpu == 1 ? rank : 0,
                      claim.on_gpu == 1 ? 0 : rank));
    }
    if (claim.on_gpu == 0) {
      continue;
    }
    const auto [other, is_first] = first_with.try_emplace(claim.identity, rank);
    if (!is_first && claim.may_share == 0) {
      const auto num_sharing = std::count_if(claims.begin(), claims.end(), [&](const GpuClaim& c) {
        return c.identity == claim.identity;
      });
      throw PreflightError(fmt::format(
          "{} ranks, {} and {} among them, have the same GPU (a rank needs one of its own, and "
          "rank {} sees {}); start as many ranks on a machine as it has GPUs, and let each see its "
          "own or all of them (CUDA_VISIBLE_DEVICES, srun --gpus-per-node --gpu-bind=none)",
          num_sharing,
          other->second,
          rank,
          rank,
          claim.num_gpus));
    }
  }
}

void use_own_gpu(Communicator& all_host, int local_rank, Device device) {
  if (all_host.size() == 1 && device == Device::cuda) {
    (void)device_info(device);  // of the first GPU, which throws where no kernel runs on it
  }
  if (all_host.size() == 1 || !has_nccl()) {
    return;  // the first group of several ranks is refused
  }
  GpuClaim own{.local_rank = local_rank};
  together(all_host, "gpus.choose", [&] {
    if (device == Device::cuda) {
      own.on_gpu = 1;
      own.num_gpus = num_gpus();
      own.may_share = std::getenv("NCCL_HOSTID") != nullptr ? 1 : 0;
      select_gpu(gpu_of_rank(local_rank, static_cast<int>(own.num_gpus), own.may_share == 1));
      own.identity = gpu_identity();
      if (device_info(Device::cuda).simulated) {
        own.may_share = 1;  // each process has one of its own, on the processor of all
      }
    }
  });
  std::vector<GpuClaim> claims(static_cast<std::size_t>(all_host.size()));
  all_host.run(AllGather{.y = words_of(claims), .x = words_of({&own, 1})}, "gpus.claims", {});
  together(all_host, "gpus.check", [&] { check_claims(claims); });
  if (all_host.rank() == 0 && some_are_hidden(claims)) {
    log_warning(
        "ranks of a machine see one GPU each (the launcher hides the others': --gpus-per-task, "
        "--gpu-bind or CUDA_VISIBLE_DEVICES); NCCL may not find the NVLink between them: with "
        "Slurm prefer --gpus-per-node and --gpu-bind=none");
  }
}

}  // namespace memphis
