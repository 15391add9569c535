// Align calls to measure: ids of a shape on a GPU, every variant that takes them, their results checked against align.cpu.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "ops/align/choose.hpp"
#include "ops/align/op.hpp"
#include "tune/measured.hpp"

namespace mixlane::bench {

// How the pairs spread over the experts.
enum class AlignSkew : uint8_t { uniform, zipf, one_expert };
std::string_view name(AlignSkew skew);

struct AlignShapeKey {
  int experts = 0;  // local ones
  int topk = 0;
  AlignIds ids = AlignIds::i32;
  friend bool operator==(const AlignShapeKey&, const AlignShapeKey&) = default;
};

// The ids of up to `max_tokens` tokens, on the host and on the GPU; calls use as many of them as they want.
class AlignIdsOnGpu {
 public:
  AlignIdsOnGpu(Device device, const AlignShapeKey& shape, AlignSkew skew, int64_t max_tokens);

  const AlignShapeKey& shape() const { return shape_; }
  int64_t max_tokens() const { return max_tokens_; }
  // The inputs of a call with `tokens` tokens, `first` and those behind it.
  AlignArgs inputs(int64_t tokens, bool on_gpu, int64_t first = 0) const;
  Device device() const { return device_; }

 private:
  Device device_;
  AlignShapeKey shape_;
  int64_t max_tokens_;
  int num_experts_ = 0;     // of all ranks, for a window
  int64_t row_stride_ = 0;  // in ids
  std::vector<int32_t> ids_;
  std::vector<int64_t> wide_ids_;
  std::vector<int32_t> map_;
  gpu::Buffer gpu_ids_;
  gpu::Buffer gpu_map_;
};

// One size of call, with output buffers of its own. How far ids and outputs are from the multiprocessors in the second-level
// cache is luck, some percent of a short call: timed calls take turns at several places of both.
class AlignCase {
 public:
  AlignCase(Context& context, const AlignIdsOnGpu& ids, int64_t tokens, int block);

  int num_places() const { return num_places_; }
  // For "auto": the variant it is.
  AlignArgs args(std::string_view variant, int place = 0) const;
  // Variants that take it, simpler ones first.
  std::vector<const Variant<AlignArgs>*> candidates() const;
  // Runs each candidate and throws internal, naming it and the first difference, unless all give what align.cpu gives.
  void check(Context& cpu, Stream stream) const;
  DeviceWork work(const Variant<AlignArgs>& variant) const;

 private:
  Context& context_;
  const AlignIdsOnGpu& ids_;
  int64_t tokens_;
  int block_;
  int64_t capacity_;
  int num_places_;
  gpu::Buffer pairs_, blocks_, padded_;
};

// "experts=256 topk=8 ids=i32"
std::string shape_text(const AlignShapeKey& shape);

// The candidates of a case, ready to be timed against each other.
class AlignRace {
 public:
  // `candidates`: some of the case's own, or none for all of them. The case must outlive this.
  AlignRace(DeviceTimer& timer, const AlignCase& align_case, std::vector<const Variant<AlignArgs>*> candidates = {});

  const std::vector<const Variant<AlignArgs>*>& candidates() const { return candidates_; }
  std::vector<std::string> ids() const;
  RaceResult run(const RaceOptions& options) { return race_works(works_, options); }

 private:
  std::vector<const Variant<AlignArgs>*> candidates_;
  std::vector<PreparedWork> works_;
};

// Throws unsupported while the stream is captured.
void refuse_capture(Stream caller);

}  // namespace mixlane::bench
