// Eight neighbouring values of a row on combine's wire, and the sum of a received row's local pairs.
#pragma once

#include "gpu/numeric.cuh"
#include "mixlane/dispatch.hpp"
#include "ops/dispatch/gpu/call.cuh"
#include "ops/quant/encode.cuh"

namespace mixlane::exchange_gpu {

// To nearest even in one rounding, through the next f32 towards zero with its last bit set if it is not exact.
__device__ inline float f64_to_odd_f32(double value) {
  float near = static_cast<float>(value);
  const double difference = value - static_cast<double>(near);
  if (difference == 0.0 || !(fabs(value) < 3.4e38)) return near;
  uint32_t bits = __float_as_uint(near);
  if ((difference < 0.0) == (near > 0.0)) --bits;  // rounded away from zero
  return __uint_as_float(bits | 1u);
}

template <CombineWire kWire>
struct WireOctet {
  using Sum = std::conditional_t<kWire == CombineWire::f64, double, float>;
  static constexpr int kWords = kWire == CombineWire::bf16 ? 4 : kWire == CombineWire::f32 ? 8 : 16;
  static constexpr int kBytes = kWords * 4;
  uint32_t words[kWords];

  __device__ static WireOctet load(const std::byte* from) {
    WireOctet octet;
#pragma unroll
    for (int i = 0; i < kWords / 4; ++i) {
      const uint4 packet = reinterpret_cast<const uint4*>(from)[i];
      octet.words[4 * i] = packet.x;
      octet.words[4 * i + 1] = packet.y;
      octet.words[4 * i + 2] = packet.z;
      octet.words[4 * i + 3] = packet.w;
    }
    return octet;
  }
  __device__ void store(std::byte* to) const {
#pragma unroll
    for (int i = 0; i < kWords / 4; ++i)
      reinterpret_cast<uint4*>(to)[i] = make_uint4(words[4 * i], words[4 * i + 1], words[4 * i + 2], words[4 * i + 3]);
  }
  // The octets of a row of partial sums.
  __device__ static WireOctet load_from_row(const std::byte* row, uint32_t octet, uint32_t) {
    return load(row + int64_t{octet} * kBytes);
  }
  __device__ void store_to_row(std::byte* row, uint32_t octet, uint32_t) const { store(row + int64_t{octet} * kBytes); }
  __device__ static WireOctet of(const Sum (&sums)[gpu::kOctet]) {
    WireOctet octet;
#pragma unroll
    for (int i = 0; i < gpu::kOctet; ++i) {
      if constexpr (kWire == CombineWire::bf16) {
        if (i % 2 == 0) octet.words[i / 2] = gpu::f32x2_to_bf16x2(sums[i], sums[i + 1]);
      } else if constexpr (kWire == CombineWire::f32) {
        octet.words[i] = __float_as_uint(sums[i]);
      } else {
        const auto bits = static_cast<uint64_t>(__double_as_longlong(sums[i]));
        octet.words[2 * i] = static_cast<uint32_t>(bits);
        octet.words[2 * i + 1] = static_cast<uint32_t>(bits >> 32);
      }
    }
    return octet;
  }
  __device__ Sum value(int i) const {
    if constexpr (kWire == CombineWire::bf16) {
      return __uint_as_float(i % 2 ? words[i / 2] & 0xffff0000u : words[i / 2] << 16);
    } else if constexpr (kWire == CombineWire::f32) {
      return __uint_as_float(words[i]);
    } else {
      return __longlong_as_double(static_cast<long long>(words[2 * i] | uint64_t{words[2 * i + 1]} << 32));
    }
  }
};

// Sixteen neighbouring lanes hold a group of 128 values; behind the codes of a row come its scales.
template <>
struct WireOctet<CombineWire::fp8_1x128> {
  using Sum = float;
  static constexpr uint32_t kGroup = 16;  // octets
  static constexpr int kWords = 2;
  uint32_t words[kWords];
  float scale;

