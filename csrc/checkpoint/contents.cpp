// SPDX-License-Identifier: Apache-2.0
#include "csrc/checkpoint/contents.h"

#include <algorithm>
#include <functional>
#include <map>
#include <numeric>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <spdlog/fmt/fmt.h>
#include <spdlog/fmt/ranges.h>

#include "csrc/checkpoint/model_state.h"
#include "csrc/checkpoint/pieces.h"
#include "csrc/comm/together.h"
#include "csrc/optim/optimizer.h"
#include "csrc/plan/parameters.h"
#include "csrc/plan/share.h"

namespace memphis {
namespace {

constexpr const char* kCollective = "checkpoint.contents";

constexpr int kUnknownDtype = 0;

// Weights and what the optimizer keeps of them, in the order of files.
std::vector<NamedShape> planned_tensors(const ModelConfig& model, DType compute) {
  const ParameterPlan plan = plan_parameters(model, compute);
  const std::vector<NamedShape> weights = planned_weights(plan);
  std::vector<NamedShape> tensors = weights;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const auto segment = static_cast<std::size_t>(plan.logical[i].segment);
    const auto add = [&](const char* suffix) {
      tensors.push_back({weights[i].name + suffix, weights[i].shape});
    };
    if (keeps_master(plan.segments[segment].dtype)) {
      add(".master");
    }
    add(".m");
    add(".v");
  }
  return tensors;
}

std::int64_t num_elements(const std::vector<std::int64_t>& shape) {
  return std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>());
}

// This rank's share of a checkpoint's files.
std::vector<std::filesystem::path> own_files(const std::filesystem::path& checkpoint,
                                             std::int64_t num_writers,
                                             const Communicator& all) {
  const Range own = Piece{.index = all.rank(), .count = all.size()}.of(num_writers);
  std::vector<std::filesystem::path> files;
  for (std::int64_t writer = own.begin; writer < own.begin + own.count; ++writer) {
    for (const auto& [whole, stem] :
         {std::pair(kWeightsName, kWeightsStem), std::pair(kOptimizerName, kOptimizerStem)}) {
      files.push_back(
          checkpoint /
          (num_writers == 1
               ? std::string(whole)
               : piece_file_name(stem, static_cast<int>(writer), static_cast<int>(num_writers))));
    }
  }
  return files;
}

// What the ranks have found, each once, the same on all of them. A round for each rank that has
// something which none before it had: most have found the same.
std::vector<std::string> united(Communicator& all, std::set<std::string> own) {
  const std::int64_t size = all.size();
  std::vector<std::string> result;
  while (true) {
    const std::int64_t teller =
        size - largest_of_all(all, own.empty() ? 0 : size - all.rank(), kCollective);
    if (teller == size) {
      return result;
    }
    std::string text;
    for (const std::string& each : own) {
      text += each + '\0';
    }
    text = text_of_rank(all, static_cast<int>(teller), text, kCollective);
    for (std::size_t begin = 0; begin < text.size();) {
      const std::size_t end = text.find('\0', begin);
      result.push_back(text.substr(begin, end - begin));
      own.erase(result.back());
      begin = end + 1;
    }
  }
}

bool fits(const StoredPieces::Listed& listed, const std::vector<std::int64_t>& shape) {
  return (listed.shape.empty() || listed.shape == shape) &&
         std::all_of(listed.cut_ends.begin(), listed.cut_ends.end(), [&](const auto& end) {
           return end.first < static_cast<int>(shape.size()) &&
                  end.second <= shape[static_cast<std::size_t>(end.first)];
         });
}

}  // namespace

Contents compare_contents(const std::filesystem::path& checkpoint,
                          std::int64_t num_writers,
                          const ModelConfig& model,
                          const std::optional<ModelConfig>& writer,
                          Communicator& all) {
  std::map<std::string, StoredPieces::Listed> own;
  std::int64_t dtype = kUnknownDtype;
  together(all, kCollective, [&] {
    const StoredPieces pieces(own_files(checkpoint, num_writers, all));
    for (StoredPieces::Listed& tensor : pieces.tensors()) {
      std::string name = tensor.name;
      own.emplace(std::move(name), std::move(tensor));
    }
    for (const StoredTensor* stored : pieces.stored(kEmbeddingName)) {
      dtype = stored->dtype ? static_cast<std::int64_t>(*stored->dtype) + 1 : kUnknownDtype;
    }
  });
  Contents contents;
  dtype = largest_of_all(all, dtype, kCollective);
  if (dtype != kUnknownDtype) {
    contents.compute = static_cast<DType>(dtype - 1);
  }
  const DType compute = contents.compute.value_or(DType::f32);
  const std::vector<NamedShape> planned = planned_tensors(model, compute);
  std::map<std::string, std::vector<std::int64_t>, std::less<>> written;
  if (writer) {
    for (NamedShape& tensor : planned_tensors(*writer, compute)) {
      written.emplace(std::move(tensor.name), std::move(tensor.shape));
    }
  }

  // Of each tensor that is planned: how many of its elements are stored, over all ranks, and how
  // many of these have found one outside of its shape.
  std::vector<std::int64_t> counts(2 * planned.size());
  std::set<std::string> extra;
  for (const auto& [name, listed] : own) {
    extra.insert(name);
  }
  for (std::size_t i = 0; i < planned.size(); ++i) {
    const auto found = own.find(planned[i].name);
    if (found != own.end()) {
      counts[2 * i] = found->second.num_elements;
      counts[2 * i + 1] = fits(found->second, planned[i].shape) ? 0 : 1;
      extra.erase(planned[i].name);
    }
  }
  sum_over_ranks(all, counts, kCollective);
  for (std::size_t i = 0; i < planned.size(); ++i) {
    const auto& [name, shape] = planned[i];
    if (counts[2 * i] == 0) {
      contents.difference.missing.push_back(name);
    } else if (counts[2 * i] != num_elements(shape) || counts[2 * i + 1] != 0) {
      const auto found = written.find(name);
      contents.difference.other_shape.push_back(
          found != written.end() && found->second != shape
              ? fmt::format("{} has shape [{}], not [{}]",
                            name,
                            fmt::join(found->second, ", "),
                            fmt::join(shape, ", "))
              : fmt::format("{} is not whole, or not of shape [{}]", name, fmt::join(shape, ", ")));
    }
  }
  contents.difference.extra = united(all, std::move(extra));
  return contents;
}

}  // namespace memphis
