// SPDX-License-Identifier: Apache-2.0
#include "csrc/checkpoint/safetensors.h"

#include <array>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <ostream>

#include <gtest/gtest.h>

#include "csrc/core/error.h"
#include "tests/support/error_text.h"
#include "tests/support/temporary_directory.h"

namespace memphis {
namespace {

using test::error_text;
using test::follows_grammar;
using test::TemporaryDirectory;

std::string file_text(const std::string& header, std::size_t data_bytes) {
  const std::uint64_t length = header.size();
  std::string text(sizeof(length), '\0');
  std::memcpy(text.data(), &length, sizeof(length));
  return text + header + std::string(data_bytes, '\x01');
}

std::string length_text(std::uint64_t length) {
  std::string text(sizeof(length), '\0');
  std::memcpy(text.data(), &length, sizeof(length));
  return text;
}

struct Hostile {
  const char* name;
  std::string content;
  std::string message;  // after the path
};

std::ostream& operator<<(std::ostream& out, const Hostile& hostile) {
  return out << hostile.name;
}

const std::string kAgain = "; copy the file again from its source";
const std::string kDamaged = " (the file is damaged or hostile); copy it again from its source";
const std::string kOneTensor = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";

std::vector<Hostile> hostile_files() {
  const auto tensor =
      [](const std::string& dtype, const std::string& shape, const std::string& offsets) {
        return R"({"a":{"dtype":)" + dtype + R"(,"shape":)" + shape + R"(,"data_offsets":)" +
               offsets + "}}";
      };
  const auto two = [](const std::string& first, const std::string& second) {
    return R"({"a":{"dtype":"U8","shape":[4],"data_offsets":)" + first +
           R"(},"b":{"dtype":"U8","shape":[4],"data_offsets":)" + second + "}}";
  };
  const std::string not_object =
      "its header is not a JSON object (it begins with '{' and is padded with spaces)" + kAgain;
  const std::string bad_pair =
      " (they are two whole numbers, begin and end, begin not after end)" + kAgain;
  const std::string bad_dim = " (a dim is a whole number from 0 to 2^63 - 1)" + kAgain;
  const std::string no_type = " (the format has no such type)" + kAgain;
  return {
      {"seven_bytes",
       std::string(7, '\0'),
       "it has 7 bytes (a safetensors file has at least the 8 bytes of its header's length)" +
           kAgain},
      {"header_over_limit",
       length_text(100'000'001),
       "its header is said to have 100000001 bytes (the format's limit is 100000000)" + kAgain},
      {"header_of_all_ones",
       length_text(~std::uint64_t{0}) + "{}",
       "its header is said to have 18446744073709551615 bytes (the format's limit is 100000000)" +
           kAgain},
      {"header_past_end",
       length_text(3) + "{}",
       "its header is said to have 3 bytes, the file has 10 (the file is truncated or is not "
       "safetensors)" +
           kAgain},
      {"header_empty", file_text("", 0), not_object},
      {"header_of_spaces", file_text("        ", 0), not_object},
      {"header_after_space", file_text(" {}", 0), not_object},
      {"header_after_mark", file_text("\xEF\xBB\xBF{}", 0), not_object},
      {"header_padded_with_newline", file_text("{}\n", 0), not_object},
      {"header_is_list", file_text("[]", 0), not_object},
      {"text_after_nul",
       file_text(std::string("{}\0{}", 5), 0),
       "there is a NUL byte in its JSON" + kDamaged},
      {"two_objects", file_text("{}{}", 0), "no valid JSON near byte 3 of its text" + kDamaged},
      {"cut_json", file_text(R"({"a":})", 0), "no valid JSON near byte 6 of its text" + kDamaged},
      {"bad_utf8",
       file_text("{\"\xFF\":1}", 0),
       "no valid JSON near byte 3 of its text" + kDamaged},
      {"overlong_utf8",
       file_text("{\"\xC0\xAF\":1}", 0),
       "no valid JSON near byte 3 of its text" + kDamaged},
      {"deep",
       file_text(R"({"a":)" + std::string(5000, '[') + std::string(5000, ']') + "}", 0),
       "its JSON nests deeper than 256" + kDamaged},
      {"number_out_of_range",
       file_text(tensor("\"F32\"", "[1e999]", "[0,8]"), 8),
       "a number of its JSON is out of range" + kDamaged},
      {"same_name_twice",
       file_text(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
                 R"("a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})",
                 4),
       "key 'a' stands twice in its JSON" + kDamaged},
      {"same_name_twice_by_escape",
       file_text(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
                 R"("\u0061":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})",
                 4),
       "key 'a' stands twice in its JSON" + kDamaged},
      {"same_field_twice",
       file_text(R"({"a":{"dtype":"U8","dtype":"F32","shape":[4],"data_offsets":[0,4]}})", 4),
       "key 'dtype' stands twice in its JSON" + kDamaged},
      {"unknown_field",
       file_text(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4],"url":"x"}})", 4),
       "tensor 'a' has the unknown field 'url' (it has dtype, shape and data_offsets)" + kAgain},
      {"name_of_escapes",
       file_text(R"({"\u001b[2J":1})", 0),
       R"(tensor '\u001b[2J' is not an object (it has dtype, shape and data_offsets))" + kAgain},
      {"missing_field",
       file_text(R"({"a":{"dtype":"U8","shape":[4]}})", 4),
       "tensor 'a' lacks a field (it has dtype, shape and data_offsets)" + kAgain},
      {"tensor_is_number",
       file_text(R"({"a":1})", 0),
       "tensor 'a' is not an object (it has dtype, shape and data_offsets)" + kAgain},
      {"metadata_is_list",
       file_text(R"({"__metadata__":[]})", 0),
       "__metadata__ is not an object (it maps texts to texts)" + kAgain},
      {"metadata_of_number",
       file_text(R"({"__metadata__":{"format":1}})", 0),
       "__metadata__ 'format' is not a text (it maps texts to texts)" + kAgain},
      {"unknown_dtype",
       file_text(tensor("\"F33\"", "[2]", "[0,8]"), 8),
       "tensor 'a' has dtype \"F33\"" + no_type},
      {"dtype_in_lower_case",
       file_text(tensor("\"f32\"", "[2]", "[0,8]"), 8),
       "tensor 'a' has dtype \"f32\"" + no_type},
      {"dtype_is_number",
       file_text(tensor("4", "[2]", "[0,8]"), 8),
       "tensor 'a' has dtype 4" + no_type},
      {"shape_is_number",
       file_text(tensor("\"F32\"", "2", "[0,8]"), 8),
       "tensor 'a' has a shape that is not a list (a shape is a list of whole numbers)" + kAgain},
      {"negative_dim",
       file_text(tensor("\"F32\"", "[-2]", "[0,8]"), 8),
       "tensor 'a' has a dim of -2" + bad_dim},
      {"fractional_dim",
       file_text(tensor("\"F32\"", "[2.0]", "[0,8]"), 8),
       "tensor 'a' has a dim of 2.0" + bad_dim},
      {"dim_of_2_to_63",
       file_text(tensor("\"F32\"", "[9223372036854775808]", "[0,8]"), 8),
       "tensor 'a' has a dim of 9223372036854775808" + bad_dim},
      {"overflowing_shape",
       file_text(tensor("\"F32\"", "[4294967296,4294967296]", "[0,8]"), 8),
       "tensor 'a' has shape [4294967296,4294967296] (its size overflows 64 bits)" + kAgain},
      {"overflow_hidden_by_zero",
       file_text(tensor("\"F32\"", "[4294967296,4294967296,0]", "[0,0]"), 0),
       "tensor 'a' has shape [4294967296,4294967296,0] (its size overflows 64 bits)" + kAgain},
      {"half_byte",
       file_text(tensor("\"F4\"", "[3]", "[0,1]"), 1),
       "tensor 'a' has 12 bits (a tensor ends at a whole byte)" + kAgain},
      {"one_offset",
       file_text(tensor("\"F32\"", "[2]", "[8]"), 8),
       "tensor 'a' has data_offsets [8]" + bad_pair},
      {"negative_offset",
       file_text(tensor("\"F32\"", "[2]", "[-8,0]"), 8),
       "tensor 'a' has data_offsets [-8,0]" + bad_pair},
      {"offsets_reversed",
       file_text(tensor("\"F32\"", "[2]", "[8,0]"), 8),
       "tensor 'a' has data_offsets [8,0]" + bad_pair},
      {"data_truncated",
       file_text(kOneTensor, 7),
       "tensor 'a' ends at byte 8 of the data (the file has 7 bytes of data, it is truncated)" +
           kAgain},
      {"fewer_bytes_than_shape",
       file_text(tensor("\"F32\"", "[2]", "[0,4]"), 4),
       "tensor 'a' has 4 bytes (F32 of shape [2] takes 8)" + kAgain},
      {"data_goes_on",
       file_text(kOneTensor, 9),
       "1 bytes follow the last tensor (every byte of the data belongs to a tensor)" + kAgain},
      {"data_of_no_tensor",
       file_text("{}", 1),
       "1 bytes follow the last tensor (every byte of the data belongs to a tensor)" + kAgain},
      {"hole_at_start",
       file_text(tensor("\"F32\"", "[2]", "[1,9]"), 9),
       "tensor 'a' begins at byte 1 of the data, not at 0 (tensors lie one behind the other, "
       "without "
       "overlap or hole)" +
           kAgain},
      {"hole_between",
       file_text(two("[0,4]", "[5,9]"), 9),
       "tensor 'b' begins at byte 5 of the data, not at 4 (tensors lie one behind the other, "
       "without "
       "overlap or hole)" +
           kAgain},
      {"overlap",
       file_text(two("[0,4]", "[3,7]"), 7),
       "tensor 'b' begins at byte 3 of the data, not at 4 (tensors lie one behind the other, "
       "without "
       "overlap or hole)" +
           kAgain},
      {"one_place_for_two",
       file_text(two("[0,4]", "[0,4]"), 4),
       "tensor 'b' begins at byte 0 of the data, not at 4 (tensors lie one behind the other, "
       "without "
       "overlap or hole)" +
           kAgain},
  };
}

