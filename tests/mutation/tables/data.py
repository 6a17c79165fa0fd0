# SPDX-License-Identifier: Apache-2.0
"""Faults in csrc/data, and in the random numbers of csrc/core that its order is drawn from."""
from table import planter

plant = planter("csrc")

PERMUTATION = "data/permutation.cpp"
LOADER = "data/loader.cpp"
FILES = "data/text_files.cpp"
STREAM = "data/text_stream.cpp"
TOKENIZER = "data/tokenizer.cpp"

plant("data.permutation_key_high", PERMUTATION, "seed",
      "{low(key), high(key)}", "{low(key), 0}",
      "half of the key is not used")
plant("data.sample_range_begin", LOADER, "Range",
      "range_.begin + first,", "first,",
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
      "if (id >= kFirstByte) {", "if (id > kFirstByte) {",
      "a NUL byte has no text")
plant("data.boundaries_ignored", LOADER, "condition",
      "kept && out.position_S[i + 1] == 0", "out.position_S[i + 1] == 0",
      "without boundaries documents end targets yet")
plant("data.mask_one_off", LOADER, "off by one",
      "targets[at - begin + i] = kNoTarget;", "targets[at - begin + i == 0 ? 0 : at - begin + i - 1] = kNoTarget;",
      "the mask of a token takes away the target before")
plant("data.mixture_owed", "data/mixture.cpp", "bound",
      "num_sources > 1 && owed < period", "num_sources > 1 && owed < 0",
      "a source may be chosen before it is owed a sample")
plant("data.mixture_round", "data/mixture.cpp", "arithmetic",
      "round * parts_[source] + before_[at]", "round * parts_[0] + before_[at]",
      "the second period of a source repeats or skips samples")
plant("data.merge_leftmost", "data/byte_pair.cpp", "condition",
      "rank != other.rank ? rank > other.rank : left > other.left", "rank != other.rank ? rank > other.rank : left < other.left",
      "of equal merges of a long word the rightmost comes first")
plant("data.merge_stale", "data/byte_pair.cpp", "condition",
      "merge.rank != best.rank || merge.id != best.id", "merge.rank == MergeTable::kNone",
      "a pair that has changed is merged as it was")
plant("data.utf8_surrogate", "data/utf8.cpp", "bound",
      "first == 0xED ? 0x9F", "first == 0xED ? 0xBF",
      "a surrogate passes for a character")
plant("data.megatron_boundary", "data/megatron_stream.cpp", "condition",
      "boundary < before || ", "",
      "boundaries of documents may go down")
plant("data.pattern_space", "data/word_pattern.cpp", "value",
      "R\"(\\p{Z}\\t-\\r\\x{85})\"", "R\"(\\s)\"",
      "U+180E is a space to a tokenizer's pattern")
plant("data.megatron_vocabulary", "data/id_column.cpp", "bound",
      "valid = value < static_cast<std::uint64_t>(vocab_size);", "valid = value <= static_cast<std::uint64_t>(vocab_size);",
      "an id that is the vocabulary's size passes")
plant("data.llmq_mask", "data/token_file_stream.cpp", "off by one",
      "const std::uint64_t bit = token == 0 ? 0 : token - 1;", "const std::uint64_t bit = token;",
      "llmq's masks are of targets")
plant("data.gzip_members", "data/unpacked_file.cpp", "dropped call",
      "inflateReset(&stream_);", "",
      "the second member of a gzip file is lost")
plant("data.gzip_cut", "data/unpacked_file.cpp", "condition",
      "if (!between_members_) {", "if (false) {",
      "a gzip file that breaks off ends there in silence")
plant("data.journal_line", "data/tokenize.cpp", "value",
      "{\"offset\", reader ? reader->offset() : 0}", "{\"offset\", reader ? reader->offset() + 1 : 0}",
      "a job goes on a byte too far")
plant("data.prompt_learnt", "data/document_encoder.cpp", "condition",
      "put(*text, response == nullptr, out);", "put(*text, true, out);",
      "prompts are learnt")
plant("data.text_not_learnt", "data/document_encoder.cpp", "condition",
      "put(*text, response == nullptr, out);", "put(*text, !is_masked(), out);",
      "beside lines of JSON with prompts, text alone is not learnt")
plant("data.placing_killed", "data/tokenize.cpp", "condition",
      "return member_or(root, \"fingerprint\", std::string()) == fingerprint;",
      "return member_or(root, \"fingerprint\", std::string()) == fingerprint &&\n"
      "         fs::exists(with(prefix, \".idx\"), ignored);",
      "a job that is killed as it puts its files in place takes them for another's")
plant("data.records_time", "data/file_records.cpp", "value",
      "what, file.size(), file.modified_ns(),", "what, file.size(), 0,",
      "what was learnt of a file holds for another of its size")

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
plant("data.reader_changed", "data/document_reader.cpp", "dropped call",
      "source->require_unchanged();", "",
      "a file that grows is tokenized in part")
plant("data.text_recorded", "data/text_stream.cpp", "dropped call",
      "        result.digest = known->digest;\n        return result;\n", "",
      "a large text is read whole at every start")

