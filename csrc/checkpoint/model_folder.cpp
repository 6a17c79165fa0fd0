// SPDX-License-Identifier: Apache-2.0
#include "csrc/checkpoint/model_folder.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>
#include <system_error>
#include <utility>

#include <spdlog/fmt/fmt.h>

#include "csrc/checkpoint/hf.h"
#include "csrc/checkpoint/model_state.h"
#include "csrc/checkpoint/pieces.h"
#include "csrc/checkpoint/safetensors.h"
#include "csrc/checkpoint/store.h"
#include "csrc/checkpoint/tensor_names.h"
#include "csrc/comm/together.h"
#include "csrc/core/error.h"
#include "csrc/core/json.h"
#include "csrc/core/log.h"
#include "csrc/core/parallel.h"
#include "csrc/core/progress.h"

namespace memphis {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kIndexName = "model.safetensors.index.json";
constexpr std::string_view kGenerationName = "generation_config.json";

// "model/" is the folder "model".
fs::path without_slash(const fs::path& folder) {
  const fs::path normal = folder.lexically_normal();
  return normal.has_filename() ? normal : normal.parent_path();
}

fs::path unfinished_of(fs::path folder) {
  folder += kUnfinishedSuffix;
  return folder;
}

DType dtype_of(const ParameterPlan& plan, const LogicalParameter& parameter) {
  return plan.segments[static_cast<std::size_t>(parameter.segment)].dtype;
}

std::uint64_t data_bytes(const TensorSource& tensor) {
  std::uint64_t bytes = size_of(tensor.dtype);
  for (const std::int64_t dim : tensor.shape) {
    bytes *= static_cast<std::uint64_t>(dim);
  }
  return bytes;
}

// The tensors of a model folder, in their order; nothing to emit.
std::vector<TensorSource> list_tensors(const ParameterPlan& plan, bool tied) {
  std::vector<TensorSource> tensors;
  for (const LogicalParameter& parameter : plan.logical) {
    const auto* dims = parameter.whole.dims.data();
    tensors.push_back({.name = parameter.name,
                       .dtype = dtype_of(plan, parameter),
                       .shape = {dims, dims + parameter.whole.num_dims},
                       .emit = {}});
  }
  if (tied) {
    const auto embedding =
        std::find_if(tensors.begin(), tensors.end(), [](const TensorSource& tensor) {
          return tensor.name == kEmbeddingName;
        });
    TensorSource head = *embedding;
    head.name = kHeadName;
    tensors.push_back(std::move(head));
  }
  return tensors;
}

// As few files as hold the tensors in their order.
std::vector<std::vector<TensorSource>> cut_into_files(std::vector<TensorSource> tensors,
                                                      std::uint64_t shard_bytes) {
  std::vector<std::vector<TensorSource>> files(1);
  std::uint64_t filled = 0;
  for (TensorSource& tensor : tensors) {
    const std::uint64_t bytes = data_bytes(tensor);
    if (!files.back().empty() && (filled > shard_bytes || bytes > shard_bytes - filled)) {
      files.emplace_back();
      filled = 0;
    }
    filled += bytes;
    files.back().push_back(std::move(tensor));
  }
  return files;
}

void write_text(const fs::path& path, std::string_view text) {
  DurableWriter writer(path);
  writer.write(text);
  writer.close();
}

// Where a model's text ends, for programs that generate it. Of other tokenizers only their own file
// knows.
std::string byte_generation_config(const ModelConfig& model) {
  nlohmann::ordered_json root;
  root["bos_token_id"] = ByteIds::bos;
  root["eos_token_id"] = ByteIds::eos;
  root["pad_token_id"] =
      model.pad_id >= 0 ? nlohmann::ordered_json(model.pad_id) : nlohmann::ordered_json(nullptr);
  return root.dump(1) + "\n";
}

// Elements of a part that are read and written at a time, on the CPU.
constexpr std::size_t kPieceBytes = std::size_t{16} << 20U;

}  // namespace

std::optional<std::uint64_t> parse_bytes(std::string_view text) {
  constexpr std::array<std::pair<std::string_view, std::uint64_t>, 7> kUnits{
      {{"KB", 1'000},
       {"MB", 1'000'000},
       {"GB", 1'000'000'000},
       {"KiB", std::uint64_t{1} << 10U},
       {"MiB", std::uint64_t{1} << 20U},
       {"GiB", std::uint64_t{1} << 30U},
       {"", 1}}};
  std::uint64_t count = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), count);
  if (error != std::errc() || count == 0) {
    return {};
  }
  text.remove_prefix(static_cast<std::size_t>(end - text.data()));
  for (const auto& [unit, bytes] : kUnits) {
    std::uint64_t result = 0;
    if (text == unit && !__builtin_mul_overflow(count, bytes, &result)) {
      return result;
    }
  }
  return {};
}