class HostileFile : public testing::TestWithParam<Hostile> {};

TEST_P(HostileFile, IsRefusedByName) {
  const TemporaryDirectory directory;
  const std::string path = directory.write("x.safetensors", GetParam().content);
  const std::string text = error_text<CheckpointError>([&] { SafetensorsFile file(path); });
  EXPECT_EQ(text, path + ": " + GetParam().message);
  EXPECT_TRUE(follows_grammar(text));
}

INSTANTIATE_TEST_SUITE_P(Table,
                         HostileFile,
                         testing::ValuesIn(hostile_files()),
                         [](const auto& each) { return std::string(each.param.name); });

// The well-formed file that most of the table departs from: the table refuses its faults and no
// more.
TEST(Safetensors, ReadsTheFileThatTheTableBreaks) {
  const TemporaryDirectory directory;
  const SafetensorsFile file(directory.write("x.safetensors", file_text(kOneTensor + "  ", 8)));
  const StoredTensor& tensor = file.tensors().at("a");
  EXPECT_EQ(tensor.dtype, DType::f32);
  EXPECT_EQ(tensor.shape, std::vector<std::int64_t>{2});
  EXPECT_EQ(tensor.num_bytes, 8U);
}

TEST(Safetensors, ReadsEmptyFilesEmptyTensorsAndScalars) {
  const TemporaryDirectory directory;
  EXPECT_TRUE(SafetensorsFile(directory.write("empty.safetensors", file_text("{}      ", 0)))
                  .tensors()
                  .empty());
  const SafetensorsFile file(
      directory.write("x.safetensors",
                      file_text(R"({"z":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
                                R"("hollow":{"dtype":"F32","shape":[3,0],"data_offsets":[0,0]},)"
                                R"("end":{"dtype":"F32","shape":[0],"data_offsets":[8,8]},)"
                                R"("scalar":{"dtype":"F32","shape":[],"data_offsets":[4,8]}})",
                                8)));
  EXPECT_EQ(file.tensors().size(), 4U);
  EXPECT_EQ(file.tensors().at("scalar").num_bytes, 4U);
  EXPECT_EQ(file.tensors().at("hollow").num_bytes, 0U);
}

