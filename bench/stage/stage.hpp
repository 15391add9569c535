// A stage that can be checked and timed alone on a GPU. A new one is a file of this folder and a line in stages.cpp.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "measure/device_timer.hpp"
#include "measure/work.hpp"
#include "stage/inputs.hpp"
#include "stage/options.hpp"

namespace mixlane::bench {

class PlacedExperts;

// One stage at one shape with one choice of options: its inputs and outputs on the device, in num_sets() equal copies.
class DeviceStage {
 public:
  virtual ~DeviceStage() = default;

  // What makes it differ from its siblings: "block=128 ids=i32".
  virtual std::string options() const = 0;
  // The id that "auto" stands for here; several joined by "+".
  virtual std::string automatic() const = 0;
  // Why a variant does not take these arguments; empty if it does.
  virtual std::string refusal(const std::string& variant) const = 0;
  virtual int num_sets() const = 0;

  // One call on the data of a set. Asynchronous; may be captured. A stage of several ranks lets their streams wait for
  // `stream`, and `stream` for all of them: a sample is then the slowest rank's time since a common start.
  virtual void enqueue(const std::string& variant, Stream stream, int set) = 0;

  // The outputs of a set become bytes that are no result, in stream order.
  virtual void poison(Stream stream, int set) = 0;
  // Waits for the stream and holds the outputs of a set against the CPU's. Never throws for wrong ones.
  virtual Correctness verify(Stream stream, int set) = 0;

  // By the stage's own formula (src/ops/<stage>/op.hpp).
  virtual StageWork work() const = 0;
};

struct StageSetup {
  Context& context;     // of the device
  StageInputs& inputs;  // outlives the stage
  const StageOptions& options;
  bool cold = false;                                 // more sets than one are wanted
  std::shared_ptr<PlacedExperts> experts = nullptr;  // in place of random ones

  int num_sets(int64_t set_bytes) const { return cold ? num_cold_sets(set_bytes) : 1; }
};

struct StageKind {
  std::string_view name;
  // A stage per combination of options. Throws unsupported where the inputs are too large to be made.
  std::vector<std::unique_ptr<DeviceStage>> (*make)(const StageSetup& setup);
};

// In the order of the layer's data flow.
std::span<const StageKind> stage_kinds();

std::vector<std::unique_ptr<DeviceStage>> make_routing_stages(const StageSetup& setup);
std::vector<std::unique_ptr<DeviceStage>> make_quant_stages(const StageSetup& setup);
std::vector<std::unique_ptr<DeviceStage>> make_dequant_stages(const StageSetup& setup);
std::vector<std::unique_ptr<DeviceStage>> make_align_stages(const StageSetup& setup);
std::vector<std::unique_ptr<DeviceStage>> make_chain_stages(const StageSetup& setup);
std::vector<std::unique_ptr<DeviceStage>> make_experts_stages(const StageSetup& setup);

// Of ids and codes: the share that differs, which must be none.
Correctness exact_check(int tokens, int64_t num_different, int64_t num_compared, std::string reference);
// How many of `count` values of T differ.
template <class T>
int64_t count_different(const T* a, const T* b, int64_t count) {
  int64_t different = 0;
  for (int64_t i = 0; i < count; ++i) different += a[i] != b[i];
  return different;
}

}  // namespace mixlane::bench
