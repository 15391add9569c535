// The memory that weights are loaded into, and the way there: the host's, or a GPU's through pinned blocks.
#pragma once

#include <memory>

#include "io/owned_tensor.hpp"
#include "io/transfer.hpp"

namespace mixlane {

class WeightMemory {
 public:
  virtual ~WeightMemory() = default;

  // Throws out_of_memory with the sizes if `bytes` for `what` are not free.
  virtual void require(int64_t bytes, std::string_view what) const = 0;
  // A contiguous tensor with undefined content. Throws out_of_memory naming `what` or its size.
  virtual OwnedTensor make(std::string_view what, DType dtype, std::initializer_list<int64_t> shape) = 0;

  // Lanes run side by side; what is fetched and enqueued in one of them happens in that order.
  virtual int num_lanes() const = 0;
  // Returns when the files have been read. If it throws nothing of it is on its way any more.
  virtual void fetch(const std::vector<Transfer>& transfers, int lane) = 0;
  // Waits until everything has arrived and every conversion is done.
  virtual void finish() = 0;

  // For conversions of what a lane fetched, and how much of it to fetch at a time: each time ends with a wait for the last
  // thread.
  virtual Context& context(int lane) = 0;
  virtual Stream stream(int lane) const = 0;
  virtual int64_t batch_bytes() const = 0;
};

// How a GPU's share of a checkpoint gets there: threads read chunks into pinned blocks of their own, from which the copy
// engine takes them. docs/checkpoints.md says what is reached so.
struct Staging {
  int64_t block_bytes = 4 << 20;
  int blocks_per_thread = 2;
  int max_threads = 16;
  int64_t batch_bytes = 256 << 20;  // fetched for conversions at a time
};

// Of the context's device, with up to its number of threads. The context must outlive it.
std::unique_ptr<WeightMemory> open_weight_memory(Context& context, const Staging& staging = {});

// Defined in builds with a GPU backend; in others it throws unsupported.
std::unique_ptr<WeightMemory> open_gpu_weight_memory(const Context& context, const Staging& staging);

}  // namespace mixlane
