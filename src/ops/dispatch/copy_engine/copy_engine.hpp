// dispatch.copy_engine and combine.copy_engine: kernels put rows together and add them up, copy engines move them. Both
// have two halves, between which no kernel runs while bytes move.
//
//   dispatch  first -> route -> pack 1 -> ... -> own rows -> | all copies -> flags, wait for the peers' rows
//               |                 |
//             copy 0            copy 1 ...   to the peers' windows
//
//   combine   make 0 -> make 1 -> ...        | flag 0 -> add 0, flag 1 -> add 1, ... the last closes
//               |         |
//             copy 0 -> copy 1 -> ...   to the owners' windows
//               |         |
//             flag 0    flag 1 ...
//
// Reduced rows that lie as they do in a window are copied from there: one make, for what does not go by copies.
//
// A copy's size is fixed when it is enqueued, and counts are known on the device alone: both move as many rows per peer as
// this rank could have there, min(T, capacity) of T tokens.
#pragma once

#include <memory>

#include "gpu/copy_lanes.hpp"
#include "ops/dispatch/backend.hpp"
#include "ops/dispatch/copy_engine/launchers.hpp"
#include "ops/dispatch/gpu/layout.hpp"

namespace mixlane {

class CopyEngine {
 public:
  // Collective.
  CopyEngine(Communicator& comm, const DispatcherConfig& config, const SymmetricMemory& windows, Device device);

  // Why this group does without; the same on all ranks. Empty if it does not.
  const std::string& problem() const { return problem_; }

  void send(const exchange_gpu::DispatchKernelArgs& args, const exchange_gpu::Budget& budget, Stream stream);
  void receive(const exchange_gpu::DispatchKernelArgs& args, Stream stream);
  void send(const exchange_gpu::CombineKernelArgs& args, const exchange_gpu::Budget& budget, Stream stream);
  void receive(const exchange_gpu::CombineKernelArgs& args, const exchange_gpu::Budget& budget, Stream stream);

 private:
  bool as_they_lie(const exchange_gpu::CombineKernelArgs& args) const;
  std::vector<exchange_gpu::RowRange> ranges_of(const exchange_gpu::CombineKernelArgs& args) const;
  std::string try_copies(Communicator& comm, const SymmetricMemory& windows, int64_t at, int64_t bytes) const;
  template <class Visit>
  void for_each_peer(Visit&& visit) const;

  Device device_;
  int rank_;
  int num_ranks_;
  CombineWire wire_;
  int64_t capacity_;
  gpu::Buffer rows_, words_;
  exchange_gpu::CopyStage stage_;
  std::unique_ptr<gpu::CopyLanes> lanes_;
  std::unique_ptr<gpu::OwnedStream> flagging_;  // combine's flags, each range's behind its copies
  std::vector<gpu::Event> copied_, flagged_;    // per range of a combine
  std::string problem_;
};

}  // namespace mixlane
