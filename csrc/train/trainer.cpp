// SPDX-License-Identifier: Apache-2.0
#include "csrc/train/trainer.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <utility>

#include <spdlog/fmt/fmt.h>

#include "csrc/checkpoint/model_folder.h"
#include "csrc/checkpoint/model_state.h"
#include "csrc/checkpoint/state_pieces.h"
#include "csrc/checkpoint/store.h"
#include "csrc/comm/launch_environment.h"
#include "csrc/comm/solo.h"
#include "csrc/comm/together.h"
#include "csrc/config/load.h"
#include "csrc/core/error.h"
#include "csrc/core/file.h"
#include "csrc/core/log.h"
#include "csrc/core/printable.h"
#include "csrc/core/progress.h"
#include "csrc/data/kept_tokenizer.h"
#include "csrc/optim/lr_schedule.h"
#include "csrc/train/agreement.h"
#include "csrc/train/initial_weights.h"
#include "csrc/train/run_tokenizer.h"
#include "csrc/train/stop_signal.h"
#include "csrc/train/trace_file.h"

namespace memphis {
namespace {

class Clock {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count();
  }

 private:
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
};

// On the clock of intervals and limits.
double now_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

constexpr double kSecondsOfHour = 3600;

constexpr const char* kMetricsName = "metrics.jsonl";

// What helps against a loss that explodes.
constexpr const char* kCalmer = "with a lower optimizer.learning_rate or optimizer.clip_norm";

bool due(std::int64_t step, std::int64_t every) {
  return every > 0 && step % every == 0;
}

// What a disk does, and not the job: it is no reason to lose the run.
bool is_of_files(const Error& error) {
  return error.code() == ExitCode::checkpoint || error.code() == ExitCode::preflight ||
         error.code() == ExitCode::data;
}

TrainStep::Skipped skipped_until(const Manifest& manifest) {
  return {.steps = manifest.skipped_steps, .in_a_row = manifest.skipped_in_a_row};
}

// Weight of the past in the smoothed step time behind the progress line's rate and ETA.
constexpr double kSmoothing = 0.9;

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
      mesh_(config.parallel, world.size()),
      compute_(resolve_compute(config.precision.compute, device_)),
      graphs_(uses_graphs(config_, device_, world.size())),
      groups_(world, mesh_, config_.model, device_, std::move(all)),
      leads_(world.rank() == 0),
      dataset_(open_text(config_, default_roots, groups_.all_host())),
      stream_(device_),
      plan_(agreed_plan(config_, compute_, device_, mesh_, groups_.all_host())),
      loss_watch_(config_.model.vocab_size, {}),
      router_watch_(
          config_.model.num_layers, config_.model.num_experts, config_.model.experts_per_token),
      rotation_(config_.run.dir, [this](const Manifest& manifest) {
        return is_of_run(
            manifest, config_, compute_, device_, validation_fingerprint(config_, dataset_));
      }) {
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
  require_memory(plan_.memory, config_, compute_, device_, groups_.all_host());
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
    initial = open_initial_weights(config_, dataset_.tokenizer.get(), groups_.all_host());
  }

  const BatchConfig& batch = config_.batch;
  const Boundaries boundaries =
      config_.data.document_boundaries ? Boundaries::kept : Boundaries::ignored;
  training_loader_.emplace(dataset_.sources,
                           batch.sequence_length,
                           static_cast<std::uint64_t>(config_.run.seed),
                           boundaries);
  describe_mixture();
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
  saver_.emplace(config_.run.dir,
                 config_.model,
                 *parameters_,
                 *optimizer_,
                 groups_,
                 stream(),
                 plan_.saves_in_background);
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
  replica_check_.emplace(mesh_, groups_, *parameters_, stream());
  for (const ValidationSet& set : dataset_.validation) {
    validation_loaders_.emplace_back(
        *set.stream,
        set.range,
        batch.sequence_length,
        boundaries,
        static_cast<std::int32_t>(std::max<std::int64_t>(config_.model.pad_id, 0)));
  }
  if (!validation_loaders_.empty()) {
    evaluator_.emplace(config_, plan_, groups_, *model_, *pipeline_, validation_loaders_, stream());
  }
  if (!config_.data.evaluate.empty()) {
    questions_.emplace(
        config_, plan_, groups_, *model_, *pipeline_, dataset_.tokenizer.get(), stream());
  }
  if (plan_.sampling && dataset_.tokenizer == nullptr && leads_) {
    log_info("data.tokenizer is none: no text is sampled");
  }
  if (plan_.sampling && dataset_.tokenizer != nullptr) {
    sampler_.emplace(config_.model, *plan_.sampling, *residency_, groups_, stream());
  }

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
      compare_with_checkpoint(chosen, config_, compute_, &dataset_, groups_.all_host());
  together(groups_.all_host(), "checkpoint.compare", [&] { require_same_run(chosen, resumption); });
  step_ = chosen.manifest.step;
  samples_ = resumption.samples;
  saved_step_ = step_;
  loss_watch_ = LossWatch(
      config_.model.vocab_size,
      {.reference = chosen.manifest.loss_reference, .exploded_at = chosen.manifest.exploded_at});
  if (!leads_ || train_step_) {
    return;  // a run that goes back has said it all
  }
  for (const std::string& line : resumption.said) {
    log_warning("{}", line);
  }
  if (loss_watch_.exploded()) {
    log_warning("{} was saved with weights whose loss had exploded in step {}; {}",
                chosen.path.string(),
                loss_watch_.state().exploded_at,
                rotation_.way_back(loss_watch_.state().exploded_at, kCalmer));
  }
}

