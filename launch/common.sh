# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# What the scripts of launch/ and tests/ share. Sourced, after `set -euo pipefail`.

# shellcheck disable=SC2034  # used by the scripts that source this one
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)

# fail "<what is wrong> (<why>); <what to do>"
fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

note() {
  printf '%s\n' "$*" >&2
}

# require_disk DIRECTORY MIB PURPOSE
require_disk() {
  local directory=$1 needed_mib=$2 purpose=$3 free_mib
  free_mib=$(df -Pm -- "$directory" | awk 'NR == 2 {print $4}')
  if ((free_mib < needed_mib)); then
    fail "$directory has $free_mib MiB free ($purpose takes $needed_mib MiB);" \
      "free some space or use another disk"
  fi
}

# control_group_free_mib [ROOT]: the MiB that control groups leave to this process, its own and those
# around it, as containers and jobs are; nothing where none limits it. Caches of files are free. (The
# program reads the same files: csrc/core/control_groups.h.)
control_group_free_mib() {
  local system=${1-} controllers path folder names limit used cached free least=
  while IFS=: read -r _ controllers path; do
    case ,$controllers, in
      ,,) folder=$system/sys/fs/cgroup names=(memory.max memory.current) ;;
      *,memory,*)
        folder=$system/sys/fs/cgroup/memory names=(memory.limit_in_bytes memory.usage_in_bytes)
        ;;
      *) continue ;;
    esac
    [[ $path != /..* ]] || path=/
    while true; do
      limit=$(cat -- "$folder$path/${names[0]}" 2>/dev/null || true)
      # Version 1 says "none" by a number of this many digits.
      if [[ $limit =~ ^[0-9]{1,18}$ ]]; then
        used=$(cat -- "$folder$path/${names[1]}" 2>/dev/null || echo 0)
        cached=$(awk '/^(total_)?(in)?active_file / {sum[/^total_/ ? 1 : 0] += $2}
          END {printf "%d", 1 in sum ? sum[1] : sum[0]}' "$folder$path/memory.stat" 2>/dev/null || echo 0)
        free=$(((limit - used + cached) / 1048576))
        ((free > 0)) || free=0
        [[ -n $least ]] && ((least <= free)) || least=$free
      fi
      [[ -n ${path%/} ]] || break
      path=${path%/*}
    done
  done < <(cat -- "$system/proc/self/cgroup" 2>/dev/null || true)
  echo "$least"
}

# start COMMAND ...: starts a program in the background, with this script's input, and sets `started` to its
# process, which signals reach from then on, but for SIGINT and SIGQUIT, which bash has it ignore. Bash loses
# one that comes to a child between its fork and the end of this script's traps in it, where it can stand for
# seconds if it has to wait for a processor: so this waits until it is past that.
start() {
  local pipe ready
  # A pipe that has no name, and no place on a disk. Where there is no way to one, that moment stays.
  if ! { exec {pipe}<> <(:) && exec {ready}</dev/fd/"$pipe"; } 2>/dev/null; then
    "$@" <&0 &
    started=$!
    return
  fi
  # Its traps are gone when it does anything at all. (Without the redirection its input would be empty.)
  (echo >&"$pipe" && exec "$@" {pipe}>&- {ready}<&-) <&0 &
  started=$!
  exec {pipe}>&-
  read -r -u "$ready" || true  # it may have been killed before
  exec {ready}<&-
}

# await PROCESS: waits for the end of one that this script has started, and returns its status.
await() {
  while kill -0 "$1" 2>/dev/null; do
    wait "$1" || true  # which a signal to this script interrupts
  done
  wait "$1"
}

# Of passing_signals_on, whose variables it sees.
# shellcheck disable=SC2317  # its traps call it
pass_on() {
  told=$1
  if [[ -z $child ]]; then
    early=$2
  else
    kill -s "$2" "$child" 2>/dev/null || true
  fi
}

# passing_signals_on SIGNALS COMMAND ...: runs a program and returns its status. A signal of SIGNALS that this
# script is told goes to the program, whose end the script then waits for; "HUP=HUP INT=TERM" has SIGINT go on
# as SIGTERM. It counts from the start of the program, which is told when it is there. `told` is the last
# that came, and empty where none did. What was ignored when this script began, as SIGHUP is under nohup, is
# ignored by both.
passing_signals_on() {
  local signals=$1 child="" early="" pair status=0
  shift
  told=
  for pair in $signals; do
    # shellcheck disable=SC2064  # these signals
    trap "pass_on ${pair%=*} ${pair#*=}" "${pair%=*}"
  done
  start "$@"
  child=$started
  [[ -z $early ]] || kill -s "$early" "$child" 2>/dev/null || true
  await "$child" || status=$?
  for pair in $signals; do
    trap - "${pair%=*}"
  done
  return "$status"
}
# For one that trains. Ctrl-C comes from the terminal to both; a second SIGINT would end a run at once, so that
# it is not passed on as one.
# shellcheck disable=SC2034  # used by the scripts that source this one
to_a_run="HUP=HUP INT=TERM TERM=TERM"

# The CUDA toolkit's own installer puts nvcc here and leaves PATH alone.
if ! command -v nvcc >/dev/null && [[ -x /usr/local/cuda/bin/nvcc ]]; then
  PATH=$PATH:/usr/local/cuda/bin
fi

# "12.8" or the like; empty where there is no nvcc.
nvcc_version() {
  if command -v nvcc >/dev/null; then
    nvcc --version | sed -n 's/.*release \([0-9]*\.[0-9]*\).*/\1/p'
  fi
}

# version_at_least HAVE WANT
version_at_least() {
  [[ $(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1) == "$2" ]]
}

# The preset for this machine: cuda where the toolkit is, with or without a GPU. An nvcc that is too
# old is passed over aloud, because the cpu preset still trains.
default_preset() {
  local nvcc
  nvcc=$(nvcc_version)
  if [[ -z $nvcc ]]; then
    echo cpu
  elif version_at_least "$nvcc" 12.8; then
    echo cuda
  else
    note "nvcc $nvcc is too old (the cuda preset needs CUDA 12.8 or newer); building the cpu preset"
    echo cpu
  fi
}

# The preset to build for a program that this machine then runs: cuda only where there is a GPU for it,
# because its kernels take minutes to compile.
preset_to_run() {
  if [[ -n $(gpu_architecture) ]]; then
    default_preset
  else
    echo cpu
  fi
}

# config_path CONFIG: a config as the user names it from where they stand, or else one of this
# repository, for `launch/mpirun.sh 2 configs/smoke_cpu.yaml` from anywhere.
config_path() {
  # shellcheck disable=SC2154  # of this file
  if [[ ! -e $1 && $1 != /* && -e $root/$1 ]]; then
    printf '%s\n' "$root/$1"
  else
    printf '%s\n' "$1"
  fi
}

# The architecture to compile for to use the GPU of this machine ("90a", "80"); empty where there is
# none, or one older than sm_80, whose instructions the kernels use. Hopper's own instructions are in
# the architecture with the suffix only.
gpu_architecture() {
  local capability
  capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null |
    grep -m 1 -xE '[0-9]+\.[0-9]' || true)
  case $capability in
    "" | [0-7].*) ;;
    9.0) echo 90a ;;
    *) echo "${capability/./}" ;;
  esac
}

# gpu_numa_nodes SYSFS: the NUMA node of each GPU in the order of nvidia-smi ("0,0,1,1"); empty where
# the system does not say, as in most virtual machines.
gpu_numa_nodes() {
  local sysfs=$1 bus_id node nodes=()
  while read -r bus_id; do
    bus_id=${bus_id,,}
    # nvidia-smi writes eight digits of a PCI domain, sysfs four.
    node=$(cat -- "$sysfs/bus/pci/devices/${bus_id: -12}/numa_node" 2>/dev/null || echo -1)
    ((node >= 0)) || return 0
    nodes+=("$node")
  done < <(nvidia-smi --query-gpu=pci.bus_id --format=csv,noheader 2>/dev/null)
  (IFS=, && echo "${nodes[*]}")
}
