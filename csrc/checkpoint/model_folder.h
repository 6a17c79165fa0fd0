// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "csrc/checkpoint/folder_tokenizer.h"
#include "csrc/checkpoint/weights.h"
#include "csrc/config/config.h"
#include "csrc/core/file.h"
#include "csrc/model/groups.h"
#include "csrc/model/parameters.h"
#include "csrc/plan/parameters.h"

// Model folders for other programs: config.json, generation_config.json, safetensors in form B, and
// the files of a tokenizer.
namespace memphis {

// What Hugging Face's libraries cut files at.
constexpr std::uint64_t kShardBytes = 5'000'000'000;

// "5GB", "512MiB", "1000000": bytes, with the units of 1000 or 1024; nothing for what is no size, or
// none above 0.
std::optional<std::uint64_t> parse_bytes(std::string_view text);

// A model folder in the making. Which byte of which file an element is follows from the model alone,
// so any number of processes and threads write at a time, each what it has, and the folder is the
// same to the byte whoever wrote it.
//
//   model.safetensors                        where all tensors fit into one file
//   model-00001-of-00003.safetensors, ...    else, as many tensors each as fit, in the order of the
//   model.safetensors.index.json             model; one that is larger alone has a file of its own
//
// It lies in FOLDER.tmp until it is whole. Tied weights are written twice, as lm_head too, which
// SGLang needs.
//
// Errors      CheckpointError with the system's reason from any member.
class ModelFolderWriter {
 public:
  // Of weights in `compute`, where they are matrices.
  ModelFolderWriter(const std::filesystem::path& folder,
                    const ModelConfig& model,
                    DType compute,
                    std::uint64_t shard_bytes);
  ~ModelFolderWriter();

  const std::filesystem::path& folder() const { return folder_; }
  std::uint64_t num_bytes() const;  // of all its tensors' files
  std::size_t num_files() const { return files_.size(); }

  // Creates FOLDER.tmp and its files, with their headers. One process calls it, before any writes.
  // CheckpointError if FOLDER is there, or FOLDER.tmp.
  void begin();

  // Elements `local` of a part of a tensor, in host memory and in the dtype that `parameter`'s
  // segment has in the plan of `compute`. Any number of threads.
  void write(const LogicalParameter& parameter, const Range& local, const void* elements);

  // What this process wrote is durable from here on. Each process calls it, when it has written all.
  void flush();

  // Adds the other files and gives the folder its name. One process calls it, when all have flushed.
  // Files of the tokenizer lie in `source`.
  void commit(const std::filesystem::path& source, const FolderTokenizer& tokenizer);

  // Removes FOLDER.tmp.
  void abandon() noexcept;

 private:
  struct File {
    std::string name;
    std::string beginning;  // up to the tensors' bytes
    std::uint64_t bytes = 0;
    std::unique_ptr<PlacedWriter> writer;  // once this process has written to it
  };
  struct Place {
    std::size_t file;
    std::uint64_t offset;
  };
  PlacedWriter& writer_of(std::size_t file);

  std::filesystem::path folder_;
  std::filesystem::path unfinished_;
  ModelConfig model_;
  DType compute_;
  std::vector<File> files_;
  std::map<std::string, std::vector<Place>, std::less<>> places_;  // by tensor
  std::map<std::string, std::string> weight_map_;
  std::uint64_t tensor_bytes_ = 0;
  std::mutex mutex_;  // of opening files
};

// Weights that are stored, without being held: a piece for each thread is in memory at a time. What
// is not finite is written, with a warning.
void export_stored(ModelFolderWriter& writer,
                   const StoredWeights& stored,
                   const std::filesystem::path& source,
                   const FolderTokenizer& tokenizer);

// The weights of a run, each rank what it counts. Every rank calls, with a writer of the same
// arguments; if one fails, all throw and nothing is left.
void export_from_ranks(ModelFolderWriter& writer,
                       const Parameters& parameters,
                       const Groups& groups,
                       const FolderTokenizer& tokenizer,
                       Stream stream);

}  // namespace memphis
