// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "csrc/comm/communicator.h"
#include "csrc/config/config.h"
#include "csrc/plan/share.h"
#include "csrc/train/trainer.h"

// Training runs in any layout, and what they make of a model, brought together from their ranks.
namespace memphis::test {

struct Layout {
  std::string name;
  int num_ranks;
  int data;                            // replicas of what tensor ranks share out
  std::vector<std::string> overrides;  // of tiny_yaml()
};

Layout layout(const std::string& name,
              int data,
              int tensor,
              int expert,
              int expert_tensor,
              const std::vector<std::string>& more = {});

// The same with `pipeline` times the ranks, of which each stage has as many as there were.
Layout piped(const std::string& name,
             const Layout& layout,
             int pipeline,
             const std::vector<std::string>& more);

// The same with the tokens of each sequence on `context` ranks, and as many times the ranks.
Layout in_context(const Layout& layout, int context, const std::vector<std::string>& more = {});

// Layouts without a pipeline, the first of one rank. The model has 4 query heads, 2 key/value
// heads, 4 experts of width 48; a step is 16 sequences.
const std::vector<Layout>& layouts();
Layout layout_named(const std::string& name);

// What the ranks of a run are: threads of this process, or the processes that mpirun started.
enum class Ranks { threads, processes };

// Calls `body` on every rank. A process whose body throws ends the job: the others wait for it.
void on_ranks(Ranks ranks, int num_ranks, const std::function<void(World&)>& body);

// Whether what a rank's body leaves behind is kept: rank 0's of threads, each process's own.
bool keeps_result(Ranks ranks, const World& world);

// Whether the test fails on one of the processes, where they are the ranks.
bool fails_on_any_rank(Ranks ranks, bool fails_here);

// By the names of logical parameters, whole.
using Tensors = std::map<std::string, std::vector<double>>;

// Elements of which each rank has some, side by side. NaN is one that it does not have.
struct Joined {
  std::vector<double> low;  // over the ranks that have the element
  std::vector<double> high;
  std::vector<std::int32_t> num_ranks;
};
// The same on every rank. Collective.
Joined join(Communicator& all, std::span<const double> own);

// Of a tensor of the CPU.
double element(const TensorView& view, std::int64_t index);

// Elements `range` of a tensor wherever it lies, once what `stream` has under way is done.
std::vector<double> elements(const TensorView& view, const Range& range, Stream stream);

// One rank of a run on the config `yaml`, which `overrides` change. What it tells of is whole and
// the same on every rank, so all ask.
class RankRun {
 public:
  RankRun(World& world, const std::string& yaml, const std::vector<std::string>& overrides);

  Trainer& trainer() { return *trainer_; }
  const Config& config() const { return config_; }
  const Mesh& mesh() const { return mesh_; }
  World& world() { return world_; }
  Communicator& all() { return *all_; }

  // Fails the test unless one rank counts each element.
  Tensors weights();
  Tensors gradients();
  // Weights and what the optimizer keeps, by the names that checkpoints give them.
  Tensors state();
  // Fails the test unless the ranks have one value.
  double same_on_all(double value);

 private:
  // Two kinds of holders: one rank alone, or several alike.
  enum class Copies { one, equal };
  Tensors empty() const;
  Tensors joined(const Tensors& own, Copies copies);
  template <class Values>
  Tensors counted(const Values& values_of) const;
  Tensors own_weights();

  World& world_;
  std::unique_ptr<Communicator> all_;
  Config config_;
  Mesh mesh_;
  std::unique_ptr<Trainer> trainer_;
};

struct Outcome {
  Tensors initial;
  Tensors gradient;  // of step 1
  Tensors final;
  std::vector<double> losses;
  std::vector<double> balance;
  std::vector<double> grad_norms;
  double validation = 0;
};

// `nudge` moves every weight of step 0, in f32 or bf16, by one rounding, up and down in turn,
// beginning with its sign.
Outcome train(
    const Layout& layout, Ranks ranks, const std::string& compute, int num_steps, double nudge = 0);

// Fails the test unless both have the same tensors, bit by bit.
void expect_same_bits(const Tensors& actual, const Tensors& expected, const char* what);

// Fails the test unless values of each step are within `relative` of the exact ones.
void expect_near(const std::vector<double>& actual,
                 const std::vector<double>& exact,
                 double relative,
                 const char* what);

// Fails the test unless two runs in f64 differ by rounding alone: each gradient of step 1 to 1e-12
// of its largest element, or of `least` if that is larger, and what the steps report to 1e-9.
void expect_same_run(const Outcome& actual, const Outcome& exact, double least = 0);

// Fails the test unless the ranks of a run allocate on their devices, and pin on their hosts, what their
// plans say. `look`, if any, sees each rank's run.
void expect_memory_as_planned(const Layout& layout,
                              const std::string& compute,
                              const std::function<void(RankRun&)>& look = {});

// The overrides of such a run: the layout's, and what it leaves out.
std::vector<std::string> run_overrides(const Layout& layout, const std::string& compute);

}  // namespace memphis::test