  __device__ static WireOctet load_from_row(const std::byte* row, uint32_t octet, uint32_t num_octets) {
    const uint2 codes = reinterpret_cast<const uint2*>(row)[octet];
    return {{codes.x, codes.y}, reinterpret_cast<const float*>(row + num_octets * gpu::kOctet)[octet / kGroup]};
  }
  __device__ void store_to_row(std::byte* row, uint32_t octet, uint32_t num_octets) const {
    reinterpret_cast<uint2*>(row)[octet] = make_uint2(words[0], words[1]);
    if (octet % kGroup == 0) reinterpret_cast<float*>(row + num_octets * gpu::kOctet)[octet / kGroup] = scale;
  }
  // Whole waves; zeros behind the end of a row.
  __device__ static WireOctet of(const Sum (&sums)[gpu::kOctet]) {
    gpu::Octet<DType::f32> values;
#pragma unroll
    for (int i = 0; i < gpu::kOctet; ++i) values.words[i] = __float_as_uint(sums[i]);
    const quant_gpu::E4m3Scale scale(gpu::wave_max<kGroup>(quant_gpu::E4m3Scale::magnitude(values)));
    const uint2 codes = scale.encode(values);
    return {{codes.x, codes.y}, scale.value()};
  }
  __device__ Sum value(int i) const { return gpu::e4m3_to_f32(words[i / 4] >> (i % 4 * 8) & 0xffu) * scale; }
};

// Waves compute whole groups together: lanes behind the end of a row take part, and parts of rows are whole groups.
template <CombineWire kWire>
inline constexpr uint32_t kOctetsOfGroup = kWire == CombineWire::fp8_1x128 ? WireOctet<CombineWire::fp8_1x128>::kGroup : 1;
template <CombineWire kWire>
inline constexpr bool kWholeWaves = kOctetsOfGroup<kWire> != 1;
template <CombineWire kWire>
__device__ uint32_t first_octet(const CombineKernelArgs& args, const Share& share) {
  constexpr uint32_t kGroup = kOctetsOfGroup<kWire>;
  return min(share.first_of((args.num_octets + kGroup - 1) / kGroup) * kGroup, args.num_octets);
}
template <CombineWire kWire>
__device__ uint32_t end_octet(const CombineKernelArgs& args, const Share& share) {
  constexpr uint32_t kGroup = kOctetsOfGroup<kWire>;
  return min(share.end_of((args.num_octets + kGroup - 1) / kGroup) * kGroup, args.num_octets);
}

// The rows of a received row's local pairs, in ascending k.
struct PairList {
  uint32_t count;
  uint32_t row[32];
  float weight[32];
};

// One whole wave.
__device__ inline void list_pairs(const CombineKernelArgs& args, int source, int slot, PairList& list) {
  const Exchange& exchange = args.exchange;
  const uint32_t k = HardwareWave::lane();
  const int64_t row = int64_t{source} * exchange.window.capacity + slot;
  const bool counts = k < args.num_topk;
  const int32_t pair_slot = counts ? args.pair_slots[row * args.num_topk + k] : -1;
  const bool here = static_cast<uint32_t>(pair_slot) < args.num_rows;
  if (!here && pair_slot != -1) {
    Status failure;
    failure.code = ErrorCode::invalid_argument;
    failure.rank = exchange.window.rank;
    failure.token = row;
    failure.expected = args.num_rows;
    failure.got = pair_slot;
    report(exchange.status, failure);
  }
  const auto all = HardwareWave::ballot(here);
  if (here) {
    const auto at = HardwareWave::count(all & HardwareWave::lanes_below());
    const std::byte* const record = record_at(exchange.window, exchange.window.rank, source, slot);
    list.row[at] = static_cast<uint32_t>(pair_slot);
    list.weight[at] = args.apply_weights ? reinterpret_cast<const float*>(record + args.weights_at)[k] : 1.0f;
  }
  if (k == 0) list.count = static_cast<uint32_t>(HardwareWave::count(all));
}

// Eight values of what this rank adds for a received row; `here`: false behind the end of the row.
template <CombineWire kWire, PartialSource kSource>
__device__ WireOctet<kWire> local_partial(const CombineKernelArgs& args, const PairList& list, int64_t row, uint32_t octet,
                                          bool here = true) {
  using Wire = WireOctet<kWire>;
  using Sum = typename Wire::Sum;
  Sum sums[gpu::kOctet] = {};
  if constexpr (kSource == PartialSource::pairs) {
    constexpr uint32_t kTogether = 4;
    const std::byte* const rows = args.rows.data + int64_t{octet} * 16;
    for (uint32_t first = 0; here && first < list.count; first += kTogether) {
      WireOctet<CombineWire::bf16> values[kTogether];
#pragma unroll
      for (uint32_t i = 0; i < kTogether; ++i)
        if (first + i < list.count) values[i] = values[i].load(rows + list.row[first + i] * args.rows.stride);
#pragma unroll
      for (uint32_t i = 0; i < kTogether; ++i) {
        if (first + i >= list.count) break;
        const auto weight = static_cast<Sum>(list.weight[first + i]);
#pragma unroll
        for (int v = 0; v < gpu::kOctet; ++v) sums[v] += weight * static_cast<Sum>(values[i].value(v));
      }
    }
    return Wire::of(sums);
  } else {
    constexpr bool kShort = kSource == PartialSource::reduced_bf16;
    using Given = WireOctet<kShort ? CombineWire::bf16 : CombineWire::f32>;
    Given given{};
    if (here) given = Given::load(args.rows.data + row * args.rows.stride + int64_t{octet} * Given::kBytes);
    // The owner's sum starts from +0, so the sign of a zero does not matter.
    if constexpr (std::is_same_v<Given, Wire>) {
      return given;
    } else {
#pragma unroll
      for (int v = 0; v < gpu::kOctet; ++v) sums[v] = static_cast<Sum>(given.value(v));
      return Wire::of(sums);
    }
  }
}

}  // namespace mixlane::exchange_gpu
