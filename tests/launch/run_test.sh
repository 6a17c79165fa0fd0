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

# ends WITH [ARGUMENT ...]: whether tests/run.sh, started elsewhere, fails with that as its last line.
ends() {
  local with=$1 status=0
  shift
  (cd / && PATH=$scratch/bin:$PATH bash "$tree/tests/run.sh" "$@") >"$scratch/out" 2>"$scratch/err" || status=$?
  [[ $status != 0 && $(tail -n 1 -- "$scratch/out") == "$with" ]] ||
    { cat -- "$scratch/out" "$scratch/err" && false; }
}
says() {
  grep -qF -- "$1" "$scratch/err"
}

expect "a preset that is none fails" ends "0 passed, 1 failed, 0 skipped" gpu
expect "and is named" says "there is no preset gpu"

# All packages are there, and the build is not.
stand_in id 'echo 1000'
# shellcheck disable=SC2016  # the stand-in expands it
stand_in dpkg-query 'shift 3; for package; do echo "$package installed"; done'
stand_in clang-format-14 true
stand_in chromium true
expect "what does not build fails" ends "0 passed, 2 failed, 0 skipped" cpu
expect "it says how long it takes" says "20 to 40 minutes"
expect "and that it installs nothing" says "It installs nothing."

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
