#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# launch/packages.sh [--tests] [--list]: installs the Debian packages that the build (and the tests) need
# and that are missing; does nothing where all are there. --list only prints their names, in a line.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

# A tool counts as there whoever installed it, so each is looked up by its command.
tools=(g++:g++ cmake:cmake ninja-build:ninja pkg-config:pkg-config git:git python3:python3)
libraries=(libopenblas-dev libyaml-cpp-dev libbenchmark-dev libcli11-dev
  nlohmann-json3-dev libspdlog-dev libfmt-dev libxxhash-dev
  libsentencepiece-dev libpcre2-dev libutf8proc-dev zlib1g-dev libzstd-dev
  libopenmpi-dev openmpi-bin)
for_tests=
list_only=
for argument in "$@"; do
  case $argument in
    --tests) for_tests=1 ;;
    --list) list_only=1 ;;
    *) fail "packages.sh does not know $argument (it takes --tests and --list); leave it out" ;;
  esac
done
# GoogleTest, and the fibers of the simt preset, which is built for the tests alone.
if [[ -n $for_tests ]]; then
  libraries+=(libgtest-dev libboost-context-dev)
fi
# "packages:command". Without them the tests `format`, `processor`, `browser_test`, `fuzz` and `slurm` are
# skipped, and say so. Clang is 52 MB to fetch and 290 MB on the disk, two thirds of which clang-format
# brings. Slurm is for tests as root; where systemd runs, its packages start daemons, which is not for
# a test to decide.
optional_for_tests=(clang-format-14:clang-format-14 qemu-user:qemu-x86_64 chromium:chromium
  "clang-14 libclang-rt-14-dev:clang++-14")
if [[ $(id -u) == 0 && ! -d /run/systemd/system ]]; then
  optional_for_tests+=("slurmctld slurm-client munge slurmd:slurmd")
fi

missing=()
for entry in "${tools[@]}"; do
  if ! command -v "${entry#*:}" >/dev/null; then
    missing+=("${entry%%:*}")
  fi
done
if command -v dpkg-query >/dev/null; then
  # dpkg-query's status is not zero where a package is unknown to it, which is an answer here.
  installed=$(dpkg-query -W -f '${Package} ${db:Status-Status}\n' "${libraries[@]}" 2>/dev/null || true)
  for package in "${libraries[@]}"; do
    if ! grep -qx "$package installed" <<<"$installed"; then
      missing+=("$package")
    fi
  done
fi

# Those for tests whose command is not there, each with its packages on a line.
PATH=$PATH:/usr/sbin  # where daemons are, which not everybody has on it
missing_for_tests=()
if [[ -n $for_tests ]] && command -v apt-get >/dev/null; then
  for entry in "${optional_for_tests[@]}"; do
    command -v "${entry#*:}" >/dev/null || missing_for_tests+=("${entry%%:*}")
  done
fi
if [[ -n $list_only ]]; then
  all=("${missing[@]}" "${missing_for_tests[@]}")
  echo "${all[*]}"
  exit
fi

if [[ $(id -u) == 0 ]]; then
  as_root=()
elif [[ -t 0 ]]; then
  as_root=(sudo)
else
  as_root=(sudo -n)  # nobody is there to type a password
fi
apt_get() {
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y \
    -o APT::Update::Error-Mode=any -o DPkg::Lock::Timeout=120 \
    -o Acquire::http::Timeout=20 -o Acquire::https::Timeout=20 "$@"
}

install() {
  local list="$*" log
  if ! command -v apt-get >/dev/null; then
    fail "missing: $list (there is no apt-get here: not Debian or Ubuntu);" \
      "install these with this system's package manager and run this again"
  fi
  if ((${#as_root[@]} > 0)) && ! command -v sudo >/dev/null; then
    fail "missing: $list (not root, and no sudo to become it);" \
      "ask for \`apt-get install $list\` as root and run this again"
  fi
  if ((${#as_root[@]} > 0)) && ! "${as_root[@]}" true; then
    fail "missing: $list (sudo refuses this user);" \
      "ask for \`apt-get install $list\` as root and run this again"
  fi
  require_disk /usr 1500 "installing the packages"
  note "installing: $list"
  log=$(mktemp)
  # One broken third-party list must not stop what the others can supply, so the verdict is install's.
  apt_get update >"$log" 2>&1 || note "apt-get update: $(grep -m 1 '^[EW]:' "$log" || echo failed)"
  if ! apt_get install --no-install-recommends "$@" >>"$log" 2>&1; then
    fail "cannot install $list ($(grep '^E:' "$log" | tail -n 1); log: $log);" \
      "check the network and /etc/apt/sources.list*, then run this again"
  fi
  rm -f -- "$log"
}

if ((${#missing[@]} > 0)); then
  install "${missing[@]}"
fi
for entry in "${missing_for_tests[@]}"; do
  read -ra packages <<<"$entry"
  (install "${packages[@]}") || note "going on without ${packages[*]}"
done

compiler=${CXX:-c++}
macros=$("$compiler" -dM -E -x c++ /dev/null 2>/dev/null || true)
gnu_major=$(sed -n 's/^#define __GNUC__ //p' <<<"$macros")
if grep -q '__clang__' <<<"$macros"; then
  fail "$compiler is clang (memphis is built and tested with g++ 12 or newer); set CXX=g++"
elif ((${gnu_major:-0} < 12)); then
  fail "$compiler is g++ ${gnu_major:-unknown} (C++20 as used here needs 12 or newer);" \
    "install g++-12 and set CXX=g++-12"
fi
cmake_version=$(cmake --version | sed -n '1s/[^0-9]*//p')
if ! version_at_least "$cmake_version" 3.25; then
  fail "cmake is $cmake_version (the presets need 3.25 or newer);" \
    "install a newer one, for example with \`pip install cmake\`"
fi