void Trainer::pass_over() {
  while (passed_over_.contains(samples_)) {
    samples_ += static_cast<std::uint64_t>(config_.batch.global_batch);
  }
}

StepResult Trainer::step() {
  pass_over();
  train_step_->prepare(step_ + 1, samples_, {});
  launch();
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
  const MetricsConfig& metrics = config_.metrics;
  const RunConfig& run = config_.run;
  const bool looks = due(step, metrics.every) || due(step, metrics.validate_every) ||
                     due(step, run.verify_every) || due(step, run.recompute_check_every) ||
                     due(step, run.export_every) ||
                     (questions_ && due(step, metrics.evaluate_every)) ||
                     (sampler_ && due(step, metrics.sample_every));
  return looks || step == config_.schedule.steps || config_.optimizer.rewind_norm > 0 ||
         world_.activity().gpu_spans() != nullptr;  // which are of one step
}

void Trainer::verify_replicas() {
  if (verified_step_ == step_) {
    return;
  }
  world_.activity().enter("comparing weights");
  residency_->await_all();
  replica_check_->compare_weights();
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
  require(evaluator_.has_value(), "a run without validation data has no validation loss");
  return evaluator_->run(0).value().loss;
}

std::unique_ptr<RunLock> Trainer::prepare_run_directory() const {
  std::unique_ptr<RunLock> lock;
  const std::uint64_t bytes = checkpoint_bytes(*parameters_, *optimizer_, groups_);
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
    if (newest > std::max(newest_step_, saved_step_)) {
      throw PreflightError(
          fmt::format("run.dir {} has gone on to step {} (another job has used it since this one "
                      "read it); start this one again",
                      dir.string(),
                      newest));
    }
    require_space(dir, bytes);
    remove_unfinished(dir);
    if (saved_step_ < 0) {
      note_nothing_saved(dir);
    } else {
      remove_nothing_saved(dir);
    }
    write_text_atomically(dir / kRunConfigName, to_yaml(config_));
    keep_tokenizer(dir, dataset_.tokenizer.get());
  });
  together(groups_.all_host(), "run.dir.shared", [&] { require_shared(config_.run.dir); });
  return lock;
}

void Trainer::save(Save how) {
  if (saved_step_ == step_ || saver_->begun_step() == step_) {
    if (how == Save::now) {
      saver_->finish();
      note_saved();
    }
    return;
  }
  if (config_.run.verify_every > 0) {
    verify_replicas();
  }
  world_.activity().enter("saving a checkpoint");
  try {
    if (how == Save::now) {
      saver_->finish();
    } else {
      saver_->make_way(step_);
    }
  } catch (const Error& error) {
    // That the one before fails is no reason not to save this one.
    if (how == Save::now ? !is_of_files(error) : !forgives(error)) {
      throw;
    }
  }
  note_saved();
  rotate();
  Manifest manifest;
  manifest.samples = static_cast<std::int64_t>(samples_);
  manifest.seed = config_.run.seed;
  manifest.dataset_fingerprint = dataset_.fingerprint;
  manifest.tokenizer_fingerprint =
      dataset_.tokenizer ? dataset_.tokenizer->fingerprint() : std::string("none");
  manifest.validation_fingerprint = validation_fingerprint(config_, dataset_);
  manifest.loss_reference = loss_watch_.state().reference;
  manifest.exploded_at = loss_watch_.exploded() ? loss_watch_.state().exploded_at
                         : weights_are_bad_     ? step_ + 1
                                                : 0;
  manifest.skipped_steps = train_step_->skipped().steps;
  manifest.skipped_in_a_row = train_step_->skipped().in_a_row;
  manifest.config = to_yaml(config_);
  residency_->await_all();
  saving_samples_ = samples_;
  if (save_interval_) {
    save_interval_->begun(now_seconds());
  }
  try {
    saver_->begin(step_, std::move(manifest));
    if (how == Save::now) {
      saver_->finish();
    }
  } catch (const Error& error) {
    if (how == Save::now || !forgives(error)) {
      throw;
    }
  }
  note_saved();
}

