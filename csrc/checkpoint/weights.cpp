// SPDX-License-Identifier: Apache-2.0
#include "csrc/checkpoint/weights.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <string>
#include <string_view>
#include <utility>

#include <spdlog/fmt/fmt.h>
#include <spdlog/fmt/ranges.h>

#include "csrc/checkpoint/tensor_names.h"
#include "csrc/core/error.h"
#include "csrc/core/log.h"

namespace memphis {
namespace {

const LogicalParameter* find_parameter(const ParameterPlan& plan, std::string_view name) {
  const auto found = std::find_if(
      plan.logical.begin(), plan.logical.end(), [&](const LogicalParameter& parameter) {
        return parameter.name == name;
      });
  return found == plan.logical.end() ? nullptr : &*found;
}

bool is_tied(const ParameterPlan& plan) {
  return find_parameter(plan, kHeadName) == nullptr;
}

std::vector<std::int64_t> dims_of(const TensorSpec& spec) {
  return {spec.dims.begin(), spec.dims.begin() + spec.num_dims};
}

// The dim that tensors of shape `part` are joined along into one of shape `whole`; -1 if there is
// none.
int join_dim(const std::vector<std::int64_t>& part,
             std::int64_t num_parts,
             const std::vector<std::int64_t>& whole) {
  for (std::size_t dim = 0; dim < part.size(); ++dim) {
    std::vector<std::int64_t> joined = part;
    joined[dim] *= num_parts;
    if (joined == whole) {
      return static_cast<int>(dim);
    }
  }
  return -1;
}

bool same_bytes(const HfTensors::Part& a, const HfTensors::Part& b) {
  if (a.tensor().num_bytes != b.tensor().num_bytes) {
    return false;
  }
  constexpr std::uint64_t kPieceBytes = 1U << 20U;
  std::vector<std::byte> of_a;
  std::vector<std::byte> of_b;
  for (std::uint64_t begin = 0; begin < a.tensor().num_bytes; begin += kPieceBytes) {
    of_a.resize(std::min(kPieceBytes, a.tensor().num_bytes - begin));
    of_b.resize(of_a.size());
    a.file->read_bytes(a.tensor(), begin, of_a);
    b.file->read_bytes(b.tensor(), begin, of_b);
    if (of_a != of_b) {
      return false;
    }
  }
  return true;
}

}  // namespace

StoredWeights::StoredWeights(const std::filesystem::path& folder, const ModelConfig& model)
    : folder_(folder), model_(model), plan_(plan_parameters(model, DType::bf16)) {
  const std::vector<std::filesystem::path> files = piece_files(folder, kWeightsStem);
  if (files.empty()) {
    files_.emplace(folder);
    place();
  } else {
    pieces_ = StoredPieces(files);
  }
  require_readable_types();
  require_known_names();
  require_all_tensors();
  choose_dtype();
}

// Tensors that the model has no place for are placed too: whoever compares names them.
void StoredWeights::place() {
  const auto fail = [&](const std::string& problem, std::string_view why, std::string_view advice) {
    throw CheckpointError(fmt::format("{}: {} ({}); {}", folder_.string(), problem, why, advice));
  };
  constexpr std::string_view kCopyAgain = "copy the model again from its source";
  for (const auto& [name, parts] : files_->tensors()) {
    const HfTensors::Part& front = parts.front();
    const StoredTensor& first = front.tensor();
    const LogicalParameter* parameter =
        find_parameter(plan_, name == kHeadName && is_tied(plan_) ? kEmbeddingName : name);
    if (parts.size() == 1 || parameter == nullptr) {
      pieces_.add_whole(name, *front.file, front.name);
      continue;
    }
    const bool equal_parts =
        std::all_of(parts.begin(), parts.end(), [&](const HfTensors::Part& part) {
          return part.tensor().shape == first.shape && part.tensor().dtype_name == first.dtype_name;
        });
    if (!equal_parts) {
      fail(fmt::format("the {} parts of tensor {} differ in shape or type", parts.size(), name),
           "each presharded file has an equal part of it",
           kCopyAgain);
    }
    const std::vector<std::int64_t> whole = dims_of(parameter->whole);
    if (first.shape == whole) {
      const bool copies = std::all_of(parts.begin(), parts.end(), [&](const HfTensors::Part& part) {
        return same_bytes(part, front);
      });
      if (!copies) {
        fail(
            fmt::format(
                "{} presharded files hold all of tensor {}, with other values", parts.size(), name),
            "copies of a tensor are equal",
            kCopyAgain);
      }
      pieces_.add_whole(name, *front.file, front.name);
      continue;
    }
    const auto num_parts = static_cast<std::int64_t>(parts.size());
    const int dim = join_dim(first.shape, num_parts, whole);
    if (dim < 0) {
      fail(fmt::format("tensor {} is in {} parts of shape [{}]",
                       name,
                       num_parts,
                       fmt::join(first.shape, ", ")),
           fmt::format("joined along no dim are they the [{}] that the config makes it",
                       fmt::join(whole, ", ")),
           "use the config.json that belongs to these weights, or copy the files that are missing");
    }
    const std::int64_t count = first.shape[static_cast<std::size_t>(dim)];
    std::int64_t begin = 0;
    for (const HfTensors::Part& part : parts) {
      pieces_.add_cut(name, *part.file, part.name, dim, {.begin = begin, .count = count});
      begin += count;
    }
  }
}

// Before names are compared: quantised weights have scales beside them, which would be named as
// tensors without a place, and that is not what is wrong.
void StoredWeights::require_readable_types() const {
  std::map<std::string, std::vector<std::string>> by_type;
  for (const StoredPieces::Listed& listed : pieces_.tensors()) {
    for (const StoredTensor* stored : pieces_.stored(listed.name)) {
      if (!holds_floats(*stored)) {
        by_type[stored->dtype_name].push_back(listed.name);
        break;
      }
    }
  }
  std::vector<std::string> parts;
  for (const auto& [type, names] : by_type) {
    parts.push_back(fmt::format("{} tensor{} of type {}: {}",
                                names.size(),
                                names.size() == 1 ? "" : "s",
                                type,
                                list_names(names)));
  }
  if (!parts.empty()) {
    throw CheckpointError(fmt::format("{} holds {}{}",
                                      folder_.string(),
                                      fmt::join(parts, "; "),
                                      why_not_read(by_type.begin()->first)));
  }
}

void StoredWeights::require_known_names() const {
  std::vector<std::string> names;
  for (const StoredPieces::Listed& listed : pieces_.tensors()) {
    if (find_parameter(plan_, listed.name) != nullptr) {
      return;
    }
    names.push_back(listed.name);
  }
  throw CheckpointError(
      fmt::format("{} holds {} tensors, and the name of none is known: {} (names are read as in "
                  "xai-org/grok-2, model.layers.0.self_attn.q_proj.weight, as in hpcai-tech/grok-1 "
                  "and as in keyfan/grok-1-hf); use a conversion of the model with such names",
                  folder_.string(),
                  names.size(),
                  list_names(names)));
}

void StoredWeights::require_all_tensors() const {
  std::vector<NamedShape> stored;
  std::map<std::string, std::int64_t> num_stored;
  for (StoredPieces::Listed& listed : pieces_.tensors()) {
    num_stored[listed.name] = listed.num_elements;
    stored.push_back({listed.name, std::move(listed.shape)});
  }
  std::vector<NamedShape> optional;
  if (is_tied(plan_)) {
    optional.push_back({kHeadName, dims_of(find_parameter(plan_, kEmbeddingName)->whole)});
  }
  TensorDifference difference = compare_tensors(planned_weights(plan_), stored, optional);
  if (difference.other_shape.empty()) {  // of a piece the name says all but the size of the whole
    for (const LogicalParameter& parameter : plan_.logical) {
      const auto found = num_stored.find(parameter.name);
      if (found != num_stored.end() && found->second != parameter.whole.num_elements()) {
        difference.other_shape.push_back(fmt::format("{} has {} elements in all pieces, not {}",
                                                     parameter.name,
                                                     found->second,
                                                     parameter.whole.num_elements()));
      }
    }
  }
  const bool lacks_head_alone = difference.extra.empty() && difference.other_shape.empty() &&
                                difference.missing == std::vector<std::string>{kHeadName};
  require_same_tensors(folder_,
                       difference,
                       lacks_head_alone
                           ? "if the head is the embedding, set tie_word_embeddings to true in "
                             "config.json, otherwise copy the model again from its source"
                           : "use the config.json that belongs to these weights, or copy the model "
                             "again from its source");
}

void StoredWeights::choose_dtype() {
  for (const LogicalParameter& parameter : plan_.logical) {
    // Routers and norms are f32 in a model of bf16 too.
    const bool in_bf16 =
        plan_.segments[static_cast<std::size_t>(parameter.segment)].dtype == DType::bf16;
    for (const StoredTensor* stored : pieces_.stored(parameter.name)) {
      if (stored->dtype == DType::f64) {
        dtype_ = DType::f64;
      } else if (stored->dtype != DType::bf16 && in_bf16 && dtype_ == DType::bf16) {
        dtype_ = DType::f32;
      }
    }
  }
}

void StoredWeights::load(Parameters& parameters, Stream stream, OnNonFinite on_non_finite) const {
  if (dtype_ == DType::f64 && parameters.compute() != DType::f64) {
    log_info("the weights of {} are F64 and are rounded to {}",
             folder_.string(),
             name_of(parameters.compute()));
  }
  const PinnedBuffer staging = make_staging(stream.device);
  NonFinite non_finite;
  for (const LogicalParameter& parameter : parameters.plan().logical) {
    pieces_.load(parameter.name,
                 parameter,
                 {.begin = 0, .count = parameter.spec.num_elements()},
                 parameters.logical_weights(parameter),
                 staging,
                 stream,
                 non_finite);
  }
  if (!non_finite.empty()) {
    const std::string problem = describe(non_finite);
    if (on_non_finite == OnNonFinite::refuse) {
      throw CheckpointError(problem +
                            "; use an older checkpoint of the run, or copy the model again from "
                            "its source");
    }
    log_warning("{}", problem);
  }
  require_head_of_tied_model();
}

std::string StoredWeights::describe(const NonFinite& non_finite) const {
  return fmt::format("{} holds {} (the run that wrote them diverged, or the files are damaged)",
                     folder_.string(),
                     non_finite.describe());
}

void StoredWeights::require_head_of_tied_model() const {
  if (is_tied(plan_)) {
    const LogicalParameter& embedding = *find_parameter(plan_, kEmbeddingName);
    require_head_of_tied_model(embedding, {.begin = 0, .count = embedding.whole.num_elements()});
  }
}

// A folder that ties its head and stores it nevertheless must mean what it says.
void StoredWeights::require_head_of_tied_model(const LogicalParameter& embedding,
                                               const Range& local) const {
  if (!is_tied(plan_) || !pieces_.contains(kHeadName)) {
    return;
  }
  constexpr std::int64_t kPiece = std::int64_t{1} << 20U;
  std::vector<double> embedding_n(static_cast<std::size_t>(std::min(kPiece, local.count)));
  std::vector<double> head_n(embedding_n.size());
  for (std::int64_t done = 0; done < local.count; done += kPiece) {
    const Range piece{.begin = local.begin + done, .count = std::min(kPiece, local.count - done)};
    pieces_.read(kEmbeddingName, embedding, piece, DType::f64, embedding_n.data());
    pieces_.read(kHeadName, embedding, piece, DType::f64, head_n.data());
    if (std::memcmp(embedding_n.data(),
                    head_n.data(),
                    static_cast<std::size_t>(piece.count) * sizeof(double)) != 0) {
      throw CheckpointError(
          fmt::format("{}: {} differs from {} (config.json says tie_word_embeddings true); set "
                      "tie_word_embeddings to false there if the head is its own",
                      folder_.string(),
                      kHeadName,
                      kEmbeddingName));
    }
  }
}

}  // namespace memphis