// As by a copy that is made over it while it is read.
TEST(Safetensors, AFileThatIsCutShortMeanwhileIsAnError) {
  const TemporaryDirectory directory;
  const std::string path = directory.write("x.safetensors", file_text(kOneTensor + "  ", 8));
  const SafetensorsFile file(path);
  const std::vector<std::int64_t> shape{2};
  std::filesystem::resize_file(path, std::filesystem::file_size(path) - 4);
  for (const DType dtype : {DType::f32, DType::bf16}) {
    std::array<std::byte, 8> out{};
    EXPECT_NO_THROW(file.read("a", shape, 0, 1, dtype, out.data())) << "what is left is there";
    const std::string text =
        error_text<CheckpointError>([&] { file.read("a", shape, 0, 2, dtype, out.data()); });
    EXPECT_TRUE(follows_grammar(text));
    EXPECT_NE(text.find(path + " has no byte "), std::string::npos) << text;
  }
}

TEST(Safetensors, ListsForeignTypesAndRefusesToReadThem) {
  const TemporaryDirectory directory;
  const std::string path =
      directory.write("x.safetensors",
                      file_text(R"({"c":{"dtype":"BOOL","shape":[2],"data_offsets":[0,2]},)"
                                R"("q":{"dtype":"F8_E5M2","shape":[2],"data_offsets":[2,4]}})",
                                4));
  const SafetensorsFile file(path);
  EXPECT_EQ(file.tensors().at("q").dtype_name, "F8_E5M2");
  const std::vector<std::int64_t> shape{2};
  EXPECT_EQ(error_text<CheckpointError>([&] { file.find("c", shape); }),
            path +
                ": tensor 'c' has dtype BOOL (weights are read from F64, F32, F16 and BF16); "
                "convert the file to one of them");
  const std::string quantised = error_text<CheckpointError>([&] { file.find("q", shape); });
  EXPECT_TRUE(quantised.starts_with(path + ": tensor 'q' has dtype F8_E5M2 (weights are quantised"))
      << quantised;
}

