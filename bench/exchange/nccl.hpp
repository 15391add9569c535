// NCCL, loaded when it is asked for: the part of its C interface that the baselines use.
#pragma once

#include <memory>
#include <string>

#include "mixlane/core.hpp"

namespace mixlane::bench {

struct NcclId {
  char bytes[128];
};
enum class NcclType : int { bytes = 1, bf16 = 9 };

// One rank's membership of a communicator. Calls are asynchronous on `stream`; failures throw internal with NCCL's words.
class Nccl {
 public:
  // Why it can't be used here; empty if it can.
  static const std::string& missing();
  static std::string version();
  static NcclId unique_id();

  // Collective over the ranks that pass the same id.
  Nccl(int num_ranks, const NcclId& id, int rank, Device device);
  ~Nccl();
  Nccl(const Nccl&) = delete;
  Nccl& operator=(const Nccl&) = delete;

  // What lies between begin() and end() goes together.
  void begin() const;
  void end() const;
  // `count` values from every rank, in rank order.
  void all_gather(const void* from, void* to, int64_t count, NcclType type, Stream stream) const;
  // The sum of all ranks' `from` [num_ranks * count]: this rank's part of it.
  void reduce_scatter(const void* from, void* to, int64_t count, NcclType type, Stream stream) const;
  void send(const void* from, int64_t count, NcclType type, int to, Stream stream) const;
  void receive(void* to, int64_t count, NcclType type, int from, Stream stream) const;

 private:
  void* handle_ = nullptr;
  Device device_;
};

}  // namespace mixlane::bench
