# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# A Slurm of its own for a test, as root on this machine: one node of sixteen processors, whatever
# the machine has. Its configuration, key, state, logs and sockets are in one directory and its ports are
# free ones, so that it and a Slurm of the machine do not know of each other. Sourced.

# For all that is waited for together, so that a test ends in order before CTest ends it.
slurm_patience_seconds=3000
slurm_pids=()  # of its daemons
slurm_fault=   # why it does not start, where it does not

# wait_for COMMAND...: whether it came true.
wait_for() {
  until "$@"; do
    ((SECONDS < slurm_patience_seconds)) || return 1
    sleep 0.05
  done
}

free_ports() {
  python3 - "$1" <<'PYTHON'
import socket, sys
sockets = [socket.socket() for _ in range(int(sys.argv[1]))]
for one in sockets:
    one.bind(("127.0.0.1", 0))
print(*(one.getsockname()[1] for one in sockets))
PYTHON
}

slurm_is_idle() {
  [[ $(sinfo --noheader --format=%T 2>/dev/null) == idle ]]
}

# wait_for_daemons DIRECTORY COMMAND...: whether it came true, while all daemons that were started
# live. One that cannot work here (without cgroups, or a way to its own sockets) says so and ends.
wait_for_daemons() {
  local directory=$1 pid
  shift
  until "$@"; do
    for pid in "${slurm_pids[@]}"; do
      if ! kill -0 "$pid" 2>/dev/null; then
        slurm_fault=$(grep -hi fatal "$directory"/log/* || grep -hi error "$directory"/log/* || true)
        slurm_fault=${slurm_fault:-one of its daemons has ended}
        slurm_fault=${slurm_fault##*$'\n'}
        return 1
      fi
    done
    if ((SECONDS >= slurm_patience_seconds / 25)); then
      slurm_fault="its node is not idle after $SECONDS s"
      return 1
    fi
    sleep 0.05
  done
}

# start_slurm DIRECTORY: exports what makes Slurm's commands talk to it, or sets `slurm_fault`.
# `stop_slurm DIRECTORY` is due whether it comes up or not.
start_slurm() {
  local directory=$1 host ports
  host=$(hostname -s)
  read -ra ports <<<"$(free_ports 2)"
  mkdir -p -- "$directory"/{state,spool,log,tmp}
  cat >"$directory/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=${ports[0]}
SlurmdPort=${ports[1]}
SlurmUser=root
SlurmdUser=root
AuthInfo=socket=$directory/munge.socket
StateSaveLocation=$directory/state
SlurmdSpoolDir=$directory/spool
SlurmctldPidFile=$directory/slurmctld.pid
SlurmdPidFile=$directory/slurmd.pid
SlurmdLogFile=$directory/log/slurmd
# Where its PMIx makes directories that are named by numbers of jobs: in /tmp another Slurm, or one
# that was killed, has the same.
TmpFS=$directory/tmp
# On a machine that is busy a daemon may answer late.
MessageTimeout=100
TCPTimeout=60
# Jobs start within a second, and what ignores SIGTERM is killed after one.
SchedulerParameters=sched_interval=1,batch_sched_delay=0
KillWait=1
# How jobs ended is asked for when the others are done: after five minutes Slurm would have forgotten it,
# and with 0, whatever its manual says, at once.
MinJobAge=43200
# Neither cgroups nor a binding to cores: the processors are there in name only.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
NodeName=node NodeHostname=$host NodeAddr=127.0.0.1 CPUs=16
PartitionName=test Nodes=ALL Default=YES
CONF
  (umask 077 && head -c 1024 /dev/urandom >"$directory/munge.key")
  unset "${!SLURM@}" "${!SBATCH@}" "${!SRUN@}"  # of a job that the test itself may be in
  export SLURM_CONF=$directory/slurm.conf
  # --force: others cannot reach the socket, and need not.
  munged --foreground --force --key-file="$directory/munge.key" --socket="$directory/munge.socket" \
    --pid-file="$directory/munged.pid" --seed-file="$directory/munge.seed" \
    --log-file="$directory/log/munged" >"$directory/log/munged.out" 2>&1 &
  slurm_pids+=($!)
  wait_for_daemons "$directory" test -S "$directory/munge.socket" || return
  slurmctld -D -i >"$directory/log/slurmctld" 2>&1 &
  slurm_pids+=($!)
  slurmd -D -N node >"$directory/log/slurmd.out" 2>&1 &
  slurm_pids+=($!)
  wait_for_daemons "$directory" slurm_is_idle
}

# processes_of DIRECTORY: those that were started with this Slurm's configuration.
processes_of() {
  local file
  for file in /proc/[0-9]*/environ; do
    if grep -qzxF "SLURM_CONF=$1/slurm.conf" "$file" 2>/dev/null; then
      basename -- "${file%/environ}"
    fi
  done
}

# stop_slurm DIRECTORY: ends its daemons, and then what they have started.
stop_slurm() {
  local pids
  kill "${slurm_pids[@]}" 2>/dev/null || true
  wait "${slurm_pids[@]}" 2>/dev/null || true
  mapfile -t pids < <(processes_of "$1")
  while ((${#pids[@]} > 0)); do
    kill -KILL "${pids[@]}" 2>/dev/null || true
    mapfile -t pids < <(processes_of "$1")
  done
}
