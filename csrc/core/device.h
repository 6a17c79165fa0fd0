// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace memphis {

// Which implementation of `cuda` is linked is the build's choice: device_cuda.cpp (the GPU),
// device_simt.cpp (memory of this machine, for kernels that run on it) or device_none.cpp (absent).
// Every function below that names Device::cuda throws PreflightError where it is absent.
enum class Device : std::uint8_t { cpu, cuda };

std::string_view name_of(Device device);

// A view of a queue of work. The CPU has one, and work on it is done when the call returns.
struct Stream {
  Device device = Device::cpu;
  void* handle = nullptr;  // cudaStream_t on Device::cuda
  // Multiprocessors that kernels of other streams hold beside what is put on this one next, as far
  // as is known to the thread that puts it there: who starts such a kernel adds what it takes, and
  // takes that away where this stream waits for it. Null: nobody counts.
  std::int64_t* held_elsewhere = nullptr;
};

struct DeviceInfo {
  std::string name;
  int compute_capability = 0;              // 90 for sm_90; 0 on the CPU
  int num_multiprocessors = 0;             // SMs; OpenMP threads on the CPU
  std::size_t shared_bytes_per_block = 0;  // with the opt-in
  bool simulated = false;                  // kernels run on the processor (the simt preset)
  std::size_t total_bytes = 0;             // of the device's memory
  std::size_t free_bytes = 0;
  bool has_own_memory = false;  // and not the machine's
};

// True if this binary can use `device` on this machine, now.
bool device_available(Device device);

// Why device_available(Device::cuda) is false, as half a sentence for an error text; empty if true.
std::string device_unavailable_reason();

// Of the calling thread's GPU. PreflightError if the device is not available, or if none of the
// kernels that are compiled into this program runs on it.
DeviceInfo device_info(Device device);

// How many GPUs this process sees.
int num_gpus();

// The calling thread uses GPU `index` of those from here on. Before anything else on the device, or
// the first GPU keeps memory for a process that does not use it.
void select_gpu(int index);

// All kernels of the program and of its libraries are to be loaded onto the GPU when it is first
// used, and not each when it is first launched (CUDA_MODULE_LOADING=EAGER), unless the environment
// says how. To load one waits until the GPU has nothing to do (CUDA programming guide, "Lazy
// Loading"), which it never has while it receives what is sent only when that kernel has run. Before
// anything else on the device.
void load_kernels_at_once();
// Once the device is used: PreflightError where each is loaded when it is first launched after all.
void require_kernels_at_once();

// Of the calling thread's GPU; another GPU anywhere has others.
std::array<std::int64_t, 2> gpu_identity();

// Memory of `device`, aligned to 256 bytes. Throws PreflightError, naming the size, when there is
// not enough. Counted: see allocation_count and allocated_bytes.
void* device_allocate(std::size_t bytes, Device device);
void device_free(void* data, Device device) noexcept;

// Number of device_allocate calls of this process so far: a training step must not change it.
std::uint64_t allocation_count();

// Bytes that those calls asked for, freed since or not: what a memory plan is held to.
std::uint64_t allocated_bytes();

// The same of the memory that PinnedBuffers have asked for.
std::uint64_t pinned_bytes();

// Asynchronous on `stream`; both ranges must outlive it. Either side may be on either device; a
// copy between host memory and the GPU is asynchronous only for pinned host memory. Else it may
// wait for the stream, which no GpuWatch ends: where other processes may be waited for, synchronize
// first.
void device_copy(void* destination, const void* source, std::size_t bytes, Stream stream);
void device_zero(void* destination, std::size_t bytes, Stream stream);

// Returns when everything enqueued on `stream` is done; throws what went wrong there.
void synchronize(Stream stream);

// How many kernels, products, copies and memsets this process has put on streams of the GPU so far.
// What a Graph holds counts when that is launched, as one.
std::uint64_t enqueued_count();

// How often it has put one there after the CPU had waited for the GPU, which had nothing to do
// meanwhile: a training step must do so once, at its begin.
std::uint64_t stall_count();

// By what launches kernels and products.
void count_enqueued() noexcept;

// Work on the GPU may wait for what the GPU alone does not decide: other processes. Who knows them
// (comm) is asked while the CPU waits for the GPU, which would else be for ever if one is lost.
class GpuWatch {
 public:
  virtual ~GpuWatch() = default;
  // Throws where the work will never be done. Called again and again.
  virtual void check() = 0;
  // The CPU no longer waits.
  virtual void leave() noexcept = 0;
  // Ends the work that waits for others. Called before an exception frees memory of the GPU, which
  // waits for all work.
  virtual void give_up() noexcept = 0;
};

// Of this process; none where `watch` is null, as at the start.
void set_gpu_watch(GpuWatch* watch) noexcept;

// A point on a stream, for timing and for ordering.
class Event {
 public:
  enum class Use : std::uint8_t { timing, ordering };  // ordering alone costs less

