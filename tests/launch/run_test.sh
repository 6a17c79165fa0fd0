#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# run_test.sh: tests/run.sh says what it will do before it does it, and ends with a result line in
# whatever way it ends.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/../../launch/common.sh"
# shellcheck source=tests/launch/expect.sh
source "$root/tests/launch/expect.sh"

scratch=$(mktemp -d)
trap 'rm -rf -- "$scratch"' EXIT
tree=$scratch/a\ tree
mkdir -p -- "$tree/launch" "$tree/tests/support" "$scratch/bin"
cp -- "$root"/launch/{common,packages}.sh "$tree/launch"
cp -- "$root/tests/run.sh" "$tree/tests"
cp -- "$root/tests/support/summarize.py" "$tree/tests/support"
echo 'echo "the build begins" >&2; exit 1' >"$tree/launch/build.sh"

# stand_in NAME TEXT: a program of the machine, for this test.
stand_in() {
  printf '#!/bin/sh\n%s\n' "$2" >"$scratch/bin/$1"
  chmod +x -- "$scratch/bin/$1"
}

# ends WITH [ARGUMENT ...]: whether tests/run.sh, started elsewhere, fails with that as its last line. It begins
# with the signals of `disposition`.
disposition=--default-signal
ends() {
  local with=$1 status=0
  shift
  (cd / && PATH=$scratch/bin:$PATH env "$disposition" bash "$tree/tests/run.sh" "$@") >"$scratch/out" 2>"$scratch/err" || status=$?
  [[ $status != 0 && $(tail -n 1 -- "$scratch/out") == "$with" ]] ||
    { cat -- "$scratch/out" "$scratch/err" && false; }
}
says() {
  grep -qF -- "$1" "$scratch/err"
}

expect "a preset that is none fails" ends "0 passed, 1 failed, 0 skipped" gpu
expect "and is named" says "there is no preset gpu"

# All packages are there, whatever this machine has and can install, and the build is not. There is room on the
# disk, however small the one is that this test writes to.
stand_in id 'echo 1000'
# shellcheck disable=SC2016  # the stand-in expands it
stand_in dpkg-query 'shift 3; for package; do echo "$package installed"; done'
for optional in clang-format-14 qemu-x86_64 chromium clang++-14; do
  stand_in "$optional" true
done
mebibytes_free() {
  stand_in df "echo heading; echo disk 1 1 $1 1% /"
}
mebibytes_free 3000
expect "what does not build fails" ends "0 passed, 2 failed, 0 skipped" cpu
expect "it says how long it takes" says "20 to 40 minutes"
expect "and that it installs nothing" says "It installs nothing."

mebibytes_free 2999
expect "what has no room fails" ends "0 passed, 1 failed, 0 skipped" cpu
expect "and says how much it takes" says "build has 2999 MiB free ("
mebibytes_free 3000

# A hangup meanwhile ends it, but where that was ignored at its start.
echo true >"$tree/launch/build.sh"
# shellcheck disable=SC2016  # the stand-in expands it
stand_in ctest 'kill -s HUP "$PPID"'
expect "a hangup ends it" ends "0 passed, 1 failed, 0 skipped" cpu
expect "and is named" says "stopped by SIGHUP"
disposition=--ignore-signal=HUP,INT,QUIT,PIPE
expect "under nohup it goes on, to tests that are not there" ends "0 passed, 2 failed, 0 skipped" cpu
disposition=--default-signal
echo 'echo "the build begins" >&2; exit 1' >"$tree/launch/build.sh"

# Packages are missing, and this user may not install any.
stand_in dpkg-query true
stand_in sudo 'exit 1'
expect "without packages or sudo it fails" ends "0 passed, 1 failed, 0 skipped" cpu
expect "it says that it installs" says "It first installs, through sudo:"
expect "and why it cannot" says "sudo refuses this user"
expect "and what to do" says "ask for \`apt-get install"
expect "before it builds" eval '! says "the build begins"'
expect "Slurm is not among it" eval '! says slurm'
((num_failed == 0))
