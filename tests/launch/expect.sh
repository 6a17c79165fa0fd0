# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# Expectations of a test, which goes on where one is not met and fails at its end. Sourced.

num_failed=0

# expect WHAT COMMAND...
expect() {
  local what=$1
  shift
  if ! "$@"; then
    echo "FAILED: $what ($*)"
    num_failed=$((num_failed + 1))
  fi
}