ModelFolderWriter::ModelFolderWriter(const fs::path& folder,
                                     const ModelConfig& model,
                                     DType compute,
                                     std::uint64_t shard_bytes)
    : folder_(without_slash(folder)),
      unfinished_(unfinished_of(folder_)),
      model_(model),
      compute_(compute) {
  const std::vector<std::vector<TensorSource>> files = cut_into_files(
      list_tensors(plan_parameters(model, compute), model.tie_embeddings), shard_bytes);
  for (std::size_t i = 0; i < files.size(); ++i) {
    SafetensorsLayout layout = lay_out_safetensors(files[i]);
    File& file = files_.emplace_back();
    file.name = files.size() == 1
                    ? kWeightsName
                    : fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, files.size());
    file.beginning = std::move(layout.beginning);
    file.bytes = layout.file_bytes;
    for (const TensorSource& tensor : files[i]) {
      const Place place{.file = i, .offset = layout.offsets.at(tensor.name)};
      places_[tensor.name].push_back(place);
      if (tensor.name == kHeadName && model.tie_embeddings) {
        places_[kEmbeddingName].push_back(place);
      }
      weight_map_.emplace(tensor.name, file.name);
      tensor_bytes_ += data_bytes(tensor);
    }
  }
}

ModelFolderWriter::~ModelFolderWriter() = default;

std::uint64_t ModelFolderWriter::num_bytes() const {
  std::uint64_t bytes = 0;
  for (const File& file : files_) {
    bytes += file.bytes;
  }
  return bytes;
}

void ModelFolderWriter::begin() {
  require_new_folder(folder_);
  std::error_code ignored;
  if (fs::exists(fs::symlink_status(unfinished_, ignored))) {
    throw CheckpointError(
        fmt::format("cannot export to {}: {} is there (another export is at work, or was killed); "
                    "let it end or "
                    "delete what it left, or name another folder",
                    folder_.string(),
                    unfinished_.string()));
  }
  if (const int error = make_directories(unfinished_); error != 0) {
    remove_directory(unfinished_);  // it may be there, and not for good
    throw CheckpointError("cannot create " + unfinished_.string() + " (" + system_reason(error) +
                          "); choose another folder or fix permissions");
  }
  try {
    for (const File& file : files_) {
      PlacedWriter writer(unfinished_ / file.name, PlacedWriter::Open::create);
      writer.write(0, std::as_bytes(std::span<const char>(file.beginning)));
      writer.close();
    }
  } catch (const Error&) {
    abandon();
    throw;
  }
}

PlacedWriter& ModelFolderWriter::writer_of(std::size_t file) {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::unique_ptr<PlacedWriter>& writer = files_[file].writer;
  if (!writer) {
    writer = std::make_unique<PlacedWriter>(unfinished_ / files_[file].name,
                                            PlacedWriter::Open::existing);
  }
  return *writer;
}

void ModelFolderWriter::write(const LogicalParameter& parameter,
                              const Range& local,
                              const void* elements) {
  const std::size_t width = size_of(parameter.whole.dtype);
  const auto* bytes = static_cast<const std::byte*>(elements);
  for (const Place& place : places_.at(parameter.name)) {
    PlacedWriter& writer = writer_of(place.file);
    for_each_run(parameter, local, [&](std::int64_t whole, std::int64_t at, std::int64_t count) {
      writer.write(place.offset + static_cast<std::uint64_t>(whole) * width,
                   {bytes + static_cast<std::size_t>(at - local.begin) * width,
                    static_cast<std::size_t>(count) * width});
    });
  }
}

void ModelFolderWriter::flush() {
  for (File& file : files_) {
    if (file.writer) {
      file.writer->close();
      file.writer.reset();
    }
  }
}

