# SPDX-License-Identifier: Apache-2.0
#
# cmake -DROOT=<repository> -DSCRATCH=<folder> -DCXX=<compiler> -DMAKE=<ninja> -P product_test.cmake:
# what trains is configured where there is no GoogleTest, and neither compiles nor links what belongs to
# tests.
cmake_minimum_required(VERSION 3.25)

file(REMOVE_RECURSE ${SCRATCH})
execute_process(
  COMMAND ${CMAKE_COMMAND} -S ${ROOT} -B ${SCRATCH} -G Ninja -DCMAKE_MAKE_PROGRAM=${MAKE}
          -DCMAKE_CXX_COMPILER=${CXX} -DBUILD_TESTING=OFF -DCMAKE_DISABLE_FIND_PACKAGE_GTest=ON
          -DMEMPHIS_COMPILE_TOGETHER=OFF  # so that each source is named
  RESULT_VARIABLE status OUTPUT_VARIABLE output ERROR_VARIABLE output)
if(status)
  message(FATAL_ERROR "BUILD_TESTING=OFF does not configure without GoogleTest:\n${output}")
endif()
execute_process(COMMAND ${MAKE} -C ${SCRATCH} -t commands memphis
                RESULT_VARIABLE status OUTPUT_VARIABLE commands)
if(status OR NOT commands MATCHES "csrc/train/trainer\\.cpp")
  message(FATAL_ERROR "ninja does not say how memphis is built:\n${commands}")
endif()
string(REPLACE "\n" ";" commands "${commands}")
foreach(command IN LISTS commands)
  if(command MATCHES "gtest|GTest|${ROOT}/tests/")
    message(SEND_ERROR "this belongs to tests:\n${command}")
  endif()
endforeach()
