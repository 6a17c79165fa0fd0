// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "csrc/checkpoint/contents.h"
#include "csrc/checkpoint/manifest.h"
#include "csrc/checkpoint/model_state.h"
#include "csrc/comm/communicator.h"
#include "csrc/config/config.h"
#include "csrc/data/dataset.h"

// How a run goes on from a checkpoint: which one, and whether it is of this config's run. Nothing
// here writes. config/resume_rules.h has the table of what may change.
namespace memphis {

// A checkpoint to go on from.
struct Chosen {
  std::filesystem::path path;
  Manifest manifest;  // without its files, two of each rank that wrote it
  std::int64_t num_writers = 1;
  std::optional<Config> config;  // that it was written with
  std::string config_problem;    // why this version cannot read that; empty if it can

  // How it was cut; nothing where that is not known.
  std::optional<WriterLayout> writer() const;
};

// A checkpoint as its manifest tells.
Chosen chosen_from(const std::filesystem::path& path, Manifest manifest);

// Waits for another job that is about to leave run.dir. Every rank calls; if one fails, all throw.
void await_run_directory(const RunConfig& run, Communicator& all_host);

// Every rank goes on from the checkpoint that the first one has read back and chosen; nothing where
// the run starts from scratch. Every rank calls; if one fails, all throw.
std::optional<Chosen> agree_on_checkpoint(const RunConfig& run, Communicator& all_host);

// What differs between a checkpoint and the run that is to go on from it.
struct Resumption {
  struct Refusal {
    std::string what;  // "model.rope_theta is 500000 and was 10000"
    std::string why;
    std::string keep;  // what would have it go on: "model.rope_theta=10000"
  };
  Contents contents;
  std::vector<Refusal> refused;
  std::vector<std::string>
      said;                   // a line a change that is allowed: old value, new one, what follows
  std::uint64_t samples = 0;  // the position, in samples of the config's length
};

// `compute` is what the config computes in on this machine, and `products` who multiplies there
// (kernels::matmul_library; empty: not compared). `dataset` is what the config names; null: its text
// is not compared. Every rank calls, and has the same result.
Resumption compare_with_checkpoint(const Chosen& chosen,
                                   const Config& config,
                                   DType compute,
                                   const std::string& products,
                                   const Dataset* dataset,
                                   Communicator& all_host);

// CheckpointError, with all their names, where tensors differ; ConfigError, with all of them, where
// keys differ that a resume must keep.
void require_same_run(const Chosen& chosen, const Resumption& resumption);

// Of data.validation; empty where that is the held-out end of the training text, or nothing.
std::string validation_fingerprint(const Config& config, const Dataset& dataset);

// Whether the run of `config` could have written a checkpoint. `compute` and `validation` are the
// config's.
bool is_of_run(const Manifest& manifest,
               const Config& config,
               DType compute,
               Device device,
               const std::string& validation);

}  // namespace memphis