void ModelFolderWriter::commit(const fs::path& source, const FolderTokenizer& tokenizer) {
  // A write that did not arrive, on another machine, left a file short.
  for (const File& file : files_) {
    std::error_code error;
    const std::uint64_t bytes = fs::file_size(unfinished_ / file.name, error);
    if (error || bytes != file.bytes) {
      throw CheckpointError(fmt::format(
          "{} has {} bytes and not {} (the ranks do not write to one file system, or something "
          "else writes there); use a folder that all ranks share",
          (unfinished_ / file.name).string(),
          error ? 0 : bytes,
          file.bytes));
    }
  }
  write_text(unfinished_ / "config.json",
             write_hf_config(model_, compute_, tokenizer.is_byte ? kByteTokenizerClass : ""));
  if (files_.size() > 1) {
    nlohmann::ordered_json index;
    index["metadata"] = {{"total_size", tensor_bytes_}};
    index["weight_map"] = weight_map_;
    write_text(unfinished_ / kIndexName, index.dump(1) + "\n");
  }
  std::error_code error;
  if (tokenizer.is_byte) {
    write_text(unfinished_ / kGenerationName, byte_generation_config(model_));
    write_text(unfinished_ / "tokenizer.json", byte_tokenizer_json());
    write_text(unfinished_ / "tokenizer_config.json", byte_tokenizer_config_json());
  } else if (fs::exists(source / kGenerationName, error)) {
    write_text(unfinished_ / kGenerationName, read_text(source / kGenerationName));
  }
  for (const std::string& name : tokenizer.files) {
    write_text(unfinished_ / name, read_text(source / name));
  }
  for (const auto& [name, content] : tokenizer.contents) {
    write_text(unfinished_ / name, content);
  }
  sync_directory(unfinished_);
  if (const int failed = rename_path(unfinished_, folder_); failed != 0) {
    throw CheckpointError("cannot rename " + unfinished_.string() + " to " + folder_.string() +
                          " (" + system_reason(failed) + "); choose another folder");
  }
  try {
    sync_directory(directory_of(folder_));
  } catch (const Error&) {
    // What a loss of power may take is not there: the same command makes it anew.
    static_cast<void>(rename_path(folder_, unfinished_));
    throw;
  }
}

void ModelFolderWriter::abandon() noexcept {
  for (File& file : files_) {
    file.writer.reset();
  }
  remove_tree(unfinished_);
}

void export_stored(ModelFolderWriter& writer,
                   const StoredWeights& stored,
                   const fs::path& source,
                   const FolderTokenizer& tokenizer) {
  struct Portion {
    const LogicalParameter* parameter;
    Range local;
  };
  const ParameterPlan plan = plan_parameters(stored.model(), stored.dtype());
  std::vector<Portion> portions;
  for (const LogicalParameter& parameter : plan.logical) {
    const auto most = static_cast<std::int64_t>(kPieceBytes / size_of(parameter.whole.dtype));
    const std::int64_t total = parameter.whole.num_elements();
    for (std::int64_t begin = 0; begin < total; begin += most) {
      portions.push_back({&parameter, {.begin = begin, .count = std::min(most, total - begin)}});
    }
  }
  writer.begin();
  try {
    std::mutex mutex;
    NonFinite non_finite;
    Progress progress("export", static_cast<std::int64_t>(portions.size()), "pieces");
    std::int64_t num_done = 0;
    parallel_chunks(static_cast<std::int64_t>(portions.size()), [&](std::int64_t index) {
      const auto& [parameter, local] = portions[static_cast<std::size_t>(index)];
      const DType dtype = parameter->whole.dtype;
      std::vector<std::byte> elements(static_cast<std::size_t>(local.count) * size_of(dtype));
      stored.pieces().read(parameter->name, *parameter, local, dtype, elements.data());
      writer.write(*parameter, local, elements.data());
      const std::lock_guard<std::mutex> lock(mutex);
      non_finite.scan(parameter->name, *parameter, local, dtype, elements.data());
      progress.update(++num_done, parameter->name);
    });
    stored.require_head_of_tied_model();
    if (!non_finite.empty()) {
      // Whoever looks for what went wrong wants weights that are not finite as they are.
      log_warning("{}", stored.describe(non_finite));
    }
    writer.flush();
    writer.commit(source, tokenizer);
  } catch (const Error&) {
    writer.abandon();
    throw;
  }
}

void export_from_ranks(ModelFolderWriter& writer,
                       const Parameters& parameters,
                       const Groups& groups,
                       const FolderTokenizer& tokenizer,
                       Stream stream) {
  Communicator& all = groups.all_host();
  const bool leads = all.rank() == 0;
  synchronize(stream);
  together(all, "export.begin", [&] {
    if (leads) {
      writer.begin();
    }
  });
  try {
    together(all, "export.write", [&] {
      const PinnedBuffer staging = make_staging(stream.device);
      for (const LogicalParameter& parameter : parameters.plan().logical) {
        for (const Range& run : parameters.plan().counted_in(parameter)) {
          const Range local = parameter.local(run);
          if (local.count <= 0) {
            continue;
          }
          const TensorView held_n = parameters.held_weights(parameter, local);
          const std::size_t width = size_of(held_n.dtype);
          std::int64_t done = 0;
          source_of(parameter.name, held_n, staging, stream)
              .emit([&](std::span<const std::byte> bytes) {
                const auto count = static_cast<std::int64_t>(bytes.size() / width);
                writer.write(
                    parameter, {.begin = local.begin + done, .count = count}, bytes.data());
                done += count;
              });
        }
      }
      writer.flush();
    });
    together(all, "export.commit", [&] {
      if (leads) {
        writer.commit({}, tokenizer);
      }
    });
  } catch (const Error&) {
    if (leads) {
      writer.abandon();
    }
    throw;
  }
}

}  // namespace memphis
