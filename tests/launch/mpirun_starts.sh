# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# Whether processes can be started here at all, by which a test of ranks skips instead of failing:
# Open MPI wants a network interface, if only the loopback, which a sandbox may lack. Sourced.

# skip_unless_mpirun_starts MPIRUN: ends the script with a line that CTest takes for a skip.
skip_unless_mpirun_starts() {
  local said
  said=$("$1" --allow-run-as-root --oversubscribe -n 1 true 2>&1) && return
  said=$(grep -v '^-*$' <<<"$said" | head -n 1 || true)
  echo "SKIP: mpirun does not start on this machine: ${said:-it says nothing}"
  exit
}
