// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "csrc/checkpoint/checksum.h"
#include "csrc/core/device.h"
#include "csrc/core/file.h"
#include "csrc/core/tensor.h"

// The safetensors format: 8 bytes of header length (little-endian), a JSON header, then the
// tensors' bytes without a hole. Source: github.com/huggingface/safetensors, README and tensor.rs.
namespace memphis {

// Of the format, for a header: what a reader must hold before it may trust the file.
constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;

// One tensor of a file.
struct StoredTensor {
  std::string dtype_name;      // as the file spells it: "BF16"
  std::optional<DType> dtype;  // empty: a type of the format that memphis does not compute with
  bool is_f16 = false;         // of which there is one that is read: as f32, exactly
  std::vector<std::int64_t> shape;
  // Where it lies in the file: row-major, little-endian.
  std::uint64_t offset = 0;
  std::uint64_t num_bytes = 0;
};

// Whether weights may be read from it: f64, f32, f16 or bf16.
bool holds_floats(const StoredTensor& tensor);

// Why a tensor of such a type is not read as weights, and what to do: " (<why>); <what to do>".
std::string why_not_read(std::string_view dtype_name);

// An open file, its header checked in full. CheckpointError for whatever the format forbids, and
// for a repeated name and an unknown field, which the format's own reader lets pass; and from any
// reading member where the file is cut short meanwhile. Values are not looked at.
class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::filesystem::path& path);

  const std::filesystem::path& path() const { return file_.path(); }
  const std::map<std::string, StoredTensor, std::less<>>& tensors() const { return tensors_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

  // CheckpointError if there is none of that name, if its type is none that is read, or if its shape
  // is not `shape`.
  const StoredTensor& find(std::string_view name, std::span<const std::int64_t> shape) const;

  // Elements [begin, begin + count) of the tensor, as `dtype`, to host memory. Types are converted
  // from f64, f32, f16 and bf16 to f64, f32 and bf16, or are the same; what does not fit is rounded
  // once, to nearest even. CheckpointError for any other.
  void read(std::string_view name,
            std::span<const std::int64_t> shape,
            std::int64_t begin,
            std::int64_t count,
            DType dtype,
            void* out) const;

  // Bytes of `tensor`, which is one of this file's, from its `begin`-th on, as they are stored.
  void read_bytes(const StoredTensor& tensor, std::uint64_t begin, std::span<std::byte> out) const;

 private:
  InputFile file_;
  std::map<std::string, StoredTensor, std::less<>> tensors_;
  std::map<std::string, std::string> metadata_;
};

using ByteSink = std::function<void(std::span<const std::byte>)>;

// A tensor to be written. `emit` hands its bytes to the sink, front to back, in pieces of any size;
// it is called once, when the writer reaches the tensor, so no more than one piece need be in
// memory.
struct TensorSource {
  std::string name;
  DType dtype = DType::f32;
  std::vector<std::int64_t> shape;
  std::function<void(const ByteSink&)> emit;
};

// The source of a tensor's own elements. Memory of the GPU passes through `staging`, piece by
// piece; it and the tensor must outlive the source. Host memory is handed over as it is.
TensorSource source_of(std::string name,
                       const TensorView& tensor,
                       const PinnedBuffer& staging,
                       Stream stream);

// Which byte of a file is what, if write_safetensors makes it of `tensors`, whose `emit` is not
// called.
struct SafetensorsLayout {
  std::string beginning;                         // the header with its length
  std::map<std::string, std::uint64_t> offsets;  // by tensor, from the file's first byte
  std::uint64_t file_bytes = 0;
};
SafetensorsLayout lay_out_safetensors(std::span<const TensorSource> tensors);

// Size of the file that write_safetensors makes.
std::uint64_t safetensors_bytes(std::span<const TensorSource> tensors);

// Writes a new file, durable on return. Wider types come first, so that every tensor is aligned to
// its element; otherwise the order is the given one, and sources are called in the order of the
// file. Loads in Hugging Face's libraries. CheckpointError if it cannot be written; ContractError
// if a name repeats or a source emits another number of bytes than its shape says. Then a part of
// the file may be left.
//
// `shown`: whether how far it is stands in the live line (csrc/core/progress.h).
enum class Shown : std::uint8_t { no, yes };
FileRecord write_safetensors(const std::filesystem::path& path,
                             std::span<const TensorSource> tensors,
                             Shown shown = Shown::yes);

}  // namespace memphis
