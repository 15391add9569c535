// What dispatch and combine must give, by plain loops over the inputs of all ranks, and ranks as threads to try it.
#pragma once

#include <functional>
#include <vector>

#include "mixlane/dispatch.hpp"
#include "support/random.hpp"

namespace mixlane::test {

// One rank's arguments of one call.
struct Inputs {
  int64_t num_tokens = 0;
  std::vector<uint16_t> hidden;  // bf16 [T, H]
  std::vector<int32_t> ids;      // [T, K]
  std::vector<float> weights;    // [T, K]
  std::vector<uint16_t> addend;  // bf16 [T, H]

  DispatchArgs dispatch_args(const DispatcherConfig& config, Status* status) const;
};

// Few and odd of everything: hidden 24, 3 of 11 experts, up to 9 tokens.
DispatcherConfig small_config();

// Distinct experts per token, some of them -1 if `holes`.
Inputs make_inputs(Rng& rng, const DispatcherConfig& config, int64_t num_tokens, bool holes);
// The inputs of all ranks for call `call`: every rank makes the same ones. Token counts are uneven, some zero.
std::vector<Inputs> make_all_inputs(uint64_t seed, const DispatcherConfig& config, int num_ranks);

// What the experts of these tests do.
uint16_t expert_value(uint16_t x, int expert);

// `config` as the dispatcher completed it. `masked`: bit per rank that is left out.
struct Oracle {
  const DispatcherConfig& config;
  const std::vector<Inputs>& inputs;
  uint64_t masked = 0;

  int owner(int32_t expert) const;
  // The tokens of `source` whose rows `dest` gets, in order.
  std::vector<int64_t> tokens(int source, int dest) const;
  // What combine gives on `rank`, bf16 bits [T, H], with the arithmetic of the combine wire.
  std::vector<uint16_t> output(int rank, bool with_addend) const;
};

// e2m1 codes, two to a byte, and e8m0 scales of a bf16 row by the definition in mixlane/quant.hpp.
void quantize_mxfp4(const uint16_t* row, int hidden, std::vector<uint8_t>& codes, std::vector<uint8_t>& scales);

// Counts, payloads (bf16 wire), ids and weights of everything that `rank` received.
void expect_received(const ReceivedRows& received, const Oracle& oracle, int rank);
// The same of counts and payloads alone, for processes that report to a test.
bool received_is_right(const ReceivedRows& received, const Oracle& oracle, int rank);
// What the experts make of the rows that `rank` received, slots in an order of their own.
struct ExpertRows {
  std::vector<uint16_t> rows;  // bf16 [count, H]
  std::vector<int32_t> slots;  // [num_ranks * capacity, K]
  int32_t count = 0;
};
ExpertRows make_expert_rows(const ReceivedRows& received, const Oracle& oracle, int rank);

// expert_rows and pair_slots for the rows that `rank` received; then combine.
std::vector<uint16_t> combine(Dispatcher& dispatcher, const ReceivedRows& received, const Oracle& oracle, bool with_addend,
                              Status* status = nullptr);

// Calls body(comm, rank) on num_ranks threads. Windows hold 0xff bytes at first, so that nothing may rely on zeros.
void run_rank_threads(int num_ranks, const std::function<void(std::shared_ptr<Communicator>)>& body);

// comm->rank() sleeps for up to `max_us` in one of four cases.
void random_delay(Rng& rng, int max_us);

}  // namespace mixlane::test