std::string little_endian(const std::vector<std::uint16_t>& words) {
  return {reinterpret_cast<const char*>(words.data()), words.size() * sizeof(words[0])};
}

TEST(Safetensors, ReadsF16Exactly) {
  const std::vector<std::uint16_t> halves{0x3C00,
                                          0xC000,
                                          0x7BFF,
                                          0x0001,
                                          0x8001,
                                          0x03FF,
                                          0x0400,
                                          0x0000,
                                          0x8000,
                                          0x7C00,
                                          0xFC00,
                                          0x7E00};
  const std::vector<double> values{1.0,
                                   -2.0,
                                   65504.0,
                                   0x1p-24,
                                   -0x1p-24,
                                   1023 * 0x1p-24,
                                   0x1p-14,
                                   0.0,
                                   -0.0,
                                   INFINITY,
                                   -INFINITY,
                                   NAN};
  const TemporaryDirectory directory;
  std::string text = file_text(R"({"h":{"dtype":"F16","shape":[12],"data_offsets":[0,24]}})", 24);
  text.replace(text.size() - 24, 24, little_endian(halves));
  const SafetensorsFile file(directory.write("x.safetensors", text));
  const std::vector<std::int64_t> shape{12};
  float narrow[12];
  double wide[12];
  file.read("h", shape, 0, 12, DType::f32, narrow);
  file.read("h", shape, 0, 12, DType::f64, wide);
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (std::isnan(values[i])) {
      EXPECT_TRUE(std::isnan(narrow[i]) && std::isnan(wide[i]));
      continue;
    }
    EXPECT_EQ(static_cast<double>(narrow[i]), values[i]) << i;
    EXPECT_EQ(wide[i], values[i]) << i;
    EXPECT_EQ(std::signbit(narrow[i]), std::signbit(values[i])) << i;
  }
  // 1 + 2^-10 + 2^-8 is nearer to 1 + 2^-7 than to 1; 1 + 2^-8 is a tie and goes to the even 1.
  text.replace(text.size() - 24, 4, little_endian({0x3C05, 0x3C04}));
  const SafetensorsFile ties(directory.write("y.safetensors", text));
  bf16 rounded[2];
  ties.read("h", shape, 0, 2, DType::bf16, rounded);
  EXPECT_EQ(static_cast<float>(rounded[0]), 1.0078125F);
  EXPECT_EQ(static_cast<float>(rounded[1]), 1.0F);
}

// Just above a tie of bf16, by less than f32 can say: rounded to f32 first, it would be the tie.
TEST(Safetensors, RoundsF64Once) {
  const double values[4] = {1.00390625 + 0x1p-40, -(1.01171875 - 0x1p-40), 1e300, 0x1p-1060};
  const TemporaryDirectory directory;
  std::string text = file_text(R"({"d":{"dtype":"F64","shape":[4],"data_offsets":[0,32]}})", 32);
  std::memcpy(text.data() + text.size() - 32, values, 32);
  const SafetensorsFile file(directory.write("x.safetensors", text));
  const std::vector<std::int64_t> shape{4};
  float narrow[4];
  file.read("d", shape, 0, 4, DType::f32, narrow);
  EXPECT_EQ(narrow[0], 1.00390625F);
  EXPECT_EQ(narrow[2], INFINITY);
  EXPECT_EQ(narrow[3], 0.0F);
  bf16 rounded[4];
  file.read("d", shape, 0, 4, DType::bf16, rounded);
  EXPECT_EQ(static_cast<float>(rounded[0]), 1.0078125F);
  EXPECT_EQ(static_cast<float>(rounded[1]), -1.0078125F);
  EXPECT_EQ(static_cast<float>(rounded[2]), INFINITY);
  EXPECT_EQ(static_cast<float>(rounded[3]), 0.0F);
}

