// SPDX-License-Identifier: Apache-2.0
#include "csrc/config/yaml_tree.h"

#include <algorithm>
#include <array>
#include <sstream>
#include <utility>

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/parser.h>

#include "csrc/config/words.h"
#include "csrc/core/error.h"
#include "csrc/core/printable.h"

namespace memphis {
namespace {

constexpr std::size_t kMaxDepth = 32;
constexpr std::size_t kMaxShownBytes = 60;

// Where a mark of yaml-cpp lies, in words.
class Origin {
 public:
  static Origin file(std::string_view name) { return {std::string(name), true}; }
  static Origin argument(std::string_view argument) {
    return {"argument '" + std::string(argument) + "'", false};
  }

  std::string at(int line, int column) const {
    return has_lines_ ? name_ + ":" + std::to_string(line) + ":" + std::to_string(column) : name_;
  }
  std::string at(const YAML::Mark& mark) const {
    return mark.is_null() ? name_ : at(mark.line + 1, mark.column + 1);
  }
  const std::string& name() const { return name_; }

 private:
  Origin(std::string name, bool has_lines) : name_(std::move(name)), has_lines_(has_lines) {}

  std::string name_;
  bool has_lines_;
};

// Whether YAML reads nothing where something stands: a tag, a directive, a quote without its end.
bool is_lost(const YamlNode& node, std::string_view value) {
  const std::size_t begin = std::min(value.find_first_not_of(" \t\n"), value.size());
  value.remove_prefix(begin);
  value = value.substr(0, value.find_last_not_of(" \t\n") + 1);
  if (node.kind == YamlNode::Kind::scalar) {
    return node.text.empty() && value.size() < 2;  // and not ""
  }
  constexpr std::array<std::string_view, 5> kNothing = {"", "~", "null", "Null", "NULL"};
  return node.kind == YamlNode::Kind::null &&
         std::find(kNothing.begin(), kNothing.end(), value) == kNothing.end();
}

// YAML takes a '#' at the beginning, or behind a space, for a comment: in a file that is meant, in
// an argument it would drop what the user has typed.
void require_no_comment(std::string_view value, const Origin& origin) {
  char quote = '\0';
  char before = ' ';
  for (std::size_t i = 0; i < value.size(); ++i) {
    const char c = value[i];
    if (quote != '\0') {
      i += quote == '"' && c == '\\' ? 1 : 0;
      quote = c == quote ? '\0' : quote;
    } else if ((c == '"' || c == '\'') &&
               std::string_view(" \t\n[{,:").find(before) != std::string_view::npos) {
      quote = c;
    } else if (c == '#' && (before == ' ' || before == '\t' || before == '\n')) {
      throw ConfigError(origin.name() + ": '" + std::string(value.substr(i)) +
                        "' would be a comment (YAML takes a # at the beginning or behind a space "
                        "for one); put the value in double quotes within the argument, as in "
                        "'run.dir=\"run #3\"'");
    }
    before = c;
  }
}

void require_text(std::string_view text, const Origin& origin) {
  if (text.starts_with("\xFF\xFE") || text.starts_with("\xFE\xFF")) {
    throw ConfigError(origin.name() +
                      ": it is UTF-16 text, by its byte order mark (a config is UTF-8 text); "
                      "convert it, as in `iconv -f UTF-16 -t UTF-8`");
  }
  if (text.size() > kMaxYamlBytes) {
    throw ConfigError(origin.name() + ": the text has " + std::to_string(text.size()) +
                      " bytes (a config has at most " + std::to_string(kMaxYamlBytes) +
                      "); check that this is the right file");
  }
  int line = 1;
  int column = 1;
  bool is_indentation = true;
  while (!text.empty()) {
    const auto byte = static_cast<unsigned char>(text.front());
    const std::size_t length = utf8_length(text);
    if (length == 0) {
      throw ConfigError(origin.at(line, column) + ": byte " + std::to_string(byte) +
                        " is not UTF-8 (a config is UTF-8 text); save the file in that encoding");
    }
    if (byte < 0x20 && byte != '\n' && byte != '\r' && byte != '\t') {
      throw ConfigError(origin.at(line, column) + ": byte " + std::to_string(byte) +
                        " is a control character (a config is plain text); remove it, or write it "
                        "as an escape in double quotes");
    }
    is_indentation = is_indentation && (byte == ' ' || byte == '\t');
    if (is_indentation && byte == '\t') {
      throw ConfigError(origin.at(line, column) +
                        ": a tab indents this line (YAML indents with spaces); replace it");
    }
    ++column;
    if (byte == '\n') {
      ++line;
      column = 1;
      is_indentation = true;
    }
    text.remove_prefix(length);
  }
}

// Builds the tree from yaml-cpp's events, and not from its Node, which shows neither tags nor
// anchors and drops all documents but the first.
class TreeBuilder : public YAML::EventHandler {
 public:
  explicit TreeBuilder(const Origin& origin) : origin_(origin) {}

  YamlNode take() { return std::move(root_); }

