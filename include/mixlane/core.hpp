// The vocabulary every stage shares: errors, element types, devices and tensor views.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace mixlane {

// ---------------------------------------------------------------------------------------------
// Errors

enum class ErrorCode : int32_t {
  ok = 0,
  invalid_argument,   // a shape, dtype, option or value the call does not accept
  unsupported,        // valid, but no variant on this device does it
  config_mismatch,    // ranks disagree on the configuration
  bad_expert_id,      // an expert id >= num_experts or < -1
  nan_logits,         // a NaN among the router's logits
  capacity_overflow,  // more rows for one (source, destination) pair than the window holds
  peer_timeout,       // a peer did not answer within the deadline
  rank_masked,        // the others have masked this rank and went on without it
  out_of_memory,      // host, device or shared memory is short
  io_error,           // a file or folder can't be read, written or mapped
  bad_format,         // a file's content contradicts itself or its format
  missing_component,  // a library that is loaded on demand is not installed
  internal,           // a broken invariant of Mixlane itself
};

std::string_view name(ErrorCode code);

// The one exception family at the public edge. what() = "<code>: <message>"; the message holds the offending
// values and what to do about them.
class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message);
  ErrorCode code() const { return code_; }

 private:
  ErrorCode code_;
};

// What a stage that depends on data or on peers reports without stopping the device: plain memory that the device
// writes and the host reads after the stream. The first failure of a call is kept; `failures` counts all of them.
struct Status {
  ErrorCode code = ErrorCode::ok;
  int32_t rank = -1;      // who reports
  int32_t peer = -1;      // whom it concerns, or -1
  int32_t failures = 0;   // failing tokens, rows or peers in this call
  int64_t token = -1;     // first failing token or row, or -1
  int64_t expected = 0;   // what would have been right: a count, an id limit, an epoch
  int64_t got = 0;        // what was there instead
  int64_t waited_us = 0;  // peer_timeout: how long
  bool ok() const { return code == ErrorCode::ok; }
};

// One sentence with the facts of the record and what to do; empty if ok.
std::string describe(const Status& status);
// Throws Error(status.code, describe(status)) unless ok.
void throw_if_failed(const Status& status);

// ---------------------------------------------------------------------------------------------
// Element types

enum class DType : uint8_t {
  f32,
  f64,
  bf16,
  f16,
  i32,
  i64,
  u8,
  fp8_e4m3,  // OCP e4m3fn: no infinities, 0x7f is NaN, largest finite 448
  fp4_e2m1,  // two values per byte, the lower nibble first; shapes count values, strides count values too
  e8m0,      // a power of two, value 2^(byte - 127); 0xff is NaN
};

std::string_view name(DType dtype);
// Throws invalid_argument listing the valid names.
DType dtype_from_name(std::string_view name);
// Bits of one value; 4 for fp4_e2m1.
int bits(DType dtype);
// Bytes of `count` values. `count` must be even for fp4_e2m1.
int64_t size_bytes(DType dtype, int64_t count);

// ---------------------------------------------------------------------------------------------
// Devices, streams and tensor views

enum class DeviceType : uint8_t { cpu, cuda, hip };
std::string_view name(DeviceType type);

struct Device {
  DeviceType type = DeviceType::cpu;
  int32_t index = 0;
  friend bool operator==(const Device&, const Device&) = default;
};

// A queue of work of one device: cudaStream_t or hipStream_t as an opaque handle. The CPU's stream is the calling
// thread: work is done when the call returns.
struct Stream {
  Device device{};
  void* handle = nullptr;
};

inline constexpr int kMaxDims = 4;

// A borrowed, strided tensor: pointer, dtype, shape, strides (in values, not bytes) and device. It owns nothing. An
// empty view (data == nullptr and ndim == 0) stands for "not given" wherever an argument is optional.
template <class Byte>
struct BasicTensorView {
  Byte* data = nullptr;
  DType dtype = DType::f32;
  Device device{};
  int32_t ndim = 0;
  std::array<int64_t, kMaxDims> shape{};
  std::array<int64_t, kMaxDims> strides{};

  BasicTensorView() = default;

  // Contiguous, row major.
  BasicTensorView(Byte* data_, DType dtype_, std::initializer_list<int64_t> shape_, Device device_ = {})
      : data(data_), dtype(dtype_), device(device_), ndim(static_cast<int32_t>(shape_.size())) {
    if (shape_.size() > kMaxDims) throw Error(ErrorCode::invalid_argument, "a tensor view has at most 4 dimensions");
    int64_t stride = 1;
    for (int d = ndim - 1; d >= 0; --d) {
      shape[d] = shape_.begin()[d];
      strides[d] = stride;
      stride *= shape[d];
    }
  }

  // A read-only view of a mutable one.
  template <class Other>
  requires(std::is_const_v<Byte>&& std::is_same_v<Other, std::remove_const_t<Byte>>)
      BasicTensorView(const BasicTensorView<Other>& other)
      : data(other.data),
        dtype(other.dtype),
        device(other.device),
        ndim(other.ndim),
        shape(other.shape),
        strides(other.strides) {}

  bool given() const { return data != nullptr || ndim != 0; }
  int64_t num_values() const {
    int64_t n = 1;
    for (int d = 0; d < ndim; ++d) n *= shape[d];
    return n;
  }
  bool contiguous() const {
    int64_t stride = 1;
    for (int d = ndim - 1; d >= 0; --d) {
      if (shape[d] != 1 && strides[d] != stride) return false;
      stride *= shape[d];
    }
    return true;
  }

  // Typed access for host code. T must match dtype's size; no check.
  template <class T>
  auto as() const {
    using Value = std::conditional_t<std::is_const_v<Byte>, const T, T>;
    return static_cast<Value*>(data);
  }
};

using TensorView = BasicTensorView<void>;
using ConstTensorView = BasicTensorView<const void>;

// "bf16[128, 7168] strides [7200, 1] on cuda:0", for messages.
std::string to_string(const ConstTensorView& view);

// ---------------------------------------------------------------------------------------------
// Context

struct ContextOptions {
  Device device{};
  int num_threads = 0;  // CPU: threads of this rank, the calling one included; 0 = every core this process may use
};

class Arena;        // src/core/arena.hpp
struct Env;         // src/core/env.hpp
class StageStates;  // src/core/stage_states.hpp

// What one rank's calls share: device, CPU threads, workspace arena and a snapshot of the environment. A Context
// belongs to one rank and is used by one thread at a time; ranks that are threads have one each. There is no global
// state beside it.
class Context {
 public:
  explicit Context(const ContextOptions& options = {});
  ~Context();
  Context(Context&&) noexcept;
  Context& operator=(Context&&) noexcept;

  Device device() const;
  int num_threads() const;
  Arena& arena();
  const Env& env() const;
  StageStates& states() const;
  // What works but could be better, a line each, with the command that does it; each is said once per context. The library
  // itself prints nothing.
  const std::vector<std::string>& notices() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace mixlane