template <class Work>
void Trainer::go_on_saving(const Work& work) {
  try {
    work();
  } catch (const Error& error) {
    if (!forgives(error)) {
      throw;
    }
  }
  note_saved();
}

void Trainer::note_saved() {
  if (saver_->committed_step() <= saved_step_) {
    return;
  }
  saved_step_ = saver_->committed_step();
  failed_saves_ = 0;
  if (time_limit_) {
    time_limit_->saved(saver_->seconds());
  }
  if (save_interval_) {
    save_interval_->saved(saver_->stalled_seconds(), saver_->seconds());
  }
  if (leads_) {
    log_info("saved {} in {:.2f} s, of which training stood for {:.3f} s; next sample {}{}",
             (std::filesystem::path(config_.run.dir) / checkpoint_name(saved_step_)).string(),
             saver_->seconds(),
             saver_->stalled_seconds(),
             saving_samples_,
             save_interval_
                 ? fmt::format("; a save each {:.3g} s, for a failure each {:.3g} h",
                               save_interval_->seconds(),
                               save_interval_->seconds_between_failures() / kSecondsOfHour)
                 : std::string());
  }
}

bool Trainer::forgives(const Error& error) {
  if (!is_of_files(error) || ++failed_saves_ > config_.checkpoint.max_failures) {
    return false;
  }
  if (dynamic_cast<const FailedElsewhere*>(&error) == nullptr) {
    log_error(
        "memphis: a checkpoint is not saved, and training goes on ({} in a row, of which "
        "checkpoint.max_failures allows {}): {}",
        failed_saves_,
        config_.checkpoint.max_failures,
        error.what());
  }
  if (save_interval_) {
    save_interval_->failed();
  }
  return true;
}

bool Trainer::save_interval_is_over() const {
  return leads_ && save_interval_ && save_interval_->due(now_seconds());
}

bool Trainer::weights_have_exploded() {
  return largest_of_all(groups_.all_host(), leads_ && weights_are_bad_ ? 1 : 0, "step.health") != 0;
}

void Trainer::rotate() {
  if (saver_->read_back_step() <= rotated_step_) {
    return;
  }
  rotated_step_ = saver_->read_back_step();
  if (!weights_have_exploded()) {
    saver_->prune({.newest = config_.checkpoint.keep, .every = config_.checkpoint.keep_every},
                  [this](const std::filesystem::path& path) { return rotation_.standing(path); });
  }
}

std::filesystem::path Trainer::export_folder() const {
  return std::filesystem::path(config_.run.dir) / "export" / checkpoint_name(step_);
}

bool Trainer::export_is_due() const {
  return config_.run.export_every > 0 && step_ > 0 &&
         (due(step_, config_.run.export_every) || step_ == config_.schedule.steps);
}

bool Trainer::owes_export() {
  const bool due_now = export_is_due();
  std::error_code ignored;
  const bool there =
      leads_ && due_now &&
      std::filesystem::exists(std::filesystem::symlink_status(export_folder(), ignored));
  return due_now && largest_of_all(groups_.all_host(), there ? 1 : 0, "export.there") == 0;
}

void Trainer::export_model() {
  if (!owes_export()) {
    return;
  }
  if (config_.run.verify_every > 0) {
    verify_replicas();
  }
  go_on_saving([&] { saver_->finish(); });  // the checkpoint is safe first
  world_.activity().enter("exporting the model");
  const Clock clock;
  residency_->await_all();
  ModelFolderWriter writer(export_folder(), config_.model, compute_, kShardBytes);
  const std::uint64_t checkpoint = checkpoint_bytes(*parameters_, *optimizer_, groups_);
  try {
    together(groups_.all_host(), "export.space", [&] {
      if (leads_) {
        std::filesystem::path left = export_folder();  // of a process that was killed
        left += kUnfinishedSuffix;
        int error = remove_tree(left);
        if (error == 0) {
          error = make_directories(left.parent_path());
        }
        if (error != 0) {
          throw CheckpointError(
              fmt::format("cannot make room for {} ({}); check {} and its permissions",
                          export_folder().string(),
                          system_reason(error),
                          left.parent_path().string()));
        }
        require_space_beside(config_.run.dir, writer.num_bytes(), checkpoint);
      }
    });
    export_from_ranks(
        writer, *parameters_, groups_, tokenizer_to_export(dataset_.tokenizer.get()), stream());
  } catch (const FailedElsewhere& error) {
    if (!is_of_files(error)) {
      throw;
    }
    return;
  } catch (const Error& error) {
    if (!is_of_files(error)) {
      throw;
    }
    log_error(
        "the model of step {} is not exported, and training goes on: {}", step_, error.what());
    return;
  }
  if (leads_) {
    log_info("exported {} in {:.2f} s", writer.folder().string(), clock.seconds());
  }
}

