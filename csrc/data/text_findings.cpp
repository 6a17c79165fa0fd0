// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/text_findings.h"

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <map>

#include <spdlog/fmt/fmt.h>

#include "csrc/core/log.h"
#include "csrc/data/name_list.h"

namespace memphis {
namespace {

// Of the bytes of a corpus, from which on it is worth a warning that they are not trained on, and
// of those of a file, that they are not UTF-8.
constexpr double kMuchOfCorpus = 0.02;
constexpr double kMuchOfFile = 0.01;

}  // namespace

TextLoss loss_of(const TextStream& stream) {
  std::vector<PassedOver> lost = stream.passed_over();
  if (lost.empty()) {
    return {};
  }
  std::stable_sort(lost.begin(), lost.end(), [](const PassedOver& a, const PassedOver& b) {
    return a.num_bytes > b.num_bytes;
  });
  std::uint64_t lost_bytes = 0;
  for (const PassedOver& file : lost) {
    lost_bytes += file.num_bytes;
  }
  std::uint64_t all_bytes = lost_bytes;
  for (const Document& document : stream.documents()) {
    all_bytes += document.num_bytes;
  }
  TextLoss loss;
  loss.share =
      all_bytes == 0 ? 0 : static_cast<double>(lost_bytes) / static_cast<double>(all_bytes);
  loss.text =
      fmt::format("{} of {} files, {} of {} bytes ({:.1f} %): ",
                  lost.size(),
                  lost.size() + stream.num_documents(),
                  lost_bytes,
                  all_bytes,
                  100 * loss.share) +
      list_of(lost, [](const PassedOver& file) {
        return fmt::format("{} ({}; {} bytes)", file.path.string(), file.reason, file.num_bytes);
      });
  return loss;
}

void describe(std::string_view key,
              const TextFiles& list,
              const TextStream& stream,
              std::vector<std::string>& warnings) {
  if (const TextLoss loss = loss_of(stream); !loss.text.empty()) {
    const std::string text = fmt::format("{}: passed over {}", key, loss.text);
    if (loss.share > kMuchOfCorpus) {
      warnings.push_back(text);
    } else {
      log_info("{}", text);
    }
  }
  if (!list.passed_over.empty()) {
    log_info("{}: passed over {}", key, list_of(list.passed_over, [](const PassedOver& other) {
               return fmt::format("{} ({})", other.path.string(), other.reason);
             }));
  }
  if (!list.hidden.empty()) {
    log_info("{}: passed over {} hidden entries ({}), which are read where they are named",
             key,
             list.hidden.size(),
             list_of(list.hidden));
  }
  if (!list.repeated.empty()) {
    log_info("{}: more than one entry names {}; a file is read once", key, list_of(list.repeated));
  }
  std::vector<std::filesystem::path> marked;
  std::vector<std::string> other_encoding;
  for (const Document& document : stream.documents()) {
    if (document.begins_with_mark) {
      marked.push_back(document.path);
    }
    if (document.share_outside_utf8 > kMuchOfFile) {
      other_encoding.push_back(
          fmt::format("{} ({:.0f} %)", document.path.string(), 100 * document.share_outside_utf8));
    }
  }
  if (!marked.empty()) {
    log_info(
        "{}: {} files begin with a byte order mark, three bytes that are trained on as any others "
        "(remove them, as in `sed -i '1s/^\\xEF\\xBB\\xBF//'`): {}",
        key,
        marked.size(),
        list_of(marked));
  }
  if (!other_encoding.empty()) {
    warnings.push_back(fmt::format(
        "{}: {} files are not UTF-8 in so much of their beginning, and are trained on byte by byte "
        "(convert them, as in `iconv -f LATIN1 -t UTF-8`): {}",
        key,
        other_encoding.size(),
        list_of(other_encoding)));
  }
}

void warn_of_copies(const TextStream& train,
                    const TextStream& validation,
                    std::vector<std::string>& warnings) {
  std::map<std::string_view, const Document*> trained_on;
  for (const Document& document : train.documents()) {
    trained_on.emplace(document.digest, &document);
  }
  std::vector<std::string> copies;
  std::uint64_t num_bytes = 0;
  std::uint64_t all_bytes = 0;
  for (const Document& document : validation.documents()) {
    all_bytes += document.num_bytes;
    if (const auto found = trained_on.find(document.digest); found != trained_on.end()) {
      num_bytes += document.num_bytes;
      copies.push_back(document.path.string() + " is " + found->second->path.string());
    }
  }
  if (!copies.empty()) {
    warnings.push_back(fmt::format(
        "data.validation: {:.1f} % of its bytes are trained on, as files of data.train have the "
        "same content, and the loss on them says nothing of other text: {}",
        100 * static_cast<double>(num_bytes) / static_cast<double>(all_bytes),
        list_of(copies)));
  }
}

}  // namespace memphis
