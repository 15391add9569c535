// Dispatch and combine: send each token's row to the ranks that own its experts, and bring the weighted sum back.
#pragma once

#include "mixlane/comm.hpp"
#include "mixlane/core.hpp"
#include "mixlane/ready_rows.hpp"

namespace mixlane {

// What dispatch puts on the wire.
enum class WireFormat : uint8_t {
  bf16,
  fp8_1x128,  // e4m3 and one f32 scale per 128 values
  fp8_row,    // e4m3 and one f32 scale per row
  mxfp4,      // e2m1 and one e8m0 scale per 32 values
};

// What combine puts on the wire: one partial sum per (token, rank).
enum class CombineWire : uint8_t {
  bf16,       // half the bytes of f32; each rank's partial is rounded once
  fp8_1x128,  // a quarter: e4m3 and one f32 scale per 128 values; each rank's partial is rounded to 3 bits of mantissa
  f32,
  f64,  // sums of bf16 rows times f32 weights are exact in f64 (docs/design/determinism.md): the result does not
        // depend on how many ranks there are, bit by bit
};

enum class OnPeerTimeout : uint8_t {
  fail,  // throw peer_timeout
  mask,  // report it in the status, leave that rank out from now on, go on
};

struct DispatcherConfig {
  int hidden = 0;       // H; a row's payload must be a multiple of 16 bytes
  int num_topk = 0;     // K, 1..32
  int num_experts = 0;  // physical experts of the whole group
  int max_tokens = 0;   // most tokens per rank and call; more are refused before anything is sent
  int capacity = 0;     // rows the window holds per (source, destination); 0 = max_tokens, which can't overflow
  WireFormat wire = WireFormat::bf16;
  CombineWire combine_wire = CombineWire::bf16;
  OnPeerTimeout on_peer_timeout = OnPeerTimeout::fail;
  // GPUs: the most multiprocessors that a call may keep busy, so that others stay free for work beside it; 0 = all.
  int num_multiprocessors = 0;
  // GPUs: keep the memory of dispatch.copy_engine and combine.copy_engine, which keep no multiprocessor busy while bytes
  // move: (num_ranks - 1) * capacity rows, not reached by peers. What a copy moves is fixed when it is enqueued:
  // min(T, capacity) rows to each peer, however few the routing sends there. Ranks may take different variants in one call,
  // and all of them work in graphs.
  bool copy_engine = false;
  // GPUs: announce rows as they come, for kernels that read them before a dispatch.throughput is over (ReceivedRows::ready).
  // Calls of few tokens then go without the lines that make them quicker.
  bool early_rows = false;
  // Owner of each physical expert, num_experts entries, the same on every rank. Empty: contiguous, the first
  // num_experts % num_ranks ranks own one more. A rank may own none.
  std::vector<int> expert_rank;
};

// Which ranks and slots a dispatch used: opaque, valid until the dispatcher's next dispatch without it.
class RoutingHandle {
 public:
  RoutingHandle() = default;
  bool valid() const { return state_ != nullptr; }

