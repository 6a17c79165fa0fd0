// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "csrc/checkpoint/hf.h"
#include "csrc/checkpoint/pieces.h"
#include "csrc/model/parameters.h"

namespace memphis {

// The weights of a model folder, or of a checkpoint in pieces: opened, and known to be those of a
// model. Values are not read before load().
class StoredWeights {
 public:
  // CheckpointError, naming all tensors that it is about, if some have no place in the model, are
  // missing, have another shape, are of a type that is not read (quantised), or if the parts of a
  // presharded tensor do not make it up. A tied head may be stored or not.
  StoredWeights(const std::filesystem::path& folder, const ModelConfig& model);

  // The narrowest of bf16, f32 and f64 that weights can be read into without rounding.
  DType dtype() const { return dtype_; }

  const ModelConfig& model() const { return model_; }
  const std::filesystem::path& folder() const { return folder_; }
  const StoredPieces& pieces() const { return pieces_; }

  // CheckpointError if a head that is tied is stored and differs from the embedding: all of it, or
  // in elements `local` of a part of the embedding.
  void require_head_of_tied_model() const;
  void require_head_of_tied_model(const LogicalParameter& embedding, const Range& local) const;

  // "FOLDER holds ..., (why)".
  std::string describe(const NonFinite& non_finite) const;

  enum class OnNonFinite : std::uint8_t { refuse, warn };

  // Reads all of them, converted to the dtype of `parameters`, which is of the whole model, rounded
  // once where that is narrower. CheckpointError if a head that is tied differs from the embedding,
  // or, unless they are wanted nevertheless, if values are not finite.
  void load(Parameters& parameters,
            Stream stream,
            OnNonFinite on_non_finite = OnNonFinite::refuse) const;

 private:
  void place();
  void require_readable_types() const;
  void require_known_names() const;
  void require_all_tensors() const;
  void choose_dtype();

  std::filesystem::path folder_;
  ModelConfig model_;
  ParameterPlan plan_;              // of the whole model, in bf16
  std::optional<HfTensors> files_;  // of a model folder; what pieces_ points into
  StoredPieces pieces_;
  DType dtype_ = DType::bf16;
};

}  // namespace memphis
