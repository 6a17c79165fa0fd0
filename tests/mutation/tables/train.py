# SPDX-License-Identifier: Apache-2.0
"""Faults in csrc/train."""
from table import planter

plant = planter("csrc")

EVALUATE = "train/evaluate.cpp"
GENERATOR = "train/generator.cpp"
STEP = "train/step.cpp"
REPORT = "train/communication_report.cpp"
GRAPHS = "train/step_graphs.cpp"
SAVE_TIMES = "train/save_times.cpp"

plant("train.step_token_scale", STEP, "scale by degree",
      ".token = 1.0F / static_cast<float>(std::max<std::int64_t>(counts.valid_tokens, 1)),", ".token = 1.0F / static_cast<float>(config_.batch.micro_batch * config_.batch.sequence_length),",
      "the z loss adds up over micro-batches")
plant("train.scalars_of_first_step", STEP, "missing step",
      "  place.scalars.copy_rates(stream_);\n",
      "  if (static int copies = 0; copies++ == 0) {\n    place.scalars.copy_rates(stream_);\n  }\n",
      "later steps have the learning rate of the first")
plant("train.read_after_update", STEP, "order",
      "  if (is_before) {\n    read(places_[before]);\n  }\n", "",
      "a step that is read late is counted by the optimizer though it was left out")
plant("train.one_place", STEP, "index",
      "num_under_way_ == 0 ? newest_ : (newest_ + 1) % kStepsUnderWay;", "newest_;",
      "a step is prepared over what the one before has still to report")
plant("train.oldest_place", STEP, "index",
      "num_under_way_ == 1 ? newest_ : (newest_ + 1) % kStepsUnderWay]", "newest_]",
      "of two steps under way the later one is finished first")
plant("train.samples_of_all", STEP, "group",
      "  for (const int rank : sample_ranks_) {",
      "  for (int rank = 0; rank < groups_.all_host().size(); ++rank) {",
      "targets are counted once for each rank that shares a sample")
plant("train.first_micro_batch", STEP, "off by one",
      "      slot,\n      reduction_.weight_gradient(index == 0),",
      "      slot,\n      reduction_.weight_gradient(index <= 1),",
      "the second micro-batch of a step writes over the first")
plant("train.first_of_pairs", STEP, "off by one",
      "nullptr,\n      reduction_.weight_gradient(index == 0),",
      "nullptr,\n      reduction_.weight_gradient(index <= 1),",
      "the second micro-batch of a step writes over the first where passes are paired")
plant("train.pair_pending", STEP, "condition",
      "backward.kind == ActionKind::backward_inputs ? &pending_of(backward) : nullptr,",
      "nullptr,",
      "gradients of weights are formed twice where a backward pass in parts is paired")
plant("train.validation_stride", EVALUATE, "scale by degree",
      "micro_batch_ * plan.share.data.count)),", "micro_batch_)),",
      "ranks along data validate windows twice")
plant("train.validation_clear", EVALUATE, "initial value",
      "  clear();\n  Progress", "  Progress",
      "the validation loss begins with that of the step")
plant("train.generate_seed", GENERATOR, "seed",
      "CounterRng(options.seed, index == 0", "CounterRng(0, index == 0",
      "the seed of a sample does not count")
plant("train.bubble_is_exposed", REPORT, "value",
      "std::max<std::int64_t>(0, end.wait_end - std::max(end.wait_begin, ready))", "end.wait_end - end.wait_begin",
      "waiting for a message that is not made is taken for communication")
plant("train.message_without_place", REPORT, "value",
      "const std::int64_t ready = std::max(sender.started, receiver->started);", "const std::int64_t ready = sender.started;",
      "a message that has no place to arrive in is under way")
plant("train.gradient_goes_back", REPORT, "sign",
      "kind == MessageKind::activation ? 1 : -1;", "1;",
      "gradients are told of the next boundary")
plant("train.worst_rank", REPORT, "value",
      "std::max(sum.worst_exposed_seconds, row.worst_exposed_seconds)", "row.worst_exposed_seconds",
      "the last rank is taken for the worst")
plant("train.rates_after_launch", STEP, "order",
      "  place.scalars.set(StepScalar::rates, {rate, m_correction, v_correction});\n  const std::int64_t more_nodes = update(place);\n",
      "  const std::int64_t more_nodes = update(place);\n  place.scalars.set(StepScalar::rates, {rate, m_correction, v_correction});\n",
      "a step has the learning rate of the one before")
plant("train.graph_is_not_launched", GRAPHS, "missing step",
      "    found->graph.emplace(*std::move(graph));\n  }\n", "    found->graph.emplace(*std::move(graph));\n    return found->graph->num_nodes();\n  }\n",
      "the step that is recorded is not done")
