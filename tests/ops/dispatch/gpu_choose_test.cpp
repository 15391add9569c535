// "auto" of dispatch and combine on GPUs: the tuned variant of each call's number of tokens, and what goes without a table.
#include <gtest/gtest.h>

#include "io/tuned.hpp"
#include "mixlane/tuning.hpp"
#include "ops/dispatch/choose.hpp"
#include "ops/dispatch/exchange.hpp"
#include "ops/dispatch/gpu/layout.hpp"
#include "ops/dispatch/gpu/mover.hpp"
#include "support/files.hpp"
#include "support/gpu.hpp"

namespace mixlane {
namespace {

using namespace exchange_gpu;
using test::gpu_device;

// One rank alone, so that there are copy engines on any machine.
class ExchangeChoice : public test::GpuTest {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (IsSkipped()) return;
    context_ = std::make_unique<Context>(ContextOptions{.device = gpu_device(), .num_threads = 1});
    config_ = test::small_config();
    config_.copy_engine = true;
    config_.max_tokens = 5000;
    config_ = completed(config_, 1);
    const auto comm = make_thread_group(1).front();
    layout_ = std::make_unique<GpuWindowLayout>(config_, 1);
    windows_ = comm->allocate(layout_->total_bytes, "windows", gpu_device());
    copies_ = std::make_unique<CopyEngine>(*comm, config_, *windows_, gpu_device());
    budget_.has_bulk_copies = gpu::kDeviceType == DeviceType::cuda && gpu::compute_capability(0) >= 90;
  }

  MoverChoice choice(bool with_copies = true) const {
    return {*context_, config_, 1, layout_->records, budget_, with_copies ? copies_.get() : nullptr};
  }
  Mover of_dispatch(int64_t num_tokens, bool with_copies = true) const {
    DispatchArgs args;
    args.hidden = ConstTensorView(nullptr, DType::bf16, {num_tokens, config_.hidden}, gpu_device());
    DispatchKernelArgs made;
    made.payload_bytes = static_cast<uint32_t>(layout_->records.payload_bytes);
    made.num_topk = static_cast<uint32_t>(config_.num_topk);
    return choice(with_copies).of(args, made);
  }
  Mover of_combine(int64_t num_tokens, bool uses_inbox = false) const {
    CombineArgs args;
    args.output = TensorView(nullptr, DType::bf16, {num_tokens, config_.hidden}, gpu_device());
    CombineKernelArgs made;
    made.source = PartialSource::reduced_bf16;
    made.num_octets = static_cast<uint32_t>(config_.hidden / 8);
    made.exchange.window.num_ranks = 1;
    made.uses_inbox = uses_inbox;
    return choice().of(args, made);
  }

  // For calls of one rank, with copy engines and without.
  void tune(ExchangeStage stage, const std::vector<std::pair<int64_t, std::string>>& choices) const {
    TunedTable table{.file = "",
                     .stage = std::string(exchange_tune_space(stage).stage),
                     .machine = exchange_tuning(*context_, stage).machine(),
                     .fields = {"ranks", "row_bytes", "multiprocessors", "memory", "tokens"},
                     .runs = {{"2026-01-01T00:00:00Z", "a GPU", "a driver", "a commit", "a command"}},
                     .entries = {}};
    for (const auto& [tokens, variant] : choices)
      for (const char* memory : {"window", "copies"})
        table.entries.push_back({.key = {int64_t{1}, int64_t{2} * config_.hidden, int64_t{0}, memory, tokens},
                                 .choice = variant,
                                 .run = 0,
                                 .measured_us = {}});
    const test::TempFolder folder;
    test::write_file(folder / "mine.json", tuned_json(table));
    load_tuned(*context_, folder.path().string());
  }

  std::unique_ptr<Context> context_;
  DispatcherConfig config_;
  std::unique_ptr<GpuWindowLayout> layout_;
  std::shared_ptr<SymmetricMemory> windows_;
  std::unique_ptr<CopyEngine> copies_;
  Budget budget_;
};

TEST_F(ExchangeChoice, EachCallIsServedByWhatIsTunedForItsTokens) {
  tune(ExchangeStage::dispatch, {{8, "dispatch.latency"}, {4096, "dispatch.copy_engine"}});
  tune(ExchangeStage::combine, {{8, "combine.latency"}, {4096, "combine.copy_engine"}});
  EXPECT_EQ(of_dispatch(8), Mover::stores);
  EXPECT_EQ(of_dispatch(7), Mover::stores) << "as 8";
  EXPECT_EQ(of_dispatch(4096), Mover::copy_engines);
  EXPECT_EQ(of_dispatch(3500), Mover::copy_engines) << "as 4096";
  EXPECT_EQ(of_dispatch(8), Mover::stores) << "again";
  EXPECT_EQ(of_dispatch(4096, false), Mover::stores) << "no memory for copies";
  EXPECT_EQ(of_combine(8), Mover::stores);
  EXPECT_EQ(of_combine(4096), Mover::copy_engines);
  EXPECT_EQ(of_combine(4096, true), Mover::stores) << "the inbox is read by combine.latency alone";
  EXPECT_TRUE(context_->notices().empty());
}

TEST_F(ExchangeChoice, ThroughputIsTakenWhereItIsTuned) {
  if (!budget_.has_bulk_copies) GTEST_SKIP() << "needs bulk copies";
  tune(ExchangeStage::dispatch, {{512, "dispatch.throughput"}});
  tune(ExchangeStage::combine, {{512, "combine.throughput"}});
  EXPECT_EQ(of_dispatch(512), Mover::bulk_copies);
  EXPECT_EQ(of_combine(512), Mover::bulk_copies);
}

TEST_F(ExchangeChoice, WithoutATableStoresMoveRowsUnlessMultiprocessorsAreFew) {
  EXPECT_EQ(of_dispatch(4096), Mover::stores);
  EXPECT_EQ(context_->notices().size(), 1u) << "says which command measures";
  budget_.limited = true;
  EXPECT_EQ(of_dispatch(16), Mover::stores);
  EXPECT_EQ(of_dispatch(4096), budget_.has_bulk_copies ? Mover::bulk_copies : Mover::stores);
  EXPECT_EQ(context_->notices().size(), 1u) << "once";
}

}  // namespace
}  // namespace mixlane
