# SPDX-License-Identifier: Apache-2.0
"""Faults in csrc/checkpoint, and in the files of csrc/core that it writes."""
from table import planter

plant = planter("csrc")

# ---- manifest, store and writer

STORE = "checkpoint/store.cpp"
WRITER = "checkpoint/writer.cpp"
FILE = "core/file.cpp"

SAVER = "checkpoint/checkpoint_saver.cpp"
plant("checkpoint.saver_ungated", "optim/optimizer.cpp", "missing call",
      "      if (!gate->is_open()) {\n        gate->await(i, stream);\n      }\n", "      (void)gate;\n",
      "the optimizer changes what a snapshot has not copied yet")
CHECKSUM = "checkpoint/checksum.cpp"
MANIFEST_FILE = "checkpoint/manifest.cpp"
plant("checkpoint.block_place", CHECKSUM, "off by one",
      "begin * size,", "(begin + 1) * size,",
      "damage is said to lie a block behind itself")
plant("checkpoint.block_end", CHECKSUM, "off by one",
      "std::min((i + 1) * size, record.bytes) - 1", "std::min(i * size, record.bytes) - 1",
      "of a range of damage the last block is not named")
plant("checkpoint.block_of_all", CHECKSUM, "missing call",
      "      checksum_.restart();\n      in_block_ = 0;\n", "      in_block_ = 0;\n",
      "all blocks behind a damaged one are called damaged")
plant("checkpoint.block_last", CHECKSUM, "condition",
      "  if (in_block_ > 0) {\n    blocks_.push_back", "  if (in_block_ > block_bytes_) {\n    blocks_.push_back",
      "the last block of a file has no checksum")
plant("checkpoint.block_reread", STORE, "missing call",
      "::lseek(file.descriptor.number(), 0, SEEK_SET) != 0", "false",
      "the second reading begins where the first one ended, and nothing is found")
plant("checkpoint.block_travel", CHECKSUM, "missing call",
      "  if (!record.blocks.empty()) {  // which have no address\n", "  if (false) {\n",
      "where files of other ranks are damaged is not known")
plant("checkpoint.later_fields", MANIFEST_FILE, "missing call",
      "      value = (fields.*read)(key);\n", "",
      "what a run knows beside its tensors is lost in its checkpoints")

plant("checkpoint.saver_unread", SAVER, "missing call",
      "      verify_files(directory, files, verdict_);\n", "",
      "older checkpoints go without the newest having been read back")
plant("checkpoint.saver_left", SAVER, "missing call",
      "  begun_step_ = committed_step_;\n  writer_.reset();\n", "  begun_step_ = committed_step_;\n",
      "what was given up lies about")
plant("checkpoint.saver_begun", SAVER, "missing call",
      "  begun_step_ = committed_step_;\n  writer_.reset();\n", "  writer_.reset();\n",
      "a save that failed counts as begun")
plant("checkpoint.snapshot_later", "checkpoint/snapshot.cpp", "order",
      "    copied.data = static_cast<std::byte*>(memory_.data()) + used_;\n", "",
      "what is written is read from the weights as they are by then")

plant("checkpoint.never_over_work", STORE, "condition",
      "      if (!entry.unfinished) {\n        throw ConfigError(", "      if (entry.unfinished) {\n        throw ConfigError(",
      "run.resume never starts over what is saved")
plant("checkpoint.auto_over_damage", STORE, "condition",
      "if (!scan.rejected.empty() || has_metrics(run_dir)) {", "if (has_metrics(run_dir)) {",
      "a run whose checkpoints are damaged starts from scratch")
plant("checkpoint.writer_sync", WRITER, "missing fsync",
      "  sync_directory(unfinished_);\n", "",
      "names of a checkpoint's files may be lost with the power")
plant("checkpoint.writer_sync_run", WRITER, "missing fsync",
      "  sync_directory(run_dir_);\n", "",
      "a committed checkpoint may be lost with the power")