plant("train.graph_without_memory_is_left_out", GRAPHS, "missing step",
      "    if (!graph) {\n      enqueue();\n", "    if (!graph) {\n",
      "a step for whose graph there is no memory is not done")
plant("train.graph_without_memory_is_tried_again", GRAPHS, "condition",
      "  if (!have_room_) {\n    return std::nullopt;", "  if (false) {\n    return std::nullopt;",
      "each step is enqueued twice, once for a graph that never comes to be")
plant("train.graph_that_is_required_is_not_there", GRAPHS, "condition",
      "if (choice_ == GraphChoice::required) {", "if (choice_ == GraphChoice::never) {",
      "graphs that are required are given up in silence")
plant("train.graph_of_other_padding", GRAPHS, "condition",
      "return each.padding == padding;", "return each.padding.size() == padding.size();",
      "a step with padding is launched as one without")
plant("train.graph_of_first_step", GRAPHS, "condition",
      "    enqueue();\n    if (recorded_.size()", "    if (recorded_.empty()) {\n      enqueue();\n    }\n    if (recorded_.size()",
      "the first step of a later kind is not done")
plant("train.graph_of_ranks", GRAPHS, "condition",
      "if (num_ranks > 1) {", "if (num_ranks > 2) {",
      "the steps of two ranks are recorded")

# ---- models into a run and out of it

TRAINER = "train/trainer.cpp"
SAVES = "train/run_saves.cpp"
REPORTS = "train/run_reports.cpp"

plant("train.init_model", "train/initial_weights.cpp", "condition",
      "  if (!what.empty()) {\n    throw ConfigError(fmt::format(\n        \"run.init_from",
      "  if (false) {\n    throw ConfigError(fmt::format(\n        \"run.init_from",
      "weights run under arithmetic other than their own")
plant("train.init_checkpoint_wins", TRAINER, "condition",
      "    initial = open_initial_weights(config_, dataset_.tokenizer.get(), groups_.all_host());\n  }",
      "  }\n  initial = open_initial_weights(config_, dataset_.tokenizer.get(), groups_.all_host());",
      "a folder that a run no longer needs is opened")
plant("train.export_goes_on", SAVES, "condition",
      "  } catch (const Error& error) {\n    if (!is_of_files(error)) {",
      "  } catch (const Error& error) {\n    if (is_of_files(error)) {",
      "an export that fails ends the run")
plant("train.export_owed", TRAINER, "missing call",
      "  export_model();  // where an earlier process was stopped before it\n", "",
      "an export is left out where the run was stopped before it")

# ---- text with keys and values kept

plant("train.cache_known", GENERATOR, "condition",
      "std::min(static_cast<std::size_t>(same - window.begin()), window.size() - 1);",
      "std::min(held.size(), window.size() - 1);",
      "what another text had in its place is taken for known")
plant("train.cache_pads", GENERATOR, "missing call",
      "    cache_.mark_valid(static_cast<std::int64_t>(i), static_cast<std::int64_t>(known), valid);\n", "",
      "later tokens attend to pads that were kept")
plant("train.cache_place", GENERATOR, "index",
      "static_cast<std::int32_t>(cached.begin[index] + std::min(s, last));",
      "static_cast<std::int32_t>(std::min(s, last));",
      "tokens that go on with a sequence stand at its beginning")
plant("train.draw_top_p", GENERATOR, "bound",
      "if (options.top_p < 1 && held >= enough && held > 0) {",
      "if (options.top_p < 1 && held > 0) {",
      "top_p leaves the most probable token alone")
plant("train.draw_penalty", GENERATOR, "sign",
      "logits[index] > 0 ? logits[index] / penalty : logits[index] * penalty;",
      "logits[index] / penalty;",
      "tokens of negative logits that have come before become more probable")
# ---- questions

QUESTIONS = "train/question_evaluator.cpp"

plant("train.questions_tensor", QUESTIONS, "condition",
      "if (!has_head_ || plan_.share.tensor.index != 0) {", "if (!has_head_) {",
      "ranks along tensor count losses once each")
plant("train.questions_place", QUESTIONS, "index",
      "samples_.place(static_cast<std::int64_t>(i))", "static_cast<std::int64_t>(i)",
      "ranks along data put their losses where the first one's belong")
plant("train.questions_owed", REPORTS, "value",
      "(due_now.evaluation && !lines.evaluation ? kEvaluation : 0)", "0",
      "an evaluation that a run was stopped before is left out")
# ---- routing, telemetry, event files

plant("train.collapse_looks", "train/routing.cpp", "condition",
      "if (++looks == kLooks) {", "if (++looks >= kLooks) {",
      "a collapsed router is warned of at each look")
