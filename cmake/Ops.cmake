# SPDX-License-Identifier: Apache-2.0

# memphis_add_op(rmsnorm [CUDA_SOURCES rmsnorm/other.cu ...] [COMPOSES op ...]): the op in
# kernels/rmsnorm, its test and its benchmark. CUDA_SOURCES: what of the CUDA half does not fit in
# op.cu. COMPOSES: the ops that it calls on the GPU, in the place of an op.cu of its own.
#
# An op is a library of its own, so that a test builds with just what it tests. The CUDA half is
# op.cu where the toolkit is, and a line of no_cuda.cpp where it is not.
function(memphis_add_op name)
  cmake_parse_arguments(ARG "" "" "CUDA_SOURCES;COMPOSES" ${ARGN})
  add_library(memphis_op_${name} STATIC ${name}/${name}.cpp)
  foreach(part IN LISTS ARG_COMPOSES)
    target_link_libraries(memphis_op_${name} PUBLIC memphis_op_${part})
  endforeach()
  if(MEMPHIS_CUDA AND NOT ARG_COMPOSES)
    target_sources(memphis_op_${name} PRIVATE ${name}/${name}.cu ${ARG_CUDA_SOURCES})
    target_include_directories(memphis_op_${name} PRIVATE ${PROJECT_SOURCE_DIR}/kernels/device/cuda)
  endif()
  target_link_libraries(memphis_op_${name} PUBLIC memphis_kernels_common)
  target_link_libraries(memphis_kernels INTERFACE memphis_op_${name})
  set_property(GLOBAL APPEND PROPERTY MEMPHIS_OPS ${name})  # for tests/CMakeLists.txt
endfunction()
