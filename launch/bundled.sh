#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# `run` and `memphis` of a bundle (launch/bundle.sh):
#   run COMMAND [ARGUMENT ...]   the command, with the bundle's libraries, Open MPI and program to be found
#   memphis [ARGUMENT ...]       the program
#
# CUDA's libraries and NCCL are the machine's. They are looked for where LD_LIBRARY_PATH says, where the
# linker looks by itself, in $CUDA_HOME and /usr/local/cuda, and among the packages of python3, in this order.
set -euo pipefail

bundle=$(dirname -- "$(realpath -- "${BASH_SOURCE[0]}")")
runtime=$bundle/runtime

# The folders that hold CUDA's libraries among Python's packages (nvidia-cublas, nvidia-nccl-cu13, ...).
python_folders() {
  python3 - 2>/dev/null <<'PYTHON' || true
import glob, sys
for path in sys.path:
    for folder in sorted(glob.glob(path + "/nvidia/*/lib")):
        print(folder)
PYTHON
}

# folder_of LIBRARY: where it is, empty where the linker finds it by itself; fails where it is nowhere.
folder_of() {
  local library=$1 folder
  local IFS=:
  for folder in ${LD_LIBRARY_PATH-}; do
    [[ -z $folder || ! -e $folder/$library ]] || return 0
  done
  # Without -q: it would leave at the match, and ldconfig with it, which pipefail takes for no match.
  ! PATH=$PATH:/sbin:/usr/sbin ldconfig -p 2>/dev/null | grep -F "$library (libc6,x86-64)" >/dev/null || return 0
  for folder in "${CUDA_HOME:-/usr/local/cuda}/lib64" /usr/local/cuda/lib64 /usr/local/cuda/lib \
    /usr/local/nvidia/lib64; do
    [[ ! -e $folder/$library ]] || { echo "$folder" && return 0; }
  done
  while read -r folder; do
    [[ ! -e $folder/$library ]] || { echo "$folder" && return 0; }
  done < <(python_folders)
  return 1
}

folders=$runtime/lib
if [[ ${MEMPHIS_BUNDLE-} != "$bundle" ]]; then
  read -ra libraries < <(sed -n "s/^machine's libraries: *//p" "$bundle/MANIFEST")
  for library in "${libraries[@]}"; do
    if ! folder=$(folder_of "$library"); then
      echo "error: $library is not found (it is the machine's, by CUDA's toolkit, a package of NCCL, or" \
        "pip install of nvidia-*); install it, or set LD_LIBRARY_PATH to its folder" >&2
      exit 5
    fi
    [[ -z $folder || :$folders: == *:"$folder":* ]] || folders+=:$folder
  done
  read -ra libraries < <(sed -n "s/^opened when needed: *//p" "$bundle/MANIFEST")
  for library in "${libraries[@]}"; do
    folder=$(folder_of "$library") || continue  # who needs it says so
    [[ -z $folder || :$folders: == *:"$folder":* ]] || folders+=:$folder
  done
  export LD_LIBRARY_PATH=$folders${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
  export PATH=$runtime/bin:$bundle:$PATH
  # Open MPI, PMIx and hwloc were configured for folders of a machine that this is not.
  export OPAL_PREFIX=$runtime OPAL_BINDIR=$runtime/bin OPAL_LIBDIR=$runtime/lib OPAL_DATADIR=$runtime/share \
    OPAL_PKGLIBDIR=$runtime/lib/openmpi OPAL_PKGDATADIR=$runtime/share/openmpi OPAL_SYSCONFDIR=$runtime/etc
  export PMIX_PREFIX=$runtime
  # On a machine without ssh mpirun ends before it looks whether it needs one.
  if [[ -z ${SLURM_JOB_ID-}${PBS_JOBID-} ]] && ! command -v ssh >/dev/null && ! command -v rsh >/dev/null; then
    export OMPI_MCA_plm=${OMPI_MCA_plm-isolated}
  fi
  export HWLOC_PLUGINS_PATH=$runtime/lib/hwloc
  # What is started from here need not look again.
  export MEMPHIS_BUNDLE=$bundle
fi

if [[ ${0##*/} == memphis ]]; then
  exec "$bundle/build/$(sed -n 's/^preset: //p' "$bundle/MANIFEST")/memphis" "$@"
fi
(($# > 0)) || { echo "error: run is given no command (it runs one); use it as in \`./run mpirun -n 2 memphis ...\`" >&2 && exit 2; }
exec "$@"