plant("train.course_stretch", "train/gpu_telemetry.cpp", "missing step",
      "  joules_at_ = telemetry_.read(now).joules;\n  at_ = now;\n", "  at_ = now;\n",
      "the energy between two stretches is drawn in the second")
plant("train.course_median", "train/gpu_telemetry.cpp", "index",
      "static_cast<std::ptrdiff_t>(sorted.size() / 2);", "static_cast<std::ptrdiff_t>(0);",
      "one reading of an idle clock is the clock of all steps")
plant("train.counter_backwards", "train/gpu_telemetry.cpp", "condition",
      "if (counter && counter_ && *counter >= *counter_) {", "if (counter && counter_) {",
      "energy after the driver was loaded again is nonsense")
plant("train.starts_stay", "train/metrics.cpp", "condition",
      'object.contains("end")) {', "false) {",
      "why an earlier process ended is forgotten")
plant("train.export_tokenizer", "train/run_tokenizer.cpp", "dropped line",
      '    exported.contents[file.name] = file.content;\n', "",
      "the export of a run is without its tokenizer")

# ---- steps that are left out, runs that go back, saves that fail

plant("train.skipped_counts", "train/step.cpp", "index",
      "place.step - skipped_.steps);", "place.step);",
      "the optimizer counts steps that were left out")
plant("train.skipped_for_ever", "train/step.cpp", "condition",
      "Skipped{.steps = skipped_.steps, .in_a_row = 0};",
      "Skipped{.steps = skipped_.steps, .in_a_row = skipped_.in_a_row};",
      "steps that were left out now and then end the run")
plant("train.rewind_same_samples", TRAINER, "missing call",
      "  passed_over_.insert(samples);\n", "",
      "a run goes back to the samples that it has just gone back for")
plant("train.rewind_keeps_lines", TRAINER, "missing call",
      "      reports_->open(step_);\n      return false;\n", "      return false;\n",
      "metrics have steps twice that were done again")
plant("train.forgiving", SAVES, "condition",
      "++failed_saves_ > allowed", "++failed_saves_ >= allowed",
      "one failed save less is forgiven than was asked for")
plant("train.interval_of_first_save", SAVE_TIMES, "missing step",
      "kPast * cost_seconds_ + (1 - kPast) * cost", "cost_seconds_",
      "saves go on as often on a disk that has become slow")
plant("train.none_is_slurms", SAVE_TIMES, "condition",
      "if (limit == 0 || job_end.empty())", "if (job_end.empty())",
      "run.time_limit: none stops at Slurm's end")
plant("train.later_end", SAVE_TIMES, "comparison",
      "if (!end || at < end->at)", "if (!end)",
      "Slurm ends a job before its own limit, unsaved")
plant("train.no_time_to_save", SAVE_TIMES, "missing term",
      "step_seconds_ + 2 * save_seconds_ + kEndSeconds", "step_seconds_ + kEndSeconds",
      "the job ends while it saves")
plant("train.shortest_save", SAVE_TIMES, "comparison",
      "measured_ ? std::max(save_seconds_, seconds) : seconds", "seconds",
      "a save that was quick by chance is planned with")

REPLICAS = "train/replica_check.cpp"
plant("train.replica_of_half", REPLICAS, "comparison",
      "2 * votes[group][hash] <= sizes[group]", "2 * votes[group][hash] < sizes[group]",
      "of two ranks that differ none is named")
plant("train.replica_groups", REPLICAS, "index",
      "own[2 * i] = mesh_.group(axis, all.rank()).first;", "own[2 * i] = 0;",
      "ranks that hold other parts of the model are called dissenters")
plant("train.replica_segments", REPLICAS, "condition",
      "segments[i].replicas == axis) {", "segments[i].replicas == axis && axis == Axis::data_context) {",
      "experts and norms are not compared")
plant("train.first_piece_again", "train/host_pieces.h", "operand",
      "static_cast<const std::byte*>(view.data) + first * size,", "static_cast<const std::byte*>(view.data),",
      "of a GPU's tensors the first 16 MiB alone are compared")
plant("train.piece_on_piece", "train/host_pieces.h", "operand",
      "        send(first + most, 1 - slot);", "        send(first + most, slot);",
      "what comes from a GPU next is written over what is being compared")
plant("train.chunks_of_one", "checkpoint/chunked_checksum.cpp", "index",
      "checksum.update(bytes.subspan(begin, count));", "checksum.update(bytes.first(count));",
      "of each array the first MiB alone is compared")
plant("train.rounded_alike", "core/rounding.cpp", "operand",
      "different |= static_cast", "different = static_cast",
      "of weights and their masters the last ones alone are compared")
SEAL = "train/state_seal.cpp"
plant("train.seal_moments", SEAL, "missing term",
      "hash_of({state.m_n, state.v_n})", "hash_of({state.m_n})",
      "a bit that flips in second moments is not seen")
