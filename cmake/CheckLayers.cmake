# SPDX-License-Identifier: Apache-2.0
#
# cmake -DROOT=<repository> -P cmake/CheckLayers.cmake
#
# Reads the sources of csrc/, kernels/ and bench/, which are the product, and stops with every line that
#   - includes a layer which its own does not stand on (each includes itself, core, and its row below);
#   - switches by the preprocessor, or writes PTX, outside kernels/device/, the one dialect's folder;
#   - changes a file or a directory by itself and not through csrc/core/file_calls.h, where tests make each
#     call fail (reading is free);
#   - or is missing: `#pragma once` in a header.
cmake_minimum_required(VERSION 3.25)

set(layers csrc/core csrc/config csrc/plan csrc/comm kernels csrc/data csrc/model csrc/optim csrc/checkpoint
           csrc/train csrc/doctor csrc/report bench csrc/cli)
set(uses_csrc/core "")
set(uses_csrc/config "")
set(uses_csrc/plan csrc/config)
set(uses_kernels "")
set(uses_csrc/data csrc/config)
set(uses_csrc/comm "")
set(uses_csrc/model csrc/plan csrc/config csrc/comm kernels)
set(uses_csrc/optim csrc/model csrc/plan csrc/config csrc/comm kernels)
set(uses_csrc/checkpoint csrc/model csrc/optim csrc/config csrc/plan csrc/comm)
set(uses_csrc/train csrc/config csrc/plan csrc/comm kernels csrc/data csrc/model csrc/optim csrc/checkpoint)
set(uses_bench kernels)
set(uses_csrc/doctor csrc/config csrc/plan csrc/comm kernels csrc/data csrc/checkpoint csrc/train)
set(uses_csrc/report csrc/config csrc/plan csrc/train)
set(uses_csrc/cli ${uses_csrc/train} csrc/train csrc/doctor csrc/report bench)

# What changes files, and by what right it stands where it does: the pipe of a signal handler, which may
# call little else, and the memory that the simulated ranks of one machine share, which ends with them.
set(file_calls
    "(^|[^A-Za-z0-9_>])::(creat|write|pwrite|writev|pwritev|fsync|fdatasync|rename|renameat|unlink|unlinkat|rmdir|mkdir|mkdirat|truncate|ftruncate)[(]"
    "std::(ofstream|fstream)[^A-Za-z0-9_]"
    "(^|[^A-Za-z0-9_])(fopen|freopen)[(]"
    "(fs|filesystem)::(rename|remove|remove_all|create_[a-z_]+|copy|copy_file|resize_file|permissions)[(]"
    "O_(WRONLY|RDWR).*::open|::open.*O_(WRONLY|RDWR)")
set(may_call_files csrc/core/file_calls.cpp csrc/train/stop_signal.cpp csrc/comm/simt_nccl/meeting.cpp)

set(problems "")
macro(problem)
  string(APPEND problems "  " ${ARGN} "\n")
endmacro()

# The layer that a path lies in; the path itself where it lies in none.
function(layer_of path result)
  if(path MATCHES "^(kernels|bench|csrc/[^/]+)/")
    set(${result} ${CMAKE_MATCH_1} PARENT_SCOPE)
  else()
    set(${result} ${path} PARENT_SCOPE)
  endif()
endfunction()

file(GLOB_RECURSE files RELATIVE ${ROOT}
     ${ROOT}/csrc/*.h ${ROOT}/csrc/*.cpp ${ROOT}/csrc/*.cu
     ${ROOT}/kernels/*.h ${ROOT}/kernels/*.cpp ${ROOT}/kernels/*.cu
     ${ROOT}/bench/*.h ${ROOT}/bench/*.cpp)
if(NOT files)
  message(FATAL_ERROR "no sources under ${ROOT} (ROOT is wrong); pass -DROOT=<repository>")
endif()

foreach(file IN LISTS files)
  layer_of(${file} layer)
  if(NOT layer IN_LIST layers)
    problem("${file}: ${layer} is not a layer (it has no row); give it one in cmake/CheckLayers.cmake")
    continue()
  endif()

  file(STRINGS ${ROOT}/${file} includes REGEX "^[ \t]*#[ \t]*include[ \t]")
  foreach(include IN LISTS includes)
    if(include MATCHES "<gpu_" AND NOT layer STREQUAL "kernels")
      problem("${file}: ${include} (the device dialect is private to kernels)")
    endif()
    if(NOT include MATCHES "\"([^\"]+)\"")
      continue()
    endif()
    set(path ${CMAKE_MATCH_1})
    layer_of(${path} included)
    if(NOT included IN_LIST layers AND NOT included IN_LIST uses_${layer})
      problem("${file}: \"${path}\" (not a path from the root into a layer that ${layer} uses)")
    elseif(NOT included IN_LIST uses_${layer} AND NOT included STREQUAL layer
           AND NOT included STREQUAL "csrc/core")
      problem("${file}: \"${path}\" (${layer} does not stand on ${included})")
    endif()
  endforeach()

  if(NOT file MATCHES "^kernels/device/")
    file(STRINGS ${ROOT}/${file} switches REGEX "^[ \t]*#[ \t]*if(def|ndef)?([ \t(!]|$)")
    foreach(switch IN LISTS switches)
      problem("${file}: ${switch} (the build picks the file, not the preprocessor)")
    endforeach()
    file(STRINGS ${ROOT}/${file} ptx
         REGEX "^([^/]|/[^/])*(^|[^A-Za-z0-9_])(__)?asm(__)?([ \t]+volatile)?[ \t]*\\(")
    if(ptx)
      problem("${file}: asm (PTX belongs in kernels/device, one function an instruction)")
    endif()
  endif()

  if(NOT file IN_LIST may_call_files)
    foreach(call IN LISTS file_calls)
      file(STRINGS ${ROOT}/${file} lines REGEX "${call}")
      foreach(line IN LISTS lines)
        problem("${file}: ${line} (files are changed through csrc/core/file_calls.h)")
      endforeach()
    endforeach()
  endif()

  if(file MATCHES "\\.h$")
    file(STRINGS ${ROOT}/${file} once REGEX "^#pragma once$")
    if(NOT once)
      problem("${file}: no #pragma once")
    endif()
  endif()
endforeach()

list(LENGTH files num_files)
if(problems)
  message(FATAL_ERROR "the layers are broken:\n${problems}")
endif()
message(STATUS "${num_files} files keep the layers")