plant("checkpoint.record_stays", WRITER, "order",
      "  observe(\"write marker\");\n", "  remove_nothing_saved(run_dir_);\n  observe(\"write marker\");\n",
      "a job that is killed in its first commit cannot be started again")
plant("checkpoint.links_of_checkpoints", STORE, "missing flag",
      "O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK", "O_RDONLY | O_CLOEXEC | O_NONBLOCK",
      "a file of a checkpoint may lie anywhere, and be another one")
plant("checkpoint.bytes_changed", STORE, "condition",
      "  if (checksum.value() != record.xxh3) {", "  if (checksum.value() != record.xxh3 && record.bytes < 4096) {",
      "large files of a checkpoint are believed")
plant("checkpoint.file_sync", FILE, "missing fsync",
      "  if (const int error = flush_file(descriptor.number()); error != 0) {\n"
      "    throw_write_error(path, error);\n  }\n", "",
      "a file that was closed may be empty after a crash")

# ---- safetensors, npy and other programs' folders

SAFETENSORS = "checkpoint/safetensors.cpp"
NPY = "checkpoint/npy.cpp"
HF_CONFIG = "checkpoint/hf_config.cpp"

plant("checkpoint.trailing_bytes", SAFETENSORS, "unchecked",
      "    if (end != data_size()) {", "    if (end > data_size()) {",
      "bytes may follow the last tensor")
plant("checkpoint.npy_rename", NPY, "condition",
      "  require(remaining_ == 0, \"fewer values are written than the array has\");\n", "",
      "an array that was cut short is given its name")
plant("checkpoint.hf_written_temperature", HF_CONFIG, "condition",
      "model.attention_temperature_len > 0 ? model.attention_temperature_len : -1;", "-1;",
      "attn_temperature_len is not exported")

# ---- pieces and what a rank saves

# ---- model folders, written and begun with

FOLDER = "checkpoint/model_folder.cpp"
STATE = "checkpoint/model_state.cpp"

plant("checkpoint.folder_tied_head", FOLDER, "missing write",
      "        places_[kEmbeddingName].push_back(place);\n", "",
      "the head of a tied model is all zeros in its export")
plant("checkpoint.folder_shard", FOLDER, "condition",
      "(filled > shard_bytes || bytes > shard_bytes - filled)", "filled > shard_bytes",
      "a file of weights is larger than was asked for")
plant("checkpoint.folder_place", FOLDER, "index",
      "writer.write(place.offset + static_cast<std::uint64_t>(whole) * width,",
      "writer.write(place.offset + static_cast<std::uint64_t>(at) * width,",
      "parts of a tensor that ranks have cut are written over each other")
plant("checkpoint.folder_index", FOLDER, "missing file",
      "    write_text(unfinished_ / kIndexName, index.dump(1) + \"\\n\");\n", "",
      "an export of several files has no index")
plant("checkpoint.init_master", STATE, "condition",
      "if (state.name == state.parameter->name + \".master\") {",
      "if (state.name == state.parameter->name) {",
      "master weights of a run that begins with a folder are zero")
plant("checkpoint.init_hand_on", STATE, "missing call",
      "  });\n  hand_on_weights(residency, groups, stream);\n}\n\nstd::filesystem::path find_model",
      "  });\n}\n\nstd::filesystem::path find_model",
      "ranks that hold the same weights have only those that they read")
plant("checkpoint.byte_letters", "checkpoint/folder_tokenizer.cpp", "bound",
      "(byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;", "byte >= 0xA1;",
      "other programs read some bytes of an export as others")
plant("checkpoint.index_of_parts", "checkpoint/hf.cpp", "missing call",
      "      require_all_of_index(directory / kIndexFile);\n", "",
      "a tensor that the index of a presharded folder names may be missing")
plant("checkpoint.keep_before_multiple", STORE, "condition",
      "keep.every == 0 || step < keep.every", "keep.every == 0",
      "the first checkpoint of a run stays for ever")
plant("checkpoint.keep_all_of_multiple", STORE, "condition",
      "older.step >= multiple && older.step < step &&", "older.step == multiple &&",
      "by the clock, every checkpoint stays for ever")