 private:
  friend class Dispatcher;
  friend struct RoutingAccess;  // src/ops/dispatch/op.hpp
  std::shared_ptr<const struct RoutingState> state_;
};

struct DispatchArgs {
  ConstTensorView hidden{};        // bf16 [T, H], quantised on the way if the wire is not bf16; or in the wire's dtype
                                   // (fp8_e4m3, fp4_e2m1) with `scales`
  ConstTensorView scales{};        // f32 [T, ceil(H/128)] or [T], e8m0 [T, ceil(H/32)], with quantised input
  ConstTensorView topk_ids{};      // i32 [T, K] physical experts; -1 = no expert. Others out of range: status bad_expert_id,
                                   // the pair is dropped
  ConstTensorView topk_weights{};  // f32 [T, K]
  ConstTensorView num_tokens{};    // optional i32 [1] in device memory: how many of the T rows count
  RoutingHandle replay{};          // send new rows by an earlier dispatch's routing; ids and weights must be its own
  Status* status = nullptr;        // capacity_overflow, bad_expert_id, peer_timeout (mask); nullptr: thrown (CPU only)
  std::string_view variant = "auto";
};

// Rows as they lie in this rank's receive window, rank_major: views, valid until the next dispatch or combine. Rows at
// and behind recv_count[s] of source s are undefined. The order inside a source is its token order.
struct ReceivedRows {
  TensorView rows{};          // wire dtype [num_ranks * capacity, H], rows strided
  TensorView scales{};        // f32 (mxfp4: e8m0) [num_ranks * capacity, groups], rows strided; empty for bf16
  TensorView topk_ids{};      // i32 [num_ranks * capacity, K] physical ids, those of other ranks' experts included
  TensorView topk_weights{};  // f32 [num_ranks * capacity, K]
  TensorView recv_count{};    // i32 [num_ranks]
  ReadyRows ready{};  // with early_rows and dispatch.throughput: which rows have come, for kernels between the halves
  RoutingHandle handle{};
};

struct CombineArgs {
  RoutingHandle handle{};
  // Experts' rows, one per pair, weighted and summed here in f32 (f64 with CombineWire::f64) ...
  ConstTensorView expert_rows{};  // bf16 [slots, H]
  ConstTensorView pair_slots{};   // i32 [num_ranks * capacity, K] from align: row of expert_rows per pair, -1 = not here
  bool apply_weights = true;      // false: the weights went into the experts' input already
  // ... or rows already reduced per received row: give this instead of the two above.
  ConstTensorView reduced_rows{};  // bf16|f32 [num_ranks * capacity, H]
  ConstTensorView addend{};        // optional bf16|f32 [T, H] added before the one rounding: shared experts, residual
  TensorView output{};             // bf16|f32 [T, H]; T as in the dispatch
  Status* status = nullptr;
  std::string_view variant = "auto";
};

// Both halves of the exchange over symmetric windows. Collective: all ranks make the same sequence of calls; T may
// differ and be 0. No barrier and no host synchronisation on the path; protocol: docs/stages/dispatch.md. Deterministic:
// outputs are bitwise equal from run to run. Bytes per rank: window_bytes(). CPU variants: dispatch.shm, combine.shm.
class Dispatcher {
 public:
  // Collective; ranks with different configurations get config_mismatch naming the field and both values.
  Dispatcher(Context& context, std::shared_ptr<Communicator> comm, const DispatcherConfig& config);
  ~Dispatcher();
  Dispatcher(Dispatcher&&) noexcept;

  ReceivedRows dispatch(const DispatchArgs& args, Stream stream = {});
  void combine(const CombineArgs& args, Stream stream = {});

  // The same in two halves, with work of the caller's between: send enqueues what brings this rank's rows on their way,
  // receive what waits for the others'. With the copy_engine variants no kernel runs between the halves' own ones, so two
  // micro-batches with a dispatcher each hide one's exchange behind the other's work. With dispatch.throughput a kernel
  // between them reads rows block by block as they come (mixlane/ready_rows.hpp): on the same stream, behind the own rows'
  // sending, or beside it on another stream that begins behind what came before dispatch_send and ends before
  // dispatch_receive. The other variants do all of it in send. What dispatch_send returns may else be read behind
  // dispatch_receive, and what combine_send gets stays as it is until combine_receive. Every send is followed by its
  // receive, on the same stream, before this dispatcher's next call.
  ReceivedRows dispatch_send(const DispatchArgs& args, Stream stream = {});
  void dispatch_receive(Stream stream = {});
  void combine_send(const CombineArgs& args, Stream stream = {});
  void combine_receive(Stream stream = {});

  const DispatcherConfig& config() const;  // capacity and expert_rank filled in
  int rank() const;
  int num_ranks() const;
  int num_local_experts() const;
  // i32 [num_experts]: this rank's index of each physical expert, -1 for the others'. What align takes.
  ConstTensorView expert_map() const;
  // Ranks that timed out and are left out, ascending.
  std::vector<int> masked_ranks() const;
  // Symmetric bytes of one rank: 4096 + num_ranks * (3 * 64 + capacity * (row + partial row)), where row = payload +
  // scales (in whole words of 4) + 8 K rounded up to 64 and partial row = combine wire bytes of H values, scales included,
  // rounded up to 64.
  // On GPUs: num_ranks * (64 + 4096 + capacity * 16) rounded up to 128, and num_ranks * (capacity * (row + partial row) +
  // min(capacity, 32) * 256 * ceil(row / 240) + min(capacity, 512) * partial row), rows rounded up to 128 (the third one to
  // 16 before the division; it is left out with early_rows); the last one with a bf16 wire of combine.
  static int64_t window_bytes(const DispatcherConfig& config, int num_ranks, DeviceType device = DeviceType::cpu);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace mixlane
