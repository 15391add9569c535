// What the ranks of one exchange work on, and what the CPU's dispatch and combine make of it.
#pragma once

#include <vector>

#include "exchange/options.hpp"
#include "mixlane/model.hpp"
#include "workload/workload.hpp"

namespace mixlane::bench {

struct ExchangeShape {
  const Model& model;
  int tokens = 0;  // per rank
  Workload workload;
  int num_ranks = 1;
  WireFormat wire = WireFormat::bf16;
  CombineWire combine_wire = CombineWire::bf16;
  int capacity = 0;
  uint64_t seed = 0;
  int padded_to = 0;  // rows of the tokens' tensors, with the number of tokens on the device; 0: just those
};

// One rank's data on the host.
struct RankData {
  int64_t num_tokens = 0;
  std::vector<uint16_t> hidden;  // bf16 [T, H], standard normal
  std::vector<uint8_t> codes;    // wires that are not bf16: the same rows quantised before, [T, H]
  std::vector<uint8_t> scales;   // theirs, as scales_view() sees them
  std::vector<int32_t> ids;      // [T, K]
  std::vector<float> weights;    // [T, K]
  // What combine gets for the rows that arrived; rows of expert output repeat.
  std::vector<uint16_t> reduced_rows;  // bf16 [R * C, H]
  std::vector<uint16_t> expert_rows;   // bf16 [num_pairs, H]
  std::vector<int32_t> pair_slots;     // [R * C, K]
  int64_t num_pairs = 0;
  // By dispatch.shm and combine.shm.
  std::vector<int32_t> recv_count;  // [R]
  std::vector<int32_t> sent_count;  // [R]
  std::vector<std::byte> received;  // received_bytes()
  std::vector<uint16_t> output[2];  // bf16 [T, H], by CombineRows
};

class ExchangeInputs {
 public:
  // `rows`: for which of them outputs are made. Throws unsupported where the data would be larger than what is worth making.
  ExchangeInputs(const ExchangeShape& shape, const std::vector<CombineRows>& rows, Context& cpu);

  const ExchangeShape& shape() const { return shape_; }
  const DispatcherConfig& config() const { return config_; }  // complete
  int num_ranks() const { return shape_.num_ranks; }
  const RankData& rank(int index) const { return ranks_[static_cast<size_t>(index)]; }
  int64_t num_rows() const { return int64_t{shape_.num_ranks} * config_.capacity; }
  std::vector<int64_t> expert_pairs() const;

 private:
  void make_tokens(Context& cpu);
  void make_expert_output(RankData& data, const ReceivedRows& received, int rank, bool pairs);
  void run_reference(const std::vector<CombineRows>& rows);

  ExchangeShape shape_;
  DispatcherConfig config_;
  std::vector<RankData> ranks_;
};

// Scales of rows as the wire takes them, not for bf16: [num_tokens] if there is one per row, else [num_tokens, groups].
TensorView scales_view(const DispatcherConfig& config, void* data, int64_t num_tokens, Device device);
int64_t scale_row_bytes(const DispatcherConfig& config);

// The rows that arrived, source after source without gaps: payload, scales, ids and weights of each. `received`: views of
// host memory.
std::vector<std::byte> received_bytes(const ReceivedRows& received, const DispatcherConfig& config);

}  // namespace mixlane::bench
