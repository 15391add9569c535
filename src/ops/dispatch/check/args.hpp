// What the kernels of the protocol check get; docs/stages/dispatch.md says what they look for.
#pragma once

#include "ops/dispatch/gpu/device_args.hpp"
#include "ops/dispatch/gpu/launchers.hpp"

namespace mixlane::exchange_gpu {

// What rank s tells the owner of a window: up to which epoch of each stage everything to compare with is there.
struct alignas(64) CheckLine {
  uint32_t epochs[2];  // per ExchangeStage
};

// Offsets are in every rank's window, behind what the exchange uses.
struct CheckArgs {
  int64_t lines_at = 0;            // CheckLine [R]
  int64_t stamps_at = 0;           // u64 [R][C]: epoch << 32 | checksum of the record, by the rank that sent it
  int64_t partials_at = 0;         // [R][C]: partial sums once more
  uint32_t* sums = nullptr;        // [R][C], own memory: checksums of the records as dispatch left them
  std::byte* outputs = nullptr;    // [max_tokens][H] f32, own memory: outputs once more
  Status* ignored = nullptr;       // for what the exchange has reported already
  uint32_t flip_epochs[2] = {};    // tests: in these epochs a bit of the first row is wrong; 0 = never
  bool partials_in_window = true;  // combine leaves the sums of other ranks where partial_at() says
  uint32_t num_record_words = 0;   // payload, scales, ids and weights
};

void load_check_kernels(CombineWire wire);
// Before a call of the exchange: overwrites what nobody may read any more. `keep_records`: the caller reads them still.
void launch_poison(const Exchange& exchange, uint32_t payload_bytes, bool keep_records, const Budget& budget, Stream stream);
// After it. `sent`: the rows as they should be on the wire.
void launch_check_dispatch(const DispatchKernelArgs& sent, const CheckArgs& check, const Budget& budget, Stream stream);
void launch_check_combine(const CombineKernelArgs& args, CombineWire wire, const CheckArgs& check, const Budget& budget,
                          Stream stream);

}  // namespace mixlane::exchange_gpu
