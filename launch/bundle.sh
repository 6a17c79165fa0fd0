#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# launch/bundle.sh [PRESET] [--tests] [--march ARCH] [--to FOLDER] [--built] [--no-archive]
# [-DNAME=VALUE ...]: a folder memphis-PRESET, and an archive of it, that runs wherever it is put: the
# program, this tree, Open MPI and every library that they need beyond glibc and what belongs to a
# machine's hardware. It is for nodes that have none of the packages. There,
#   memphis-cuda/memphis train CONFIG ...           is the program,
#   memphis-cuda/run mpirun -n 8 memphis train ...  anything else that needs the bundle's libraries,
#   memphis-cuda/tests/gpu.sh                       with --tests, all that is to be seen on a GPU.
#
# What belongs to the hardware is the machine's: the driver, CUDA's libraries and NCCL, which the bundle
# finds where the toolkit or Python's packages put them, and those of InfiniBand, which NCCL opens by
# itself. So Open MPI comes without its transports over InfiniBand: memphis moves the data of GPUs by
# NCCL, and jobs of CPUs that want them use the cluster's own Open MPI.
#
# It is built first, for x86-64-v3 unless --march names another; --built takes build/PRESET as it is. The
# bundle lies in build/bundle unless --to names another folder. Ends with 1 where the archive is larger
# than 52 MiB, after the list of what is large.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

# What runs single commands elsewhere often limits what is sent along to 64 MiB, sources included.
max_archive_mib=52
preset=
with_tests=
built=
archive=1
to=$root/build/bundle
march=x86-64-v3
definitions=()
while (($# > 0)); do
  argument=$1
  shift
  case $argument in
    --tests) with_tests=1 ;;
    --built) built=1 ;;
    --no-archive) archive= ;;
    --to | --march)
      (($# > 0)) || fail "$argument is given nothing (it takes one value); use it as in the head of launch/bundle.sh"
      [[ $argument == --to ]] && to=$1 || march=$1
      shift
      ;;
    -D?*) definitions+=("$argument") ;;
    cpu | simt | cuda)
      [[ -z $preset ]] || fail "two presets are given, $preset and $argument (a bundle has one); give one"
      preset=$argument
      ;;
    *) fail "launch/bundle.sh does not know $argument (it takes cpu, simt or cuda and what its head names); leave it out" ;;
  esac
done
preset=${preset:-$(default_preset)}
build=$root/build/$preset
if [[ -z $built ]]; then
  bash "$root/launch/build.sh" "$preset" ${with_tests:+--tests} --march "$march" "${definitions[@]}"
fi
[[ -x $build/memphis ]] || fail "there is no $build/memphis (--built takes it as it is); leave out --built"

mkdir -p -- "$to"
require_disk "$to" 1000 "a bundle"
name=memphis-$preset
bundle=$(realpath -- "$to")/$name
archive_file=$bundle.tar.xz
rm -rf -- "$bundle" "$archive_file"
mkdir -p -- "$bundle/build/$preset" "$bundle/runtime/"{bin,lib,share,etc}

# This tree, as git has it, without what is ignored: the scripts, the configs, and the text that a config
# without data.train trains on. A tree without git is taken but for what it has built.
copy_tree() {
  if git -C "$root" rev-parse --is-inside-work-tree >/dev/null 2>&1; then
    git -C "$root" ls-files -z --cached --others --exclude-standard |
      tar -C "$root" --ignore-failed-read --null --files-from=- -c | tar -x -C "$bundle"
  else
    tar -C "$root" --exclude=./build --exclude=./runs -c . | tar -x -C "$bundle"
  fi
}
copy_tree

