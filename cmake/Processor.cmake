# SPDX-License-Identifier: Apache-2.0
#
# memphis_write_processor_features(FILE): a header with the instruction sets that the compiler may use
# for -march=${MEMPHIS_CPU_ARCH}, by the names of __builtin_cpu_supports: MEMPHIS_PROCESSOR_FEATURES(X)
# is X("avx2") X("fma") ... These are the ones that a compiler uses by itself; those that a program
# must ask for, as memphis nowhere does, keep no processor out.
function(memphis_write_processor_features file)
  set(of_macro
    SSE3:sse3 SSSE3:ssse3 SSE4_1:sse4.1 SSE4_2:sse4.2 POPCNT:popcnt
    AVX:avx AVX2:avx2 FMA:fma FMA4:fma4 XOP:xop F16C:f16c BMI:bmi BMI2:bmi2 LZCNT:lzcnt MOVBE:movbe TBM:tbm
    AVX512F:avx512f AVX512VL:avx512vl AVX512BW:avx512bw AVX512DQ:avx512dq AVX512CD:avx512cd
    AVX512VBMI:avx512vbmi AVX512VBMI2:avx512vbmi2 AVX512IFMA:avx512ifma AVX512VNNI:avx512vnni
    AVX512BITALG:avx512bitalg AVX512VPOPCNTDQ:avx512vpopcntdq AVX512BF16:avx512bf16
    AVX512FP16:avx512fp16 AVXVNNI:avxvnni GFNI:gfni)
  execute_process(
    COMMAND ${CMAKE_CXX_COMPILER} -march=${MEMPHIS_CPU_ARCH} -dM -E -x c++ /dev/null
    OUTPUT_VARIABLE macros ERROR_VARIABLE problem RESULT_VARIABLE status)
  if(status)
    message(FATAL_ERROR "MEMPHIS_CPU_ARCH=${MEMPHIS_CPU_ARCH} is no -march of ${CMAKE_CXX_COMPILER} "
                        "(${problem}); use native, x86-64-v2, x86-64-v3, x86-64-v4 or a processor's name")
  endif()
  set(MEMPHIS_FEATURES "")
  foreach(pair IN LISTS of_macro)
    string(REPLACE ":" ";" pair ${pair})
    list(GET pair 0 macro)
    list(GET pair 1 name)
    if(macros MATCHES "#define __${macro}__ 1")
      string(APPEND MEMPHIS_FEATURES " X(\"${name}\")")
    endif()
  endforeach()
  configure_file(${PROJECT_SOURCE_DIR}/cmake/processor_features.h.in ${file} @ONLY)
endfunction()
