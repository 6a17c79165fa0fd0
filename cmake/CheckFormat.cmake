# SPDX-License-Identifier: Apache-2.0
#
# cmake -DROOT=<repository> -P cmake/CheckFormat.cmake: every source is as clang-format 14 writes it.
# Prints SKIP where that version is not installed: others format differently.
cmake_minimum_required(VERSION 3.25)

find_program(clang_format NAMES clang-format-14 clang-format)
if(clang_format)
  execute_process(COMMAND ${clang_format} --version OUTPUT_VARIABLE version)
endif()
if(NOT version MATCHES "version 14\\.")
  message(STATUS "SKIP: clang-format 14 is not installed")
  return()
endif()

set(patterns "")
foreach(folder csrc kernels bench tests examples)
  foreach(suffix h cpp cu)
    list(APPEND patterns ${ROOT}/${folder}/*.${suffix})
  endforeach()
endforeach()
file(GLOB_RECURSE files ${patterns})
execute_process(COMMAND ${clang_format} --dry-run -Werror ${files} RESULT_VARIABLE status)
if(status)
  message(FATAL_ERROR "sources are not formatted (see above); run `clang-format-14 -i` on them")
endif()