# The simulated device finds kernels by the symbol table, which is small beside what tells a debugger.
# strip_into SOURCE DESTINATION
strip_into() {
  if [[ $preset == simt ]]; then
    strip --strip-debug -o "$2" -- "$1"
  else
    strip --strip-all -o "$2" -- "$1"
  fi
  chmod 755 -- "$2"
}
strip_into "$build/memphis" "$bundle/build/$preset/memphis"
install -m 755 -- "$root/launch/bundled.sh" "$bundle/run"
ln -s run "$bundle/memphis"
if [[ -n $with_tests ]]; then
  mkdir -p -- "$bundle/build/$preset/tests"
  cp -- "$build/tests/stages.txt" "$bundle/build/$preset/tests"
  while read -r test; do
    [[ -x $build/tests/$test ]] ||
      fail "there is no $build/tests/$test (tests/gpu.sh runs it); run \`launch/build.sh $preset --tests\`"
    strip_into "$build/tests/$test" "$bundle/build/$preset/tests/$test"
  done < <(bash "$root/tests/gpu.sh" --build "$build" --programs)
fi

# What every machine with such hardware has, in the version that it needs. A library for InfiniBand from
# elsewhere would keep NCCL from the cards.
is_of_the_system() {
  case $1 in
    ld-linux* | linux-vdso* | libc.so.* | libm.so.* | libdl.so.* | libpthread.so.* | librt.so.* | \
      libresolv.so.* | libutil.so.* | libmvec.so.*) return 0 ;;
    *) return 1 ;;
  esac
}
is_of_the_hardware() {
  case $1 in
    libcuda.so.* | libnvidia-* | libcudart.so.* | libcublas.so.* | libcublasLt.so.* | libnvrtc* | \
      libnvJitLink.so.* | libcupti.so.* | libnccl.so.*) return 0 ;;
    libibverbs.so.* | librdmacm.so.* | libmlx5.so.* | libucp.so.* | libucs.so.* | libuct.so.* | libucm.so.* | \
      libfabric.so.* | libpsm2.so.* | libpsm_infinipath.so.*) return 0 ;;
    *) return 1 ;;
  esac
}

# needs FILE: the names of the libraries that it is linked with.
needs() {
  readelf --dynamic -- "$1" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p'
}

# The libraries of FILE and theirs, as the linker of this machine finds them, into the bundle.
of_the_machine=()
add_libraries() {
  local file=$1 library path
  while read -r library path; do
    if is_of_the_system "$library" || [[ -e $bundle/runtime/lib/$library ]]; then
      continue
    elif is_of_the_hardware "$library"; then
      [[ " ${of_the_machine[*]} " == *" $library "* ]] || of_the_machine+=("$library")
    elif [[ $path == not* ]]; then
      fail "$file needs $library (the linker does not find it here); install it, or set LD_LIBRARY_PATH"
    else
      strip --strip-unneeded -o "$bundle/runtime/lib/$library" -- "$path"
    fi
  done < <(ldd -- "$file" | sed -nE 's/^[[:space:]]*([^ /]+) => (not found|[^ ]+).*/\1 \2/p')
}

# Open MPI, whose parts are opened by name from its prefix. OpenSHMEM's are of no use here.
add_open_mpi() {
  local folder component library
  command -v ompi_info >/dev/null ||
    fail "$build/memphis is linked with MPI, and there is no ompi_info (it tells where Open MPI's parts are);" \
      "install openmpi-bin"
  opal_folder() {
    ompi_info --parsable --path "$1" | sed -n "s/^path:$1://p" | head -n 1
  }
  folder=$(opal_folder bindir)
  for library in orterun orted; do
    strip_into "$folder/$library" "$bundle/runtime/bin/$library"
    add_libraries "$folder/$library"
  done
  ln -s orterun "$bundle/runtime/bin/mpirun"
  mkdir -- "$bundle/runtime/lib/openmpi"
  folder=$(opal_folder pkglibdir)
  for component in "$folder"/mca_*.so; do
    for library in $(needs "$component"); do
      if is_of_the_hardware "$library" || [[ $library == liboshmem.* || $library == libmca_common_ucx.* ]]; then
        continue 2
      fi
    done
    strip --strip-unneeded -o "$bundle/runtime/lib/openmpi/${component##*/}" -- "$component"
    add_libraries "$component"
  done
  cp -r -- "$(opal_folder pkgdatadir)" "$bundle/runtime/share/openmpi"
  cp -r -- "$(opal_folder sysconfdir)/." "$bundle/runtime/etc" 2>/dev/null || true
  # PMIx and hwloc run without what else they could open: compression, Slurm's resources, OpenGL.
  mkdir -p -- "$bundle/runtime/lib/"{pmix,hwloc}
}

