#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# slurm_test.sh MEMPHIS: launch/slurm.sbatch under a Slurm that the test starts for itself. Jobs of
# four ranks are preempted, killed and refused, and what they save is held to what a job saves that
# is left alone. A stand-in for the program goes through its other exit codes.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/../../launch/common.sh"
# shellcheck source=tests/launch/expect.sh
source "$root/tests/launch/expect.sh"
# shellcheck source=tests/launch/private_slurm.sh
source "$root/tests/launch/private_slurm.sh"

PATH=$PATH:/usr/sbin
binary=$(realpath -- "$1")
for command in slurmctld slurmd sbatch munged python3; do
  command -v "$command" >/dev/null ||
    { echo "SKIP: no Slurm; use \`apt-get install slurmctld slurmd slurm-client munge\`" && exit; }
done
[[ $(id -u) == 0 ]] || { echo "SKIP: not root, as the test's own Slurm needs; use sudo" && exit; }

scratch=$(mktemp -d)
tear_down() {
  local status=$?
  stop_slurm "$scratch/slurm"
  ((status == 0)) || tail -n 15 -- "$scratch"/slurm/log/* "$scratch"/*.log || true
  rm -rf -- "$scratch"
}
trap tear_down EXIT
trap 'exit 1' INT TERM

not() {
  ! "$@"
}

# tree NAME BINARY: the scripts with that binary.
tree() {
  mkdir -p -- "$scratch/$1/build/cpu"
  ln -s -- "$root/launch" "$scratch/$1/launch"
  ln -s -- "$2" "$scratch/$1/build/cpu/memphis"
}

# submit NAME TASKS TREE ARGUMENT...: sets `job`; NAME.log is its log.
submit() {
  local name=$1 tasks=$2 tree=$3
  shift 3
  job=$(sbatch --parsable --output="$scratch/$name.log" --gpus-per-node=0 --ntasks-per-node="$tasks" \
    --cpus-per-task=1 --oversubscribe "$scratch/$tree/launch/slurm.sbatch" "$@")
}

# field JOB NAME
field() {
  scontrol --oneliner show job "$1" | tr ' ' '\n' | sed -n "s/^$2=//p"
}
is_in_state() {
  [[ $(field "$1" JobState) == "$2" ]]
}
# Slurm leaves a job that is requeued alone for two minutes. While a step of the old start is there, and
# within a second of its end, a node takes the new start for the old one, which it was told to end.
start_requeued_jobs() {
  local id begin
  while read -r id begin; do
    if (($(date -d "$begin" +%s) > $(date +%s) + 10)) &&
      ! grep -qsa "^slurmstepd: \[${id}[.]" /proc/[0-9]*/cmdline; then
      scontrol update JobId="$id" StartTime=now+2
    fi
  done < <(squeue --noheader --states=PENDING --format="%i %S" | grep -v N/A)
}
is_over() {
  start_requeued_jobs
  [[ $(field "$1" JobState) =~ ^(COMPLETED|FAILED|CANCELLED)$ ]]
}
# ends JOB STATE CODE:SIGNAL RESTARTS: whether it does.
ends() {
  local ended
  wait_for is_over "$1" || true
  ended="$(field "$1" JobState) $(field "$1" ExitCode) $(field "$1" Restarts)"
  [[ $ended == "$2 $3 $4" ]] || { echo "job $1 is $ended" && false; }
}
says() {
  grep -qF -- "$2" "$scratch/$1.log"
}


# write_config NAME STEPS: NAME.yaml, of a run of so many steps in the folder NAME. A job reads it whenever it
# starts: one that is interrupted has no end to come to before, and is given one then.
endless=1000000
write_config() {
  cat >"$scratch/$1.yaml" <<YAML
model: {vocab_size: 259, num_layers: 2, d_model: 32, num_heads: 4, num_kv_heads: 2,
        ffn_dim: 48, num_experts: 4}
run: {dir: $scratch/$1, device: cpu}
parallel: {tensor: 2, expert: 4}
data: {train: [$root/README.md]}
batch: {sequence_length: 32, micro_batch: 4, global_batch: 8}
optimizer: {learning_rate: 4e-3}
schedule: {steps: $2, warmup_steps: 5, decay: constant}
checkpoint: {every: 400, keep: 1000}
metrics: {every: 20, validate_every: 0, sample_every: 0}
YAML
}

