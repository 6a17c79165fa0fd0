# SPDX-License-Identifier: Apache-2.0
"""Faults in csrc/data, and in the random numbers of csrc/core that its order is drawn from."""
from table import planter

plant = planter("csrc")

PERMUTATION = "data/permutation.cpp"
LOADER = "data/loader.cpp"
FILES = "data/text_files.cpp"
STREAM = "data/token_stream.cpp"
TOKENIZER = "data/tokenizer.cpp"

plant("data.permutation_key_high", PERMUTATION, "seed",
      "{low(key), high(key)}", "{low(key), 0}",
      "half of the key is not used")
plant("data.sample_range_begin", LOADER, "Range",
      "fill(*stream_, range_.begin + first, range_.end, part_of(out, 0, num_before_end))",
      "fill(*stream_, first, range_.end, part_of(out, 0, num_before_end))",
      "samples are read from before the range")
plant("data.sample_seed", LOADER, "seed",
      "CounterRng(seed, \"data/order/\" + stream.fingerprint()).word64(0)", "CounterRng(0, \"data/order/\" + stream.fingerprint()).word64(0)",
      "run.seed does not change the order of samples")
plant("data.validation_inputs", LOADER, "off by one",
      "std::min(sequence_length_, range_.end - 1 - begin);", "std::min(sequence_length_, range_.end - begin);",
      "the last window begins to predict what is behind the range")
plant("data.validation_begin", LOADER, "Range",
      "const std::uint64_t begin = range_.begin + index * sequence_length_;", "const std::uint64_t begin = range_.begin + index * (sequence_length_ - 1);",
      "windows of validation overlap by a token")
plant("data.hidden_file", FILES, "condition",
      "starts_with('.')", "starts_with(\"..\")",
      "hidden files are trained on")
plant("data.stream_nul", STREAM, "bound",
      "std::memchr(piece.data(), 0, piece.size())", "std::memchr(piece.data(), 0, piece.size() - 1)",
      "a NUL at the end of a piece passes for text")
plant("data.token_first_byte", TOKENIZER, "bound",
      "if (token >= kFirstByte) {", "if (token > kFirstByte) {",
      "a NUL byte has no text")

# ---- questions

QUESTIONS = "data/questions.cpp"

plant("data.questions_first_target", QUESTIONS, "bound",
      "if (t + 1 >= window.first_target) {", "if (t >= window.first_target) {",
      "the first token of an ending is not scored")
plant("data.questions_excess", QUESTIONS, "missing term",
      "      window.first_target -= excess;\n", "",
      "of a context that is cut the ending begins too late")
plant("data.questions_normalised", QUESTIONS, "value",
      "static_cast<double>(question.endings[i].size());", "1.0;",
      "both scores are the same")
