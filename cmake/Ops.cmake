# SPDX-License-Identifier: Apache-2.0

# memphis_add_op(rmsnorm [CUDA_SOURCES rmsnorm/other.cu ...] [SIMT_SOURCE rmsnorm/rmsnorm_simt.cpp]
# [COMPOSES op ...]): the op in kernels/rmsnorm, its test and its benchmark. CUDA_SOURCES: what of the
# CUDA half does not fit in op.cu. SIMT_SOURCE: stands for the CUDA half in the simt build, where it
# calls a library of the GPU. COMPOSES: the ops that it calls there.
#
# An op is a library of its own, so that a test builds with just what it tests. The CUDA half is op.cu
# for the GPU and for the simt build, and a line of no_cuda.cpp where there is neither.
function(memphis_add_op name)
  cmake_parse_arguments(ARG "" "SIMT_SOURCE" "CUDA_SOURCES;COMPOSES" ${ARGN})
  add_library(memphis_op_${name} STATIC ${name}/${name}.cpp)
  foreach(part IN LISTS ARG_COMPOSES)
    target_link_libraries(memphis_op_${name} PUBLIC memphis_op_${part})
  endforeach()
  if(NOT MEMPHIS_DEVICE STREQUAL none)
    if(MEMPHIS_DEVICE STREQUAL simt AND ARG_SIMT_SOURCE)
      target_sources(memphis_op_${name} PRIVATE ${ARG_SIMT_SOURCE})
    else()
      memphis_add_kernels(memphis_op_${name} ${name}/${name}.cu ${ARG_CUDA_SOURCES})
    endif()
  endif()
  target_link_libraries(memphis_op_${name} PUBLIC memphis_kernels_common)
  target_precompile_headers(memphis_op_${name} REUSE_FROM memphis_core)
  target_link_libraries(memphis_kernels INTERFACE memphis_op_${name})
  set_property(GLOBAL APPEND PROPERTY MEMPHIS_OPS ${name})  # for tests/CMakeLists.txt
endfunction()

# memphis_add_kernels(target file.cu ...): kernels of a target, in the dialect of the build.
function(memphis_add_kernels target)
  target_sources(${target} PRIVATE ${ARGN})
  target_include_directories(${target} PRIVATE ${PROJECT_SOURCE_DIR}/kernels/device/${MEMPHIS_DEVICE})
  if(MEMPHIS_DEVICE STREQUAL simt)
    # The compiler reports each access to memory (kernels/device/simt/instrumentation.cpp); what
    # AddressSanitizer would check, the executor does, with the GPU thread in its report.
    set(options -fno-sanitize=address -fsanitize=thread,alignment --param=tsan-instrument-func-entry-exit=0
                -g  # reports name the line of an inlined function's caller
                -Wno-unknown-pragmas)  # unroll
    set_source_files_properties(${ARGN} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "${options}"
      SKIP_PRECOMPILE_HEADERS ON)  # which have other sanitizers
  endif()
endfunction()
