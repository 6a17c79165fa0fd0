# SPDX-License-Identifier: Apache-2.0
#
# The choices of a build. They pick source files and compiler flags, never a preprocessor branch.

set(MEMPHIS_DEVICE none CACHE STRING
    "What Device::cuda is: cuda (the GPU), simt (an executor on this machine) or none")
set_property(CACHE MEMPHIS_DEVICE PROPERTY STRINGS none cuda simt)
if(NOT MEMPHIS_DEVICE MATCHES "^(none|cuda|simt)$")
  message(FATAL_ERROR "MEMPHIS_DEVICE=${MEMPHIS_DEVICE} is not known; set it to none, cuda or simt")
endif()
option(MEMPHIS_SANITIZE "Build with AddressSanitizer and UndefinedBehaviorSanitizer" OFF)
option(MEMPHIS_MPI "Ranks that are processes, over MPI" ON)
set(MEMPHIS_CPU_ARCH native CACHE STRING
    "-march of the CPU code; set x86-64-v3 where the binary runs on other machines than it is built on")

if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "" FORCE)
endif()
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)

add_library(memphis_options INTERFACE)
target_compile_features(memphis_options INTERFACE cxx_std_20)
target_include_directories(memphis_options INTERFACE ${PROJECT_SOURCE_DIR})
# g++ looks for garbage when it has used 128 MiB, and again and again: a twentieth of its time.
set(collect_rarely $<$<CXX_COMPILER_ID:GNU>:--param=ggc-min-heapsize=524288>)
# Warnings are errors, but not those that depend on what the optimizer makes of the standard library for
# this processor: such a build would fail on some machines alone. The sanitizers look for the same.
#
# Nobody reads the flags of floating point, and while somebody might, GCC takes a choice between two values,
# as exp has them beyond its range, for a branch: such a loop is not vectorized, and a step of
# configs/bench_cpu.yaml with AVX2 takes 1.4 times as long. Of AVX-512 GCC takes half of each vector on
# processors whose clock once fell with all of it, which the products take anyway.
target_compile_options(memphis_options INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror
                            -Wno-error=array-bounds -Wno-error=maybe-uninitialized -Wno-error=restrict
                            -Wno-error=stringop-overflow -Wno-error=stringop-overread
                            -march=${MEMPHIS_CPU_ARCH} -fno-math-errno -fno-trapping-math
                            -mprefer-vector-width=512 -g1
                            ${collect_rarely}>)

# Parsing these is most of what a small source costs the compiler, so it is done once: memphis_core owns
# the result, and other targets take it with REUSE_FROM. A source includes what it uses all the same;
# -DCMAKE_DISABLE_PRECOMPILE_HEADERS=ON -DMEMPHIS_COMPILE_TOGETHER=OFF compiles each with those alone.
set(MEMPHIS_PRECOMPILED_HEADERS
  <algorithm> <array> <atomic> <chrono> <cmath> <cstddef> <cstdint> <cstring> <filesystem> <functional>
  <limits> <map> <memory> <mutex> <optional> <set> <span> <string> <string_view> <thread> <utility> <vector>
  <spdlog/fmt/fmt.h>)

# Of code that a step does not wait for: optimizing such code as kernels are takes the compiler half as
# long again, and nobody gains.
set(MEMPHIS_LIGHT_OPTIMIZATION $<$<AND:$<COMPILE_LANGUAGE:CXX>,$<CONFIG:Release>>:-O1>)

option(MEMPHIS_COMPILE_TOGETHER "Compile several sources at a time, where a library asks for it" ON)

# memphis_compile_together(target ...): seven sources at a time. They see the same headers, whose templates
# (the standard library's, fmt's, JSON's) cost the compiler more than the sources do: those of csrc/data take
# 19 s in place of 35. Not for kernels, which are compiled one by one as they are changed one by one.
function(memphis_compile_together)
  set_target_properties(${ARGN} PROPERTIES
    UNITY_BUILD ${MEMPHIS_COMPILE_TOGETHER} UNITY_BUILD_BATCH_SIZE 7)
endfunction()

# Of UndefinedBehaviorSanitizer without what AddressSanitizer stops too, a null pointer or one behind its
# object: each access would be looked at twice, and code compile twice as long. Nor with sums of pointers that
# wrap, a tenth of that time, and misaligned pointers, a quarter: tests/fuzz/run.sh looks for both where bytes
# come from elsewhere, and for the second each kernel is looked at (Ops.cmake). What is tested is looked at,
# what tests it (memphis_test_code) need not be: it compiles in two thirds of the time.
if(MEMPHIS_SANITIZE)
  set(is_test $<BOOL:$<TARGET_PROPERTY:MEMPHIS_TEST_CODE>>)
  target_compile_options(memphis_options INTERFACE
    $<$<AND:$<COMPILE_LANGUAGE:CXX>,$<NOT:${is_test}>>:-fsanitize=address,undefined
                                                       -fno-sanitize=null,object-size,pointer-overflow,alignment
                                                       -fno-sanitize-recover=all>
    $<$<COMPILE_LANGUAGE:CXX>:-fno-omit-frame-pointer>)
  target_link_options(memphis_options INTERFACE -fsanitize=address,undefined)
endif()

if(MEMPHIS_MPI)
  enable_language(C)  # whose interface of MPI is used; it is not looked for without
  find_package(MPI REQUIRED COMPONENTS C)
endif()

if(MEMPHIS_DEVICE STREQUAL cuda)
  if(NOT CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 90a)
  endif()
  enable_language(CUDA)
  find_package(CUDAToolkit 12.8 REQUIRED)
  if(NOT TARGET CUDA::cublasLt)
    message(FATAL_ERROR "cuBLASLt is not found beside the CUDA toolkit ${CUDAToolkit_VERSION} (products are its "
                        "on a GPU); install cuBLAS with its header")
  endif()
  # Where a program of the build folder finds it, which opens it by name.
  cmake_path(GET CUDA_cublasLt_LIBRARY PARENT_PATH cublas_folder)
  list(APPEND CMAKE_BUILD_RPATH ${cublas_folder})
  # 2.27 is the first in which a communicator has a name.
  find_package(NCCL 2.27)
  target_compile_options(memphis_options INTERFACE
    $<$<COMPILE_LANGUAGE:CUDA>:-std=c++20 --Werror=all-warnings --expt-relaxed-constexpr -lineinfo
                               -Xcompiler=-Wall,-Wextra>)
endif()

# On where the GPU's ranks can have it: with MPI, which carries its ids. The simulated device has one of
# its own, csrc/comm/simt_nccl.
set(nccl_is_there OFF)
if(MEMPHIS_MPI AND (NCCL_FOUND OR MEMPHIS_DEVICE STREQUAL simt))
  set(nccl_is_there ON)
endif()
if(NOT DEFINED MEMPHIS_NCCL)
  set(MEMPHIS_NCCL ${nccl_is_there})
endif()
if(MEMPHIS_NCCL AND NOT nccl_is_there)
  message(FATAL_ERROR "MEMPHIS_NCCL is on without a GPU build, MPI and NCCL 2.27 or newer (several ranks on "
                      "GPUs need all three); set MEMPHIS_DEVICE=cuda and MEMPHIS_MPI=ON, and NCCL_ROOT to where NCCL is")
endif()
if(NOT MEMPHIS_DEVICE STREQUAL none)
  message(STATUS "NCCL for several ranks on GPUs: ${MEMPHIS_NCCL}")
endif()
