// SPDX-License-Identifier: Apache-2.0
#include "csrc/checkpoint/pieces.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <functional>
#include <numeric>
#include <optional>
#include <string_view>
#include <system_error>

#include <spdlog/fmt/fmt.h>

#include "csrc/checkpoint/json.h"
#include "csrc/core/error.h"
#include "csrc/plan/host_memory.h"

namespace memphis {
namespace {

constexpr char kMark = '#';
constexpr std::size_t kNumFields = 5;

// DIM:BEGIN:COUNT:LOCAL_BEGIN:LOCAL_COUNT
std::optional<std::array<std::int64_t, kNumFields>> parse_fields(std::string_view text) {
  std::array<std::int64_t, kNumFields> fields{};
  const char* begin = text.data();
  const char* const end = text.data() + text.size();
  for (std::size_t i = 0; i < kNumFields; ++i) {
    const auto [next, error] = std::from_chars(begin, end, fields[i]);
    const bool last = i + 1 == kNumFields;
    if (error != std::errc() || fields[i] < 0 ||
        (last ? next != end : next == end || *next != ':')) {
      return {};
    }
    begin = next + 1;
  }
  return fields;
}

// A run of a tensor's elements, counted over all of it, and where a piece has it.
struct StoredRun {
  std::int64_t begin;
  std::int64_t count;
  const SafetensorsFile* file;
  const std::string* name;
  std::int64_t offset;
};

std::int64_t num_elements(const StoredTensor& tensor) {
  return std::accumulate(
      tensor.shape.begin(), tensor.shape.end(), std::int64_t{1}, std::multiplies<>());
}

}  // namespace

std::string piece_name(const std::string& tensor,
                       const LogicalParameter& parameter,
                       const Range& local) {
  if (local == Range{.begin = 0, .count = parameter.whole.num_elements()}) {
    return tensor;
  }
  return fmt::format("{}{}{}:{}:{}:{}:{}",
                     tensor,
                     kMark,
                     parameter.cut_dim,
                     parameter.cut.begin,
                     parameter.cut.count,
                     local.begin,
                     local.count);
}

StoredPieces::StoredPieces(const std::vector<std::filesystem::path>& files) {
  for (const std::filesystem::path& path : files) {
    const SafetensorsFile& file = files_.emplace_back(path);
    for (const auto& [name, tensor] : file.tensors()) {
      Piece piece{.file = &file, .name = name};
      const std::size_t mark = name.find(kMark);
      piece.whole = mark == std::string::npos;
      if (!piece.whole) {
        const auto fields = parse_fields(std::string_view(name).substr(mark + 1));
        if (!fields || tensor.shape != std::vector<std::int64_t>{(*fields)[4]}) {
          throw CheckpointError(fmt::format(
              "{}: '{}' is not a piece of a tensor (its name does not say which, or its "
              "size differs); use another checkpoint",
              path.string(),
              printable(name)));
        }
        piece.cut_dim = static_cast<int>((*fields)[0]);
        piece.cut = {.begin = (*fields)[1], .count = (*fields)[2]};
        piece.local = {.begin = (*fields)[3], .count = (*fields)[4]};
      }
      pieces_[name.substr(0, mark)].push_back(std::move(piece));
    }
  }
}

void StoredPieces::add_whole(const std::string& tensor,
                             const SafetensorsFile& file,
                             const std::string& name) {
  pieces_[tensor].push_back({.file = &file, .name = name, .whole = true});
}

void StoredPieces::add_cut(const std::string& tensor,
                           const SafetensorsFile& file,
                           const std::string& name,
                           int cut_dim,
                           const Range& cut) {
  pieces_[tensor].push_back(
      {.file = &file,
       .name = name,
       .cut_dim = cut_dim,
       .cut = cut,
       .local = {.begin = 0, .count = num_elements(file.tensors().find(name)->second)}});
}

std::vector<StoredPieces::Listed> StoredPieces::tensors() const {
  std::vector<Listed> result;
  for (const auto& [name, pieces] : pieces_) {
    Listed& listed = result.emplace_back(Listed{.name = name, .shape = {}});
    for (const Piece& piece : pieces) {
      const StoredTensor& tensor = piece.file->tensors().find(piece.name)->second;
      listed.num_elements += num_elements(tensor);
      if (piece.whole) {
        listed.shape = tensor.shape;
      } else {
        std::int64_t& end = listed.cut_ends[piece.cut_dim];
        end = std::max(end, piece.cut.begin + piece.cut.count);
      }
    }
  }
  return result;
}

std::vector<const StoredTensor*> StoredPieces::stored(const std::string& tensor) const {
  std::vector<const StoredTensor*> result;
  const auto found = pieces_.find(tensor);
  if (found != pieces_.end()) {
    for (const Piece& piece : found->second) {
      result.push_back(&piece.file->tensors().find(piece.name)->second);
    }
  }
  return result;
}

void StoredPieces::read(const std::string& tensor,
                        const LogicalParameter& parameter,
                        const Range& local,
                        DType dtype,
                        void* out) const {
  const auto found = pieces_.find(tensor);
  const std::span<const std::int64_t> whole_shape(
      parameter.whole.dims.data(), static_cast<std::size_t>(parameter.whole.num_dims));
  std::vector<StoredRun> runs;
  for (const Piece& piece :
       found == pieces_.end() ? std::span<const Piece>() : std::span(found->second)) {
    LogicalParameter stored = parameter;
    Range elements{.begin = 0, .count = parameter.whole.num_elements()};
    if (piece.whole) {
      piece.file->find(piece.name, whole_shape);  // of this shape
      stored.cut_dim = 0;
      stored.cut = {.begin = 0, .count = parameter.whole.dims[0]};
    } else {
      const bool fits =
          piece.cut_dim < parameter.whole.num_dims && piece.cut.count >= 1 &&
          piece.cut.begin <=
              parameter.whole.dims[static_cast<std::size_t>(piece.cut_dim)] - piece.cut.count;
      const std::int64_t part_elements =
          fits ? parameter.whole.num_elements() /
                     parameter.whole.dims[static_cast<std::size_t>(piece.cut_dim)] * piece.cut.count
               : 0;
      if (!fits || piece.local.count > part_elements ||
          piece.local.begin > part_elements - piece.local.count) {
        throw CheckpointError(
            fmt::format("{}: '{}' is a piece of a tensor of another shape (the checkpoint is of "
                        "another model); use the config that wrote it",
                        piece.file->path().string(),
                        printable(piece.name)));
      }
      stored.cut_dim = piece.cut_dim;
      stored.cut = piece.cut;
      elements = piece.local;
    }
    for_each_run(stored, elements, [&](std::int64_t whole, std::int64_t at, std::int64_t count) {
      runs.push_back({.begin = whole,
                      .count = count,
                      .file = piece.file,
                      .name = &piece.name,
                      .offset = at - elements.begin});
    });
  }
  std::sort(runs.begin(), runs.end(), [](const StoredRun& a, const StoredRun& b) {
    return a.begin < b.begin;
  });

  for_each_run(parameter, local, [&](std::int64_t whole, std::int64_t at, std::int64_t count) {
    for (std::int64_t done = 0; done < count;) {
      const std::int64_t wanted = whole + done;
      auto run = std::upper_bound(
          runs.begin(), runs.end(), wanted, [](std::int64_t element, const StoredRun& candidate) {
            return element < candidate.begin;
          });
      if (run == runs.begin() || (--run)->begin + run->count <= wanted) {
        throw MissingPiece(
            fmt::format("the checkpoint lacks element {} of {} (its files do not make up the whole "
                        "tensor); use another checkpoint",
                        wanted,
                        tensor));
      }
      const std::int64_t skip = wanted - run->begin;
      const std::int64_t length = std::min(count - done, run->count - skip);
      const StoredTensor& stored = run->file->tensors().at(*run->name);
      run->file->read(*run->name,
                      stored.shape,
                      run->offset + skip,
                      length,
                      dtype,
                      static_cast<std::byte*>(out) +
                          static_cast<std::size_t>(at - local.begin + done) * size_of(dtype));
      done += length;
    }
  });
}

void StoredPieces::load(const std::string& tensor,
                        const LogicalParameter& parameter,
                        const Range& local,
                        const TensorView& view,
                        const PinnedBuffer& staging,
                        Stream stream,
                        NonFinite& non_finite) const {
  const auto read_piece = [&](std::int64_t begin, std::int64_t count, void* out) {
    const Range piece{.begin = local.begin + begin, .count = count};
    read(tensor, parameter, piece, view.dtype, out);
    non_finite.scan(tensor, parameter, piece, view.dtype, out);
  };
  const std::int64_t total = view.num_elements();
  if (view.device == Device::cpu) {
    read_piece(0, total, view.data);
    return;
  }
  const std::size_t width = size_of(view.dtype);
  const auto most = static_cast<std::int64_t>(staging.bytes() / width);
  for (std::int64_t begin = 0; begin < total; begin += most) {
    const std::int64_t count = std::min(most, total - begin);
    read_piece(begin, count, staging.data());
    device_copy(static_cast<char*>(view.data) + static_cast<std::size_t>(begin) * width,
                staging.data(),
                static_cast<std::size_t>(count) * width,
                stream);
    synchronize(stream);  // staging is filled again
  }
}

PinnedBuffer make_staging(Device device) {
  return {staging_bytes(device), device};
}

std::vector<std::filesystem::path> piece_files(const std::filesystem::path& directory,
                                               const std::string& stem) {
  std::vector<std::filesystem::path> files;
  std::error_code error;
  for (std::filesystem::directory_iterator it(directory, error), end; !error && it != end;
       it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (name.starts_with(stem + "-") && name.ends_with(".safetensors")) {
      files.push_back(it->path());
    }
  }
  if (error) {
    throw CheckpointError("cannot read " + directory.string() + " (" + error.message() +
                          "); check the permissions of the checkpoint");
  }
  std::sort(files.begin(), files.end());
  return files;
}

std::string piece_file_name(const std::string& stem, int index, int count) {
  return fmt::format("{}-{:05}-of-{:05}.safetensors", stem, index, count);
}

std::int64_t piece_file_count(const std::string& name) {
  constexpr std::string_view kOf = "-of-";
  const std::size_t at = name.rfind(kOf);
  std::int64_t count = 0;
  if (at != std::string::npos) {
    std::from_chars(name.data() + at + kOf.size(), name.data() + name.size(), count);
  }
  return count;
}

}  // namespace memphis
