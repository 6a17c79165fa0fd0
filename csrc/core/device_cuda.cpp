// SPDX-License-Identifier: Apache-2.0
#include <cstring>
#include <string>
#include <utility>

#include <cuda.h>
#include <cuda_runtime_api.h>

#include "csrc/core/cuda_check.h"
#include "csrc/core/cuda_driver.h"
#include "csrc/core/device.h"
#include "csrc/core/error.h"
#include "csrc/core/gpu_architectures.h"

namespace memphis {

namespace {

// The driver has nothing of the kernel that the GPU could run.
bool is_of_another_gpu(cudaError_t status) {
  return status == cudaErrorNoKernelImageForDevice || status == cudaErrorInvalidDeviceFunction ||
         status == cudaErrorInvalidPtx || status == cudaErrorUnsupportedPtxVersion ||
         status == cudaErrorJitCompilerNotFound || status == cudaErrorJitCompilationDisabled;
}

// What a kernel did, of which a later call tells: after it, nothing on the GPU works any more.
bool is_of_a_kernel(cudaError_t status) {
  return status == cudaErrorIllegalAddress || status == cudaErrorAssert ||
         (status >= cudaErrorHardwareStackError && status <= cudaErrorLaunchFailure);
}

}  // namespace

void cuda_check(cudaError_t status, const char* call, const char* file, int line) {
  if (status == cudaSuccess) {
    return;
  }
  (void)cudaGetLastError();  // clears an error that is not sticky
  const std::string message = std::string(cudaGetErrorName(status)) + ": " +
                              cudaGetErrorString(status) + " (from " + call + ", " + file + ":" +
                              std::to_string(line) + ")";
  if (status == cudaErrorMemoryAllocation) {
    throw PreflightError(message + "; use a smaller model or batch.micro_batch");
  }
  if (is_of_another_gpu(status)) {
    throw PreflightError(message +
                         "; build with `launch/build.sh cuda` for this GPU (the kernels "
                         "are compiled for " +
                         MEMPHIS_CUDA_ARCHITECTURES + "), or update its driver");
  }
  // A call that a graph cannot hold, or what comes after one.
  if (status >= cudaErrorStreamCaptureUnsupported && status <= cudaErrorStreamCaptureWrongThread) {
    throw Error(ExitCode::internal, message + "; run.graph=never launches kernels one by one");
  }
  if (is_of_a_kernel(status)) {
    throw Error(ExitCode::internal,
                message +
                    "; run one rank with CUDA_LAUNCH_BLOCKING=1 to find the kernel (several "
                    "would wait for each other), or all under compute-sanitizer");
  }
  throw Error(ExitCode::internal, message + "; see what `memphis doctor` says of the GPU");
}

namespace cuda_device {
namespace {

// In a destructor: the runtime may already be unloading, and nothing can be done about the rest.
void ignore(cudaError_t status) noexcept {
  (void)status;
}

cudaStream_t stream_of(void* handle) {
  return static_cast<cudaStream_t>(handle);
}
cudaEvent_t event_of(void* handle) {
  return static_cast<cudaEvent_t>(handle);
}

// Of a query. "Not ready" is an answer, which the check of the next launch must not find.
bool is_ready(cudaError_t status, const char* call) {
  if (status == cudaErrorNotReady) {
    (void)cudaGetLastError();
    return false;
  }
  cuda_check(status, call);
  return true;
}

// Of a capture of this thread. CUDA takes some calls that a graph cannot hold, and says nothing.
struct Recording {
  bool is_open = false;
  bool has_freed = false;  // what the graph may name
};
thread_local Recording t_recording;

// A copy of pageable memory is recorded with its address, and each launch would read what lies there by
// then (NVIDIA/cuopt issue 1753).
void require_lasting(const void* address) {
  cudaPointerAttributes attributes{};
  MEMPHIS_CUDA(cudaPointerGetAttributes(&attributes, address));
  if (attributes.type == cudaMemoryTypeUnregistered) {
    throw Error(ExitCode::internal,
                "a copy of pageable memory while a stream is captured (each launch of the graph "
                "would use the address again); do it before the capture or after it, or from a "
                "PinnedBuffer");
  }
}

}  // namespace

std::string unavailable_reason() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) {
    (void)cudaGetLastError();
    return std::string("the CUDA driver answers \"") + cudaGetErrorString(status) + "\"";
  }
  return count > 0 ? "" : "the CUDA driver sees no GPU";
}

