// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "csrc/checkpoint/safetensors.h"
#include "csrc/config/config.h"

// Models in Hugging Face's layout: config.json, and model.safetensors or its shards.
namespace memphis {

// The model that a config.json describes, every field resolved. CheckpointError, naming file and
// key, for a key that is missing, has the wrong type or range, or asks for what memphis does not
// compute: weights must never run under arithmetic other than their own. Keys that do not bear on
// the arithmetic are passed over.
//
// What absence means follows the released models: attention cap 30, no other cap, no attention
// temperature, rope_theta 10000, a separate lm_head, no padding token.
ModelConfig read_hf_config(const std::filesystem::path& path);

// The text of a config.json for weights stored as `dtype` (f32 or bf16), which read_hf_config,
// SGLang and, for what it implements, vLLM read. `tokenizer_class` is left out where it is empty.
std::string write_hf_config(const ModelConfig& model,
                            DType dtype,
                            std::string_view tokenizer_class = {});

// The tensors of a model folder, under their names of form B (hf_names.h), in whichever files the
// folder keeps them:
//
//   model.safetensors
//   model.safetensors.index.json and the files that it names
//   *-TP-common.safetensors and *-TP-000.safetensors, ..., of which each of the latter has a part of
//     each of its tensors, cut along one dim (xai-org/grok-2); an index beside them says which
//     tensors there are, and no more
//   *.safetensors without an index, each tensor in one of them
//
// The first that is there. CheckpointError, naming what is amiss, if there is none, if a file of the
// index or of a numbered series is missing, if the index and its files do not agree on a tensor, or
// if a tensor is in two files.
class HfTensors {
 public:
  explicit HfTensors(const std::filesystem::path& directory);

  struct Part {
    const SafetensorsFile* file;
    std::string name;  // in the file
    const StoredTensor& tensor() const { return file->tensors().find(name)->second; }
  };
  // One part, or one from each presharded file, in their order.
  const std::map<std::string, std::vector<Part>, std::less<>>& tensors() const { return tensors_; }

 private:
  const SafetensorsFile& open(const std::string& file_name);
  void add(const SafetensorsFile& file);
  void open_index(const std::filesystem::path& index);
  void require_all_of_index(const std::filesystem::path& index) const;
  void open_presharded(const std::vector<std::string>& names);
  void open_series(const std::vector<std::string>& names);

  std::filesystem::path directory_;
  std::map<std::string, SafetensorsFile> files_;
  std::map<std::string, std::vector<Part>, std::less<>> tensors_;
};

}  // namespace memphis
