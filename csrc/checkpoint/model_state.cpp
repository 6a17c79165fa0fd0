// SPDX-License-Identifier: Apache-2.0
#include "csrc/checkpoint/model_state.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <optional>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "csrc/checkpoint/pieces.h"
#include "csrc/checkpoint/safetensors.h"
#include "csrc/checkpoint/store.h"
#include "csrc/checkpoint/tensor_names.h"
#include "csrc/comm/together.h"
#include "csrc/config/load.h"
#include "csrc/core/error.h"
#include "csrc/core/file.h"
#include "csrc/core/log.h"
#include "csrc/plan/shard_map.h"

namespace memphis {
namespace {

// What a rank reads of a checkpoint.
struct Wanted {
  std::string tensor;
  const LogicalParameter* parameter;
  Range local;
  TensorView view;
};

// Of each segment the piece that this rank reads for all that hold it.
std::vector<Wanted> wanted_weights(const Parameters& parameters) {
  std::vector<Wanted> result;
  for (const LogicalParameter& parameter : parameters.plan().logical) {
    const Segment& segment =
        parameters.plan().segments[static_cast<std::size_t>(parameter.segment)];
    const Range local = parameter.local(segment.piece);
    if (local.count > 0) {
      result.push_back(
          {parameter.name, &parameter, local, parameters.held_weights(parameter, local)});
    }
  }
  return result;
}

std::vector<Wanted> wanted_state(const Optimizer& optimizer) {
  std::vector<Wanted> result;
  for (const Optimizer::StateTensor& state : optimizer.state()) {
    result.push_back({state.name, state.parameter, state.local, state.view});
  }
  return result;
}

void load_pieces(const StoredPieces& pieces,
                 const std::vector<Wanted>& wanted,
                 const PinnedBuffer& staging,
                 Stream stream,
                 NonFinite& non_finite) {
  for (const Wanted& one : wanted) {
    pieces.load(one.tensor, *one.parameter, one.local, one.view, staging, stream, non_finite);
  }
}

// The files of a checkpoint of `num_ranks` ranks that hold what is wanted.
std::vector<std::filesystem::path> files_of(const std::filesystem::path& checkpoint,
                                            const ShardMap& map,
                                            std::int64_t num_ranks,
                                            const std::vector<Wanted>& wanted,
                                            const char* whole_name,
                                            const char* stem) {
  if (num_ranks == 1) {
    return {checkpoint / whole_name};
  }
  std::set<std::int64_t> ranks;
  for (const Wanted& one : wanted) {
    map.add_writers(*one.parameter, one.local, ranks);
  }
  std::vector<std::filesystem::path> files;
  for (const std::int64_t rank : ranks) {
    files.push_back(checkpoint /
                    piece_file_name(stem, static_cast<int>(rank), static_cast<int>(num_ranks)));
  }
  return files;
}

// The files of a checkpoint that hold what one rank would write to `whole_name`.
std::vector<std::filesystem::path> stored_files(const std::filesystem::path& checkpoint,
                                                const char* whole_name,
                                                const char* stem) {
  std::vector<std::filesystem::path> files = piece_files(checkpoint, stem);
  if (files.empty()) {
    files.push_back(checkpoint / whole_name);
  }
  return files;
}

// Of segments that ranks hold alike each has read a piece: the others get it.
void hand_on_weights(WeightResidency& residency, const Groups& groups, Stream stream) {
  Parameters& parameters = residency.parameters();
  const std::vector<Segment>& segments = parameters.plan().segments;
  for (std::size_t i = 0; i < segments.size(); ++i) {
    if (segments[i].place) {
      residency.changed(i);
      continue;
    }
    const TensorView all_n = parameters.segment_weights(i);
    const Range& piece = segments[i].piece;
    groups.replicas(segments[i].replicas)
        .run(AllGather{.y = all_n,
                       .x = flat_view(
                           all_n, segments[i].begin, piece.begin, {{piece.count}, all_n.dtype})},
             "checkpoint.weights",
             stream);
  }
}

}  // namespace

std::int64_t num_writers(const Manifest& manifest) {
  for (const FileRecord& file : manifest.files) {
    if (file.name.starts_with(std::string(kWeightsStem) + "-")) {
      return std::max<std::int64_t>(piece_file_count(file.name), 1);
    }
  }
  return 1;
}

void load_checkpoint(const std::filesystem::path& checkpoint,
                     const std::optional<WriterLayout>& writer,
                     const ModelConfig& model,
                     WeightResidency& residency,
                     Optimizer& optimizer,
                     const Groups& groups,
                     Stream stream) {
  const PinnedBuffer staging = make_staging(stream.device);
  Parameters& parameters = residency.parameters();
  const std::vector<Wanted> weights = wanted_weights(parameters);
  const std::vector<Wanted> state = wanted_state(optimizer);
  together(groups.all_host(), "checkpoint.load", [&] {
    NonFinite non_finite;
    std::optional<ShardMap> map;
    if (writer) {
      map.emplace(model, writer->parallel, writer->num_ranks);
    }
    const auto load_all =
        [&](const std::vector<Wanted>& wanted, const char* whole_name, const char* stem) {
          if (map) {
            try {
              const StoredPieces pieces(
                  files_of(checkpoint, *map, writer->num_ranks, wanted, whole_name, stem));
              load_pieces(pieces, wanted, staging, stream, non_finite);
              return;
            } catch (const MissingPiece&) {
              // Names say what a piece is, so an earlier version may have planned otherwise.
              log_warning("{} is cut otherwise than its config says; looking into all of its files",
                          checkpoint.string());
            }
          }
          load_pieces(StoredPieces(stored_files(checkpoint, whole_name, stem)),
                      wanted,
                      staging,
                      stream,
                      non_finite);
        };
    load_all(weights, kWeightsName, kWeightsStem);
    load_all(state, kOptimizerName, kOptimizerStem);
    if (!non_finite.empty()) {
      throw CheckpointError(fmt::format(
          "{} holds {} (the run had diverged when it was saved, and would go on to nothing); move "
          "it out of the run directory to go on from the one before it, with a lower learning rate "
          "if it diverges again",
          checkpoint.string(),
          non_finite.describe()));
    }
  });
  hand_on_weights(residency, groups, stream);
}

void load_initial_weights(const StoredWeights& stored,
                          WeightResidency& residency,
                          Optimizer& optimizer,
                          const Groups& groups,
                          Stream stream) {
  const PinnedBuffer staging = make_staging(stream.device);
  const std::vector<Wanted> weights = wanted_weights(residency.parameters());
  together(groups.all_host(), "init_from.load", [&] {
    NonFinite non_finite;
    load_pieces(stored.pieces(), weights, staging, stream, non_finite);
    for (const Optimizer::StateTensor& state : optimizer.state()) {
      if (state.name == state.parameter->name + ".master") {
        NonFinite known;  // of the weights
        stored.pieces().load(state.parameter->name,
                             *state.parameter,
                             state.local,
                             state.view,
                             staging,
                             stream,
                             known);
      }
    }
    for (const Wanted& one : weights) {
      if (one.tensor == kEmbeddingName) {
        stored.require_head_of_tied_model(*one.parameter, one.local);
      }
    }
    if (!non_finite.empty()) {
      throw CheckpointError(stored.describe(non_finite) +
                            "; begin with an older checkpoint of the run, or copy the model again "
                            "from its source");
    }
  });
  hand_on_weights(residency, groups, stream);
}

std::filesystem::path find_model_folder(const std::filesystem::path& path, const Verify& verify) {
  std::error_code error;
  const std::filesystem::file_status status = std::filesystem::status(path, error);
  if (!std::filesystem::is_directory(status)) {
    throw CheckpointError(fmt::format(
        "{} holds no model ({}); name a model folder or a run directory",
        path.string(),
        !std::filesystem::exists(status) ? system_reason(error.value()) : "it is not a folder"));
  }
  // A link to nothing is there too: reading it says so.
  if (std::filesystem::exists(std::filesystem::symlink_status(path / kConfigName, error))) {
    if (std::filesystem::exists(path / kManifestName, error)) {
      const Verdict verdict = verify(path);
      if (!verdict.manifest) {
        throw CheckpointError(
            fmt::format("{} is no valid checkpoint ({}); name another, or its run directory for "
                        "the newest that is",
                        path.string(),
                        verdict.reason));
      }
    }
    return path;
  }
  const Scan scan = find_newest_valid(path, verify);
  if (scan.newest) {
    for (const Rejected& rejected : scan.rejected) {
      log_warning("skipping {}: {}", rejected.path.string(), rejected.reason);
    }
    return scan.newest->path;
  }
  std::string reasons;
  for (const Rejected& rejected : scan.rejected) {
    reasons += "; " + rejected.path.string() + ": " + rejected.reason;
  }
  // Where downloads of Hugging Face's hub are kept, a folder for each revision.
  const bool is_cache = std::filesystem::is_directory(path / "snapshots", error);
  throw CheckpointError(path.string() + " holds no model (it has no config.json and no valid " +
                        "checkpoint" + reasons + "); name a model folder or a run directory" +
                        (is_cache ? ", here one of those in its folder snapshots" : ""));
}

void require_new_folder(const std::filesystem::path& folder) {
  std::error_code error;
  if (std::filesystem::exists(std::filesystem::symlink_status(folder, error))) {
    throw CheckpointError("cannot export to " + folder.string() +
                          " (it exists, and nothing saved is overwritten); name a new folder");
  }
}

}  // namespace memphis
