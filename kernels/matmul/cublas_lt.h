// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cublasLt.h>

namespace memphis::kernels::cuda {

// cuBLASLt, opened when the first of it is asked for. Its constructors take 50 ms and 150 MiB, which a
// command that multiplies nothing on a GPU need not spend, and a machine without it can plan, export
// and train on its processor with the same program. Functions have the types of the header that this
// was compiled with, and the library is that header's major version, within which NVIDIA keeps them.
struct CublasLtLibrary {
  decltype(&cublasLtCreate) create;
  decltype(&cublasLtGetVersion) version;
  decltype(&cublasLtGetStatusString) status_string;
  decltype(&cublasLtMatmul) matmul;
  decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic;
  decltype(&cublasLtMatmulAlgoConfigGetAttribute) algorithm_attribute;
  decltype(&cublasLtMatmulDescCreate) create_description;
  decltype(&cublasLtMatmulDescDestroy) destroy_description;
  decltype(&cublasLtMatmulDescSetAttribute) set_description;
  decltype(&cublasLtMatrixLayoutCreate) create_layout;
  decltype(&cublasLtMatrixLayoutDestroy) destroy_layout;
  decltype(&cublasLtMatrixLayoutSetAttribute) set_layout;
  decltype(&cublasLtMatmulPreferenceCreate) create_preference;
  decltype(&cublasLtMatmulPreferenceDestroy) destroy_preference;
  decltype(&cublasLtMatmulPreferenceSetAttribute) set_preference;
};

// PreflightError where it is not found, or lacks one of them. Stays open until the process ends.
const CublasLtLibrary& cublas_lt();

}  // namespace memphis::kernels::cuda
