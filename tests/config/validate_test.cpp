// SPDX-License-Identifier: Apache-2.0
#include "csrc/config/validate.h"

#include <filesystem>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include "csrc/config/load.h"
#include "csrc/core/error.h"
#include "tests/config/bad_config.h"
#include "tests/support/error_text.h"
#include "tests/support/temporary_directory.h"

namespace memphis {
namespace {

using test::here;
using test::kTiny;
using test::with;
using test::with_model;

std::vector<test::BadConfig> bad_configs() {
  return {
      {"size not given",
       "schedule:\n  steps: 10\n",
       {},
       ExitCode::config,
       "tiny.yaml: model.vocab_size is not given (it has no default); add it, or a "
       "model.preset"},
      {"steps not given",
       "model:\n  preset: grok-1\n",
       {},
       ExitCode::config,
       "tiny.yaml: schedule.steps is not given (it has no default); add it"},
      {"heads not divisible by kv heads",
       with_model("  num_kv_heads: 3\n"),
       {},
       ExitCode::config,
       "tiny.yaml:8:17: model.num_kv_heads 3 does not divide model.num_heads 4 (a key/value "
       "head serves equally many query heads as any other); use 2 or 4"},
      {"more kv heads than heads",
       with_model("  num_kv_heads: 8\n"),
       {},
       ExitCode::config,
       "tiny.yaml:8:17: model.num_kv_heads 8 does not divide model.num_heads 4 (a key/value "
       "head serves equally many query heads as any other); use 4"},
      {"width not divisible by heads",
       kTiny,
       {"model.num_heads=3"},
       ExitCode::config,
       "argument 'model.num_heads=3': model.num_heads 3 does not divide model.d_model 64 "
       "(without model.head_dim, a head is d_model / num_heads wide); use 2 or 4, or give "
       "model.head_dim"},
      {"prompt and response of one field",
       kTiny,
       {"data.prompt_field=text", "data.response_field=text"},
       ExitCode::config,
       "argument 'data.response_field=text': data.prompt_field and data.response_field are both "
       "\"text\" (what is learnt would stand before itself); name two fields, or one in "
       "data.field"},
      {"odd head",
       with_model("  head_dim: 7\n"),
       {},
       ExitCode::config,
       "tiny.yaml:8:13: model.head_dim 7 is odd (the rotary embedding turns pairs of "
       "elements); use 6 or 8"},
      {"more experts per token than experts",
       with_model("  experts_per_token: 5\n"),
       {},
       ExitCode::config,
       "tiny.yaml:8:22: model.experts_per_token 5 exceeds model.num_experts 4 (a token "
       "visits an expert at most once); use at most 4"},
      {"vocabulary smaller than the tokenizer",
       kTiny,
       {"model.vocab_size=200"},
       ExitCode::config,
       "argument 'model.vocab_size=200': model.vocab_size 200 is smaller than the byte "
       "tokenizer's 259 (256 bytes and 3 special tokens); use at least 259"},
      {"pad outside the vocabulary",
       with_model("  pad_id: 512\n"),
       {},
       ExitCode::config,
       "tiny.yaml:8:11: model.pad_id 512 is not below model.vocab_size 512 (it is the id of "
       "a token); use 0, or -1 for none"},
      {"temperature of one position",
       with_model("  attention_temperature_len: 1\n"),
       {},
       ExitCode::config,
       "tiny.yaml:8:30: model.attention_temperature_len is 1 (the temperature divides by "
       "its logarithm); use 0 for none, or at least 2"},
      {"positions fewer than trained on",
       with_model("  max_sequence_length: 128\n"),
       {},
       ExitCode::config,
       "tiny.yaml:8:24: model.max_sequence_length 128 is shorter than batch.sequence_length "
       "256 (the model is trained on that many positions); use at least 256"},
      {"global batch not a multiple",
       with("batch:\n  micro_batch: 4\n  global_batch: 10\n"),
       {},
       ExitCode::config,
       "tiny.yaml:12:17: batch.global_batch 10 is not a multiple of batch.micro_batch 4 "
       "(gradients accumulate over whole micro-batches); use 8 or 12"},
      {"global batch smaller",
       with("batch:\n  micro_batch: 32\n"),
       {},
       ExitCode::config,
       "tiny.yaml:11:16: batch.global_batch 16 is not a multiple of batch.micro_batch 32 "
       "(gradients accumulate over whole micro-batches); use 32"},
      {"warm-up as long as the run",
       with("run: {}\n"),
       {"schedule.warmup_steps=100"},
       ExitCode::config,
       "argument 'schedule.warmup_steps=100': schedule.warmup_steps 100 is not below "
       "schedule.steps 100 (the learning rate would never leave its warm-up); use at most 99"},
      {"decay longer than what is left",
       kTiny,
       {"schedule.decay=wsd", "schedule.warmup_steps=60", "schedule.decay_steps=50"},
       ExitCode::config,
       "argument 'schedule.decay_steps=50': schedule.decay_steps 50 exceeds the 40 steps "
       "after the warm-up (the final decay starts when that is over); use at most 40"},
      {"too many parameters",
       kTiny,
       {"model.num_layers=4096",
        "model.d_model=1048576",
        "model.ffn_dim=1048576",
        "model.num_experts=4096"},
       ExitCode::config,
       "argument 'model.num_layers=4096': the model has 5.54e+19 parameters (their bytes "
       "are counted in 64 bits, with room for 7.21e+16); use smaller sizes"},
      {"too many rows",
       kTiny,
       {"batch.micro_batch=65536", "batch.global_batch=65536", "batch.sequence_length=65536"},
       ExitCode::config,
       "argument 'batch.micro_batch=65536': a micro-batch has 8589934592 rows for its "
       "experts (micro_batch * sequence_length * experts_per_token is counted in 32 bits); "
       "use a smaller batch.micro_batch"},
      {"too many activations",
       kTiny,
       {"batch.micro_batch=65536",
        "batch.global_batch=65536",
        "batch.sequence_length=4096",
        "model.d_model=1048576",
        "model.num_layers=4096"},
       ExitCode::config,
       "argument 'batch.micro_batch=65536': a micro-batch has 1.84e+19 activations (their "
       "bytes are counted in 64 bits, with room for 7.21e+16); use a smaller "
       "batch.micro_batch"},
      {"parallel degree pipeline",
       kTiny,
       {"parallel.pipeline=2"},
       ExitCode::config,
       "argument 'parallel.pipeline=2': parallel.pipeline 2 does not divide the 9 ranks of this "
       "job "
       "(the layers lie on so many parts of the ranks, of one size); use 1",  // as 3 needs 3 layers
       9},
      {"parallel degree pipeline that others go with",
       kTiny,
       {"parallel.pipeline=5", "parallel.tensor=2", "parallel.expert=4", "model.num_layers=12"},
       ExitCode::config,
       "argument 'parallel.pipeline=5': parallel.pipeline 5 does not divide the 24 ranks of this "
       "job (the layers lie on so many parts of the ranks, of one size); use 3 or 6",
       24},
      {"parallel degree pipeline of one rank",
       kTiny,
       {"parallel.pipeline=2", "parallel.tensor=2", "parallel.expert=4"},
       ExitCode::config,
       "argument 'parallel.pipeline=2': parallel.pipeline 2 does not divide the 1 rank of this job "
       "(the layers lie on so many parts of the ranks, of one size); start the job with 8 ranks, "
       "as "
       "in mpirun -n 8, or use 1"},
      {"more pipeline ranks than layers",
       kTiny,
       {"parallel.pipeline=4"},
       ExitCode::config,
       "argument 'parallel.pipeline=4': model.num_layers 2 is less than the 4 stages of "
       "parallel.pipeline 4 times parallel.chunks 1 (each has a layer at least, unless "
       "parallel.stages gives it 0); use at most 2 stages, or write parallel.stages",
       4},
      {"stages of several ranks that are not listed",
       kTiny,
       {"parallel.pipeline=2", "parallel.schedule=zbv", "parallel.stages=[1, 1, 0]"},
       ExitCode::config,
       "argument 'parallel.stages=[1, 1, 0]': parallel.stages has 3 numbers for the 4 stages of "
       "parallel.pipeline 2 times parallel.chunks 2 (each says how many layers a stage has, in the "
       "order of the model); add 1",
       2},
      {"tensor in a stage",
       kTiny,
       {"parallel.pipeline=2", "parallel.tensor=4"},
       ExitCode::config,
       "argument 'parallel.tensor=4': parallel.tensor 4 does not divide the 2 ranks that "
       "parallel.pipeline 2 leaves of the 4 of this job (a layer is cut over so many neighbouring "
       "ranks); use 2",
       4},
      {"tensor in a stage of one rank",
       kTiny,
       {"parallel.pipeline=2", "parallel.tensor=2"},
       ExitCode::config,
       "argument 'parallel.tensor=2': parallel.tensor 2 does not divide the 1 rank that "
       "parallel.pipeline 2 leaves of the 2 of this job (a layer is cut over so many neighbouring "
       "ranks); start the job with 4 ranks, as in mpirun -n 4, or use 1",
       2},
      {"data in a stage",
       kTiny,
       {"parallel.pipeline=2", "parallel.tensor=2", "parallel.data=4"},
       ExitCode::config,
       "argument 'parallel.data=4': parallel.data 4 times parallel.tensor 2 times "
       "parallel.pipeline 2 is not the 8 ranks of this job (every rank has a place); start the job "
       "with 16 ranks, or use 2",
       8},
      {"experts in a stage",
       kTiny,
       {"parallel.pipeline=2", "parallel.expert=4"},
       ExitCode::config,
       "argument 'parallel.expert=4': parallel.expert 4 does not divide the 2 ranks that "
       "parallel.pipeline 2 leaves of the 4 of this job (the experts of a layer lie on so many "
       "ranks); use 2",
       4},
      {"width of experts in a stage",
       kTiny,
       {"parallel.pipeline=2", "parallel.expert=2", "parallel.expert_tensor=2"},
       ExitCode::config,
       "argument 'parallel.expert_tensor=2': parallel.expert_tensor 2 times parallel.expert 2 does "
       "not divide the 2 ranks that parallel.pipeline 2 leaves of the 4 of this job (an expert's "
       "width is cut over so many neighbouring ranks); use 1",
       4},
      {"ZeRO-2 in a pipeline",
       kTiny,
       {"parallel.pipeline=2", "parallel.zero=2"},
       ExitCode::config,
       "argument 'parallel.zero=2': parallel.zero 2 does not go with the 2 stages of "
       "parallel.pipeline 2 times parallel.chunks 1 (gradients would be reduced once a "
       "micro-batch, with as many times the messages); use at most 1",
       2},
      {"ZeRO-3 in a pipeline",
       kTiny,
       {"parallel.pipeline=2", "parallel.zero=3"},
       ExitCode::config,
       "argument 'parallel.zero=3': parallel.zero 3 does not go with the 2 stages of "
       "parallel.pipeline 2 times parallel.chunks 1 (gradients would be reduced, and weights "
       "gathered, once a micro-batch, with as many times the messages); use at most 1",
       2},
      {"ZeRO-2 of chunks",
       kTiny,
       {"parallel.schedule=zbv", "parallel.zero=2"},
       ExitCode::config,
       "argument 'parallel.zero=2': parallel.zero 2 does not go with the 2 stages of "
       "parallel.pipeline 1 times parallel.chunks 2 (gradients would be reduced once a "
       "micro-batch, with as many times the messages); use at most 1"},
      {"chunks of 1f1b",
       kTiny,
       {"parallel.chunks=2"},
       ExitCode::config,
       "argument 'parallel.chunks=2': parallel.chunks 2 does not go with parallel.schedule 1f1b (a "
       "rank holds one run of layers, and its warm-up is counted for one); use 1, or "
       "parallel.schedule interleaved or zbv"},
      {"chunks of zb-h1",
       kTiny,
       {"parallel.schedule=zb-h1", "parallel.chunks=3"},
       ExitCode::config,
       "argument 'parallel.chunks=3': parallel.chunks 3 does not go with parallel.schedule zb-h1 "
       "(a "
       "rank holds one run of layers, and its warm-up is counted for one); use 1, or "
       "parallel.schedule interleaved"},
      {"chunks of zbv",
       with("parallel:\n  schedule: zbv\n  chunks: 1\n"),
       {},
       ExitCode::config,
       "tiny.yaml:12:11: parallel.chunks 1 does not go with parallel.schedule zbv (the stages go "
       "down the ranks once and up again once); use 2, or parallel.schedule 1f1b or zb-h1"},
      {"more chunks of zbv",
       kTiny,
       {"parallel.schedule=zbv", "parallel.chunks=3"},
       ExitCode::config,
       "argument 'parallel.chunks=3': parallel.chunks 3 does not go with parallel.schedule zbv "
       "(the "
       "stages go down the ranks once and up again once); use 2, or parallel.schedule interleaved"},
      {"one chunk that takes turns",
       kTiny,
       {"parallel.schedule=interleaved", "parallel.chunks=1"},
       ExitCode::config,
       "argument 'parallel.chunks=1': parallel.chunks 1 does not go with parallel.schedule "
       "interleaved (the chunks of a rank take turns, and with one of them this is 1f1b); use 2 or "
       "more, or parallel.schedule 1f1b or zb-h1"},
      {"more stages than layers",
       kTiny,
       {"parallel.schedule=interleaved", "parallel.chunks=3"},
       ExitCode::config,
       "argument 'parallel.chunks=3': model.num_layers 2 is less than the 3 stages of "
       "parallel.pipeline 1 times parallel.chunks 3 (each has a layer at least, unless "
       "parallel.stages gives it 0); use at most 2 stages, or write parallel.stages"},
      {"a stage that is not listed",
       kTiny,
       {"parallel.schedule=zbv", "parallel.stages=[2]"},
       ExitCode::config,
       "argument 'parallel.stages=[2]': parallel.stages has 1 number for the 2 stages of "
       "parallel.pipeline 1 times parallel.chunks 2 (each says how many layers a stage has, in the "
       "order of the model); add 1"},
      {"stages too many",
       kTiny,
       {"parallel.stages=[1, 1, 0]"},
       ExitCode::config,
       "argument 'parallel.stages=[1, 1, 0]': parallel.stages has 3 numbers for the 1 stage of "
       "parallel.pipeline 1 times parallel.chunks 1 (each says how many layers a stage has, in the "
       "order of the model); take 2 away"},
      {"a layer in no stage",
       kTiny,
       {"parallel.schedule=zbv", "parallel.stages=[0, 1]"},
       ExitCode::config,
       "argument 'parallel.stages=[0, 1]': parallel.stages has 1 layer in all and model.num_layers "
       "2 (layer 1 is in no stage, and each of the model's is in one stage); add 1 to the numbers"},
      {"layers in no stage",
       with("parallel:\n  stages: [3]\n"),
       {"model.num_layers=7"},
       ExitCode::config,
       "tiny.yaml:11:11: parallel.stages has 3 layers in all and model.num_layers 7 (layers 3 to 6 "
       "are in no stage, and each of the model's is in one stage); add 4 to the numbers"},
      {"layers that the model does not have",
       kTiny,
       {"parallel.schedule=zbv", "parallel.stages=[2, 2]"},
       ExitCode::config,
       "argument 'parallel.stages=[2, 2]': parallel.stages has 4 layers in all and "
       "model.num_layers 2 (layers 2 to 3 are not of the model, and each of the model's is in one "
       "stage); take 2 from the numbers"},
      {"parallel degree context",
       kTiny,
       {"parallel.context=3"},
       ExitCode::config,
       "argument 'parallel.context=3': parallel.context 3 times parallel.tensor 1 does not divide "
       "the 4 ranks of this job (so many share out the tokens of a sequence); use 2 or 4",
       4},
      {"sequences over ranks along context",
       kTiny,
       {"parallel.context=4", "batch.sequence_length=12"},
       ExitCode::config,
       "argument 'parallel.context=4': batch.sequence_length 12 is not a multiple of twice "
       "parallel.context 4 (a rank has a piece from the front of a sequence and one from its "
       "back); "
       "use 2",
       4},
      {"key heads over ranks along context",
       kTiny,
       {"parallel.context=4", "model.num_kv_heads=2", "parallel.context_exchange=all_to_all"},
       ExitCode::config,
       "argument 'parallel.context_exchange=all_to_all': parallel.context_exchange is all_to_all "
       "and "
       "parallel.context 4 times parallel.tensor 1 does not divide model.num_kv_heads 2 (each rank "
       "takes whole key/value heads); use gather or ring",
       4},
      {"a ring of few tokens",
       kTiny,
       {"parallel.context=4",
        "parallel.context_exchange=ring",
        "batch.sequence_length=24",
        "batch.micro_batch=2"},
       ExitCode::config,
       "argument 'parallel.context_exchange=ring': parallel.context_exchange is ring and a rank "
       "has "
       "12 tokens of a micro-batch (what belongs to each rank's keys starts aligned, a byte a "
       "token "
       "too); use gather, or a batch.micro_batch with which they are a multiple of 16",
       4},
      {"whole sequences over the ranks of two machines",
       kTiny,
       {"parallel.context=16",
        "model.num_kv_heads=16",
        "model.num_heads=16",
        "parallel.context_exchange=all_to_all"},
       ExitCode::config,
       "argument 'parallel.context_exchange=all_to_all': parallel.context_exchange is all_to_all "
       "and "
       "parallel.context 16 times parallel.tensor 1 exceeds 8 (every rank sends to every other, "
       "which "
       "is for the links of one machine); use gather or ring",
       16},
      {"parallel degree data of one rank",
       kTiny,
       {"parallel.data=2"},
       ExitCode::config,
       "argument 'parallel.data=2': parallel.data 2 times parallel.tensor 1 is not the 1 rank of "
       "this job (every rank has a place); start the job with 2 ranks, or use 1",
       1},
      {"parallel degree data",
       kTiny,
       {"parallel.data=2", "parallel.tensor=2"},
       ExitCode::config,
       "argument 'parallel.data=2': parallel.data 2 times parallel.tensor 2 is not the 8 ranks of "
       "this job (every rank has a place); start the job with 4 ranks, or use 4",
       8},
      {"parallel degree tensor of one rank",
       kTiny,
       {"parallel.tensor=2"},
       ExitCode::config,
       "argument 'parallel.tensor=2': parallel.tensor 2 does not divide the 1 rank of this job (a "
       "layer is cut over so many neighbouring ranks); start the job with 2 ranks, as in mpirun -n "
       "2, or use 1",
       1},
      {"parallel degree tensor",
       kTiny,
       {"parallel.tensor=3"},
       ExitCode::config,
       "argument 'parallel.tensor=3': parallel.tensor 3 does not divide the 8 ranks of this job (a "
       "layer is cut over so many neighbouring ranks); use 2 or 4",
       8},
      {"parallel degree expert of one rank",
       kTiny,
       {"parallel.expert=2"},
       ExitCode::config,
       "argument 'parallel.expert=2': parallel.expert 2 does not divide the 1 rank of this job "
       "(the experts of a layer lie on so many ranks); start the job with 2 ranks, as in mpirun -n "
       "2, or use 1",
       1},
      {"parallel degree expert",
       kTiny,
       {"parallel.expert=4"},
       ExitCode::config,
       "argument 'parallel.expert=4': parallel.expert 4 does not divide the 6 ranks of this job "
       "(the experts of a layer lie on so many ranks); use 2",
       6},
      {"parallel degree expert_tensor",
       kTiny,
       {"parallel.expert_tensor=4", "parallel.expert=4"},
       ExitCode::config,
       "argument 'parallel.expert_tensor=4': parallel.expert_tensor 4 times parallel.expert 4 does "
       "not divide the 8 ranks of this job (an expert's width is cut over so many neighbouring "
       "ranks); use 2",
       8},
      {"experts over ranks",
       kTiny,
       {"parallel.expert=8"},
       ExitCode::config,
       "argument 'parallel.expert=8': parallel.expert 8 does not divide model.num_experts 4 (each "
       "rank has equally many experts); use 4",
       8},
      {"an expert over ranks",
       kTiny,
       {"parallel.expert_tensor=3"},
       ExitCode::config,
       "argument 'parallel.expert_tensor=3': parallel.expert_tensor 3 does not divide "
       "model.ffn_dim 128 (an expert's width is cut into equal pieces); use 2 or 4",
       12},
      {"query heads over ranks",
       kTiny,
       {"parallel.tensor=8"},
       ExitCode::config,
       "argument 'parallel.tensor=8': parallel.tensor 8 does not divide model.num_heads 4 (each "
       "rank has equally many query heads); use 4",
       8},
      {"key heads over ranks",
       kTiny,
       {"parallel.tensor=2",
        "model.num_heads=6",
        "model.num_kv_heads=3",
        "model.head_dim=8",
        "batch.sequence_length=30"},
       ExitCode::config,
       "argument 'parallel.tensor=2': parallel.tensor 2 and model.num_kv_heads 3 do not divide one "
       "another (a rank has some key/value heads, or ranks share one); use 1 or 3",
       6},
      {"query heads over ranks that they do not fit",
       kTiny,
       {"parallel.tensor=6", "model.num_heads=9", "model.head_dim=8"},
       ExitCode::config,
       "argument 'parallel.tensor=6': parallel.tensor 6 does not divide model.num_heads 9 (each "
       "rank has equally many query heads); use 1",  // as 3 and 9 do not divide the sequence
       6},
      {"sequences over ranks",
       kTiny,
       {"parallel.tensor=4", "batch.sequence_length=30"},
       ExitCode::config,
       "argument 'parallel.tensor=4': parallel.tensor 4 does not divide batch.sequence_length 30 "
       "(each sequence is cut into so many pieces for its norms and experts); use 2",
       4},
      {"dense FFN over ranks",
       kTiny,
       {"parallel.tensor=4", "model.dense_ffn_dim=30"},
       ExitCode::config,
       "argument 'parallel.tensor=4': parallel.tensor 4 does not divide model.dense_ffn_dim 30 "
       "(the dense FFN's width is cut into equal pieces); use 2",
       4},
      {"buffer below a share",
       kTiny,
       {"parallel.expert_buffer=0.5"},
       ExitCode::config,
       "argument 'parallel.expert_buffer=0.5': parallel.expert_buffer is 0.5 (a rank's experts "
       "receive an equal share of the rows on average); use at least 1, or 0 for room in every "
       "case",
       1},
      {"rows that do not travel beside other work",
       kTiny,
       {"parallel.overlap_experts=required"},
       ExitCode::config,
       "argument 'parallel.overlap_experts=required': parallel.overlap_experts is required and "
       "parallel.expert is 1 (every rank has all experts, and no rows travel); use 2 or more, or "
       "set "
       "parallel.overlap_experts to auto",
       2},
      {"rows that travel with one sequence",
       kTiny,
       {"parallel.overlap_experts=required",
        "parallel.expert=2",
        "batch.micro_batch=1",
        "batch.global_batch=2"},
       ExitCode::config,
       "argument 'parallel.overlap_experts=required': parallel.overlap_experts is required and a "
       "step has 1 micro-batch on each rank (there is no other whose work could go on meanwhile); "
       "raise batch.global_batch 2, or set parallel.overlap_experts to auto",
       2},
      {"rows that travel without other work",
       kTiny,
       {"parallel.overlap_experts=required",
        "parallel.expert=2",
        "batch.micro_batch=4",
        "batch.global_batch=8"},
       ExitCode::config,
       "argument 'parallel.overlap_experts=required': parallel.overlap_experts is required and a "
       "step has 1 micro-batch on each rank (there is no other whose work could go on meanwhile); "
       "lower batch.micro_batch 4 or raise batch.global_batch 8, or set parallel.overlap_experts "
       "to "
       "auto",
       2},
      {"rows that travel at the turn of a V",
       kTiny,
       {"parallel.overlap_experts=required",
        "parallel.expert=2",
        "parallel.pipeline=2",
        "parallel.schedule=zbv",
        "model.num_layers=4",
        "batch.micro_batch=2",
        "batch.global_batch=8"},
       ExitCode::config,
       "argument 'parallel.overlap_experts=required': parallel.overlap_experts is required and "
       "parallel.schedule is zbv (where its V turns, a backward pass follows the forward pass of "
       "the same micro-batch, and no other fits between them); use interleaved, or set "
       "parallel.overlap_experts to auto",
       4},
      {"rows that travel where weights take turns",
       kTiny,
       {"parallel.overlap_experts=required",
        "parallel.expert=2",
        "parallel.zero=3",
        "batch.micro_batch=2",
        "batch.global_batch=8"},
       ExitCode::config,
       "argument 'parallel.overlap_experts=required': parallel.overlap_experts is required and "
       "parallel.zero is 3 (weights of two layers are whole at a time, and two passes need those "
       "of "
       "four); use at most 2, or set parallel.overlap_experts to auto",
       2},
      {"nothing of tensor ranks to travel",
       kTiny,
       {"parallel.overlap_tensor=required"},
       ExitCode::config,
       "argument 'parallel.overlap_tensor=required': parallel.overlap_tensor is required and "
       "parallel.tensor is 1 (every rank has all of a product, and nothing is gathered or summed "
       "beside it); use 2 or more, or set parallel.overlap_tensor to auto",
       2},
      {"head rows that are not aligned",
       kTiny,
       {"memory.head_rows=1020"},
       ExitCode::config,
       "argument 'memory.head_rows=1020': memory.head_rows 1020 is not a multiple of 8 (each run "
       "of "
       "tokens begins aligned); use 1024"},
      {"recomputed layers that are not there",
       kTiny,
       {"memory.recompute=geglu", "memory.recompute_layers=3"},
       ExitCode::config,
       "argument 'memory.recompute_layers=3': memory.recompute_layers 3 exceeds model.num_layers 2 "
       "(layers are counted from the first); use at most that, or 0 for all",
       1},
      {"recomputed layers of nothing",
       kTiny,
       {"memory.recompute=none", "memory.recompute_layers=1"},
       ExitCode::config,
       "argument 'memory.recompute_layers=1': memory.recompute_layers 1 has nothing to hold for "
       "(memory.recompute is none); leave it out, or say in memory.recompute what is computed "
       "again",
       1},
      {"recomputed layers of what is chosen later",
       kTiny,
       {"memory.recompute_layers=1"},
       ExitCode::config,
       "argument 'memory.recompute_layers=1': memory.recompute_layers 1 has nothing to hold for "
       "(memory.recompute is auto, which chooses the layers too); leave it out, or say in "
       "memory.recompute what is computed again",
       1},
      {"samples over ranks",
       kTiny,
       {"batch.global_batch=12", "batch.micro_batch=2"},
       ExitCode::config,
       "argument 'batch.global_batch=12': batch.global_batch 12 is not a multiple of the 8 samples "
       "that parallel.data 4 ranks take in micro-batches of 2 (every rank takes equally many); use "
       "8 or 16, or batch.micro_batch 1",
       4},
      {"ZeRO stage",
       kTiny,
       {"parallel.zero=4"},
       ExitCode::config,
       "argument 'parallel.zero=4': parallel.zero is 4 (it is between 0 and 3); use at most "
       "3"},
      {"no run directory",
       with("run:\n  dir: \"\"\n"),
       {},
       ExitCode::config,
       "tiny.yaml:11:8: run.dir is empty (checkpoints and metrics need a directory); name "
       "one, as in runs/tiny"},
      {"empty entry",
       with("data:\n  train: [\"LICENSE\", \"\"]\n"),
       {},
       ExitCode::config,
       "tiny.yaml:11:22: data.train[1] is empty (an entry is a file, a directory or a "
       "pattern); remove it"},
      {"validation from nothing",
       with("data:\n  held_out: 0\n"),
       {},
       ExitCode::config,
       "tiny.yaml:11:13: metrics.validate_every 200 has nothing to read (data.validation is "
       "empty and data.held_out is 0); give one of these, or set metrics.validate_every to 0"},
      {"run directory is a file",
       with("run:\n  dir: LICENSE\n"),
       {},
       ExitCode::config,
       "tiny.yaml:11:8: run.dir is LICENSE (" + here() +
           "/LICENSE is a file); name a directory, or a path that does not exist"},
      {"run directory below a file",
       kTiny,
       {"run.dir=LICENSE/a/b"},
       ExitCode::config,
       "argument 'run.dir=LICENSE/a/b': run.dir is LICENSE/a/b (" + here() +
           "/LICENSE is a file); name a directory, or a path that does not exist"},
      {"missing file",
       with("data:\n  train: [LICENSE, no/such.txt]\n"),
       {},
       ExitCode::data,
       "tiny.yaml:11:20: data.train[1] is no/such.txt (there is no such file, seen from " + here() +
           "); give a file, a directory or a pattern that exists"},
      {"missing validation file in an argument",
       kTiny,
       {"data.validation=[no/such.txt]"},
       ExitCode::data,
       "argument 'data.validation=[no/such.txt]': data.validation[0] is no/such.txt (there is no "
       "such file, seen from " +
           here() + "); give a file, a directory or a pattern that exists"},
      {"file as a directory",
       with("data:\n  train: [LICENSE/x]\n"),
       {},
       ExitCode::data,
       "tiny.yaml:11:11: data.train[0] is LICENSE/x (there is no such file, seen from " + here() +
           "); give a file, a directory or a pattern that exists"},
      {"pattern without a match",
       with("data:\n  train:\n    - \"*.nothing\"\n"),
       {},
       ExitCode::data,
       "tiny.yaml:12:7: data.train[0] is *.nothing (nothing matches it, seen from " + here() +
           "); give a file, a directory or a pattern that exists"},
      {"pattern at any depth without a match",
       with("data:\n  train: [csrc/**/*.nothing]\n"),
       {},
       ExitCode::data,
       "tiny.yaml:11:11: data.train[0] is csrc/**/*.nothing (nothing matches it, seen from " +
           here() + "); give a file, a directory or a pattern that exists"},
      {"address",
       with("data:\n  train: [\"s3://bucket/a.txt\"]\n"),
       {},
       ExitCode::data,
       "tiny.yaml:11:11: data.train[0] is s3://bucket/a.txt (an address is not read); download "
       "what "
       "it leads to, and name the file"},
      {"neither file nor directory",
       with("data:\n  train: [/dev/null]\n"),
       {},
       ExitCode::data,
       "tiny.yaml:11:11: data.train[0] is /dev/null (it is neither a file nor a directory); give "
       "one of these"},

  };
}

class BadCombinationTest : public testing::TestWithParam<test::BadConfig> {};

TEST_P(BadCombinationTest, IsRefused) {
  test::expect_refused(GetParam());
}

INSTANTIATE_TEST_SUITE_P(All,
                         BadCombinationTest,
                         testing::ValuesIn(bad_configs()),
                         test::case_name);

// Degrees that fold the ranks, and what is left of them for `data`.
TEST(Ranks, AreFolded) {
  struct Good {
    std::int64_t num_ranks;
    std::vector<std::string> overrides;
    std::int64_t data;
  };
  const std::vector<Good> table = {
      {1, {}, 1},
      {8, {"parallel.tensor=4", "parallel.expert=4", "parallel.expert_tensor=2"}, 2},
      {8, {"parallel.expert=2"}, 8},
      {8, {"parallel.pipeline=2", "parallel.tensor=2"}, 2},
      {2, {"parallel.pipeline=2", "parallel.schedule=zb-h1", "memory.recompute=block"}, 1},
      {16,
       {"parallel.pipeline=4",
        "parallel.schedule=zbv",
        "parallel.expert=2",
        "parallel.stages=[0, 1, 0, 0, 1, 0, 0, 0]"},
       4},
      {16, {"parallel.tensor=2", "parallel.data=8", "parallel.expert_tensor=16"}, 8},
      {100'000, {"parallel.tensor=4", "parallel.expert=4", "batch.global_batch=100000"}, 25'000},
  };
  for (const Good& good : table) {
    std::vector<std::string> overrides = {"batch.micro_batch=1"};
    overrides.insert(overrides.end(), good.overrides.begin(), good.overrides.end());
    const Config config =
        parse_config(test::kTiny, "tiny.yaml", overrides, Check::text, good.num_ranks);
    EXPECT_EQ(config.parallel.data, good.data) << good.num_ranks;
  }
}

TEST(DataFiles, RefusesWhatThisUserMayNotRead) {
  if (::geteuid() == 0) {
    GTEST_SKIP() << "root reads everything";
  }
  const test::TemporaryDirectory directory;
  const std::string file = directory.write("secret/a.txt", "text");
  const std::string parent = (directory.path() / "secret").string();
  ASSERT_EQ(::chmod(file.c_str(), 0), 0);
  EXPECT_EQ(test::error_text<DataError>(
                [&] { parse_config(kTiny, "tiny.yaml", {"data.train=[" + file + "]"}); }),
            "argument 'data.train=[" + file + "]': data.train[0] is " + file +
                " (this user may not read it); change its permissions");
  ASSERT_EQ(::chmod(parent.c_str(), 0), 0);
  EXPECT_EQ(test::error_text<DataError>(
                [&] { parse_config(kTiny, "tiny.yaml", {"data.train=[" + parent + "]"}); }),
            "argument 'data.train=[" + parent + "]': data.train[0] is " + parent +
                " (this user may not list it); change its permissions");
  ::chmod(parent.c_str(), 0700);
}

// Of each bound that two values share, the last that is taken and the first that is refused.
// What a run would leave out without a word is refused, and a config that was printed is not.
TEST(Requests, ThatSayNothingBesideTheOthersAreRefused) {
  struct Unused {
    std::vector<std::string> overrides;
    std::string message;
    std::string cure;  // with which it is taken
  };
  const std::vector<Unused> cases = {
      {{"model.init_std=0.05"},
       "argument 'model.init_std=0.05': model.init_std has nothing to be of (model.init is fan_in, "
       "which draws each matrix by its own width); leave it out, or set model.init to normal",
       "model.init=normal"},
      {{"schedule.decay_steps=7"},
       "argument 'schedule.decay_steps=7': schedule.decay_steps 7 has nothing to be of "
       "(schedule.decay is cosine, which decays from the warm-up on); leave it out, or set "
       "schedule.decay to wsd",
       "schedule.decay=wsd"},
      {{"schedule.min_ratio=0.5", "schedule.decay=constant"},
       "argument 'schedule.min_ratio=0.5': schedule.min_ratio has nothing to be of (schedule.decay "
       "is "
       "constant, and the last learning rate is the first); leave it out, or set schedule.decay to "
       "cosine or wsd",
       ""},
      {{"optimizer.rewind_norm=5", "checkpoint.every=0"},
       "argument 'optimizer.rewind_norm=5': optimizer.rewind_norm has nothing to be of "
       "(checkpoint.every is 0, and without checkpoints there is nothing to go back to); leave it "
       "out, or save some",
       ""},
      {{"data.field=body", "data.prompt_field=ask", "data.response_field=answer"},
       "argument 'data.field=body': data.field \"body\" has nothing to be of (data.prompt_field "
       "and "
       "data.response_field are read in its place); leave it out, or leave those out",
       ""}};
  for (const Unused& unused : cases) {
    const auto parse = [&](const std::vector<std::string>& overrides, Check check) {
      return parse_config(kTiny, "tiny.yaml", overrides, check);
    };
    const std::string text =
        test::error_text<ConfigError>([&] { parse(unused.overrides, Check::elsewhere); });
    EXPECT_EQ(text, unused.message);
    EXPECT_TRUE(test::follows_grammar(text)) << text;
    EXPECT_NO_THROW(parse(unused.overrides, Check::text)) << "a run had it, and is read";
    if (!unused.cure.empty()) {
      std::vector<std::string> cured = unused.overrides;
      cured.push_back(unused.cure);
      EXPECT_NO_THROW(parse(cured, Check::elsewhere)) << unused.cure;
    }
  }
  for (const std::vector<std::string>& printed : std::vector<std::vector<std::string>>{
           {}, {"schedule.decay=constant"}, {"schedule.decay=wsd"}}) {
    const std::string text = to_yaml(parse_config(kTiny, "tiny.yaml", printed, Check::elsewhere));
    EXPECT_NO_THROW(parse_config(text, "config.yaml", {"schedule.steps=90"}, Check::elsewhere));
  }
}

TEST(Combinations, AreTakenUpToTheirBounds) {
  struct Bound {
    std::vector<std::string> taken;
    std::vector<std::string> refused;
  };
  const std::vector<std::string> no_warmup = {"schedule.decay=wsd", "schedule.warmup_steps=40"};
  const auto decay = [&](const char* steps) {
    std::vector<std::string> overrides = no_warmup;
    overrides.push_back(steps);
    return overrides;
  };
  const std::vector<Bound> bounds = {
      {{"model.experts_per_token=4"}, {"model.experts_per_token=5"}},
      {{"model.vocab_size=259"}, {"model.vocab_size=258"}},
      {{"model.pad_id=511"}, {"model.pad_id=512"}},
      {{"model.attention_temperature_len=2"}, {"model.attention_temperature_len=1"}},
      {{"model.max_sequence_length=256"}, {"model.max_sequence_length=255"}},
      {{"schedule.warmup_steps=99"}, {"schedule.warmup_steps=100"}},
      {decay("schedule.decay_steps=60"), decay("schedule.decay_steps=61")},
  };
  for (const Bound& bound : bounds) {
    EXPECT_NO_THROW(parse_config(kTiny, "tiny.yaml", bound.taken, Check::text))
        << bound.taken.back();
    EXPECT_THROW(parse_config(kTiny, "tiny.yaml", bound.refused, Check::text), ConfigError)
        << bound.refused.back();
  }
}

TEST(DataFiles, TakesAPatternThatMatches) {
  const test::TemporaryDirectory directory;
  directory.write("a.txt", "text");
  const std::string pattern = (directory.path() / "*.txt").string();
  const Config config = parse_config(kTiny, "tiny.yaml", {"data.train=['" + pattern + "']"});
  EXPECT_EQ(config.data.train, std::vector<std::string>{pattern});
}

}  // namespace
}  // namespace memphis
