#include "gpu/runtime.hpp"

#include "core/error.hpp"
#include "core/memory.hpp"
#include "core/tuning.hpp"
#include "gpu/api.hpp"

// One line per runtime call: the call, and what it is for should it fail; nobody puts that together if it does not.
#define MIXLANE_CHECKED(call, purpose, ...)                                              \
  do {                                                                                   \
    const ApiError error_of_call = MIXLANE_GPU_API(call)(__VA_ARGS__);                   \
    if (error_of_call != MIXLANE_GPU_API(Success)) check(error_of_call, #call, purpose); \
  } while (false)

namespace mixlane::gpu {

void check(ApiError error, const char* call, const std::string& purpose, ErrorCode code) {
  if (error == MIXLANE_GPU_API(Success)) return;
  // The runtime keeps the error of a failed call; a later check must not take it for its own.
  static_cast<void>(MIXLANE_GPU_API(GetLastError)());
#if defined(MIXLANE_HIP)
  if (error == hipErrorOutOfMemory) code = ErrorCode::out_of_memory;
#else
  if (error == cudaErrorMemoryAllocation) code = ErrorCode::out_of_memory;
#endif
  fail(code, "{}: {} failed: {} ({})", purpose, call, MIXLANE_GPU_API(GetErrorString)(error),
       MIXLANE_GPU_API(GetErrorName)(error));
}

// ---------------------------------------------------------------------------------------------------------------------
// Devices

namespace {

// In words that say what to install.
std::string no_device_reason(ApiError error) {
  if (error == MIXLANE_GPU_API(Success)) return "none is installed";
  int driver = 0, runtime = 0;
  static_cast<void>(MIXLANE_GPU_API(DriverGetVersion)(&driver));
  static_cast<void>(MIXLANE_GPU_API(RuntimeGetVersion)(&runtime));
  if (driver == 0) return "no driver is installed";
  if (driver < runtime)
    return fmt::format("the driver is of version {}.{}, this program needs {}.{} or newer", driver / 1000,
                       driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
  return MIXLANE_GPU_API(GetErrorString)(error);
}

}  // namespace

int num_devices(std::string* why) {
  int count = 0;
  const ApiError error = MIXLANE_GPU_API(GetDeviceCount)(&count);
  if (error == MIXLANE_GPU_API(Success) && count > 0) return count;
  static_cast<void>(MIXLANE_GPU_API(GetLastError)());
  if (why) *why = fmt::format("no {} GPU: {}", kVendor, no_device_reason(error));
  return 0;
}

namespace {

void require_device(Device device) {
  std::string why;
  const int count = num_devices(&why);
  if (device.type != kDeviceType)
    fail(ErrorCode::unsupported, "this build's GPU backend is {}, not {}", name(kDeviceType), name(device.type));
  if (count == 0) fail(ErrorCode::unsupported, "{}; use a cpu device", why);
  if (device.index < 0 || device.index >= count)
    fail(ErrorCode::invalid_argument, "{}:{} does not exist; this machine has {} of them", name(device.type), device.index,
         count);
}

template <class Attribute>
int attribute(Attribute which, int index) {
  int value = 0;
  MIXLANE_CHECKED(DeviceGetAttribute, fmt::format("asking device {} for attribute {}", index, static_cast<int>(which)),
                  &value, which, index);
  return value;
}

}  // namespace

DeviceProperties properties(int index) {
  require_device({kDeviceType, index});
#if defined(MIXLANE_HIP)
  hipDeviceProp_t raw;
#else
  cudaDeviceProp raw;
#endif
  MIXLANE_CHECKED(GetDeviceProperties, fmt::format("reading the properties of device {}", index), &raw, index);
  DeviceProperties result;
  result.name = raw.name;
#if defined(MIXLANE_HIP)
  result.architecture = raw.gcnArchName;
  result.architecture = result.architecture.substr(0, result.architecture.find(':'));  // "gfx942:sramecc+:xnack-"
#else
  result.architecture = fmt::format("sm_{}{}", raw.major, raw.minor);
#endif
  result.num_multiprocessors = raw.multiProcessorCount;
  result.wave_size = raw.warpSize;
  result.memory_bytes = static_cast<int64_t>(raw.totalGlobalMem);
  result.l2_bytes = raw.l2CacheSize;
  result.max_shared_bytes = max_shared_bytes(index);
  MIXLANE_CHECKED(DriverGetVersion, "reading the driver's version", &result.driver_version);
  MIXLANE_CHECKED(RuntimeGetVersion, "reading the runtime's version", &result.runtime_version);
  return result;
}

int num_multiprocessors(int index) { return attribute(kAttributeMultiprocessors, index); }
int compute_capability(int index) { return attribute(kAttributeMajor, index) * 10 + attribute(kAttributeMinor, index); }
int64_t max_shared_bytes(int index) { return attribute(kAttributeSharedBytes, index); }

DeviceGuard::DeviceGuard(Device device) {
  MIXLANE_CHECKED(GetDevice, "asking for the current device", &former_);
  changed_ = former_ != device.index;
  if (changed_) MIXLANE_CHECKED(SetDevice, fmt::format("switching to device {}", device.index), device.index);
}

DeviceGuard::~DeviceGuard() {
  if (changed_) static_cast<void>(MIXLANE_GPU_API(SetDevice)(former_));
}

// ---------------------------------------------------------------------------------------------------------------------
// Streams and events

OwnedStream::OwnedStream(Device device) : device_(device) {
  require_device(device);
  const DeviceGuard guard(device);
  ApiStream stream;
  MIXLANE_CHECKED(StreamCreateWithFlags, fmt::format("making a stream on device {}", device.index), &stream,
                  MIXLANE_GPU_API(StreamNonBlocking));
  handle_ = Handle<Tag>(stream);
}

void OwnedStream::Tag::release(void* handle) noexcept {
  if (handle) static_cast<void>(MIXLANE_GPU_API(StreamDestroy)(static_cast<ApiStream>(handle)));
}

void synchronize(Stream stream) {
  MIXLANE_CHECKED(StreamSynchronize, fmt::format("waiting for the work of a stream of device {}", stream.device.index),
                  api(stream));
}

bool is_capturing(Stream stream) {
  auto status = MIXLANE_GPU_API(StreamCaptureStatusNone);
  const ApiError error = MIXLANE_GPU_API(StreamIsCapturing)(api(stream), &status);
  // What the default stream answers while another stream is captured.
  if (error == MIXLANE_GPU_API(ErrorStreamCaptureImplicit)) return true;
  check(error, "StreamIsCapturing", "asking whether a stream is captured");
  return status != MIXLANE_GPU_API(StreamCaptureStatusNone);
}

void synchronize_device(Device device) {
  const DeviceGuard guard(device);
  MIXLANE_CHECKED(DeviceSynchronize, fmt::format("waiting for the work of device {}", device.index));
}

using ApiEvent = MIXLANE_GPU_API(Event_t);

Event::Event() {
  ApiEvent event;
  MIXLANE_CHECKED(EventCreate, "making a timing event", &event);
  handle_ = Handle<Tag>(event);
}

void Event::Tag::release(void* handle) noexcept {
  if (handle) static_cast<void>(MIXLANE_GPU_API(EventDestroy)(static_cast<ApiEvent>(handle)));
}

void Event::record(Stream stream) {
  MIXLANE_CHECKED(EventRecord, fmt::format("recording an event of a stream of device {}", stream.device.index),
                  static_cast<ApiEvent>(handle_.get()), api(stream));
}

void Event::wait() const { MIXLANE_CHECKED(EventSynchronize, "waiting for an event", static_cast<ApiEvent>(handle_.get())); }

void Event::hold(Stream stream) const {
  MIXLANE_CHECKED(StreamWaitEvent, fmt::format("letting a stream of device {} wait for an event", stream.device.index),
                  api(stream), static_cast<ApiEvent>(handle_.get()), 0);
}

double Event::elapsed_us(const Event& from, const Event& to) {
  float milliseconds = 0;
  MIXLANE_CHECKED(EventElapsedTime, "reading the time between two events", &milliseconds,
                  static_cast<ApiEvent>(from.handle_.get()), static_cast<ApiEvent>(to.handle_.get()));
  return static_cast<double>(milliseconds) * 1e3;
}

// ---------------------------------------------------------------------------------------------------------------------
// Memory

namespace {

// Allocating is no stream work, so it is allowed while this thread captures a graph; the runtime must be told so.
class AllowedInCapture {
 public:
  AllowedInCapture() { exchange(); }
  ~AllowedInCapture() { exchange(); }

 private:
  void exchange() { static_cast<void>(MIXLANE_GPU_API(ThreadExchangeStreamCaptureMode)(&mode_)); }
  MIXLANE_GPU_API(StreamCaptureMode) mode_ = MIXLANE_GPU_API(StreamCaptureModeRelaxed);
};

void* allocate_zeros(Device device, int64_t bytes) {
  const DeviceGuard guard(device);
  const AllowedInCapture allowed;
  const OwnedStream stream(device);
  void* memory = nullptr;
  const std::string purpose = fmt::format("taking {} bytes of device {}", bytes, device.index);
  MIXLANE_CHECKED(Malloc, purpose, &memory, static_cast<size_t>(bytes > 0 ? bytes : 1));
  fill(memory, 0, bytes, stream.get());
  synchronize(stream.get());
  return memory;
}

void free_device(void* memory) noexcept {
  if (memory) static_cast<void>(MIXLANE_GPU_API(Free)(memory));
}

class GpuMemory final : public DeviceMemory {
 public:
  explicit GpuMemory(Device device) : device_(device) { require_device(device); }
  void* allocate(int64_t bytes) override { return allocate_zeros(device_, bytes); }
  void release(void* memory) noexcept override { free_device(memory); }

 private:
  Device device_;
};

}  // namespace

Buffer::Buffer(Device device, int64_t bytes) : bytes_(bytes) {
  require_device(device);
  handle_ = Handle<Tag>(allocate_zeros(device, bytes));
}
void Buffer::Tag::release(void* handle) noexcept { free_device(handle); }

PinnedBuffer::PinnedBuffer(int64_t bytes) {
  void* memory = nullptr;
  const auto size = static_cast<size_t>(bytes);
  const std::string purpose = fmt::format("taking {} bytes of pinned host memory", bytes);
#if defined(MIXLANE_HIP)
  MIXLANE_CHECKED(HostMalloc, purpose, &memory, size, hipHostMallocDefault);
#else
  MIXLANE_CHECKED(HostAlloc, purpose, &memory, size, cudaHostAllocDefault);
#endif
  handle_ = Handle<Tag>(memory);
}

void PinnedBuffer::Tag::release(void* handle) noexcept {
#if defined(MIXLANE_HIP)
  if (handle) static_cast<void>(hipHostFree(handle));
#else
  if (handle) static_cast<void>(cudaFreeHost(handle));
#endif
}

void copy(void* to, const void* from, int64_t bytes, Stream stream) {
  MIXLANE_CHECKED(MemcpyAsync, fmt::format("copying {} bytes on device {}", bytes, stream.device.index), to, from,
                  static_cast<size_t>(bytes), MIXLANE_GPU_API(MemcpyDefault), api(stream));
}

void fill(void* to, uint8_t byte, int64_t bytes, Stream stream) {
  MIXLANE_CHECKED(MemsetAsync, fmt::format("filling {} bytes of device {} with {}", bytes, stream.device.index, byte), to,
                  byte, static_cast<size_t>(bytes), api(stream));
}

// ---------------------------------------------------------------------------------------------------------------------
// Graphs

using ApiGraph = MIXLANE_GPU_API(Graph_t);
using ApiGraphExec = MIXLANE_GPU_API(GraphExec_t);

Graph Graph::capture(Device device, const std::function<void(Stream)>& work) {
  const DeviceGuard guard(device);
  const OwnedStream stream(device);
  const auto raw = api(stream.get());
  ApiGraph graph = nullptr;
  MIXLANE_CHECKED(StreamBeginCapture, fmt::format("starting a graph capture on device {}", device.index), raw,
                  MIXLANE_GPU_API(StreamCaptureModeThreadLocal));
  try {
    work(stream.get());
  } catch (...) {
    static_cast<void>(MIXLANE_GPU_API(StreamEndCapture)(raw, &graph));
    if (graph) static_cast<void>(MIXLANE_GPU_API(GraphDestroy)(graph));
    throw;
  }
  MIXLANE_CHECKED(StreamEndCapture, fmt::format("ending a graph capture on device {}", device.index), raw, &graph);
  ApiGraphExec exec = nullptr;
#if defined(MIXLANE_HIP)
  const ApiError error = hipGraphInstantiate(&exec, graph, nullptr, nullptr, 0);
#else
  const ApiError error = cudaGraphInstantiate(&exec, graph, 0);
#endif
  static_cast<void>(MIXLANE_GPU_API(GraphDestroy)(graph));
  check(error, "GraphInstantiate", "making a captured graph executable");
  Graph result;
  result.handle_ = Handle<Tag>(exec);
  return result;
}

void Graph::Tag::release(void* handle) noexcept {
  if (handle) static_cast<void>(MIXLANE_GPU_API(GraphExecDestroy)(static_cast<ApiGraphExec>(handle)));
}

void Graph::launch(Stream stream) const {
  MIXLANE_CHECKED(GraphLaunch, fmt::format("replaying a graph on device {}", stream.device.index),
                  static_cast<ApiGraphExec>(handle_.get()), api(stream));
}

}  // namespace mixlane::gpu

std::unique_ptr<mixlane::DeviceMemory> mixlane::open_gpu_memory(Device device) {
  return std::make_unique<gpu::GpuMemory>(device);
}

mixlane::TunedMachine mixlane::gpu_machine(Device device) {
  const gpu::DeviceProperties properties = gpu::properties(device.index);
  return {properties.architecture, properties.num_multiprocessors};
}