add_libraries "$build/memphis"
for program in "$bundle/build/$preset/tests/"*_test; do
  [[ ! -x $program ]] || add_libraries "$program"
done
# cuBLASLt is opened by name, of the runtime's version, and by a run on a GPU alone.
opened_by_name=()
for library in "${of_the_machine[@]}"; do
  [[ $library != libcudart.so.* ]] || opened_by_name+=("libcublasLt.so.${library#libcudart.so.}")
done
if needs "$build/memphis" | grep '^libmpi\.so' >/dev/null; then
  add_open_mpi
fi
rmdir --ignore-fail-on-non-empty -- "$bundle/runtime/"*

# What this machine's glibc gave that an older one lacks, and what was bundled from what.
glibc=$(find "$bundle" -type f -exec sh -c 'for f; do readelf --version-info -- "$f" 2>/dev/null; done; true' _ {} + |
  grep -oE 'GLIBC_[0-9]+\.[0-9]+' | sort -uV | tail -n 1)
# The names of libraries are read by `run`.
{
  echo "preset: $preset"
  echo "commit: $(git -C "$root" describe --always --dirty --abbrev=12 2>/dev/null || echo unknown)"
  echo "glibc: ${glibc#GLIBC_}"
  echo "compiler: $(sed -n 's/^CMAKE_CXX_COMPILER:[A-Z]*=//p' "$build/CMakeCache.txt")" \
    "-march=$(sed -n 's/^MEMPHIS_CPU_ARCH:[A-Z]*=//p' "$build/CMakeCache.txt")"
  architectures=$(sed -n 's/^CMAKE_CUDA_ARCHITECTURES:[A-Z]*=//p' "$build/CMakeCache.txt")
  [[ -z $architectures ]] || echo "cuda: $(nvcc_version), sm_$architectures"
  echo "machine's libraries: ${of_the_machine[*]}"
  echo "opened when needed: ${opened_by_name[*]}"
} >"$bundle/MANIFEST"

cat -- "$bundle/MANIFEST"
if [[ -z $archive ]]; then
  echo "$bundle: $(du -sm -- "$bundle" | cut -f 1) MiB"
  exit
fi

# A program for each test, which have the kernels of their ops in them again and again: a window that reaches
# over all of them makes a third of what gzip does. Python has xz where tar may not find it.
compress() {
  python3 -c '
import lzma, shutil, sys
filters = [{"id": lzma.FILTER_LZMA2, "preset": 3, "dict_size": 256 << 20}]
with lzma.open(sys.argv[1], "wb", filters=filters) as archive:
    shutil.copyfileobj(sys.stdin.buffer, archive, 1 << 20)' "$1"
}

# The same files, the same archive.
date=$(git -C "$root" log -1 --format=%ct 2>/dev/null || echo 0)
tar -C "$(dirname -- "$bundle")" --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$date" -c "$name" |
  compress "$archive_file"
bytes=$(stat -c %s -- "$archive_file")
awk -v bytes="$bytes" -v archive="$archive_file" 'BEGIN {printf "%s: %.1f MiB\n", archive, bytes / 1048576}'
if ((bytes > max_archive_mib << 20)); then
  du -ak -- "$bundle" | sort -rn | awk '$1 >= 2048 && NR > 1 {printf "  %5.1f MiB %s\n", $1 / 1024, $2}' |
    head -n 20 >&2
  fail "$archive_file is larger than $max_archive_mib MiB (the largest parts are listed, not compressed);" \
    "bundle without --tests, or for one architecture (-DCMAKE_CUDA_ARCHITECTURES)"
fi