# give_an_end NAME: sets `last` to a step that the run is not at yet, and ends it there when it starts again.
give_an_end() {
  local newest
  newest=$(find "$scratch/$1" -maxdepth 1 -name 'step-????????' | sed 's/.*step-0*//' | sort -n | tail -n 1)
  last=$((${newest:-400} + 1200))
  write_config "$1" "$last"
}

# reaches FILE RUN_DIR: waits for it and sets `ranks` to the processes of `job`, stopped.
reaches() {
  wait_for test -s "$2/metrics.jsonl" || return
  mapfile -t ranks < <(scontrol listpids "$job.0" node | awk '$4 ~ /^[0-9]+$/ {print $1}')
  ((${#ranks[@]} == 4)) || return
  wait_for test -e "$2/$1" || return
  kill -STOP "${ranks[@]}"
}
kill_a_rank() {
  kill -KILL "${ranks[2]}"
  kill -CONT "${ranks[@]:0:2}" "${ranks[3]}"
}

# resumes NAME: whether the job did, and from before the end.
resumes() {
  local step
  step=$(sed -n "s|^resuming from $scratch/$1/step-\([0-9]*\) .*|\1|p" "$scratch/$1.log")
  [[ -n $step ]] && ((10#$step >= 400 && 10#$step < last))
}
# same_checkpoint NAME: whether the run has at `last` what one has that nothing happened to.
same_checkpoint() {
  local file checkpoint num_files=0
  checkpoint=step-$(printf '%08d' "$last")
  for file in "$scratch/whole-$last/$checkpoint"/*.safetensors; do
    cmp -- "$file" "$scratch/$1/$checkpoint/$(basename -- "$file")" || return
    num_files=$((num_files + 1))
  done
  ((num_files == 8))  # of each rank its weights and its optimizer state
}

# The program itself, in jobs of four ranks.

# trains STEPS: unless a job has.
trains() {
  [[ ! -e $scratch/whole-$1 ]] || return 0
  write_config "whole-$1" "$1"
  submit "whole-$1" 4 memphis "$scratch/whole-$1.yaml"
  expect "a job trains to the end" ends "$job" COMPLETED 0:0 0
}

saves_and_goes_on_when_it_is_preempted() {
  write_config preempted "$endless"
  submit preempted 4 memphis "$scratch/preempted.yaml"
  expect "the job saves" reaches step-00000400/COMMIT "$scratch/preempted"
  give_an_end preempted
  scancel --signal=USR1 "$job"
  kill -CONT "${ranks[@]}"
  expect "it starts again once" ends "$job" COMPLETED 0:0 1
  expect "it saved because of the signal" says preempted "exit code 10;"
  expect "it knows of its restart" says preempted "job $job, restart 1: 4 ranks on node"
  expect "it goes on from there" resumes preempted
  trains "$last"
  expect "to the same bits" same_checkpoint preempted
}

goes_on_when_a_rank_is_killed() {
  write_config killed "$endless"
  submit killed 4 memphis "$scratch/killed.yaml"
  expect "the job saves" reaches step-00000400/COMMIT "$scratch/killed"
  give_an_end killed
  kill_a_rank
  expect "it starts again once" ends "$job" COMPLETED 0:0 1
  expect "it counts as a lost rank" says killed "exit code 11;"
  expect "it goes on from there" resumes killed
  trains "$last"
  expect "to the same bits" same_checkpoint killed
}

starts_over_when_it_is_lost_before_it_saves() {
  write_config early "$endless"
  submit early 4 memphis "$scratch/early.yaml" checkpoint.every=0
  expect "the job runs" reaches metrics.jsonl "$scratch/early"
  give_an_end early
  kill_a_rank
  expect "it starts again once" ends "$job" COMPLETED 0:0 1
  expect "it says from where" says early "the run starts over from step 0"
  trains "$last"
  expect "to the same bits" same_checkpoint early
}

refuses_what_cannot_work() {
  submit config 4 memphis "$scratch/tiny.yaml" run.dir="$scratch/refused" parallel.tensor=3
  expect "a bad config ends the job for good" ends "$job" FAILED 2:0 0
  expect "and says why" says config "parallel.tensor 3 does not divide the 4 ranks of this job"
  # Ranks find this one out for themselves.
  submit data 4 memphis "$scratch/tiny.yaml" run.dir="$scratch/refused" 'data.train=[nothing]'
  expect "missing data end the job for good" ends "$job" FAILED 3:0 0
  expect "and it says which" says data "data.train[0] is nothing (there is no such file"
  expect "neither leaves a run directory" not test -e "$scratch/refused"
}

refuses_ranks_that_are_alone() {
  local status=0
  srun --ntasks=4 --mpi=none "$binary" train "$scratch/tiny.yaml" run.dir="$scratch/alone" \
    >"$scratch/alone.log" 2>&1 || status=$?
  expect "srun without PMI is refused" test "$status" == 5
  expect "and told why" says alone "this is task 3 of the 4 of a Slurm step, and it is alone"
  expect "before anything is written" not test -e "$scratch/alone"
}

# doctor NAME ARGUMENT...: sets `status` to what it ends with; NAME.log, NAME.good and NAME.bad are its.
doctor() {
  local name=$1
  shift
  status=0
  srun --ntasks=4 --mpi=pmix --kill-on-bad-exit=1 "$binary" doctor "$scratch/tiny.yaml" "$@" \
    --good "$scratch/$name.good" --bad "$scratch/$name.bad" >"$scratch/$name.log" 2>&1 || status=$?
}
examines_its_nodes() {
  local status
  # A machine that is well, whatever ports and shared memory this one has.
  mkdir -p -- "$scratch/machine/sys" "$scratch/machine/dev/shm"
  doctor well --root "$scratch/machine"
  expect "the doctor finds nothing" test "$status" == 0
  expect "in a job of all ranks" says well "4 ranks"
  expect "on the node" test "$(cat "$scratch/well.good")" == node
  expect "and lists it as good alone" test ! -s "$scratch/well.bad"
  doctor sick --root "$scratch/nowhere"
  expect "it finds what is wrong" test "$status" == 5
  expect "on the node" test "$(cat "$scratch/sick.bad")" == node
  expect "which srun leaves out by its list" not srun --ntasks=1 --immediate=5 --exclude="$scratch/sick.bad" true
}

# A stand-in of a rank in jobs of one.

write_stand_in() {
  cat >"$scratch/stand_in.sh" <<'STAND_IN'
#!/usr/bin/env bash
set -euo pipefail
if [[ $1 == plan ]]; then
  # plan --ranks 1 CONFIG
  printf 'model:\n  dir: "no"\nrun:\n  dir: "%s"\nschedule:\n  steps: 4\n' "$4.run"
  exit
fi
how=$2  # train CONFIG
restart=${SLURM_RESTART_COUNT:-0}
case $(basename -- "$how") in
  progress)  # a checkpoint each time
    mkdir -p -- "$how.run/step-0000000$restart"
    touch -- "$how.run/step-0000000$restart/COMMIT"
    ((restart >= 4)) || exit 12
    ;;
  cancelled)  # saves and ends when it is told to
    trap 'exit 10' TERM
    touch -- "$how.waits"
    while true; do sleep 0.1; done
    ;;
  *)
    exit "$(basename -- "$how")"
    ;;
esac
STAND_IN
  chmod +x -- "$scratch/stand_in.sh"
}

declare -A stand_ins  # jobs by name

submit_stand_ins() {
  local name
  for name in 0 1 4 5 11 13 14 progress cancelled; do
    submit "$name" 1 stand_in "$scratch/$name"
    stand_ins[$name]=$job
  done
}

follows_the_exit_code() {
  local name
  for name in 1 4 5 14; do
    expect "exit code $name ends the job for good" ends "${stand_ins[$name]}" FAILED "$name:0" 0
  done
  expect "a job stops that restarts without progress" ends "${stand_ins[11]}" FAILED 15:0 3
  expect "and says so" says 11 "3 restarts have brought no newer checkpoint (newest: none)"
  expect "a job is not done because srun says so" ends "${stand_ins[0]}" FAILED 15:0 3
  expect "and says so" says 0 "the run is not at step 4"
  expect "a job with progress goes on" ends "${stand_ins[progress]}" COMPLETED 0:0 4
  expect "bad hardware has the job wait" wait_for is_in_state "${stand_ins[13]}" PENDING
  expect "for another node" test "$(field "${stand_ins[13]}" ExcNodeList)" == node
}

does_not_come_back_when_it_is_cancelled() {
  expect "a job runs" wait_for test -e "$scratch/cancelled.waits"
  scancel "${stand_ins[cancelled]}"
  expect "it ends for good" ends "${stand_ins[cancelled]}" CANCELLED 0:15 0
}

says_what_is_missing() {
  mkdir -p -- "$scratch/not_built" "$scratch/elsewhere/launch"
  ln -s -- "$root/launch" "$scratch/not_built/launch"
  submit not_built 1 not_built config.yaml
  expect "a tree that is not built ends the job" ends "$job" FAILED 1:0 0
  expect "and is named" says not_built "there is no $scratch/not_built/build/cpu/memphis on "
  cp -- "$root/launch/slurm.sbatch" "$scratch/elsewhere/launch"
  submit elsewhere 1 elsewhere config.yaml
  expect "a script without its repository ends the job" ends "$job" FAILED 1:0 0
  expect "and says where it looked" says elsewhere \
    "there is no repository around '$scratch/elsewhere/launch/slurm.sbatch' or at '$scratch' on "
}

# The binding, of a machine with four GPUs.
reads_the_topology() {
  local bus=$scratch/sys/bus/pci/devices
  mkdir -p -- "$bus"/000{0:1b,0:43,0:9d,1:c3}:00.0
  echo 0 | tee "$bus"/000{0:1b,0:43}:00.0/numa_node >/dev/null
  echo 1 | tee "$bus"/000{0:9d,1:c3}:00.0/numa_node >/dev/null
  nvidia-smi() {
    printf '%s\n' 00000000:1B:00.0 00000000:43:00.0 00000000:9D:00.0 00000001:C3:00.0
  }
  expect "GPUs are mapped to NUMA nodes" test "$(gpu_numa_nodes "$scratch/sys")" == 0,0,1,1
  echo -1 >"$bus/0000:9d:00.0/numa_node"
  expect "unless one is of no node" test -z "$(gpu_numa_nodes "$scratch/sys")"
}

cd -- "$scratch"
export OMP_NUM_THREADS=1  # four ranks share the cores
start_slurm "$scratch/slurm" ||
  { echo "SKIP: Slurm does not start on this machine: $slurm_fault" && exit; }
write_config tiny 1600
write_stand_in
tree memphis "$binary"
tree stand_in "$scratch/stand_in.sh"
submit_stand_ins  # which wait while the others work
trains 1600
saves_and_goes_on_when_it_is_preempted
goes_on_when_a_rank_is_killed
starts_over_when_it_is_lost_before_it_saves
refuses_what_cannot_work
refuses_ranks_that_are_alone
examines_its_nodes
does_not_come_back_when_it_is_cancelled
follows_the_exit_code
says_what_is_missing
reads_the_topology
((num_failed == 0))
