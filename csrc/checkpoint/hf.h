// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>

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
// SGLang and, for what it implements, vLLM read.
std::string write_hf_config(const ModelConfig& model, DType dtype);

// The tensors of a model folder, wherever the folder keeps them. CheckpointError, naming what is
// missing, if the folder has no weights in safetensors, a shard is missing or a shard lacks a
// tensor that the index places there.
class HfTensors {
 public:
  explicit HfTensors(const std::filesystem::path& directory);

  bool contains(std::string_view name) const { return homes_.contains(name); }

  // The file that holds a tensor; CheckpointError if none does. Its find() and read() check the
  // shape.
  const SafetensorsFile& file_of(std::string_view name) const;

  // The whole tensor, converted to the dtype of `out`, which is in host memory and has the dims
  // that are expected of it. CheckpointError as of SafetensorsFile::read.
  void read(std::string_view name, const TensorView& out) const;

 private:
  void open_index(const std::filesystem::path& index);

  std::filesystem::path directory_;
  std::map<std::string, SafetensorsFile> files_;
  std::map<std::string, const SafetensorsFile*, std::less<>> homes_;
};

}  // namespace memphis
