// SPDX-License-Identifier: Apache-2.0
#include "csrc/checkpoint/model_state.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "csrc/checkpoint/hf.h"
#include "csrc/checkpoint/safetensors.h"
#include "csrc/checkpoint/store.h"
#include "csrc/checkpoint/writer.h"
#include "csrc/core/error.h"
#include "csrc/core/file.h"

namespace memphis {
namespace {

constexpr const char* kConfigName = "config.json";
constexpr const char* kWeightsName = "model.safetensors";
constexpr const char* kOptimizerName = "optimizer.safetensors";
constexpr const char* kHeadName = "lm_head.weight";
constexpr const char* kEmbeddingName = "model.embed_tokens.weight";

// Host memory through which a GPU's tensors pass; large enough to keep the link busy.
constexpr std::size_t kStagingBytes = std::size_t{64} << 20;

PinnedBuffer make_staging(Device device) {
  return {device == Device::cpu ? 0 : kStagingBytes, device};
}

std::vector<TensorSource> weight_sources(const Parameters& parameters,
                                         const PinnedBuffer& staging,
                                         Stream stream) {
  std::vector<TensorSource> sources;
  for (const LogicalParameter& parameter : parameters.plan().logical) {
    sources.push_back(
        source_of(parameter.name, parameters.logical_weights(parameter), staging, stream));
  }
  return sources;
}

std::vector<TensorSource> optimizer_sources(const Optimizer& optimizer,
                                            const PinnedBuffer& staging,
                                            Stream stream) {
  std::vector<TensorSource> sources;
  for (const Optimizer::StateTensor& tensor : optimizer.state()) {
    sources.push_back(source_of(tensor.name, tensor.view, staging, stream));
  }
  return sources;
}

// Reads a stored tensor into `view`, wherever that lies, in its dtype.
void load_tensor(const SafetensorsFile& file,
                 const std::string& name,
                 const TensorView& view,
                 const PinnedBuffer& staging,
                 Stream stream) {
  const std::span<const std::int64_t> shape(view.dims.data(),
                                            static_cast<std::size_t>(view.num_dims));
  const std::int64_t total = view.num_elements();
  if (view.device == Device::cpu) {
    file.read(name, shape, 0, total, view.dtype, view.data);
    return;
  }
  const std::size_t width = size_of(view.dtype);
  const auto piece = static_cast<std::int64_t>(staging.bytes() / width);
  for (std::int64_t begin = 0; begin < total; begin += piece) {
    const std::int64_t count = std::min(piece, total - begin);
    file.read(name, shape, begin, count, view.dtype, staging.data());
    device_copy(static_cast<char*>(view.data) + static_cast<std::size_t>(begin) * width,
                staging.data(),
                static_cast<std::size_t>(count) * width,
                stream);
    synchronize(stream);  // staging is filled again
  }
}

// A folder that ties its head and stores it nevertheless must mean what it says.
void require_tied_head_equals_embedding(const HfTensors& tensors, const TensorView& embedding_VD) {
  const std::span<const std::int64_t> shape(embedding_VD.dims.data(), 2);
  const StoredTensor& head = tensors.file_of(kHeadName).find(kHeadName, shape);
  const StoredTensor& embedding = tensors.file_of(kEmbeddingName).find(kEmbeddingName, shape);
  if (head.dtype_name != embedding.dtype_name ||
      !std::equal(
          head.bytes.begin(), head.bytes.end(), embedding.bytes.begin(), embedding.bytes.end())) {
    throw CheckpointError(
        "lm_head.weight differs from model.embed_tokens.weight (config.json says "
        "tie_word_embeddings true); set tie_word_embeddings to false there if the head is its own");
  }
}

}  // namespace

std::uint64_t checkpoint_bytes(const Parameters& parameters, const Optimizer& optimizer) {
  const PinnedBuffer no_staging(0, Device::cpu);
  return safetensors_bytes(weight_sources(parameters, no_staging, {})) +
         safetensors_bytes(optimizer_sources(optimizer, no_staging, {}));
}

std::filesystem::path save_checkpoint(const std::filesystem::path& run_dir,
                                      std::int64_t step,
                                      const Manifest& manifest,
                                      const ModelConfig& model,
                                      const Parameters& parameters,
                                      const Optimizer& optimizer,
                                      Stream stream) {
  synchronize(stream);
  const PinnedBuffer staging = make_staging(stream.device);
  CheckpointWriter writer(run_dir, step);
  ChecksumWriter config(writer.directory() / kConfigName);
  config.write(write_hf_config(model, parameters.compute()));
  writer.add_file(config.close());
  writer.add_tensors(kWeightsName, weight_sources(parameters, staging, stream));
  writer.add_tensors(kOptimizerName, optimizer_sources(optimizer, staging, stream));
  return writer.commit(manifest);
}

void load_checkpoint(const std::filesystem::path& checkpoint,
                     Parameters& parameters,
                     Optimizer& optimizer,
                     Stream stream) {
  const PinnedBuffer staging = make_staging(stream.device);
  const SafetensorsFile weights(checkpoint / kWeightsName);
  for (const LogicalParameter& parameter : parameters.plan().logical) {
    load_tensor(weights, parameter.name, parameters.logical_weights(parameter), staging, stream);
  }
  const SafetensorsFile state(checkpoint / kOptimizerName);
  for (const Optimizer::StateTensor& tensor : optimizer.state()) {
    load_tensor(state, tensor.name, tensor.view, staging, stream);
  }
}

std::filesystem::path find_model_folder(const std::filesystem::path& path) {
  if (std::filesystem::exists(path / kConfigName)) {
    return path;
  }
  const Scan scan = find_newest_valid(path);
  if (scan.newest) {
    return scan.newest->path;
  }
  std::string reasons;
  for (const Rejected& rejected : scan.rejected) {
    reasons += "; " + rejected.path.string() + ": " + rejected.reason;
  }
  throw CheckpointError(path.string() + " holds no model (it has no config.json and no valid " +
                        "checkpoint" + reasons + "); name a model folder or a run directory");
}

void load_model_folder(const std::filesystem::path& folder, Parameters& parameters, Stream stream) {
  const HfTensors tensors(folder);
  const PinnedBuffer staging = make_staging(stream.device);
  bool has_own_head = false;
  for (const LogicalParameter& parameter : parameters.plan().logical) {
    has_own_head = has_own_head || parameter.name == kHeadName;
    load_tensor(tensors.file_of(parameter.name),
                parameter.name,
                parameters.logical_weights(parameter),
                staging,
                stream);
  }
  if (!has_own_head && tensors.contains(kHeadName)) {
    require_tied_head_equals_embedding(tensors, parameters.weights().embedding_VD);
  }
}

void export_model_folder(const std::filesystem::path& folder,
                         const ModelConfig& model,
                         const Parameters& parameters,
                         Stream stream) {
  if (std::filesystem::exists(folder)) {
    throw CheckpointError("cannot export to " + folder.string() +
                          " (it exists, and nothing saved is overwritten); name a new folder");
  }
  std::filesystem::path unfinished = folder;
  unfinished += ".tmp";
  std::error_code error;
  std::filesystem::remove_all(unfinished, error);
  std::filesystem::create_directories(unfinished, error);
  if (error) {
    throw CheckpointError("cannot create " + unfinished.string() + " (" + error.message() +
                          "); choose another folder or fix permissions");
  }
  const PinnedBuffer staging = make_staging(stream.device);
  std::vector<TensorSource> sources = weight_sources(parameters, staging, stream);
  if (model.tie_embeddings) {
    sources.push_back(source_of(kHeadName, parameters.weights().embedding_VD, staging, stream));
  }
  write_safetensors(unfinished / kWeightsName, sources);
  write_text_atomically(unfinished / kConfigName, write_hf_config(model, parameters.compute()));
  std::filesystem::rename(unfinished, folder, error);
  if (error) {
    throw CheckpointError("cannot rename " + unfinished.string() + " to " + folder.string() + " (" +
                          error.message() + "); the export is whole under the first name");
  }
}

}  // namespace memphis