TEST(Safetensors, NamesWhatADownloadLeftInItsPlace) {
  const TemporaryDirectory directory;
  const auto refusal = [&](const std::string& content) {
    const std::string path = directory.write("model.safetensors", content);
    const std::string text = error_text<CheckpointError>([&] { const SafetensorsFile file(path); });
    EXPECT_TRUE(follows_grammar(text)) << text;
    EXPECT_TRUE(text.starts_with(path + " is ")) << text;
    return text.substr(std::min(text.size(), path.size() + 4));
  };
  EXPECT_TRUE(refusal("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 26133\n")
                  .starts_with("a Git LFS pointer to 26133 bytes"));
  EXPECT_TRUE(refusal("<!doctype html><title>401</title>").starts_with("an HTML page"));
  EXPECT_TRUE(refusal("{\"error\":\"gated\"}").starts_with("an error of a server in JSON"));
  EXPECT_TRUE(refusal("Entry not found").starts_with("text: 'Entry not found'"));
  EXPECT_TRUE(refusal("").starts_with("empty"));
  EXPECT_TRUE(refusal("PK\x03\x04").starts_with("a zip archive"));
  std::filesystem::create_symlink(directory.path() / "gone", directory.path() / "link");
  EXPECT_NE(error_text<CheckpointError>([&] {
              const SafetensorsFile file(directory.path() / "link");
            }).find("link is a link to "),
            std::string::npos);
}

TEST(Safetensors, NamesTheTensorThatIsMissingOrOfAnotherShape) {
  const TemporaryDirectory directory;
  const std::string path = directory.write("x.safetensors", file_text(kOneTensor, 8));
  const SafetensorsFile file(path);
  const std::vector<std::int64_t> shape{2, 1};
  EXPECT_EQ(error_text<CheckpointError>([&] { file.find("b", shape); }),
            path +
                ": there is no tensor 'b' (the file has 1 others); copy the file again from its "
                "source");
  EXPECT_EQ(error_text<CheckpointError>([&] { file.find("a", shape); }),
            path +
                ": tensor 'a' has shape [2] (the model's config makes it [2, 1]); use the config "
                "that belongs to these weights");
}

TEST(Safetensors, ConvertsBetweenF32AndBf16WhereverTheBytesLie) {
  // A header of odd length puts the values at addresses that their type does not allow.
  const std::string header = R"({"f":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                             R"("h":{"dtype":"BF16","shape":[2],"data_offsets":[8,12]},)"
                             R"("i":{"dtype":"I32","shape":[1],"data_offsets":[12,16]}} )";
  ASSERT_EQ(header.size() % 2, 1U);
  std::string text = file_text(header, 16);
  const float f32[2] = {1.00390625F,
                        -3.0F};  // 1 + 2^-8: half-way between two bf16, the even one is 1
  const bf16 b16[2] = {bf16(0.5F), bf16(INFINITY)};
  std::memcpy(text.data() + 8 + header.size(), f32, 8);
  std::memcpy(text.data() + 16 + header.size(), b16, 4);
  const TemporaryDirectory directory;
  const std::string path = directory.write("x.safetensors", text);
  const SafetensorsFile file(path);
  const std::vector<std::int64_t> shape{2};

  bf16 rounded[2];
  file.read("f", shape, 0, 2, DType::bf16, rounded);
  EXPECT_EQ(static_cast<float>(rounded[0]), 1.0F);
  EXPECT_EQ(static_cast<float>(rounded[1]), -3.0F);
  double wide[2];
  file.read("f", shape, 0, 2, DType::f64, wide);
  EXPECT_EQ(wide[0], 1.00390625);
  float widened[2];
  file.read("h", shape, 0, 2, DType::f32, widened);
  EXPECT_EQ(widened[0], 0.5F);
  EXPECT_EQ(widened[1], INFINITY);
  float second = 0;
  file.read("f", shape, 1, 1, DType::f32, &second);
  EXPECT_EQ(second, -3.0F);
  EXPECT_THROW(file.read("f", shape, 1, 2, DType::f32, widened), ContractError);

  const std::vector<std::int64_t> one{1};
  EXPECT_EQ(error_text<CheckpointError>([&] { file.read("i", one, 0, 1, DType::f32, &second); }),
            path + ": tensor 'i' has dtype I32, wanted is f32" + why_not_read("I32"));
}

TEST(Safetensors, RefusesAMissingFileAsACheckpoint) {
  EXPECT_TRUE(follows_grammar(
      error_text<CheckpointError>([] { SafetensorsFile file("/nonexistent/x.safetensors"); })));
}

}  // namespace
}  // namespace memphis