// All ranks are here: what is being saved are the weights that have just shown what they are.
void Trainer::give_up_save() {
  try {
    saver_->cancel();
    note_saved();
  } catch (const Error& error) {
    log_error("memphis: {}", error.what());
  }
}

void Trainer::watching(const std::function<void()>& reads) {
  try {
    reads();
  } catch (const DivergedError& error) {
    give_up_save();
    if (!leads_) {
      throw;
    }
    const bool exploded = loss_watch_.exploded();
    const std::int64_t since = exploded ? loss_watch_.state().exploded_at : step_ + 1;
    throw DivergedError(fmt::format(
        "{}{}: {}",
        error.what(),
        exploded ? fmt::format(" (before step {}, where the loss exploded)", since) : "",
        rotation_.way_back(since, kCalmer)));
  }
}

void Trainer::watch(std::int64_t step, const StepResult& result) {
  if (!leads_) {
    return;
  }
  if (result.skipped) {
    log_warning(
        "step {} is left out: its gradient's norm is {}, with loss {:.4g}; {} in a row, of which "
        "optimizer.max_skipped allows {}",
        step,
        result.grad_norm,
        result.loss,
        train_step_->skipped().in_a_row,
        config_.optimizer.max_skipped);
    return;
  }
  switch (loss_watch_.observe(step, result.loss)) {
    case LossWatch::News::none:
      break;
    case LossWatch::News::exploded:
      log_warning(
          "step {} has loss {:.4g}, above {}: the weights have exploded; until losses are below "
          "that again only the end of the run is saved, and no checkpoint is deleted; {}",
          step,
          result.loss,
          loss_watch_.describe_limit(),
          rotation_.way_back(step, kCalmer));
      break;
    case LossWatch::News::recovered:
      log_warning("step {} has loss {:.4g}: it has come back below {}; checkpoints are saved again",
                  step,
                  result.loss,
                  loss_watch_.describe_limit());
      break;
  }
  weights_are_bad_ = loss_watch_.exploded();
}

bool Trainer::is_spike(const StepResult& result) const {
  return config_.optimizer.rewind_norm > 0 && !result.skipped &&
         result.grad_norm > config_.optimizer.rewind_norm;
}

// Everything in it follows from the samples and from what the checkpoint has, so that a run which is
// killed and started again decides alike.
bool Trainer::rewind(std::uint64_t samples, const StepResult& result) {
  go_on_saving([&] { saver_->finish(); });
  const std::int64_t spike = step_;
  const std::string what =
      fmt::format("step {} has a gradient of norm {:.4g}, above optimizer.rewind_norm {:.4g}",
                  spike,
                  result.grad_norm,
                  config_.optimizer.rewind_norm);
  if (saved_step_ < 0) {
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
        leads_ ? rotation_.way_back(spike, kCalmer) : std::string()));
  }
  world_.activity().enter("going back to a checkpoint");
  passed_over_.insert(samples);
  go_on_from(chosen);
  load_checkpoint(
      chosen.path, chosen.writer(), config_.model, *residency_, *optimizer_, groups_, stream());
  optimizer_->copy_tied_embedding(stream());
  train_step_->set_skipped(skipped_until(chosen.manifest));
  weights_are_bad_ = loss_watch_.exploded();
  verified_step_ = -1;  // what a step left before says nothing of what it leaves again
  samples_said_ = std::min(samples_said_, samples_);
  if (leads_) {
    log_warning("{}: back to {}; samples {} to {} are passed over",
                what,
                chosen.path.string(),
                samples,
                samples + static_cast<std::uint64_t>(config_.batch.global_batch) - 1);
  }
  return true;
}

void Trainer::validate(Report& report, double elapsed_seconds, const GivesUp& gives_up) {
  if (!evaluator_) {
    return;
  }
  world_.activity().enter("validation");
  std::vector<Evaluator::Result> results;
  for (std::size_t set = 0; set < evaluator_->num_sets(); ++set) {
    const std::optional<Evaluator::Result> result = evaluator_->run(set, gives_up);
    if (!result) {
      return;
    }
    results.push_back(*result);
  }
  if (!leads_) {
    return;
  }
  for (std::size_t set = 0; set < results.size(); ++set) {
    const Evaluator::Result& result = results[set];
    const std::string& name = dataset_.validation[set].name;
    const std::string of_name = name.empty() ? "" : " of " + name;
    // These are the weights after the step's update, which its own loss says nothing of.
    if (loss_watch_.exceeds(result.loss) && !weights_are_bad_) {
      log_warning(
          "step {} has validation loss{} {:.4g}, above {}: its weights have exploded and are "
          "not saved before losses are below that again; {}",
          step_,
          of_name,
          result.loss,
          loss_watch_.describe_limit(),
          rotation_.way_back(step_ + 1, kCalmer));
      weights_are_bad_ = true;
    }
    report.write([&](MetricsFile& metrics) {
      metrics.write_validation(step_, name, result.loss, result.targets, elapsed_seconds);
    });
    log_info("step {}  validation loss{} {:.4f} nats a token, over {} tokens  (after {:.0f} s)",
             step_,
             of_name,
             result.loss,
             result.targets,
             elapsed_seconds);
  }
}

