# SPDX-License-Identifier: Apache-2.0

# memphis_test_code(target ...): targets of tests, which no sanitizer need look at.
function(memphis_test_code)
  set_target_properties(${ARGN} PROPERTIES MEMPHIS_TEST_CODE ON)
endfunction()

# The line by which a script says that it did not run, and why. What others say is shown behind a bar.
set(MEMPHIS_SKIP "(^|\n)SKIP: ")

# memphis_add_test(kernels/rmsnorm/rmsnorm_test.cpp LIBS memphis_op_rmsnorm [LABELS slow] [NAME name]
#                  [RANKS 2 4] [ARGUMENTS --simt_seed=1] [HOST]):
# one test binary, one CTest entry, both named like the file or, where two files of the tree share a
# name, NAME. The path under tests/ mirrors the path of what is tested. The entry runs in
# the repository's root, under the label `unit` unless another is given.
#
# HOST adds the label `host`: what is tested is text, files and whole numbers on the processor, where the
# optimizer cannot change what comes out, and the sanitizers see all that another build would show.
# tests/run.sh builds and runs such a test once, with them.
#
# With RANKS the cases whose names contain `processes` run once more under mpirun, in an entry
# <name>_ranks_<N> for each number of ranks, under the label `ranks`. Such a test gets its job from
# tests/support/ranks.h.
function(memphis_add_test path)
  cmake_parse_arguments(ARG "HOST" "TIMEOUT;NAME" "LIBS;LABELS;RANKS;ARGUMENTS" ${ARGN})
  if(NOT ARG_LABELS)
    set(ARG_LABELS unit)
  endif()
  if(ARG_HOST)
    list(APPEND ARG_LABELS host)
  endif()
  if(NOT ARG_TIMEOUT)
    # A limit for what hangs. No test is near it on a machine ten times slower than any it ran on.
    set(ARG_TIMEOUT 1800)
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
    memphis_test_code(${name})
  endif()
  set(main memphis_test_main)
  if(ARG_RANKS)
    set(main memphis_test_ranks_main)
  endif()
  target_link_libraries(${name} PRIVATE ${ARG_LIBS} memphis_test_support ${main})
  target_precompile_headers(${name} REUSE_FROM memphis_test_support)
  target_compile_options(${name} PRIVATE ${MEMPHIS_LIGHT_OPTIMIZATION})
  add_test(NAME ${name} COMMAND ${name} ${ARG_ARGUMENTS} WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
  # Two entries of one binary would write one report at the same time.
  set_tests_properties(${name} PROPERTIES
    LABELS "${ARG_LABELS}" TIMEOUT ${ARG_TIMEOUT} RESOURCE_LOCK ${name})
  if(NOT MEMPHIS_MPI)
    return()
  endif()
  # What Open MPI keeps until the process ends is no leak of ours. Tests use the GPU before a config is
  # read that asks for all kernels at once.
  foreach(num_ranks IN LISTS ARG_RANKS)
    set(entry ${name}_ranks_${num_ranks})
    add_test(NAME ${entry}
      COMMAND bash ${PROJECT_SOURCE_DIR}/tests/support/ranks.sh ${MPIEXEC_EXECUTABLE} ${num_ranks}
              $<TARGET_FILE:${name}> --gtest_filter=*processes*
      WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
    set_tests_properties(${entry} PROPERTIES LABELS ranks TIMEOUT ${ARG_TIMEOUT} RESOURCE_LOCK ${name}
      SKIP_REGULAR_EXPRESSION "${MEMPHIS_SKIP}"
      ENVIRONMENT "OMP_NUM_THREADS=1;CUDA_MODULE_LOADING=EAGER;ASAN_OPTIONS=detect_leaks=0")
  endforeach()
endfunction()

# memphis_tests_target(target [WITH label] [WITHOUT label ...]): builds what these tests of the folder run,
# as `ctest -L WITH -LE WITHOUT` does.
function(memphis_tests_target target)
  cmake_parse_arguments(ARG "" "WITH" "WITHOUT" ${ARGN})
  set(programs memphis)
  get_property(tests DIRECTORY PROPERTY TESTS)
  foreach(test IN LISTS tests)
    get_test_property(${test} LABELS labels)
    get_test_property(${test} RESOURCE_LOCK program)  # the test's, whatever its entry is called
    if(NOT TARGET "${program}" OR (ARG_WITH AND NOT ARG_WITH IN_LIST labels))
      continue()
    endif()
    set(wanted ON)
    foreach(label IN LISTS ARG_WITHOUT)
      if(label IN_LIST labels)
        set(wanted OFF)
      endif()
    endforeach()
    if(wanted)
      list(APPEND programs ${program})
    endif()
  endforeach()
  list(REMOVE_DUPLICATES programs)
  add_custom_target(${target} DEPENDS ${programs})
endfunction()
