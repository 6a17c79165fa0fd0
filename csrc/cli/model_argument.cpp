// SPDX-License-Identifier: Apache-2.0
#include "csrc/cli/model_argument.h"

#include <system_error>

#include <spdlog/fmt/fmt.h>

#include "csrc/checkpoint/folder_tokenizer.h"
#include "csrc/checkpoint/hf.h"
#include "csrc/checkpoint/manifest.h"
#include "csrc/checkpoint/model_state.h"
#include "csrc/checkpoint/store.h"
#include "csrc/cli/commands.h"
#include "csrc/config/load.h"
#include "csrc/core/error.h"
#include "csrc/core/file.h"
#include "csrc/data/kept_tokenizer.h"
#include "csrc/data/tokenizer.h"

namespace memphis {

static_assert(ByteIds::pad == ByteTokenizer::kPad && ByteIds::bos == ByteTokenizer::kBos &&
              ByteIds::eos == ByteTokenizer::kEos &&
              ByteIds::first_byte == ByteTokenizer::kFirstByte);

namespace {

constexpr double kGiB = 1024.0 * 1024.0 * 1024.0;

Device device_of(const ModelArgument& argument) {
  return resolve_device(argument.device == "cuda" ? DeviceChoice::cuda : DeviceChoice::cpu);
}

DType compute_of(const ModelArgument& argument) {
  return argument.compute == "bf16" ? DType::bf16 : DType::f32;
}

StoredWeights open_weights(const ModelFolder& folder, const ModelArgument& argument) {
  StoredWeights stored(folder.path, folder.config);
  require_fits(folder, compute_of(argument), device_of(argument));
  return stored;
}

// What its run kept, if that is the tokenizer of the checkpoint; and else what its config names.
std::shared_ptr<const Tokenizer> tokenizer_of_run(const std::filesystem::path& run_dir,
                                                  const DataConfig& data,
                                                  const std::string& fingerprint) {
  const std::filesystem::path kept = kept_tokenizer(run_dir);
  std::error_code ignored;
  if (data.tokenizer != "none" && std::filesystem::is_directory(kept, ignored)) {
    auto tokenizer = open_tokenizer(kept.string());
    if (tokenizer->fingerprint() == fingerprint) {
      return tokenizer;
    }
  }
  return open_tokenizer(data.tokenizer, data.tokenizer_pattern);
}

void require_byte_tokenizer(const ModelFolder& folder) {
  const FolderTokenizer tokenizer = find_tokenizer(folder.path, folder.config.vocab_size);
  if (!tokenizer.is_byte) {
    const std::string files = describe_files(folder.path, tokenizer);
    throw DataError(
        fmt::format("{} has a vocabulary of {} and {} (memphis knows one tokenizer, of {} ids for "
                    "bytes{}); give token ids to `memphis logits`{}",
                    folder.path.string(),
                    folder.config.vocab_size,
                    files.empty() ? "no tokenizer" : "the tokenizer " + files,
                    ByteTokenizer::kVocabSize,
                    files.empty() ? ", and config.json does not say that the ids are its" : "",
                    files.empty() ? fmt::format(", or, if the model was trained on bytes, write "
                                                "\"tokenizer_class\": \"{}\" into its config.json",
                                                kByteTokenizerClass)
                                  : ""));
  }
  if (folder.config.vocab_size < ByteTokenizer::kVocabSize) {
    throw DataError(fmt::format(
        "{} has a vocabulary of {} (text needs the byte tokenizer's {}); use `memphis logits` for "
        "models of other tokens",
        folder.path.string(),
        folder.config.vocab_size,
        ByteTokenizer::kVocabSize));
  }
}

}  // namespace

void add_model_argument(CLI::App& command, ModelArgument& argument) {
  command
      .add_option("model",
                  argument.path,
                  "A model folder (config.json and safetensors) or a run "
                  "directory")
      ->required();
  command.add_option("--device", argument.device, "cpu or cuda")->check(one_of({"cpu", "cuda"}));
  command.add_option("--compute", argument.compute, "f32 or bf16")->check(one_of({"f32", "bf16"}));
}

ModelFolder::ModelFolder(const std::string& argument) : path(find_model_folder(argument)) {
  try {
    config = read_hf_config(path / "config.json");
  } catch (const Error&) {
    if (!is_gone()) {
      throw;
    }
    path = find_model_folder(argument);
    config = read_hf_config(path / "config.json");
  }
}

bool ModelFolder::is_gone() const {
  std::error_code error;
  return std::filesystem::status(path, error).type() == std::filesystem::file_type::not_found;
}

std::shared_ptr<const Tokenizer> tokenizer_of(const ModelFolder& folder) {
  const FolderTokenizer found = find_tokenizer(folder.path, folder.config.vocab_size);
  std::shared_ptr<const Tokenizer> tokenizer;
  const std::filesystem::path manifest_path = folder.path / kManifestName;
  if (!found.is_byte && std::filesystem::exists(manifest_path)) {
    const Manifest manifest = read_manifest(read_text(manifest_path), manifest_path);
    const Config config =
        parse_config(manifest.config, "its config", {}, Check::text, num_writers(manifest));
    tokenizer =
        tokenizer_of_run(folder.path.parent_path(), config.data, manifest.tokenizer_fingerprint);
    if (tokenizer == nullptr) {
      throw DataError(fmt::format(
          "{} was trained with data.tokenizer=none (its ids stand for no known text); give token "
          "ids to `memphis logits`",
          folder.path.string()));
    }
    if (tokenizer->fingerprint() != manifest.tokenizer_fingerprint) {
      throw DataError(fmt::format(
          "{} is not the tokenizer that {} was trained with (its fingerprint is {} and was {}); "
          "put that one back",
          config.data.tokenizer,
          folder.path.string(),
          tokenizer->fingerprint(),
          manifest.tokenizer_fingerprint));
    }
  } else if (!found.is_byte && !found.files.empty()) {
    try {
      tokenizer = open_tokenizer(folder.path.string());
    } catch (const DataError& error) {
      const std::string_view why = error.what();
      throw DataError(
          fmt::format("{} has a vocabulary of {} and {} ({}); give token ids to `memphis logits`",
                      folder.path.string(),
                      folder.config.vocab_size,
                      "the tokenizer " + describe_files(folder.path, found),
                      why.substr(0, why.rfind("; "))));
    }
  } else {
    require_byte_tokenizer(folder);
    return std::make_shared<const ByteTokenizer>();
  }
  if (tokenizer->vocab_size() > folder.config.vocab_size) {
    throw DataError(fmt::format(
        "{} has a vocabulary of {} and its tokenizer one of {} (they are not of one model); give "
        "token ids to `memphis logits`",
        folder.path.string(),
        folder.config.vocab_size,
        tokenizer->vocab_size()));
  }
  return tokenizer;
}

void require_fits(const ModelFolder& folder, DType compute, Device device) {
  std::size_t needed = 0;
  for (const Segment& segment : plan_parameters(folder.config, compute).segments) {
    needed += static_cast<std::size_t>(segment.num_elements) * size_of(segment.dtype);
  }
  const std::size_t available = device_info(device).free_bytes;
  if (needed > available) {
    throw PreflightError(fmt::format(
        "the weights of {} take {:.1f} GiB as {} and device {} has {:.1f} GiB free (all "
        "of them are in memory at once); use a machine with more memory{}",
        folder.path.string(),
        static_cast<double>(needed) / kGiB,
        name_of(compute),
        name_of(device),
        static_cast<double>(available) / kGiB,
        compute == DType::f32 ? ", or bf16, which takes half" : ""));
  }
}

LoadedModel::LoadedModel(const ModelFolder& folder, const ModelArgument& argument)
    : LoadedModel(folder, argument, open_weights(folder, argument)) {}

LoadedModel::LoadedModel(const ModelFolder& folder,
                         const ModelArgument& argument,
                         const StoredWeights& stored)
    : config(folder.config),
      stream(device_of(argument)),
      groups(device_of(argument)),
      parameters(plan_parameters(config, compute_of(argument)),
                 compute_of(argument),
                 device_of(argument),
                 Parameters::Gradients::none),
      residency(parameters, groups, stream.view()) {
  stored.load(parameters, stream.view());
}

InferencePlan LoadedModel::plan(std::int64_t num_sequences, std::int64_t sequence_length) const {
  return plan_inference(
      config, num_sequences, sequence_length, parameters.compute(), parameters.device());
}

}  // namespace memphis
