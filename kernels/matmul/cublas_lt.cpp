// SPDX-License-Identifier: Apache-2.0
#include "kernels/matmul/cublas_lt.h"

#include <string>

#include <dlfcn.h>

#include "csrc/core/error.h"

namespace memphis::kernels::cuda {
namespace {

CublasLtLibrary open_library() {
  const std::string file = "libcublasLt.so." + std::to_string(CUBLAS_VER_MAJOR);
  const auto refuse = [&] {
    const char* reason = ::dlerror();
    throw PreflightError("cuBLASLt cannot be used (" +
                         std::string(reason != nullptr ? reason : "it lacks a function") +
                         "; this program was compiled with version " +
                         std::to_string(CUBLAS_VER_MAJOR) + "." + std::to_string(CUBLAS_VER_MINOR) +
                         "); install cuBLAS of CUDA " + std::to_string(CUBLAS_VER_MAJOR) +
                         ", or put the folder of " + file + " into LD_LIBRARY_PATH");
  };
  void* const library = ::dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    refuse();
  }
  const auto find = [&]<class Function>(Function& function, const char* name) {
    function = reinterpret_cast<Function>(::dlsym(library, name));
    if (function == nullptr) {
      refuse();
    }
  };
  CublasLtLibrary found{};
  find(found.create, "cublasLtCreate");
  find(found.version, "cublasLtGetVersion");
  find(found.status_string, "cublasLtGetStatusString");
  find(found.matmul, "cublasLtMatmul");
  find(found.heuristic, "cublasLtMatmulAlgoGetHeuristic");
  find(found.algorithm_attribute, "cublasLtMatmulAlgoConfigGetAttribute");
  find(found.create_description, "cublasLtMatmulDescCreate");
  find(found.destroy_description, "cublasLtMatmulDescDestroy");
  find(found.set_description, "cublasLtMatmulDescSetAttribute");
  find(found.create_layout, "cublasLtMatrixLayoutCreate");
  find(found.destroy_layout, "cublasLtMatrixLayoutDestroy");
  find(found.set_layout, "cublasLtMatrixLayoutSetAttribute");
  find(found.create_preference, "cublasLtMatmulPreferenceCreate");
  find(found.destroy_preference, "cublasLtMatmulPreferenceDestroy");
  find(found.set_preference, "cublasLtMatmulPreferenceSetAttribute");
  return found;
}

}  // namespace

const CublasLtLibrary& cublas_lt() {
  static const CublasLtLibrary library = open_library();
  return library;
}

}  // namespace memphis::kernels::cuda