DeviceInfo info() {
  const std::string reason = unavailable_reason();
  if (!reason.empty()) {
    throw PreflightError("device cuda is not available (" + reason + "); set run.device=cpu");
  }
  int device = 0;
  MEMPHIS_CUDA(cudaGetDevice(&device));
  cudaDeviceProp properties{};
  MEMPHIS_CUDA(cudaGetDeviceProperties(&properties, device));
  DeviceInfo result;
  result.name = properties.name;
  result.compute_capability = properties.major * 10 + properties.minor;
  const std::string no_kernels =
      no_kernels_reason(MEMPHIS_CUDA_ARCHITECTURES, result.name, result.compute_capability);
  if (!no_kernels.empty()) {
    throw PreflightError(no_kernels);
  }
  result.num_multiprocessors = properties.multiProcessorCount;
  result.shared_bytes_per_block = properties.sharedMemPerBlockOptin;
  MEMPHIS_CUDA(cudaMemGetInfo(&result.free_bytes, &result.total_bytes));
  result.has_own_memory = true;
  return result;
}

int count() {
  int result = 0;
  MEMPHIS_CUDA(cudaGetDeviceCount(&result));
  return result;
}

void select(int index) {
  MEMPHIS_CUDA(cudaSetDevice(index));
}

std::array<std::int64_t, 2> identity() {
  int device = 0;
  MEMPHIS_CUDA(cudaGetDevice(&device));
  cudaDeviceProp properties{};
  MEMPHIS_CUDA(cudaGetDeviceProperties(&properties, device));
  std::array<std::int64_t, 2> result{};
  static_assert(sizeof(result) == sizeof(properties.uuid));
  std::memcpy(result.data(), &properties.uuid, sizeof(result));
  return result;
}

// What CUDA does, whatever the environment says by now: it was read when CUDA began.
bool loads_kernels_at_once() {
  CUmoduleLoadingMode mode{};
  const CUresult status =
      driver_function<decltype(cuModuleGetLoadingMode)>("cuModuleGetLoadingMode", 11070)(&mode);
  if (status != CUDA_SUCCESS) {
    throw Error(ExitCode::internal,
                "cuModuleGetLoadingMode returns " + std::to_string(status) +
                    "; see what `memphis doctor` says of the GPU");
  }
  return mode == CU_MODULE_EAGER_LOADING;
}

void* allocate(std::size_t bytes) {
  void* data = nullptr;
  MEMPHIS_CUDA(cudaMalloc(&data, bytes));
  return data;
}

void free(void* data) noexcept {
  if (t_recording.is_open) {
    t_recording.has_freed = true;
    return;
  }
  ignore(cudaFree(data));
}

void copy(void* destination, const void* source, std::size_t bytes, void* stream) {
  if (t_recording.is_open) {
    require_lasting(destination);
    require_lasting(source);
  }
  MEMPHIS_CUDA(cudaMemcpyAsync(destination, source, bytes, cudaMemcpyDefault, stream_of(stream)));
}

void zero(void* destination, std::size_t bytes, void* stream) {
  MEMPHIS_CUDA(cudaMemsetAsync(destination, 0, bytes, stream_of(stream)));
}

void synchronize(void* stream) {
  MEMPHIS_CUDA(cudaStreamSynchronize(stream_of(stream)));
}

bool is_done(void* stream) {
  return is_ready(cudaStreamQuery(stream_of(stream)), "cudaStreamQuery");
}

void* create_stream(StreamPriority priority) {
  int least = 0;
  int greatest = 0;  // a lower number is a higher priority
  MEMPHIS_CUDA(cudaDeviceGetStreamPriorityRange(&least, &greatest));
  cudaStream_t stream = nullptr;
  MEMPHIS_CUDA(cudaStreamCreateWithPriority(
      &stream, cudaStreamNonBlocking, priority == StreamPriority::highest ? greatest : least));
  return stream;
}

void destroy_stream(void* stream) noexcept {
  ignore(cudaStreamDestroy(stream_of(stream)));
}

