// One rank on a GPU for tests: inputs go up, results come down, so that the oracle of exchange.hpp can look at them.
#pragma once

#include "gpu/runtime.hpp"
#include "ops/dispatch/exchange.hpp"

namespace mixlane::test {

// Ranks take turns on the GPUs that there are.
Device device_of_rank(int rank);

// What a call gets besides the rows.
struct GpuCall {
  std::string_view variant = "auto";
  bool fp8_input = false;  // or mxfp4, as the wire: quantise on the host, pass codes and scales
  bool count_on_device = false;
  RoutingHandle replay{};
};

class GpuRank {
 public:
  // All memory is taken here: taking some later may wait for kernels that wait for this very rank. Windows hold 0xff bytes.
  GpuRank(std::shared_ptr<Communicator> comm, const DispatcherConfig& config);

  void set_deadline(std::chrono::milliseconds deadline) { comm_->set_deadline(deadline); }
  Dispatcher& dispatcher() { return *dispatcher_; }
  const Context& context() const { return context_; }
  Stream stream() const { return stream_.get(); }

  // Enqueues, waits, and returns host views of what arrived, valid until the next call.
  ReceivedRows dispatch(const Inputs& inputs, const GpuCall& call = {});
  std::vector<uint16_t> combine(const ReceivedRows& received, const Oracle& oracle, bool with_addend,
                                std::string_view variant = "auto");
  // The same with rows that are reduced before, in bf16 or f32. `num_tokens`: of a dispatch with their number on the device,
  // all of its rows.
  std::vector<uint16_t> combine_reduced(const ReceivedRows& received, const Oracle& oracle, DType dtype,
                                        std::string_view variant = "auto", int64_t num_tokens = -1);
  // Of all calls since the last look.
  Status take_status();

  // The halves of dispatch and combine, to put work of one's own between.
  void send(const Inputs& inputs, const GpuCall& call = {});
  DispatchArgs dispatch_args(int64_t num_tokens, const GpuCall& call = {});
  ReceivedRows fetch(const ReceivedRows& on_device);
  void send_expert_rows(const ExpertRows& made);
  CombineArgs combine_args(const RoutingHandle& handle, int64_t num_tokens, int32_t num_rows, bool with_addend);
  std::vector<uint16_t> fetch_output(int64_t num_tokens);

 private:
  template <class T>
  void up(const gpu::Buffer& to, const std::vector<T>& from) {
    gpu::copy(to.data(), from.data(), static_cast<int64_t>(from.size() * sizeof(T)), stream());
  }

  Device device_;
  Context context_;
  gpu::OwnedStream stream_;
  int num_ranks_;
  int rank_;
  std::shared_ptr<Communicator> comm_;
  std::unique_ptr<Dispatcher> dispatcher_;
  gpu::Buffer hidden_, scales_, ids_, weights_, addend_, num_tokens_, expert_rows_, slots_, reduced_, output_, status_;
  std::vector<std::byte> window_;
  std::vector<int32_t> recv_count_;
};

// Codes and scales of a bf16 row on `wire`, by the definition in mixlane/quant.hpp.
void quantize_row(const uint16_t* row, int hidden, WireFormat wire, std::vector<uint8_t>& codes, std::vector<float>& scales);

}  // namespace mixlane::test
