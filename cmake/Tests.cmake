# SPDX-License-Identifier: Apache-2.0

# memphis_add_test(kernels/rmsnorm/rmsnorm_test.cpp LIBS memphis_op_rmsnorm [LABELS slow] [NAME name]):
# one test binary, one CTest entry, both named like the file or, where two files of the tree share a
# name, NAME. The path under tests/ mirrors the path of what is tested. The entry runs in
# the repository's root, under the label `unit` unless another is given.
function(memphis_add_test path)
  cmake_parse_arguments(ARG "" "TIMEOUT;NAME" "LIBS;LABELS" ${ARGN})
  if(NOT ARG_LABELS)
    set(ARG_LABELS unit)
  endif()
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 300)
  endif()
  get_filename_component(name ${path} NAME_WE)
  if(ARG_NAME)
    set(name ${ARG_NAME})
  endif()
  add_executable(${name})
  if(path MATCHES "\\.cu$")
    memphis_add_kernels(${name} ${path})
  else()
    target_sources(${name} PRIVATE ${path})
  endif()
  target_link_libraries(${name} PRIVATE ${ARG_LIBS} memphis_test_support memphis_test_main)
  add_test(NAME ${name} COMMAND ${name} WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
  set_tests_properties(${name} PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT ${ARG_TIMEOUT})
endfunction()
