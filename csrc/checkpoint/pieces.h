// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <deque>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "csrc/checkpoint/non_finite.h"
#include "csrc/checkpoint/safetensors.h"
#include "csrc/core/error.h"
#include "csrc/plan/parameters.h"

// Tensors in pieces, as the ranks of any layout wrote them, read as the ranks of any other want
// them.
//
// A file of one rank holds its pieces of each tensor, flat. A piece's name says which elements it
// has: those of a part of the tensor, cut along one dim, from `local` on. A piece that is the whole
// tensor has the tensor's name and dims, so what one rank writes is an ordinary safetensors file.
namespace memphis {

// "NAME", or "NAME#DIM:BEGIN:COUNT:LOCAL_BEGIN:LOCAL_COUNT".
std::string piece_name(const std::string& tensor,
                       const LogicalParameter& parameter,
                       const Range& local);

// The files that were opened do not hold an element that is asked for.
class MissingPiece : public CheckpointError {
 public:
  using CheckpointError::CheckpointError;
};

class StoredPieces {
 public:
  StoredPieces() = default;
  // CheckpointError if a file is not safetensors, or a name is not as above.
  explicit StoredPieces(const std::vector<std::filesystem::path>& files);

  // Adds a piece of `tensor` that a file has under a name of its own: all of it, or elements `cut`
  // of dim `cut_dim` and all of the others. The file outlives this.
  void add_whole(const std::string& tensor, const SafetensorsFile& file, const std::string& name);
  void add_cut(const std::string& tensor,
               const SafetensorsFile& file,
               const std::string& name,
               int cut_dim,
               const Range& cut);

  // A tensor of which there are pieces.
  struct Listed {
    std::string name;
    std::vector<std::int64_t> shape;            // empty where no piece says it
    std::int64_t num_elements = 0;              // in all of its pieces
    std::map<int, std::int64_t> cut_ends = {};  // by the dim of a cut, where the last piece ends
  };
  std::vector<Listed> tensors() const;

  // The stored form of each piece of a tensor, for what names and shapes do not say.
  std::vector<const StoredTensor*> stored(const std::string& tensor) const;

  bool contains(const std::string& tensor) const { return pieces_.contains(tensor); }

  // Elements `local` of this rank's part of a parameter, from the tensor of that name, as `dtype`
  // to host memory. MissingPiece if no file has one of them, CheckpointError if the tensor has
  // another shape.
  void read(const std::string& tensor,
            const LogicalParameter& parameter,
            const Range& local,
            DType dtype,
            void* out) const;

  // The same to `view`, wherever it lies, in its dtype. Memory of the GPU is filled through
  // `staging`. What is not finite is added to `non_finite`.
  void load(const std::string& tensor,
            const LogicalParameter& parameter,
            const Range& local,
            const TensorView& view,
            const PinnedBuffer& staging,
            Stream stream,
            NonFinite& non_finite) const;

 private:
  struct Piece {
    const SafetensorsFile* file;
    std::string name;  // in the file
    bool whole = false;
    int cut_dim = 0;
    Range cut = {};
    Range local = {};
  };

  std::deque<SafetensorsFile> files_;
  std::map<std::string, std::vector<Piece>, std::less<>> pieces_;
};

// Host memory through which a GPU's tensors pass, none for the CPU's.
PinnedBuffer make_staging(Device device);

constexpr const char* kWeightsStem = "weights";
constexpr const char* kOptimizerStem = "optimizer";

// The files of a checkpoint whose names begin with one of these stems.
std::vector<std::filesystem::path> piece_files(const std::filesystem::path& directory,
                                               const std::string& stem);

// "weights-00003-of-00008.safetensors".
std::string piece_file_name(const std::string& stem, int index, int count);
// The count in such a name; 0 if it is none.
std::int64_t piece_file_count(const std::string& name);

}  // namespace memphis
