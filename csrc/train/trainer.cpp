// SPDX-License-Identifier: Apache-2.0
#include "csrc/train/trainer.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <filesystem>
#include <utility>

#include <spdlog/fmt/fmt.h>

#include "csrc/checkpoint/model_state.h"
#include "csrc/checkpoint/store.h"
#include "csrc/comm/solo.h"
#include "csrc/comm/together.h"
#include "csrc/config/load.h"
#include "csrc/core/error.h"
#include "csrc/core/file.h"
#include "csrc/core/log.h"
#include "csrc/data/kept_tokenizer.h"
#include "csrc/train/agreement.h"
#include "csrc/train/due.h"
#include "csrc/train/initial_weights.h"
#include "csrc/train/run_directory.h"
#include "csrc/train/trace_file.h"
#include "kernels/matmul/matmul.h"

namespace memphis {
namespace {

// Why a run is to stop, beside numbers of signals: its time is up, or there are metrics that the first
// rank cannot write.
constexpr std::int64_t kReportFailed = 1 << 20;
constexpr std::int64_t kTimeIsUp = 1 << 19;

TrainStep::Skipped skipped_until(const Manifest& manifest) {
  return {.steps = manifest.skipped_steps, .in_a_row = manifest.skipped_in_a_row};
}

}  // namespace

Trainer::Trainer(const Config& config, const std::vector<std::string>& default_roots)
    : Trainer(config, default_roots, make_solo_world()) {}

Trainer::Trainer(const Config& config,
                 const std::vector<std::string>& default_roots,
                 std::unique_ptr<World> own_world)
    : Trainer(config, default_roots, *own_world) {
  own_world_ = std::move(own_world);
}

Trainer::Trainer(const Config& config, const std::vector<std::string>& default_roots, World& world)
    : Trainer(config, default_roots, world, create_group_of_all(world)) {}

Trainer::Trainer(const Config& config,
                 const std::vector<std::string>& default_roots,
                 World& world,
                 std::unique_ptr<Communicator> all)
    : world_(world),
      config_(agreed_config(config, world, *all)),
      device_(take_device(config_.run, world, *all)),
      products_(take_products(device_, *all)),
      mesh_(config.parallel, world.size()),
      compute_(resolve_compute(config.precision.compute, device_)),
      graphs_(uses_graphs(config_, device_, world.size())),
      free_before_groups_(free_before_groups(device_)),
      groups_(world, mesh_, config_.model, device_, std::move(all)),
      leads_(world.rank() == 0),
      dataset_(open_text(config_, default_roots, groups_.all_host())),
      stream_(device_),
      plan_(
          agreed_plan(config_, compute_, device_, free_before_groups_, mesh_, groups_.all_host())),
      rotation_(
          config_.run.dir,
          [this](const Manifest& manifest) {
            return is_of_run(
                manifest, config_, compute_, device_, validation_fingerprint(config_, dataset_));
          }),
      health_(config_, rotation_, groups_.all_host()) {
  if (leads_) {
    log_info("{} parameters on device {} ({}), compute {}, ranks {}",
             plan_.parameters.num_parameters,
             name_of(device_),
             device_info(device_).name,
             name_of(compute_),
             mesh_.num_ranks());
    log_info("memory plan of a rank:\n{}  computed again in the backward pass: {}\n  {}{}{}",
             format_memory_table(plan_.memory),
             describe(plan_.activations.recompute, config_.model.num_layers),
             describe_saves(plan_, config_.checkpoint),
             plan_.dims.exchange_rows ? "\n  " + describe_expert_overlap(plan_, config_) : "",
             plan_.dims.tensor_parallel ? "\n  " + describe_tensor_overlap(plan_) : "");
  }
  // First: the plan counts its workspace, and not what else the library takes of the GPU.
  kernels::open_matmul_library(device_, groups_.receiving_multiprocessors());
  require_memory(plan_.memory, config_, compute_, device_, free_before_groups_, groups_.all_host());
  if (plan_.dims.key_exchange != ContextExchange::gather) {
    groups_.connect_context();
  }
  together(groups_.all_host(), "checkpoint.newest", [&] {
    newest_step_ = leads_ ? newest_step(config_.run.dir) : -1;
  });
  await_run_directory(config_.run, groups_.all_host());
  const std::optional<Chosen> found = agree_on_checkpoint(config_.run, groups_.all_host());
  std::optional<StoredWeights> initial;
  if (found) {
    go_on_from(*found);  // or not: before anything is touched
    if (leads_ && !config_.run.init_from.empty()) {
      log_info("run.init_from {} is not read: the weights are those of {}",
               config_.run.init_from,
               found->path.string());
    }
  } else {
    // Of a run that goes on they are as it began with, and may not change.
    together(groups_.all_host(), "data.fields", [&] {
      require_fields_used(config_.data, dataset_.has_lines);
    });
    initial = open_initial_weights(config_, dataset_.tokenizer.get(), groups_.all_host());
  }

  training_loader_.emplace(
      dataset_.sources,
      config_.batch.sequence_length,
      static_cast<std::uint64_t>(config_.run.seed),
      config_.data.document_boundaries ? Boundaries::kept : Boundaries::ignored);
  parameters_.emplace(plan_.parameters, compute_, device_, Parameters::Gradients::allocate);
  residency_.emplace(*parameters_, groups_, stream());
  activations_arena_.emplace("activations", plan_.activations.activation_bytes(), device_);
  workspace_arena_.emplace(
      "workspace", plan_.activations.workspace_bytes() + plan_.messages.bytes(), device_);
  activations_ = allocate_activations(plan_.activations, *activations_arena_, *workspace_arena_);
  slots_ = make_slots(activations_, plan_.dims, device_);
  model_.emplace(config_.model, plan_.dims, groups_, *residency_, activations_, stream());
  pipeline_.emplace(plan_.messages,
                    plan_.activations,
                    groups_,
                    slots_,
                    model_->dhidden_TD(),
                    *workspace_arena_,
                    stream());
  optimizer_.emplace(config_.optimizer, *residency_, groups_, plan_.norms);
  const auto require_run_dir = [this] { require_held(); };
  saves_.emplace(RunSaves::Of{.config = config_,
                              .plan = plan_,
                              .compute = compute_,
                              .groups = groups_,
                              .residency = *residency_,
                              .optimizer = *optimizer_,
                              .tokenizer = dataset_.tokenizer.get(),
                              .rotation = rotation_,
                              .health = health_,
                              .require_run_dir = require_run_dir,
                              .stream = stream()});
  if (found) {
    saves_->go_on_from(step_);
  }
  train_step_.emplace(config_,
                      plan_,
                      mesh_,
                      groups_,
                      *model_,
                      *pipeline_,
                      *parameters_,
                      *optimizer_,
                      *training_loader_,
                      graphs_,
                      stream());
  replica_check_.emplace(
      mesh_, groups_, *parameters_, *optimizer_, plan_.memory.host.comparison_bytes, stream());
  reports_.emplace(RunReports::Of{.config = config_,
                                  .plan = plan_,
                                  .mesh = mesh_,
                                  .device = device_,
                                  .compute = compute_,
                                  .world = world_,
                                  .groups = groups_,
                                  .dataset = dataset_,
                                  .loader = *training_loader_,
                                  .model = *model_,
                                  .pipeline = *pipeline_,
                                  .residency = *residency_,
                                  .train_step = *train_step_,
                                  .health = health_,
                                  .require_run_dir = require_run_dir,
                                  .stream = stream()});

  if (found) {
    train_step_->set_skipped(skipped_until(found->manifest));
    load_checkpoint(
        found->path, found->writer(), config_.model, *residency_, *optimizer_, groups_, stream());
  } else if (initial) {
    load_initial_weights(*initial, *residency_, *optimizer_, groups_, stream());
    if (leads_) {
      log_info("the weights are those of {}", initial->folder().string());
    }
  } else {
    parameters_->initialise(static_cast<std::uint64_t>(config_.run.seed), stream());
    optimizer_->copy_weights_to_master(stream());
  }
  optimizer_->copy_tied_embedding(stream());
}

void Trainer::go_on_from(const Chosen& chosen) {
  const Resumption resumption =
      compare_with_checkpoint(chosen, config_, compute_, products_, &dataset_, groups_.all_host());
  together(groups_.all_host(), "checkpoint.compare", [&] { require_same_run(chosen, resumption); });
  step_ = chosen.manifest.step;
  samples_ = resumption.samples;
  health_.go_on_from(chosen.manifest);
  if (!leads_ || train_step_) {
    return;  // a run that goes back has said it all
  }
  for (const std::string& line : resumption.said) {
    log_warning("{}", line);
  }
  health_.warn_of(chosen.path.string());
}

void Trainer::pass_over() {
  while (passed_over_.contains(samples_)) {
    samples_ += static_cast<std::uint64_t>(config_.batch.global_batch);
  }
}

StepResult Trainer::step(const std::function<void()>& while_at_work) {
  pass_over();
  train_step_->prepare(step_ + 1, samples_, {});
  launch();
  if (while_at_work) {
    while_at_work();
  }
  return finish();
}

// Whoever reads a step finds out that it diverged, which leaves the run at the step before it.
template <class Reads>
auto Trainer::reading(const Reads& reads) {
  try {
    return reads();
  } catch (const DivergedError&) {
    step_ = under_way_.front().step - 1;
    samples_ = under_way_.front().samples_before;
    under_way_.clear();
    throw;
  }
}

void Trainer::launch() {
  const std::uint64_t samples_before = samples_;
  reading([&] { train_step_->launch(); });
  replica_check_->require_kept(ReplicaCheck::Since::before_step);
  ++step_;
  samples_ += static_cast<std::uint64_t>(config_.batch.global_batch);
  under_way_.push_back({.step = step_, .samples_before = samples_before, .samples = samples_});
}

StepResult Trainer::finish() {
  const StepResult result = reading([&] { return train_step_->finish(); });
  under_way_.erase(under_way_.begin());
  return result;
}

// What follows the step looks at the weights or at what it reports, or its numbers decide of the next
// one: which samples that takes, after a rewind.
bool Trainer::is_read_at_once(std::int64_t step) const {
  const RunConfig& run = config_.run;
  return step == config_.schedule.steps || due(step, config_.metrics.every) ||
         reports_->due_after(step).any() || due(step, run.verify_every) ||
         due(step, run.recompute_check_every) || saves_->export_is_due(step) ||
         config_.optimizer.rewind_norm > 0 ||
         world_.activity().gpu_spans() != nullptr;  // which are of one step
}

void Trainer::verify_replicas() {
  world_.activity().enter("comparing weights");
  residency_->await_all();
  if (verified_step_ == step_) {
    replica_check_->require_kept(ReplicaCheck::Since::compared);
    return;
  }
  replica_check_->compare();
  verified_step_ = step_;
}

void Trainer::check_repeats() {
  residency_->await_all();
  std::array<std::uint64_t, 2> hashes{};
  for (std::uint64_t& hash : hashes) {
    train_step_->differentiate_again();
    hash = replica_check_->hash_of_gradients();
  }
  replica_check_->require_repeated(hashes[0], hashes[1]);
}

double Trainer::validation_loss() {
  require(!dataset_.validation.empty(), "a run without validation data has no validation loss");
  return reports_->evaluator().run(0).value().loss;
}

std::unique_ptr<RunLock> Trainer::prepare_run_directory() const {
  std::unique_ptr<RunLock> lock;
  const std::uint64_t bytes = saves_->num_bytes();
  together(groups_.all_host(), "run.dir", [&] {
    if (!leads_) {
      return;
    }
    const std::filesystem::path dir = config_.run.dir;
    if (const int error = make_directories(dir); error != 0) {
      throw PreflightError("cannot create run.dir " + dir.string() + " (" + system_reason(error) +
                           "); choose another run.dir or fix permissions");
    }
    lock = std::make_unique<RunLock>(dir);
    const std::int64_t newest = newest_step(dir);
    if (newest > std::max(newest_step_, saves_->saved_step())) {
      throw PreflightError(
          fmt::format("run.dir {} has gone on to step {} (another job has used it since this one "
                      "read it); start this one again",
                      dir.string(),
                      newest));
    }
    require_space(dir, bytes);
    require_own_files(dir);
    remove_unfinished(dir);
    remove_left_files(dir);
    if (saves_->saved_step() < 0) {
      note_nothing_saved(dir);
    } else {
      remove_nothing_saved(dir);
    }
    write_run_config(dir, config_);
    keep_tokenizer(dir, dataset_.tokenizer.get());
  });
  together(groups_.all_host(), "run.dir.shared", [&] { require_shared(config_.run.dir); });
  return lock;
}

void Trainer::require_held() const {
  if (const auto lock = lock_.lock()) {
    lock->require_held();
  }
}

void Trainer::require_run_directory() const {
  together(groups_.all_host(), "run.dir.held", [&] { require_held(); });
}

Manifest Trainer::describe_state() const {
  Manifest manifest;
  manifest.samples = static_cast<std::int64_t>(samples_);
  manifest.seed = config_.run.seed;
  manifest.dataset_fingerprint = dataset_.fingerprint;
  manifest.tokenizer_fingerprint =
      dataset_.tokenizer ? dataset_.tokenizer->fingerprint() : std::string("none");
  manifest.validation_fingerprint = validation_fingerprint(config_, dataset_);
  health_.describe(step_, manifest);
  manifest.skipped_steps = train_step_->skipped().steps;
  manifest.skipped_in_a_row = train_step_->skipped().in_a_row;
  manifest.products = products_;
  manifest.config = to_yaml(config_);
  return manifest;
}

void Trainer::save(Save how) {
  require_run_directory();
  if (saves_->has(step_)) {
    if (how == Save::now) {
      saves_->finish_or_throw();
    }
    return;
  }
  if (config_.run.verify_every > 0) {
    verify_replicas();
  }
  world_.activity().enter("saving a checkpoint");
  if (how == Save::now) {
    saves_->save(step_, describe_state());
  } else {
    saves_->begin(step_, describe_state());
    require_run_directory();  // which is no failure to be forgiven
  }
}

void Trainer::export_model() {
  if (!saves_->owes_export(step_)) {
    return;
  }
  require_run_directory();
  if (config_.run.verify_every > 0) {
    verify_replicas();
  }
  saves_->export_model(step_);
}

void Trainer::watching(const std::function<void()>& reads) {
  try {
    reads();
  } catch (const DivergedError& error) {
    saves_->give_up();
    if (!leads_) {
      throw;
    }
    throw health_.with_way_back(error, step_);
  }
}

bool Trainer::is_spike(const StepResult& result) const {
  return config_.optimizer.rewind_norm > 0 && !result.skipped &&
         result.grad_norm > config_.optimizer.rewind_norm;
}

// Everything in it follows from the samples and from what the checkpoint has, so that a run which is
// killed and started again decides alike.
bool Trainer::rewind(std::uint64_t samples, const StepResult& result) {
  saves_->finish();
  const std::int64_t spike = step_;
  const std::string what =
      fmt::format("step {} has a gradient of norm {:.4g}, above optimizer.rewind_norm {:.4g}",
                  spike,
                  result.grad_norm,
                  config_.optimizer.rewind_norm);
  if (saves_->saved_step() < 0) {
    if (leads_) {
      log_warning("{}, and nothing is saved yet to go back to: training goes on", what);
    }
    return false;
  }
  RunConfig run = config_.run;
  run.resume = Resume::required;
  const Chosen chosen = agree_on_checkpoint(run, groups_.all_host()).value();
  num_rewinds_ = chosen.manifest.step == rewound_to_ ? num_rewinds_ + 1 : 1;
  rewound_to_ = chosen.manifest.step;
  if (num_rewinds_ > config_.optimizer.max_rewinds) {
    throw DivergedError(fmt::format(
        "{} (the run went back to step {} {} times, as often as optimizer.max_rewinds allows); {}",
        what,
        rewound_to_,
        config_.optimizer.max_rewinds,
        leads_ ? health_.way_back(spike) : std::string()));
  }
  world_.activity().enter("going back to a checkpoint");
  passed_over_.insert(samples);
  replica_check_->forget();
  go_on_from(chosen);
  saves_->go_on_from(step_);
  load_checkpoint(
      chosen.path, chosen.writer(), config_.model, *residency_, *optimizer_, groups_, stream());
  optimizer_->copy_tied_embedding(stream());
  train_step_->set_skipped(skipped_until(chosen.manifest));
  verified_step_ = -1;  // what a step left before says nothing of what it leaves again
  reports_->go_back(samples_);
  if (leads_) {
    log_warning("{}: back to {}; samples {} to {} are passed over",
                what,
                chosen.path.string(),
                samples,
                samples + static_cast<std::uint64_t>(config_.batch.global_batch) - 1);
  }
  return true;
}

void Trainer::run() {
  const std::int64_t last_step = config_.schedule.steps;
  const RunReports::Owed owed = reports_->find_owed(step_);
  if (step_ >= last_step && !owed.any() && !saves_->owes_export(step_)) {
    if (!leads_) {
      return;
    }
    log_info("nothing to do: {} has step {} and schedule.steps is {}",
             config_.run.dir,
             step_,
             last_step);
    return;
  }
  const std::shared_ptr<const RunLock> lock = prepare_run_directory();
  lock_ = lock;
  if (config_.metrics.trace) {
    world_.activity().start_trace();
    time_communication();
  }
  try {
    train(owed);
  } catch (const Error& error) {
    saves_->abandon();  // before another job may have the directory
    if (error.code() == ExitCode::preempted) {
      try {
        write_trace();  // all ranks are here
      } catch (const FailedElsewhere&) {
        // That rank says so.
      } catch (const DataError& untraced) {
        log_error("memphis: {}", untraced.what());  // which is no reason not to start again
      }
    }
    throw;
  } catch (...) {
    saves_->abandon();
    throw;
  }
  write_trace();
}

void Trainer::saving_if_text_is_lost(const std::function<void()>& work,
                                     const std::function<void()>& settle) {
  try {
    work();
  } catch (const Error& error) {
    // All ranks are here, at the same step; the weights are those of the last one that is whole.
    if (error.code() == ExitCode::data && step_ > 0) {
      settle();
      save(Save::now);
    }
    throw;
  }
}

void Trainer::time_communication() {
  if (stream().device == Device::cuda) {
    world_.activity().time_gpu(stream());
    times_gpu_ = true;
  }
}

// The activity is the job's, and outlives the stream.
Trainer::~Trainer() {
  if (times_gpu_) {
    world_.activity().time_gpu_no_more();
  }
}

void Trainer::write_trace() {
  if (!config_.metrics.trace) {
    return;
  }
  require_run_directory();
  world_.activity().enter("writing the trace");
  residency_->await_all();  // the last of what moves
  synchronize(stream());
  const Trace* const trace = world_.activity().finish_trace();
  const std::filesystem::path dir = std::filesystem::path(config_.run.dir) / "trace";
  write_traces(dir, *trace, groups_.all_host());
  if (leads_) {
    log_info("wrote {}; open a file of it in ui.perfetto.dev", dir.string());
  }
}

void Trainer::train(const RunReports::Owed& owed) {
  reports_->open(step_);
  try {
    train_to_the_end(owed);
  } catch (const std::exception& error) {
    stop_.signal.reset();
    reports_->end(step_, false, error.what());
    throw;
  }
  stop_.signal.reset();
  reports_->end(step_, true, "done");
  try {
    reports_->rethrow();
  } catch (const Error& error) {
    log_warning("the run is done, and its metrics do not say so: {}", error.what());
  }
}

void Trainer::train_to_the_end(const RunReports::Owed& owed) {
  const std::int64_t last_step = config_.schedule.steps;
  stop_.signal.emplace();
  stop_.first_step = step_;
  reports_->begin(step_, samples_);
  saves_->watch_the_clock(world_.size());
  report_what_is(owed);
  if (stop_.why != 0) {
    save_and_stop();
  }
  export_model();  // where an earlier process was stopped before it
  while (step_ < last_step) {
    pass_over();
    const TrainStep::News own = {.stop = reason_to_stop(),
                                 .save = saves_->interval_is_over() ? 1 : 0};
    TrainStep::News news;
    saving_if_text_is_lost([&] { news = train_step_->prepare(step_ + 1, samples_, own); },
                           [&] { settle(0); });
    if (news.stop != 0) {
      settle(0);
      stop_.why = news.stop;
      save_and_stop();
    }
    watching([&] { launch(); });
    // After the step and not before it, which would count the save among the step's seconds.
    const bool save_is_due = due(step_, config_.checkpoint.every) || news.save != 0;
    const bool reads_now = is_read_at_once(step_) || save_is_due;
    if (settle(reads_now ? 0 : 1) && reads_now) {
      follow_step(save_is_due);
    }
  }
  saves_->rotate();
  saves_->finish_or_throw();
  reports_->say_energy();
}

std::int64_t Trainer::reason_to_stop() const {
  if (reports_->failed()) {
    return kReportFailed;
  }
  // However short its time, a process makes a step: one that made none would be started again for
  // ever.
  const bool has_stepped = step_ > stop_.first_step;
  return has_stepped && saves_->time_is_up() ? kTimeIsUp : stop_.signal->received();
}

std::int64_t Trainer::agree_to_stop() {
  return largest_of_all(groups_.all_host(), reason_to_stop(), "step.signal");
}

void Trainer::save_and_stop() {
  try {
    save(Save::now);
  } catch (const Error& error) {
    // What keeps metrics from being written may keep the step from being saved, which is worse: why
    // the run was to end is said all the same.
    if (leads_ && error.code() == ExitCode::checkpoint) {
      reports_->say_failure();
    }
    throw;
  }
  together(groups_.all_host(), "metrics.jsonl", [&] { reports_->rethrow(); });
  // Only the first rank's is printed, and it alone knows of the time.
  std::string cause = "ahead of the time limit";
  if (stop_.why != kTimeIsUp) {
    cause = fmt::format("by signal {} ({})", stop_.why, strsignal(static_cast<int>(stop_.why)));
  } else if (saves_->time_limit()) {
    cause = fmt::format("ahead of {}", saves_->time_limit()->why());
  }
  throw Error(ExitCode::preempted,
              fmt::format("stopped {} after step {}, which is saved; start the same command again "
                          "to go on",
                          cause,
                          step_));
}

bool Trainer::settle(std::size_t num_left) {
  while (under_way_.size() > num_left) {
    last_ = under_way_.front();
    watching([&] { last_.result = finish(); });
    health_.observe(last_.step, last_.result, train_step_->skipped());
    if (is_spike(last_.result) && rewind(last_.samples_before, last_.result)) {
      reports_->open(step_);
      return false;
    }
    saves_->stepped(last_.result.seconds);
    saves_->advance();
    saves_->rotate();  // a checkpoint of before this step: its weights have shown their loss
    reports_->observe(last_);
  }
  return true;
}

void Trainer::report_what_is(const RunReports::Owed& owed) {
  const RunReports::GivesUp gives_up = [this] {
    return (stop_.why = stop_.why == 0 ? agree_to_stop() : stop_.why) != 0;
  };
  if (owed.validation) {
    saving_if_text_is_lost([&] { reports_->validate(step_, gives_up); }, [] {});
  }
  if (owed.evaluation) {
    reports_->evaluate(step_, gives_up);
  }
  if (owed.sample) {
    reports_->sample(step_, gives_up);
  }
}

void Trainer::follow_step(bool save_is_due) {
  const bool last = step_ == config_.schedule.steps;
  reports_->say(step_);
  if (due(step_, config_.metrics.every) || last) {
    reports_->describe(last_);
  }
  if (due(step_, config_.run.verify_every)) {
    verify_replicas();
  }
  if (due(step_, config_.run.recompute_check_every)) {
    check_repeats();
  }
  report_what_is(reports_->due_after(step_));
  if (last || (save_is_due && !health_.are_bad())) {
    save(last ? Save::now : Save::meanwhile);
  }
  if (saves_->export_is_due(step_) && !health_.are_bad()) {
    export_model();
  }
  world_.activity().enter("end of the step");
  // A signal that comes when all is done changes nothing.
  if (last && stop_.why == 0) {
    stop_.why = agree_to_stop() == kReportFailed ? kReportFailed : 0;
  }
  if (stop_.why != 0) {
    save_and_stop();
  }
}

}  // namespace memphis
