// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "csrc/config/config.h"

// What a run that goes on from a checkpoint may change of its config. One table says it of every
// key: `memphis plan --resume` and README.md print it, train obeys it.
namespace memphis {

//   refused  the run does not go on: its weights, or what is measured of them, would no longer be
//            what the config says
//   said     it goes on, and one line has the old value, the new one and what follows
//   free     nothing that is trained or measured depends on it
enum class OnResume : std::uint8_t { refused, said, free };

struct ResumeRule {
  std::string_view key;  // section.key
  OnResume on_resume;
  std::string_view follows;  // from a change: why it is refused, or what it does
};

// A row a key, in the order of the schema.
std::span<const ResumeRule> resume_rules();

struct ConfigChange {
  const ResumeRule* rule;
  std::string was;  // as YAML
  std::string is;
};

// "model.rope_theta is 500000 and was 10000".
std::string describe(const ConfigChange& change);

// The keys in which two resolved configs differ, without those that are free, in the order of the
// schema. A key that both leave unused, such as the length of a decay that is not chosen, does not
// differ.
std::vector<ConfigChange> changes_on_resume(const Config& was, const Config& is);

// Whether one run could have both configs: no key differs that a resume must keep.
bool of_one_run(const Config& was, const Config& is);

// The table as Markdown, keys in a row with the same rule together: a part of README.md.
std::string resume_table();

// The same for a terminal, a line at least each.
std::string resume_text();

}  // namespace memphis