void Trainer::describe_mixture() const {
  if (!leads_ || dataset_.sources.size() == 1) {
    return;
  }
  const Mixture& mixture = training_loader_->mixture();
  const auto last = static_cast<std::uint64_t>(config_.schedule.steps * config_.batch.global_batch);
  for (std::size_t i = 0; i < dataset_.sources.size(); ++i) {
    log_info("{}: {} of {} samples, {} samples an epoch, {:.2f} epochs by step {}",
             dataset_.sources[i].name,
             mixture.parts(i),
             mixture.period(),
             training_loader_->num_samples(i),
             training_loader_->epochs(i, last),
             config_.schedule.steps);
  }
}

void Trainer::say_epochs(const UnderWay& step) {
  for (std::size_t i = 0; leads_ && i < dataset_.sources.size(); ++i) {
    const auto before =
        static_cast<std::uint64_t>(training_loader_->epochs(i, step.samples_before));
    const auto now = static_cast<std::uint64_t>(training_loader_->epochs(i, step.samples));
    if (now > before) {
      const std::string& name = dataset_.sources[i].name;
      log_info("step {}  {} begins epoch {}, of {} samples",
               step.step,
               name.empty() ? std::string("data.train") : name,
               now + 1,
               training_loader_->num_samples(i));
    }
  }
}

void Trainer::evaluate(Report& report, const GivesUp& gives_up) {
  world_.activity().enter("evaluation");
  const std::optional<QuestionScores> scores = questions_->run(gives_up);
  if (!scores || !leads_) {
    return;
  }
  report.write([&](MetricsFile& metrics) { metrics.write_evaluation(step_, *scores); });
  log_info("step {}  accuracy {:.4f}, {:.4f} by mean log-probability a byte, over {} questions",
           step_,
           scores->accuracy,
           scores->accuracy_normalised,
           scores->num_questions);
}

void Trainer::sample(Report& report, const GivesUp& gives_up) {
  world_.activity().enter("sampling");
  bool gave_up = false;
  const std::string text =
      generate_text(*sampler_,
                    config_.metrics.sample_prompt,
                    {.num_tokens = config_.metrics.sample_tokens,
                     .temperature = config_.metrics.sample_temperature,
                     .seed = static_cast<std::uint64_t>(config_.run.seed + step_),
                     .tokenizer = dataset_.tokenizer.get(),
                     .gives_up = [&] { return gave_up = gave_up || gives_up(); }});
  if (gave_up || !leads_) {
    return;
  }
  report.write([&](MetricsFile& metrics) { metrics.write_sample(step_, text); });
  log_info("step {}  sample: {}", step_, printable(config_.metrics.sample_prompt + text));
}

void Trainer::run() {
  const std::int64_t last_step = config_.schedule.steps;
  const Owed owed = find_owed();
  if (step_ >= last_step && !owed.validation && !owed.evaluation && !owed.sample &&
      !owes_export()) {
    if (!leads_) {
      return;
    }
    log_info("nothing to do: {} has step {} and schedule.steps is {}",
             config_.run.dir,
             step_,
             last_step);
    return;
  }
  const std::unique_ptr<RunLock> lock = prepare_run_directory();
  if (config_.metrics.trace) {
    world_.activity().start_trace();
    time_communication();
  }
  try {
    train(owed);
  } catch (const Error& error) {
    saver_->abandon();  // before another job may have the directory
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
  }
}

