# SPDX-License-Identifier: Apache-2.0
#
# cmake -DROOT=<repository> -DSCRATCH=<folder> -P check_layers_test.cmake: CheckLayers.cmake accepts
# what is allowed and finds each violation, planted here one at a time.
cmake_minimum_required(VERSION 3.25)

# check(accept|reject NAME FILE TEXT [EXPECTED]): a tree of the one file. EXPECTED is in the report.
function(check verdict name file text)
  set(tree ${SCRATCH}/${name})
  file(REMOVE_RECURSE ${tree})
  file(WRITE ${tree}/${file} "${text}\n")
  execute_process(COMMAND ${CMAKE_COMMAND} -DROOT=${tree} -P ${ROOT}/cmake/CheckLayers.cmake
                  RESULT_VARIABLE status OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(verdict STREQUAL "accept" AND status)
    message(SEND_ERROR "${name}: a good tree is rejected:\n${output}")
  elseif(verdict STREQUAL "reject" AND NOT status)
    message(SEND_ERROR "${name}: the violation is not found")
  elseif(verdict STREQUAL "reject")
    # CMake wraps its messages, so spaces and line ends are one.
    string(REGEX REPLACE "[ \n]+" " " output "${output}")
    string(FIND "${output}" "${ARGV4}" place)
    if(place EQUAL -1)
      message(SEND_ERROR "${name}: the report does not say \"${ARGV4}\":\n${output}")
    endif()
  endif()
endfunction()

check(accept downwards csrc/model/moe.cpp "#include \"kernels/router/router.h\"\n#include <vector>")
check(accept own_folder csrc/data/loader.cpp "#include \"csrc/data/dataset.h\"")
check(accept core_everywhere kernels/rope/rope.cpp "#include \"csrc/core/error.h\"")
check(accept bench csrc/cli/bench.cpp "#include \"bench/run_op_benchmarks.h\"")
check(accept ptx_in_device kernels/device/cuda/gpu_x.h "#pragma once\n#if A\n  asm volatile(\"x\");")
check(accept asm_in_comment kernels/rope/rope.cu "// see asm (below)")

check(reject upwards csrc/core/tensor.cpp "#include \"csrc/model/grok.h\""
      "csrc/core does not stand on csrc/model")
check(reject sideways csrc/data/loader.cpp "#include \"kernels/check.h\""
      "csrc/data does not stand on kernels")
check(reject kernel_reads_config kernels/rope/rope.cpp "#include \"csrc/config/config.h\""
      "kernels does not stand on csrc/config")
check(reject test_support csrc/train/step.cpp "#include \"tests/support/tolerance.h\""
      "not a path from the root")
check(reject test_support_of_cli csrc/cli/bench.cpp "#include \"tests/support/timer.h\""
      "not a path from the root")
check(reject test_support_of_bench bench/timer.cpp "#include \"tests/support/test_tensor.h\""
      "not a path from the root")
check(reject bench_in_training csrc/train/step.cpp "#include \"bench/timer.h\""
      "csrc/train does not stand on bench")
check(reject report_in_training csrc/train/step.cpp "#include \"csrc/report/page.h\""
      "csrc/train does not stand on csrc/report")
check(reject bench_of_the_model bench/grok.cpp "#include \"csrc/model/grok.h\""
      "bench does not stand on csrc/model")
check(reject relative_path kernels/rope/rope.cpp "#include \"rope.h\"" "not a path from the root")
check(reject device_dialect csrc/model/moe.cpp "#include <gpu_warp.h>" "private to kernels")
check(reject unknown_layer csrc/extra/a.cpp "int a;" "csrc/extra is not a layer")
check(reject preprocessor csrc/core/device.cpp "  #  ifdef __CUDACC__" "the build picks the file")
check(reject preprocessor_if kernels/rope/rope.cu "#if(X)" "the build picks the file")
check(reject include_guard csrc/core/a.h "#ifndef A_H\n#define A_H\n#endif" "no #pragma once")
check(accept reading csrc/data/loader.cpp "std::ifstream file(path);\nconst int d = ::open(p, O_RDONLY);")
check(accept members csrc/core/file.cpp "void DurableWriter::write(std::string_view text) {}")
foreach(call IN ITEMS "::write(d, p, n);" "std::ofstream file(path);" "fs::rename(a, b)\;" "std::filesystem::remove_all(a)\;"
        "d = ::open(p, O_WRONLY)\;" "  ::fsync(d)\;" "FILE* file = fopen(p, q)\;")
  check(reject file_call csrc/train/metrics.cpp "${call}" "files are changed through")
endforeach()
check(reject ptx kernels/rope/rope.cu "  asm volatile(\"bar.sync 0;\");" "PTX belongs in")