  explicit Event(Device device, Use use = Use::timing);
  ~Event();
  Event(Event&& other) noexcept
      : device_(other.device_),
        use_(other.use_),
        handle_(std::exchange(other.handle_, nullptr)),
        host_seconds_(other.host_seconds_) {}
  Event& operator=(Event&&) = delete;
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  // Within a Capture, an event for timing is part of the graph, and each launch passes it. One for
  // ordering orders what is captured: until it is recorded elsewhere it can be neither asked nor
  // waited for by anything else, and to do so throws.
  void record(Stream stream);
  // What follows on `stream`, another one of the device, runs after this point. The CPU goes on.
  void make_wait(Stream stream) const;
  // Returns when the device has passed this point.
  void wait() const;
  // Whether it has.
  bool is_done() const;
  // Waits for both. Zero or more; resolution about 0.5 us on the GPU.
  double seconds_since(const Event& earlier) const;

 private:
  Device device_;
  Use use_;
  void* handle_ = nullptr;   // cudaEvent_t
  double host_seconds_ = 0;  // CPU: the time of record()
};

// Whose blocks the GPU starts first where not all find room.
enum class StreamPriority : std::uint8_t { ordinary, highest };

// Owner of a stream.
class OwnedStream {
 public:
  explicit OwnedStream(Device device, StreamPriority priority = StreamPriority::ordinary);
  ~OwnedStream();
  OwnedStream(OwnedStream&& other) noexcept
      : held_elsewhere_(std::move(other.held_elsewhere_)),
        stream_(std::exchange(other.stream_, Stream{})) {}
  OwnedStream& operator=(OwnedStream&&) = delete;
  OwnedStream(const OwnedStream&) = delete;
  OwnedStream& operator=(const OwnedStream&) = delete;

  Stream view() const { return stream_; }

 private:
  std::unique_ptr<std::int64_t> held_elsewhere_;  // where it is, whoever owns the stream
  Stream stream_;
};

// Owner of host memory from which the GPU copies asynchronously (page-locked where there is a GPU).
class PinnedBuffer {
 public:
  PinnedBuffer(std::size_t bytes, Device peer);
  ~PinnedBuffer();
  PinnedBuffer(PinnedBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(other.bytes_), peer_(other.peer_) {}
  PinnedBuffer& operator=(PinnedBuffer&&) = delete;
  PinnedBuffer(const PinnedBuffer&) = delete;
  PinnedBuffer& operator=(const PinnedBuffer&) = delete;

  void* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
  Device peer_;
};

// Work of a stream, recorded once and enqueued again as a whole: kernels with the arguments that they
// were given then, copies between the addresses that they were given, on what lies there now.
class Graph {
 public:
  ~Graph();
  Graph(Graph&& other) noexcept
      : handle_(std::exchange(other.handle_, nullptr)), num_nodes_(other.num_nodes_) {}
  Graph& operator=(Graph&&) = delete;
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  // Asynchronous on `stream`. Everything that the work names must outlive it.
  void launch(Stream stream) const;
  // Kernels, products, copies, memsets and events.
  std::int64_t num_nodes() const { return num_nodes_; }

 private:
  friend class Capture;
  Graph(void* handle, std::int64_t num_nodes) : handle_(handle), num_nodes_(num_nodes) {}

  void* handle_;  // cudaGraphExec_t
  std::int64_t num_nodes_;
};

// While one lives, what its thread enqueues on the stream is recorded and not done. Work that the CPU
// takes part in cannot be: to copy from or to host memory that is not a PinnedBuffer throws, and so
// does what the thread may not do at all meanwhile: to wait for a stream or an event of the device,
// whichever, to ask whether they are done, and to allocate or free memory. The recording is lost
// then. One at a time in a thread.
class Capture {
 public:
  // ContractError for a stream of the CPU, which has no graphs.
  explicit Capture(Stream stream);
  // Gives the recording up unless it was ended.
  ~Capture();
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;

  // Nothing where the device has no memory for the graph: what was recorded is not done, and can be
  // enqueued instead.
  std::optional<Graph> end();

 private:
  Stream stream_;
  bool ended_ = false;
};

// What device_cuda.cpp, device_simt.cpp or device_none.cpp supplies; called by device.cpp alone.
namespace cuda_device {
std::string unavailable_reason();
DeviceInfo info();
int count();
void select(int index);
std::array<std::int64_t, 2> identity();
bool loads_kernels_at_once();
void* allocate(std::size_t bytes);
void free(void* data) noexcept;
void copy(void* destination, const void* source, std::size_t bytes, void* stream);
void zero(void* destination, std::size_t bytes, void* stream);
void synchronize(void* stream);
bool is_done(void* stream);
void* create_stream(StreamPriority priority);
void destroy_stream(void* stream) noexcept;
void* create_event(bool timing);
void destroy_event(void* event) noexcept;
void record_event(void* event, void* stream, bool timing);
void make_wait(void* stream, void* event);
void synchronize_event(void* event);
bool event_is_done(void* event);
double seconds_between(void* earlier, void* later);
void* allocate_pinned(std::size_t bytes);
void free_pinned(void* data) noexcept;
void begin_capture(void* stream);
struct EndedCapture {
  void* graph;  // ready to be launched; null: the device has no memory for it
  std::int64_t num_nodes;
};
EndedCapture end_capture(void* stream);
void abandon_capture(void* stream) noexcept;
void launch_graph(void* graph, void* stream);
void destroy_graph(void* graph) noexcept;
}  // namespace cuda_device

}  // namespace memphis