TOKENIZER_JSON = "data/tokenizer_json.cpp"
plant("data.own_pattern", "data/byte_pair_files.cpp", "dropped line",
      "    beside[kPatternKey] = file.own_pattern;\n", "",
      "a tiktoken file is kept without what cuts its text")
plant("data.kept_tokenizer_gone", "data/kept_tokenizer.cpp", "condition",
      "!fs::exists(name, ignored) &&", "fs::exists(name, ignored) &&",
      "a run whose tokenizer is gone cannot go on")
plant("data.prepended_first", "data/byte_pair_tokenizer.cpp", "condition",
      "metaspace.prepended == Metaspace::Prepended::first && is_first", "metaspace.prepended == Metaspace::Prepended::first",
      "a space stands in front of what follows an added token")
plant("data.merged_with_next", "data/byte_pair_tokenizer.cpp", "condition",
      "          if (is_match || !after_match) {\n", "          if (!is_match || !after_match) {\n",
      "a word begins behind its mark")
plant("data.byte_fallback", TOKENIZER_JSON, "index",
      "characters.byte_ids[*byte] = id;", "characters.byte_ids[0] = id;",
      "bytes of an unknown character have no ids")
plant("data.fuse_unknown", "data/byte_pair_tokenizer.cpp", "condition",
      "!after_unknown || !characters.fuses_unknown", "!after_unknown || characters.fuses_unknown",
      "a stretch of unknown characters is many tokens")
plant("data.normal_form", "data/text_normalizer.cpp", "off by one",
      "    other -= other > begin ? 1 : 0;\n", "",
      "a letter does not combine with the accent behind it")
plant("data.normalized_added", TOKENIZER_JSON, "dropped line",
      "      token.text = parts.normalizer.apply(token.text);  // as what it is looked for in\n", "",
      "an added token is not found in normalized text")
plant("data.hidden_space", "data/byte_pair_tokenizer.cpp", "condition",
      "is_first = is_first && bytes_of(id).empty();", "is_first = is_first && bytes.empty();",
      "of two spaces in front of a text the second is not shown")
plant("data.utf8_first", "data/utf8.cpp", "Range",
      "places_ == 0 ? num_bytes_ + i", "places_ == 0 ? i",
      "a place is told from its piece on")
plant("data.scan_column", "data/id_scan.cpp", "index",
      "chunk - starts_[column]", "chunk",
      "of the second file other ids are read than its first")
plant("data.scan_kept", "data/id_scan.cpp", "Range",
      "std::uint64_t chunk = starts_[i]; chunk < starts_[i + 1]", "std::uint64_t chunk = starts_[i]; chunk + 1 < starts_[i + 1]",
      "a file's record is without its last ids")
plant("data.rest_recorded", "data/id_stream.cpp", "dropped call",
      "  records.put(file, what, {.digest = hex, .largest_id = 0});\n", "",
      "masks are read whole by every rank, at every start")
plant("data.modes_recorded", "data/megatron_stream.cpp", "condition",
      "    if (!known) {\n      if (modes_at_ != 0) {", "    if (!known) {\n      if (false) {",
      "what is no text in a dataset of several kinds passes for ids")
plant("data.ids_as_text", "data/text_format.cpp", "condition",
      "signature.kind == TextFormat::Kind::token_file && begins_as(signature)", "false",
      "ids of 32 bits are taken for text in UTF-32")

GROWING = "data/growing_text.cpp"
plant("data.stop_shown", GROWING, "condition",
      "          end = std::min(end, text_.size() - count);\n", "",
      "the beginning of a stop text is shown")
plant("data.stop_first", GROWING, "condition",
      "first = std::min(first, text_.find(stop, from));", "first = text_.find(stop, from);",
      "of several stop texts the last one alone ends a text")
plant("data.begins_behind_special", GROWING, "condition",
      "is_first_ = is_first_ && !tokenizer_.begins_text(id);", "is_first_ = false;",
      "a text whose first id is special begins with a space")
plant("data.begins_behind_prompt", GROWING, "condition",
      "return has_text(id) && tokenizer_.begins_text(id);", "return false;",
      "behind a prompt the space in front of a word is not shown")
plant("data.hidden_spaces", "data/sentence_piece.cpp", "value",
      "hides_spaces_ = !processor_.IsUnknown(space) && decode(std::vector{space, space}).empty();",
      "hides_spaces_ = false;",
      "of several spaces in front of a text the second is shown, and does not decode")
plant("data.document_start", "data/tokenizer.cpp", "value",
      "std::max(special().eos, 0)", "0",
      "a document without a text begins with any token")
plant("data.document_bos", "data/tokenizer.cpp", "condition",
      "if (special().bos >= 0) {", "if (special().bos >= 0 || special().eos >= 0) {",
      "without bos another id stands in front of a document")
plant("data.questions_finite", QUESTIONS, "condition",
      "!std::isfinite(loss(i))", "std::isinf(loss(i))",
      "losses that are no numbers are compared")
plant("data.large_unread", "data/document_reader.cpp", "bound",
      "state.source->file().size() > state.max_bytes", "state.source->file().size() >= state.max_bytes",
      "a text of the most bytes is refused")
plant("data.option_words", "data/document_encoder.cpp", "value",
      "std::replace(name.begin(), name.end(), '_', '-');", "",
      "an option is asked for that is not there")
