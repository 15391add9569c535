// One way for the ranks to exchange rows: a dispatch and the combine that belongs to it.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "exchange/inputs.hpp"
#include "gpu/runtime.hpp"
#include "measure/work.hpp"

namespace mixlane::bench {

// What of a dispatch and a combine is chosen for one run.
struct ExchangeCase {
  DispatchInput input = DispatchInput::bf16;
  CombineRows rows = CombineRows::reduced;
  int num_multiprocessors = 0;
};

// A rank's share of the inputs on its GPU, the same for all ways.
struct RankOnGpu {
  Device device;
  gpu::Buffer hidden, codes, scales, ids, weights, num_tokens, reduced_rows, expert_rows, pair_slots;
};
// Ranks take turns on the GPUs of the machine.
Device device_of_rank(DeviceType type, int rank);
std::vector<RankOnGpu> upload(const ExchangeInputs& inputs);

class ExchangeWay {
 public:
  virtual ~ExchangeWay() = default;

  virtual std::string dispatch_id() const = 0;
  virtual std::string combine_id() const = 0;
  // Memory that peers reach, of one rank.
  virtual int64_t symmetric_bytes() const = 0;

  // On the rank's thread; asynchronous; may be captured. All ranks call dispatch and combine in turn.
  virtual void dispatch(int rank, Stream stream) = 0;
  virtual void combine(int rank, Stream stream) = 0;

  // Outputs become bytes that are no result, in stream order; no call of any rank may be under way.
  virtual void poison(int rank, Stream stream) = 0;
  // After a dispatch and a combine: the share of received bytes, and of output values, that differs from the CPU's.
  virtual double wrong_received(int rank, Stream stream) = 0;
  virtual double wrong_output(int rank, Stream stream) = 0;
  // What wrong_output may be at most.
  virtual double output_tolerance() const { return 0; }
};

struct WayRequest {
  const ExchangeInputs& inputs;
  const std::vector<RankOnGpu>& gpus;
  ExchangeCase exchange_case;
  std::chrono::milliseconds deadline = std::chrono::seconds(30);  // of waits for a peer
};
// `way` is a name of exchange_ways(). Throws unsupported with the reason where it does not take the case.
std::unique_ptr<ExchangeWay> make_way(const std::string& way, const WayRequest& request);
std::unique_ptr<ExchangeWay> make_library_way(const std::string& way, const WayRequest& request);
std::unique_ptr<ExchangeWay> make_nccl_way(bool all_to_all, const WayRequest& request);

// Of the rows that dispatch gets.
DType input_dtype(const ExchangeInputs& inputs, const ExchangeCase& exchange_case);

// The work of the rank that has most of it, by the formulas of src/ops/dispatch/op.hpp: what any way has to do at least.
StageWork dispatch_work(const ExchangeInputs& inputs, const ExchangeCase& exchange_case);
StageWork combine_work(const ExchangeInputs& inputs, const ExchangeCase& exchange_case);

// Differing values over all; 1 where the lengths differ.
double share_different(const std::vector<uint16_t>& got, const std::vector<uint16_t>& expected);
std::vector<uint16_t> fetch_output(const gpu::Buffer& from, int64_t num_values, Stream stream);

}  // namespace mixlane::bench