void* create_event(bool timing) {
  cudaEvent_t event = nullptr;
  MEMPHIS_CUDA(
      cudaEventCreateWithFlags(&event, timing ? cudaEventDefault : cudaEventDisableTiming));
  return event;
}

void destroy_event(void* event) noexcept {
  ignore(cudaEventDestroy(event_of(event)));
}

// In a graph an event is no more than an edge, unless it is external.
void record_event(void* event, void* stream, bool timing) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  if (timing) {
    MEMPHIS_CUDA(cudaStreamIsCapturing(stream_of(stream), &status));
  }
  const unsigned flags =
      status == cudaStreamCaptureStatusNone ? cudaEventRecordDefault : cudaEventRecordExternal;
  MEMPHIS_CUDA(cudaEventRecordWithFlags(event_of(event), stream_of(stream), flags));
}

void make_wait(void* stream, void* event) {
  MEMPHIS_CUDA(cudaStreamWaitEvent(stream_of(stream), event_of(event), 0));
}

void synchronize_event(void* event) {
  MEMPHIS_CUDA(cudaEventSynchronize(event_of(event)));
}

bool event_is_done(void* event) {
  return is_ready(cudaEventQuery(event_of(event)), "cudaEventQuery");
}

double seconds_between(void* earlier, void* later) {
  float milliseconds = 0;
  MEMPHIS_CUDA(cudaEventElapsedTime(&milliseconds, event_of(earlier), event_of(later)));
  return static_cast<double>(milliseconds) * 1e-3;
}

void* allocate_pinned(std::size_t bytes) {
  void* data = nullptr;
  MEMPHIS_CUDA(cudaHostAlloc(&data, bytes == 0 ? 1 : bytes, cudaHostAllocDefault));
  return data;
}

void free_pinned(void* data) noexcept {
  if (t_recording.is_open) {
    t_recording.has_freed = true;
    return;
  }
  ignore(cudaFreeHost(data));
}

// Thread-local: other threads may go on to allocate and to wait.
void begin_capture(void* stream) {
  MEMPHIS_CUDA(cudaStreamBeginCapture(stream_of(stream), cudaStreamCaptureModeThreadLocal));
  t_recording = {.is_open = true};
}

EndedCapture end_capture(void* stream) {
  const Recording recording = std::exchange(t_recording, {});
  cudaGraph_t captured = nullptr;
  MEMPHIS_CUDA(cudaStreamEndCapture(stream_of(stream), &captured));
  const struct Owner {
    cudaGraph_t graph;
    ~Owner() { ignore(cudaGraphDestroy(graph)); }
  } owner{captured};
  if (recording.has_freed) {
    throw Error(ExitCode::internal,
                "memory was freed while a stream was captured (the graph may name it); "
                "free it before the capture or after it");
  }
  std::size_t num_nodes = 0;
  MEMPHIS_CUDA(cudaGraphGetNodes(captured, nullptr, &num_nodes));
  // All that its launches take of the GPU, taken now: a launch that finds no memory would end the run.
  cudaGraphExec_t graph = nullptr;
  cudaError_t status = cudaGraphInstantiate(&graph, captured, 0);
  if (status == cudaSuccess) {
    status = cudaGraphUpload(graph, stream_of(stream));
  }
  if (status == cudaErrorMemoryAllocation) {
    (void)cudaGetLastError();
    if (graph != nullptr) {
      ignore(cudaGraphExecDestroy(graph));
    }
    return {};
  }
  cuda_check(status, "cudaGraphInstantiate and cudaGraphUpload");
  return {.graph = graph, .num_nodes = static_cast<std::int64_t>(num_nodes)};
}

void abandon_capture(void* stream) noexcept {
  t_recording = {};
  cudaGraph_t captured = nullptr;
  ignore(cudaStreamEndCapture(stream_of(stream), &captured));
  if (captured != nullptr) {
    ignore(cudaGraphDestroy(captured));
  }
  (void)cudaGetLastError();  // what broke the capture is on its way as an exception
}

void launch_graph(void* graph, void* stream) {
  MEMPHIS_CUDA(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), stream_of(stream)));
}

void destroy_graph(void* graph) noexcept {
  ignore(cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph)));
}

}  // namespace cuda_device
}  // namespace memphis