plant("train.seal_master", SEAL, "value",
      "    if (state.owns_master) {\n", "    if (false) {\n",
      "a bit that flips in master weights is not seen between two steps")
plant("train.seal_in_turn", SEAL, "operand",
      ".place ? parameters_.owned_weights(segment)\n                                                    : parameters_.segment_weights(segment);",
      ".place ? parameters_.segment_weights(segment)\n                                                    : parameters_.segment_weights(segment);",
      "what lies in a place that layers take in turn is taken for a rank's own")
plant("train.seal_last_segment", SEAL, "value",
      "  findings_ |= differences(segment);", "  findings_ = differences(segment);",
      "of what a step finds, what the last segment has is told")
plant("train.seal_rounding", SEAL, "condition",
      "    parts |= rounded ? 0U : kRounding;\n", "",
      "weights that are not their master's go unseen")
plant("train.seal_of_nothing", "train/state_seal.h", "missing condition",
      "return checked_ || (taken_ && seals_.empty());", "return checked_;",
      "a rank without layers leaves out what the others exchange about theirs")
plant("train.seal_order", "optim/optimizer.cpp", "order",
      "    for (UpdateGate* const gate : gates_) {", "    for (UpdateGate* const gate : std::vector(gates_.begin(), gates_.begin() + (gates_.empty() ? 0 : 1))) {",
      "beside a snapshot the optimizer asks no second reader")
plant("train.seal_after_step", TRAINER, "missing step",
      "  replica_check_->require_kept(ReplicaCheck::Since::before_step);\n", "",
      "what a step found changed is not said")
plant("train.seal_before_save", TRAINER, "missing step",
      "    replica_check_->require_kept(ReplicaCheck::Since::compared);\n", "",
      "what changed between the comparison and the save is saved")
plant("train.loss_window_order", "train/loss_watch.cpp", "index",
      "losses.push_back(recent[i % kWindow]);", "losses.push_back(recent[kWindow - 1 - i % kWindow]);",
      "after a resume the wrong losses leave the window first")
plant("train.loss_calm", "train/weight_health.cpp", "missing call",
      "  losses.set_window(manifest.loss_window);\n", "",
      "jobs of few steps have no level of the loss")
plant("train.verify_before_save", TRAINER, "missing step",
      "  if (config_.run.verify_every > 0) {\n    verify_replicas();\n  }\n  world_.activity().enter(\"saving a checkpoint\");",
      "  world_.activity().enter(\"saving a checkpoint\");",
      "weights that differ between ranks are saved")
plant("train.verify_when_due", TRAINER, "missing step",
      "  if (due(step_, config_.run.verify_every)) {\n    verify_replicas();\n  }\n", "",
      "weights are compared before saves alone")
plant("train.repeat_adds", STEP, "value",
      "run(action, slot, kernels::WeightGradient::write, nullptr);", "run(action, slot, kernels::WeightGradient::add, nullptr);",
      "the second computation adds to the first, and every machine is called broken")
plant("train.repeat_of_one", REPLICAS, "value",
      "first != second ? 1 : 0", "0",
      "a machine that computes something else each time is well")
plant("train.outlier_of_spread", "train/outliers.cpp", "missing term",
      "std::max(kDeviations * spread.deviation, least_share * spread.median)", "least_share * spread.median",
      "of two ranks one is called slow by the other")
plant("train.slow_at_once", "train/slow_rank_watch.cpp", "value",
      "looks_[rank] = is_slow ? looks_[rank] + 1 : 0;", "looks_[rank] = is_slow ? looks_[rank] + 3 : 0;",
      "one slow step is a slow rank")
plant("train.interval_while_saving", "train/save_times.cpp", "missing condition",
      "  if (seconds_ == 0) {\n    begun_at_.reset();\n  }\n", "  begun_at_.reset();\n",
      "a disk that is full is written to at every step")
plant("train.init_tokenizer", "train/initial_weights.cpp", "condition",
      "ids_of_sample(*theirs) == ids_of_sample(own)", "theirs->kind() == own.kind()",
      "weights of another tokenizer of the kind are trained on without a word")

plant("train.resume_products", "train/resume.cpp", "condition",
      "chosen.manifest.products != products", "chosen.manifest.products == products",
      "a resume does not say that sums are rounded in another order, or says it where they are not")
plant("train.rehearsal", STEP, "condition",
      "!std::exchange(has_rehearsed_, true)", "std::exchange(has_rehearsed_, true)",
      "a pipeline waits for itself in its first step, and does two steps' work in each later one")
plant("train.rehearsed_validation", EVALUATE, "condition",
      "!std::exchange(has_run_, true)", "std::exchange(has_run_, true)",
      "a pipeline that owes a validation when it starts waits for itself")