void Trainer::write_trace() {
  if (!config_.metrics.trace) {
    return;
  }
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

Trainer::Owed Trainer::find_owed() {
  constexpr std::int64_t kValidation = 1;
  constexpr std::int64_t kSample = 2;
  constexpr std::int64_t kEvaluation = 4;
  std::int64_t owed = 0;
  together(groups_.all_host(), "metrics.read", [&] {
    const bool last = step_ == config_.schedule.steps;
    const StepLines lines =
        leads_ ? lines_of_step(std::filesystem::path(config_.run.dir) / kMetricsName, step_)
               : StepLines{};
    // A run whose step has no line has lost the file, or wrote another one.
    if (!lines.step) {
      return;
    }
    if (evaluator_ && !lines.validation && (due(step_, config_.metrics.validate_every) || last)) {
      owed |= kValidation;
    }
    if (questions_ && !lines.evaluation && (due(step_, config_.metrics.evaluate_every) || last)) {
      owed |= kEvaluation;
    }
    if (sampler_ && !lines.sample && (due(step_, config_.metrics.sample_every) || last)) {
      owed |= kSample;
    }
  });
  owed = largest_of_all(groups_.all_host(), owed, "metrics.read");
  return {.validation = (owed & kValidation) != 0,
          .evaluation = (owed & kEvaluation) != 0,
          .sample = (owed & kSample) != 0};
}

MetricsFile::StartRecord Trainer::start_record(const ModelFlops& flops,
                                               std::optional<double> peak) const {
  MetricsFile::StartRecord record;
  record.step = step_;
  record.last_step = config_.schedule.steps;
  record.num_ranks = mesh_.num_ranks();
  record.device = fmt::format("{} rank{} of {} ({}), {}",
                              mesh_.num_ranks(),
                              mesh_.num_ranks() == 1 ? "" : "s",
                              name_of(device_),
                              device_info(device_).name,
                              name_of(compute_));
  for (const Axis axis : {Axis::pipeline,
                          Axis::data,
                          Axis::context,
                          Axis::tensor,
                          Axis::expert_data,
                          Axis::expert,
                          Axis::expert_tensor}) {
    if (mesh_.degree(axis) > 1) {
      record.layout += fmt::format(
          "{}{} {}", record.layout.empty() ? "" : ", ", name_of(axis), mesh_.degree(axis));
    }
  }
  record.parameters = plan_.parameters.num_parameters;
  record.flops_per_token = flops;
  record.hardware_flops_per_token = flops.halved + recompute_cost(config_.model,
                                                                  config_.batch.sequence_length,
                                                                  compute_,
                                                                  plan_.activations.recompute)
                                                       .flops;
  record.peak_flops_per_second = peak;
  record.memory = plan_.memory;
  return record;
}

void Trainer::report_gpus(Report& report) {
  if (!gpu_) {
    return;
  }
  Communicator& all = groups_.all_host();
  std::vector<std::int64_t> words(static_cast<std::size_t>(all.size()) * kReadingWords);
  encode(gpu_->read(),
         std::span(words).subspan(static_cast<std::size_t>(all.rank()) * kReadingWords,
                                  kReadingWords));
  sum_over_ranks(all, words, "step.gpus");
  const GpuSummary gpus = summarize(words);
  if (!leads_ || gpus.num_readings == 0) {
    return;
  }
  const double tokens = static_cast<double>(samples_ - samples_said_) *
                        static_cast<double>(config_.batch.sequence_length);
  const double joules = gpus.joules - joules_said_;
  joules_said_ = gpus.joules;
  samples_said_ = samples_;
  report.write([&](MetricsFile& metrics) {
    metrics.write_gpus(step_, gpus, tokens > 0 ? joules / tokens : 0);
  });
}

void Trainer::report_routing(Report& report, const StepResult& result) {
  const Routing routing = train_step_->routing();
  const RankTimes ranks = train_step_->rank_times(result);
  for (const SlowRankWatch::News& news : slow_rank_watch_.observe(ranks.seconds)) {
    const std::string host =
        text_of_rank(groups_.all_host(), news.rank, host_name(), "step.slow_rank");
    if (leads_ && news.slow) {
      log_warning(
          "step {}: rank {} on {} is slow: its own work takes {:.3g} s a step, where the median of "
          "all ranks is {:.3g} s with a deviation of {:.2g} s; see what `memphis doctor` says of "
          "that machine",
          step_,
          news.rank,
          host,
          news.seconds,
          news.spread.median,
          news.spread.deviation);
    } else if (leads_) {
      log_warning("step {}: rank {} on {} is as fast as the others again", step_, news.rank, host);
    }
  }
  if (!leads_) {
    return;
  }
  report.write([&](MetricsFile& metrics) { metrics.write_routing(step_, routing, ranks); });
  for (const RouterWatch::News& news : router_watch_.observe(routing)) {
    if (news.collapsed) {
      log_warning(
          "step {}: the router of layer {} has collapsed: its tokens go to as few as {:.1f} of {} "
          "experts would take, below {:.1f}; raise loss.balance, or lower optimizer.learning_rate",
          step_,
          news.layer,
          news.effective_experts,
          routing.num_experts,
          router_watch_.limit());
    } else {
      log_warning(
          "step {}: the router of layer {} spreads its tokens again, over {:.1f} of {} experts",
          step_,
          news.layer,
          news.effective_experts,
          routing.num_experts);
    }
  }
}

void Trainer::open(Report& report) {
  together(groups_.all_host(), "metrics.jsonl", [&] {
    if (leads_) {
      const std::filesystem::path dir = config_.run.dir;
      report.open(dir / kMetricsName, step_);
      if (config_.metrics.tensorboard) {
        report.write(
            [&](MetricsFile& metrics) { metrics.also_to_tensorboard(dir / "tensorboard"); });
        report.rethrow();
      }
    }
  });
}

void Trainer::train(const Owed& owed) {
  Report report;
  open(report);
  // Whoever reads the metrics is to know why they end.
  const auto end = [&](bool done, const std::string& reason) {
    report.write([&](MetricsFile& metrics) { metrics.write_end(step_, done, reason); });
  };
  try {
    train(report, owed);
  } catch (const Error& error) {
    end(false, error.what());
    throw;
  }
  end(true, "done");
  try {
    report.rethrow();
  } catch (const Error& error) {
    log_warning("the run is done, and its metrics do not say so: {}", error.what());
  }
}

void Trainer::watch_the_clock() {
  const std::uint64_t bytes = checkpoint_bytes(*parameters_, *optimizer_, groups_);
  together(groups_.all_host(), "time.limit", [&] {
    if (!leads_) {
      return;
    }
    const double now = now_seconds();
    if (config_.checkpoint.every == kAutoInterval) {
      save_interval_.emplace(config_.run.failure_hours * kSecondsOfHour / world_.size());
    }
    const auto unix_now = std::chrono::system_clock::now().time_since_epoch();
    const std::optional<TimeEnd> end = end_of_time(config_.run.time_limit,
                                                   now - process_seconds(),
                                                   job_end_time(),
                                                   std::chrono::duration<double>(unix_now).count(),
                                                   now);
    if (end) {
      // Until a save is measured, as configs/machines has it of storage that many share.
      constexpr double kBytesPerSecond = 0.1e9;
      const double bytes_of_rank = static_cast<double>(bytes) / world_.size();
      time_limit_.emplace(*end, now, bytes_of_rank / kBytesPerSecond);
      log_info("the run saves and stops ahead of {}, in {:.0f} s", end->why, end->at - now);
    }
  });
}

void Trainer::train(Report& report, const Owed& owed) {
  const std::int64_t last_step = config_.schedule.steps;
  const StopSignal stop;
  // Why the run is to stop, or 0: a signal, which may have reached some ranks and not others, or
  // metrics that the first rank cannot write. All stop, or none.
  constexpr std::int64_t kReportFailed = 1 << 20;
  constexpr std::int64_t kTimeIsUp = 1 << 19;
  // However short its time, a process makes a step: one that made none would be started again for
  // ever.
  const std::int64_t first_step = step_;
  const auto has_stepped = [&] { return step_ > first_step; };
  const auto reason_to_stop = [&]() -> std::int64_t {
    if (report.failed()) {
      return kReportFailed;
    }
    const bool time_is_up = has_stepped() && time_limit_ && time_limit_->reached(now_seconds());
    return time_is_up ? kTimeIsUp : stop.received();
  };
  const auto agree_to_stop = [&] {
    return largest_of_all(groups_.all_host(), reason_to_stop(), "step.signal");
  };
  std::int64_t why = 0;
  const GivesUp gives_up = [&] { return (why = why == 0 ? agree_to_stop() : why) != 0; };
  const auto save_and_stop = [&] {
    save(Save::now);
    together(groups_.all_host(), "metrics.jsonl", [&] { report.rethrow(); });
    // Only the first rank's is printed, and it alone knows of the time.
    const std::string cause =
        why != kTimeIsUp ? fmt::format("by signal {} ({})", why, strsignal(static_cast<int>(why)))
        : time_limit_    ? fmt::format("ahead of {}", time_limit_->why())
                         : std::string("ahead of the time limit");
    throw Error(ExitCode::preempted,
                fmt::format("stopped {} after step {}, which is saved; start the same command "
                            "again to go on",
                            cause,
                            step_));
  };
  const ModelFlops flops = model_flops_per_token(config_.model, config_.batch.sequence_length);
  const std::optional<double> peak = peak_flops_per_second(device_, world_.size());
  if (leads_) {
    const MetricsFile::StartRecord start = start_record(flops, peak);
    log_info("{}", describe_flops(start));
    report.write([&](MetricsFile& metrics) { metrics.write_start(start); });
  }
  if (device_ == Device::cuda && !device_info(device_).simulated) {
    gpu_.emplace(kNvmlName, gpu_identity());
  }
  watch_the_clock();
  const std::uint64_t first_sample = samples_said_ = samples_;
  const Clock clock;
  double smoothed_seconds = 0;
  std::optional<Progress> progress;
  if (leads_) {
    progress.emplace("train", last_step, "steps", step_);
    progress->only_live();  // elsewhere there are lines of steps
  }

  if (owed.validation) {
    validate(report, clock.seconds(), gives_up);
  }
  if (owed.evaluation) {
    evaluate(report, gives_up);
  }
  if (owed.sample) {
    sample(report, gives_up);
  }
  if (why != 0) {
    save_and_stop();
  }
  export_model();  // where an earlier process was stopped before it
  // What a step reports is read once the next one is on its way, and at once where something that
  // follows the step may depend on it. False: the run has gone back to a checkpoint.
  MetricsFile::StepRecord record;  // of the last step that was read
  const auto settle = [&](std::size_t num_left = 0) {
    while (under_way_.size() > num_left) {
      const UnderWay of = under_way_.front();
      record = {};
      watching([&] { record.result = finish(); });
      watch(of.step, record.result);
      if (is_spike(record.result) && rewind(of.samples_before, record.result)) {
        open(report);
        return false;
      }
      say_epochs(of);
      record.step = of.step;
      record.samples = of.samples;
      record.seconds = record.result.seconds;
      if (time_limit_) {
        time_limit_->stepped(record.seconds);
      }
      go_on_saving([&] { saver_->advance(); });
      rotate();  // a checkpoint of before this step: its weights have shown their loss
      record.learning_rate =
          learning_rate(config_.schedule, config_.optimizer.learning_rate, record.step);
      record.model_flops_per_second =
          static_cast<double>(record.result.tokens) * flops.halved / record.seconds;
      report.write([&](MetricsFile& metrics) { metrics.write_step(record); });
      smoothed_seconds = smoothed_seconds == 0
                             ? record.seconds
                             : kSmoothing * smoothed_seconds + (1 - kSmoothing) * record.seconds;
      if (leads_) {
        progress->update(record.step, live_note(record, smoothed_seconds, flops, peak));
      }
    }
    return true;
  };
  while (step_ < last_step) {
    pass_over();
    const TrainStep::News own = {.stop = reason_to_stop(), .save = save_interval_is_over() ? 1 : 0};
    TrainStep::News news;
    saving_if_text_is_lost([&] { news = train_step_->prepare(step_ + 1, samples_, own); },
                           [&] { settle(); });
    if (news.stop != 0) {
      settle();
      why = news.stop;
      save_and_stop();
    }
    watching([&] { launch(); });
    // After the step and not before it, which would count the save among the step's seconds.
    const bool save_is_due = due(step_, config_.checkpoint.every) || news.save != 0;
    if (!settle(is_read_at_once(step_) || save_is_due ? 0 : 1) || !under_way_.empty()) {
      continue;
    }
    const bool last = step_ == last_step;
    if (leads_ && (last || (due(step_, config_.metrics.every) && !Progress::is_live()))) {
      log_info("{}", progress_line(record, last_step, smoothed_seconds, flops, peak));
    }
    if (due(step_, config_.metrics.every) || last) {
      report_routing(report, record.result);
      report_gpus(report);
    }
    if (due(step_, config_.run.verify_every)) {
      verify_replicas();
    }
    if (due(step_, config_.run.recompute_check_every)) {
      check_repeats();
    }
    if (due(step_, config_.metrics.validate_every) || last) {
      saving_if_text_is_lost([&] { validate(report, clock.seconds(), gives_up); }, [] {});
    }
    if (questions_ && (due(step_, config_.metrics.evaluate_every) || last)) {
      evaluate(report, gives_up);
    }
    if (sampler_ && (due(step_, config_.metrics.sample_every) || last)) {
      sample(report, gives_up);
    }
    if (last || (save_is_due && !weights_have_exploded())) {
      save(last ? Save::now : Save::meanwhile);
    }
    if (export_is_due() && !weights_have_exploded()) {
      export_model();
    }
    world_.activity().enter("end of the step");
    // A signal that comes when all is done changes nothing.
    if (last && why == 0) {
      why = agree_to_stop() == kReportFailed ? kReportFailed : 0;
    }
    if (why != 0) {
      save_and_stop();
    }
  }
  rotate();
  saver_->finish();
  if (leads_ && joules_said_ > 0) {
    constexpr double kJoulesPerKwh = 3.6e6;
    log_info("GPUs took {:.4g} kWh, {:.4g} J a token",
             joules_said_ / kJoulesPerKwh,
             joules_said_ / (static_cast<double>(samples_ - first_sample) *
                             static_cast<double>(config_.batch.sequence_length)));
  }
}

}  // namespace memphis