  void OnDocumentStart(const YAML::Mark& mark) override {
    if (++num_documents_ > 1) {
      fail(mark,
           "a second document starts here (a config is one document); remove it with the '---' "
           "before it");
    }
  }
  void OnDocumentEnd() override {}

  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    add(make(mark, YamlNode::Kind::null, "?", anchor));
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t /*anchor*/) override { fail_alias(mark); }
  void OnScalar(const YAML::Mark& mark,
                const std::string& tag,
                YAML::anchor_t anchor,
                const std::string& value) override {
    YamlNode node = make(mark, YamlNode::Kind::scalar, tag, anchor);
    node.text = value;
    node.quoted = tag == "!";
    add(std::move(node));
  }
  void OnSequenceStart(const YAML::Mark& mark,
                       const std::string& tag,
                       YAML::anchor_t anchor,
                       YAML::EmitterStyle::value /*style*/) override {
    open(mark, make(mark, YamlNode::Kind::sequence, tag, anchor));
  }
  void OnSequenceEnd() override { close(); }
  void OnMapStart(const YAML::Mark& mark,
                  const std::string& tag,
                  YAML::anchor_t anchor,
                  YAML::EmitterStyle::value /*style*/) override {
    open(mark, make(mark, YamlNode::Kind::map, tag, anchor));
  }
  void OnMapEnd() override { close(); }

  [[noreturn]] void fail_alias(const YAML::Mark& mark) const {
    fail(mark,
         "an alias stands here (a config spells every value out); write the value in its place");
  }
  [[noreturn]] void fail(const YAML::Mark& mark, const std::string& message) const {
    throw ConfigError(origin_.at(mark) + ": " + message);
  }

 private:
  // yaml-cpp gives a node without a tag the tag "?" where it is plain and "!" where it is quoted.
  YamlNode make(const YAML::Mark& mark,
                YamlNode::Kind kind,
                const std::string& tag,
                YAML::anchor_t anchor) const {
    if (anchor != YAML::NullAnchor) {
      fail(mark,
           "an anchor stands here (a config spells every value out); remove the '&' and its name");
    }
    if (!tag.empty() && tag != "?" && tag != "!") {
      fail(mark,
           "the tag " + tag +
               " stands here (the type of a value follows from its key); remove the tag");
    }
    YamlNode node;
    node.kind = kind;
    node.place = origin_.at(mark);
    node.line = mark.line + 1;
    return node;
  }

  void open(const YAML::Mark& mark, YamlNode node) {
    if (stack_.size() >= kMaxDepth) {
      fail(mark,
           "lists and maps are nested more than " + std::to_string(kMaxDepth) +
               " deep (a config needs 3); check the brackets");
    }
    stack_.push_back(std::move(node));
  }

  void close() {
    YamlNode node = std::move(stack_.back());
    stack_.pop_back();
    add(std::move(node));
  }

  void add(YamlNode node) {
    if (stack_.empty()) {
      root_ = std::move(node);
      return;
    }
    YamlNode& parent = stack_.back();
    if (parent.kind == YamlNode::Kind::map && parent.keys.size() == parent.items.size()) {
      require_key(node);
      parent.keys.push_back(std::move(node));
    } else {
      if (parent.kind == YamlNode::Kind::map && node.kind == YamlNode::Kind::null) {
        node.place = parent.keys.back().place;  // yaml-cpp's mark is that of the next token
      }
      parent.items.push_back(std::move(node));
    }
  }

  static void require_key(const YamlNode& node) {
    if (node.kind != YamlNode::Kind::scalar || node.text.empty()) {
      throw ConfigError(node.place + ": a key is " + describe(node) +
                        " (a key is one word); write it as `key: value`");
    }
    if (node.text == "<<") {
      throw ConfigError(
          node.place +
          ": a merge key stands here (a config spells every value out); write the keys that it "
          "stands for");
    }
  }

  const Origin& origin_;
  YamlNode root_;
  std::vector<YamlNode> stack_;
  int num_documents_ = 0;
};

YamlNode parse(std::string_view text, const Origin& origin) {
  require_text(text, origin);
  std::istringstream stream{std::string(text)};
  TreeBuilder builder(origin);
  try {
    YAML::Parser parser(stream);
    while (parser.HandleNextDocument(builder)) {
    }
  } catch (const YAML::Exception& error) {
    // The parser looks an alias up before it reports it.
    if (error.msg.starts_with(YAML::ErrorMsg::UNKNOWN_ANCHOR)) {
      builder.fail_alias(error.mark);
    }
    const bool has_variable = text.find("${") != std::string_view::npos;
    builder.fail(
        error.mark,
        "not YAML (" + error.msg + "); correct the syntax here or just before" +
            (has_variable ? ", with quotes around a ${NAME} that stands within brackets" : ""));
  }
  return builder.take();
}

}  // namespace

YamlNode parse_yaml(std::string_view text, std::string_view name) {
  return parse(text, Origin::file(name));
}

YamlNode parse_yaml_argument(std::string_view value, std::string_view argument) {
  const Origin origin = Origin::argument(argument);
  require_no_comment(value, origin);
  YamlNode node = parse(value, origin);
  if (is_lost(node, value)) {
    throw ConfigError(origin.name() + ": YAML makes nothing of " + std::string(value) +
                      " (! begins a tag, % a directive, and a quote a text that has another at its "
                      "end); write it within the argument as " +
                      quote(value));
  }
  return node;
}

std::string describe(const YamlNode& node) {
  switch (node.kind) {
    case YamlNode::Kind::null:
      return "empty";
    case YamlNode::Kind::sequence:
      return "a list";
    case YamlNode::Kind::map:
      return "a map";
    case YamlNode::Kind::scalar:
      break;
  }
  std::string shown = node.text;
  if (shown.size() > kMaxShownBytes) {
    std::size_t end = kMaxShownBytes;
    while ((static_cast<unsigned char>(shown[end]) & 0xC0U) == 0x80U) {
      --end;  // not in the middle of a character
    }
    shown = shown.substr(0, end) + "...";
  }
  return node.quoted ? quote(shown) : shown;
}

}  // namespace memphis
