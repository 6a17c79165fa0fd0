#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# processor_test.sh MEMPHIS ARCH: the program, built with -march=ARCH, on an emulated processor that
# has nothing beyond the first x86-64, and on one that has all that the emulator knows.
set -euo pipefail
# shellcheck source=tests/launch/expect.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/expect.sh"

binary=$1
arch=$2
if ! command -v qemu-x86_64 >/dev/null; then
  echo "SKIP: there is no qemu-x86_64 (the package qemu-user has it)"
  exit 0
fi

# on PROCESSOR STATUS: whether the program ends so there; sets $said.
on() {
  local status=0
  said=$(qemu-x86_64 -cpu "$1" "$binary" --version 2>&1) || status=$?
  [[ $status == "$2" ]] || { echo "status $status: $said" && false; }
}
says() {
  [[ $said == *"$1"* && $said != *$'\n'* ]] || { echo "$said" && false; }
}

# Nothing beyond SSE3.
processor=qemu64,-ssse3,-sse4.1,-sse4.2,-popcnt,-avx,-avx2,-sse4a
if [[ $arch == x86-64 ]]; then
  expect "what is built for any x86-64 runs on the first" on "$processor" 0
else
  expect "a processor that lacks instructions is refused" on "$processor" 5
  expect "in one line that names them" says "this processor has no ssse3"
  expect "and the remedy" says "launch/build.sh --march"
fi
((num_failed == 0))
