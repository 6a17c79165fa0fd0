// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <bit>
#include <optional>
#include <set>

#include <spdlog/fmt/fmt.h>

#include "csrc/checkpoint/json.h"
#include "csrc/checkpoint/safetensors.h"
#include "csrc/core/error.h"
#include "csrc/core/progress.h"

namespace memphis {
namespace {

std::string_view format_name(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return "F64";
    case DType::f32:
      return "F32";
    case DType::bf16:
      return "BF16";
    case DType::i64:
      return "I64";
    case DType::i32:
      return "I32";
    case DType::u8:
      return "U8";
  }
  throw_contract_error("a tensor of no known type", __FILE__, __LINE__, __func__);
}

std::uint64_t bytes_of(const TensorSource& tensor) {
  std::uint64_t bytes = size_of(tensor.dtype);
  for (const std::int64_t dim : tensor.shape) {
    require(dim >= 0 && !__builtin_mul_overflow(bytes, static_cast<std::uint64_t>(dim), &bytes),
            "a tensor to be written has a shape");
  }
  return bytes;
}

struct Layout {
  std::vector<const TensorSource*> order;
  std::string header;  // with its padding
  std::uint64_t data_bytes = 0;
};

Layout lay_out(std::span<const TensorSource> tensors) {
  Layout layout;
  std::set<std::string_view> names;
  for (const TensorSource& tensor : tensors) {
    require(tensor.name != "__metadata__" && names.insert(tensor.name).second,
            fmt::format("tensor name '{}' is reserved or stands twice", tensor.name));
    layout.order.push_back(&tensor);
  }
  std::stable_sort(
      layout.order.begin(), layout.order.end(), [](const TensorSource* a, const TensorSource* b) {
        return size_of(a->dtype) > size_of(b->dtype);
      });
  nlohmann::ordered_json header;
  // transformers refuses a file that does not say which framework its tensors are laid out for.
  header["__metadata__"] = {{"format", "pt"}};
  for (const TensorSource* tensor : layout.order) {
    const std::uint64_t begin = layout.data_bytes;
    layout.data_bytes += bytes_of(*tensor);
    nlohmann::ordered_json fields;
    fields["dtype"] = format_name(tensor->dtype);
    fields["shape"] = tensor->shape;
    fields["data_offsets"] = {begin, layout.data_bytes};
    header.emplace(tensor->name, std::move(fields));
  }
  layout.header = header.dump();
  layout.header.append((8 - layout.header.size() % 8) % 8, ' ');
  require(layout.header.size() <= kMaxHeaderBytes, "a header has at most 100,000,000 bytes");
  return layout;
}

}  // namespace

TensorSource source_of(std::string name,
                       const TensorView& tensor,
                       const PinnedBuffer& staging,
                       Stream stream) {
  TensorSource source;
  source.name = std::move(name);
  source.dtype = tensor.dtype;
  source.shape.assign(tensor.dims.begin(), tensor.dims.begin() + tensor.num_dims);
  source.emit = [tensor, &staging, stream](const ByteSink& sink) {
    const auto* bytes = static_cast<const std::byte*>(tensor.data);
    if (tensor.device == Device::cpu) {
      sink({bytes, tensor.bytes()});
      return;
    }
    require(staging.bytes() > 0, "a tensor of the GPU passes through a staging buffer");
    for (std::size_t done = 0; done < tensor.bytes();) {
      const std::size_t count = std::min(staging.bytes(), tensor.bytes() - done);
      device_copy(staging.data(), bytes + done, count, stream);
      synchronize(stream);
      sink({static_cast<const std::byte*>(staging.data()), count});
      done += count;
    }
  };
  return source;
}

SafetensorsLayout lay_out_safetensors(std::span<const TensorSource> tensors) {
  const Layout layout = lay_out(tensors);
  SafetensorsLayout result;
  const std::uint64_t length = layout.header.size();
  result.beginning.assign(reinterpret_cast<const char*>(&length), sizeof(length));
  result.beginning += layout.header;
  std::uint64_t offset = result.beginning.size();
  for (const TensorSource* tensor : layout.order) {
    result.offsets.emplace(tensor->name, offset);
    offset += bytes_of(*tensor);
  }
  result.file_bytes = offset;
  return result;
}

std::uint64_t safetensors_bytes(std::span<const TensorSource> tensors) {
  const Layout layout = lay_out(tensors);
  return sizeof(std::uint64_t) + layout.header.size() + layout.data_bytes;
}

FileRecord write_safetensors(const std::filesystem::path& path,
                             std::span<const TensorSource> tensors,
                             Shown shown) {
  static_assert(std::endian::native == std::endian::little, "the format is little-endian");
  const Layout layout = lay_out(tensors);
  const std::uint64_t length = layout.header.size();
  ChecksumWriter writer(path, sizeof(length) + length + layout.data_bytes);
  writer.write(std::as_bytes(std::span(&length, 1)));
  writer.write(layout.header);
  constexpr std::uint64_t kMegabyte = 1'000'000;
  std::optional<Progress> progress;
  if (shown == Shown::yes) {
    progress.emplace("write " + path.filename().string(),
                     static_cast<std::int64_t>(layout.data_bytes / kMegabyte),
                     "MB");
  }
  std::uint64_t written = 0;
  for (const TensorSource* tensor : layout.order) {
    std::uint64_t emitted = 0;
    tensor->emit([&](std::span<const std::byte> bytes) {
      emitted += bytes.size();
      writer.write(bytes);
      written += bytes.size();
      if (progress) {
        progress->update(static_cast<std::int64_t>(written / kMegabyte), tensor->name);
      }
    });
    require(emitted == bytes_of(*tensor),
            fmt::format("the source of tensor '{}' emitted {} bytes and its shape has {}",
                        tensor->name,
                        emitted,
                        bytes_of(*tensor)));
  }
  return writer.close();
}

}  // namespace memphis
