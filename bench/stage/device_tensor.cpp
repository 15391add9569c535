#include "stage/device_tensor.hpp"

namespace mixlane::bench {
namespace {

constexpr int64_t kAlignment = 256;
constexpr uint8_t kPoison = 0xa5;

int64_t padded(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace

DeviceTensor::DeviceTensor(Device device, DType dtype, std::initializer_list<int64_t> shape, int num_sets,
                           const void* values)
    : first_(nullptr, dtype, shape, device),
      bytes_((first_.num_values() * bits(dtype) + 7) / 8),
      stride_(padded(bytes_)),
      buffer_(device, stride_ * num_sets) {
  first_.data = buffer_.data();
  if (!values) return;
  const gpu::OwnedStream stream(device);
  for (int set = 0; set < num_sets; ++set) gpu::copy(view(set).data, set == 0 ? values : first_.data, bytes_, stream.get());
  gpu::synchronize(stream.get());
}

TensorView DeviceTensor::view(int set) const {
  TensorView result = first_;
  result.data = buffer_.as<std::byte>() + set * stride_;
  return result;
}

void DeviceTensor::poison(Stream stream, int set) const { gpu::fill(view(set).data, kPoison, bytes_, stream); }

std::vector<std::byte> DeviceTensor::fetch(Stream stream, int set) const {
  std::vector<std::byte> values(static_cast<size_t>(bytes_));
  gpu::copy(values.data(), view(set).data, bytes_, stream);
  gpu::synchronize(stream);
  return values;
}

}  // namespace mixlane::bench
