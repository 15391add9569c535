// Configurations and arguments that are refused, and by what words.
#include <gtest/gtest.h>

#include "ops/dispatch/exchange.hpp"
#include "ops/dispatch/fault.hpp"
#include "ops/dispatch/op.hpp"
#include "support/errors.hpp"

namespace mixlane {
namespace {

using test::expect_error;

DispatcherConfig good_config() {
  DispatcherConfig config;
  config.hidden = 32;
  config.num_topk = 2;
  config.num_experts = 7;
  config.max_tokens = 5;
  return config;
}

void expect_refused(const std::vector<std::string>& mentions, const std::function<void(DispatcherConfig&)>& change) {
  DispatcherConfig config = good_config();
  change(config);
  expect_error(ErrorCode::invalid_argument, mentions, [&] { Dispatcher::window_bytes(config, 4); });
}

TEST(DispatcherConfig, RefusalsNameTheField) {
  expect_refused({"hidden is 0", "1.."}, [](auto& c) { c.hidden = 0; });
  expect_refused({"hidden is 33", "66 bf16 bytes", "16 bytes"}, [](auto& c) { c.hidden = 33; });
  expect_refused({"hidden is 24", "24 fp8_e4m3 bytes"}, [](auto& c) {
    c.hidden = 24;
    c.wire = WireFormat::fp8_row;
  });
  expect_refused({"num_topk is 33", "1..32"}, [](auto& c) { c.num_topk = 33; });
  expect_refused({"num_experts is -1"}, [](auto& c) { c.num_experts = -1; });
  expect_refused({"max_tokens is 0"}, [](auto& c) { c.max_tokens = 0; });
  expect_refused({"capacity is -3"}, [](auto& c) { c.capacity = -3; });
  expect_refused({"capacity 2000000000 x 4 ranks"}, [](auto& c) { c.capacity = 2'000'000'000; });
  expect_refused({"expert_rank has 2 entries for 7"}, [](auto& c) { c.expert_rank = {0, 1}; });
  expect_refused({"expert_rank[3] is 4", "0..3"}, [](auto& c) { c.expert_rank = {0, 1, 2, 4, 0, 0, 0}; });
  expect_error(ErrorCode::invalid_argument, {"num_ranks is 65", "1..64"},
               [] { Dispatcher::window_bytes(good_config(), 65); });
}

TEST(DispatcherConfig, WindowBytes) {
  // row = 64 + 16 rounded up to 128, partial row = 64; f64: 256.
  EXPECT_EQ(Dispatcher::window_bytes(good_config(), 4), 4096 + 4 * (3 * 64 + 5 * (128 + 64)));
  DispatcherConfig config = good_config();
  config.capacity = 9;
  config.combine_wire = CombineWire::f64;
  EXPECT_EQ(Dispatcher::window_bytes(config, 3), 4096 + 3 * (3 * 64 + 9 * (128 + 256)));
}

TEST(DispatcherConfig, ExpertsAreSharedOutContiguously) {
  test::run_rank_threads(3, [](auto comm) {
    Context context({.device = {}, .num_threads = 1});
    const Dispatcher dispatcher(context, comm, good_config());
    EXPECT_EQ(dispatcher.config().expert_rank, (std::vector<int>{0, 0, 0, 1, 1, 2, 2}));
    EXPECT_EQ(dispatcher.config().capacity, 5);
    EXPECT_EQ(dispatcher.num_local_experts(), comm->rank() == 0 ? 3 : 2);
    const int first[] = {0, 3, 5};
    for (int e = 0; e < 7; ++e) {
      const bool mine = dispatcher.config().expert_rank[e] == comm->rank();
      EXPECT_EQ(dispatcher.expert_map().as<int32_t>()[e], mine ? e - first[comm->rank()] : -1);
    }
  });
}

TEST(DispatcherConfig, DisagreementNamesTheField) {
  const std::vector<std::pair<std::string, std::function<void(DispatcherConfig&)>>> changes = {
      {"hidden", [](auto& c) { c.hidden = 48; }},
      {"num_topk", [](auto& c) { c.num_topk = 3; }},
      {"num_experts", [](auto& c) { c.num_experts = 8; }},
      {"max_tokens", [](auto& c) { c.max_tokens = 6; }},
      {"capacity", [](auto& c) { c.capacity = 4; }},
      {"wire", [](auto& c) { c.wire = WireFormat::fp8_row; }},
      {"combine_wire", [](auto& c) { c.combine_wire = CombineWire::f32; }},
      {"on_peer_timeout", [](auto& c) { c.on_peer_timeout = OnPeerTimeout::mask; }},
      {"expert_rank", [](auto& c) { c.expert_rank = {1, 1, 1, 1, 0, 0, 0}; }},
  };
  for (const auto& [field, change] : changes)
    test::run_rank_threads(2, [&](auto comm) {
      Context context({.device = {}, .num_threads = 1});
      DispatcherConfig config = good_config();
      if (comm->rank() == 1) change(config);
      expect_error(ErrorCode::config_mismatch, {field + " differs", "rank 0: ", "rank 1: "},
                   [&] { Dispatcher(context, comm, config); });
    });
}

class OneRank : public testing::Test {
 protected:
  OneRank() : context({.device = {}, .num_threads = 1}), dispatcher(context, make_thread_group(1)[0], good_config()) {
    test::Rng rng(3);
    inputs = test::make_inputs(rng, good_config(), 4, false);
  }
  void expect_refused(const std::vector<std::string>& mentions, const std::function<void(DispatchArgs&)>& change,
                      ErrorCode code = ErrorCode::invalid_argument) {
    DispatchArgs args = inputs.dispatch_args(good_config(), nullptr);
    change(args);
    expect_error(code, mentions, [&] { dispatcher.dispatch(args); });
    // Nothing has happened.
    EXPECT_EQ(dispatcher.dispatch(inputs.dispatch_args(good_config(), nullptr)).recv_count.as<int32_t>()[0], 4);
  }

  Context context;
  Dispatcher dispatcher;
  test::Inputs inputs;
};

TEST_F(OneRank, DispatchRefusalsNameTheArgument) {
  expect_refused({"hidden is required"}, [](auto& a) { a.hidden = {}; });
  expect_refused({"hidden is f32"}, [](auto& a) { a.hidden.dtype = DType::f32; });
  expect_refused({"hidden is fp8_e4m3"}, [](auto& a) { a.hidden.dtype = DType::fp8_e4m3; });
  expect_refused({"hidden is bf16[4, 31]"}, [](auto& a) { a.hidden.shape[1] = 31; });
  const std::vector<uint16_t> many(6 * 32);
  expect_refused({"hidden has 6 tokens", "made for 5", "max_tokens"}, [&](auto& a) {
    a.hidden = ConstTensorView(many.data(), DType::bf16, {6, 32});
  });
  expect_refused({"topk_ids is i32[3, 2]"}, [](auto& a) { a.topk_ids.shape[0] = 3; });
  expect_refused({"topk_weights is bf16"}, [](auto& a) { a.topk_weights.dtype = DType::bf16; });
  expect_refused({"scales are given"}, [](auto& a) { a.scales = a.topk_weights; });
  expect_refused({"unknown variant 'dispatch.x'", "auto, dispatch.shm"}, [](auto& a) { a.variant = "dispatch.x"; });
  const int32_t too_many = 5;
  expect_refused({"num_tokens holds 5", "4 rows"},
                 [&](auto& a) { a.num_tokens = ConstTensorView(&too_many, DType::i32, {1}); });
  inputs.ids[5] = 7;
  const DispatchArgs bad_id = inputs.dispatch_args(good_config(), nullptr);
  expect_error(ErrorCode::bad_expert_id, {"expert id 7 at token 2", "-1..6"}, [&] { dispatcher.dispatch(bad_id); });
}

TEST_F(OneRank, CombineRefusalsNameTheArgument) {
  const ReceivedRows received = dispatcher.dispatch(inputs.dispatch_args(good_config(), nullptr));
  std::vector<uint16_t> rows(8 * 32), out(4 * 32);
  std::vector<int32_t> slots(5 * 2, 0);
  CombineArgs good;
  good.handle = received.handle;
  good.expert_rows = ConstTensorView(rows.data(), DType::bf16, {8, 32});
  good.pair_slots = ConstTensorView(slots.data(), DType::i32, {5, 2});
  good.output = TensorView(out.data(), DType::bf16, {4, 32});
  const auto refused = [&](const std::vector<std::string>& mentions, const std::function<void(CombineArgs&)>& change) {
    CombineArgs args = good;
    change(args);
    expect_error(ErrorCode::invalid_argument, mentions, [&] { dispatcher.combine(args); });
  };
  refused({"pair_slots"}, [](auto& a) { a.pair_slots.shape[0] = 4; });
  refused({"output is bf16[3, 32]"}, [](auto& a) { a.output.shape[0] = 3; });
  refused({"either expert_rows and pair_slots or reduced_rows"}, [](auto& a) { a.reduced_rows = a.expert_rows; });
  refused({"either"}, [](auto& a) { a.pair_slots = {}; });
  refused({"addend is bf16[8, 32]"}, [](auto& a) { a.addend = a.expert_rows; });
  refused({"unknown variant"}, [](auto& a) { a.variant = "x"; });
  slots[3] = 8;
  refused({"pair_slots[1, 1] is 8", "8 rows"}, [](auto&) {});
  slots[3] = -1;
  dispatcher.combine(good);
}

TEST(Fault, Texts) {
  EXPECT_FALSE(parse_fault("").given);
  const Fault kill = parse_fault("kill:dispatch:3:17");
  EXPECT_TRUE(kill.hits(ExchangeStage::dispatch, 3, 17));
  EXPECT_FALSE(kill.hits(ExchangeStage::combine, 3, 17) || kill.hits(ExchangeStage::dispatch, 3, 16) ||
               kill.hits(ExchangeStage::dispatch, 2, 17));
  EXPECT_EQ(kill.stall_ms, -1);
  EXPECT_EQ(parse_fault("stall_250:combine:0:1").stall_ms, 250);
  EXPECT_EQ(parse_fault("jitter_40").jitter_us, 40);
  EXPECT_TRUE(parse_fault("flip:combine:2:5").flips);
  for (const char* text : {"kill", "kill:dispatch:1", "kill:experts:1:1", "stall_:combine:0:1", "stall_x:combine:0:1",
                           "kill:dispatch:-1:1", "kill:dispatch:1:1:1", "hang:dispatch:1:1"})
    expect_error(ErrorCode::invalid_argument, {text, "kill:<stage>:<rank>:<epoch>"}, [&] { parse_fault(text); });
}

TEST(Variants, OfTheCpuComeFirstAndGpusFollowWhereTheyAreBuilt) {
  const auto cpu_first = [](const std::vector<VariantInfo>& variants, std::string_view cpu_id) {
    EXPECT_EQ(variants.at(0).id, cpu_id);
    for (size_t i = 0; i < variants.size(); ++i) EXPECT_EQ(variants[i].device == DeviceType::cpu, i == 0) << variants[i].id;
  };
  cpu_first(dispatch_variants(), "dispatch.shm");
  cpu_first(combine_variants(), "combine.shm");
}

TEST(Dispatcher, HalvesComeInPairs) {
  const auto group = make_thread_group(1);
  Context context({.device = {}, .num_threads = 1});
  Dispatcher dispatcher(context, group[0], good_config());
  test::Rng rng(3);
  const test::Inputs inputs = test::make_inputs(rng, good_config(), 4, false);
  Status status;
  const DispatchArgs args = inputs.dispatch_args(good_config(), &status);
  expect_error(ErrorCode::invalid_argument, {"dispatch_receive without a dispatch_send"},
               [&] { dispatcher.dispatch_receive(); });
  const ReceivedRows received = dispatcher.dispatch_send(args);
  expect_error(ErrorCode::invalid_argument, {"dispatch_send has no dispatch_receive"}, [&] { dispatcher.dispatch(args); });
  expect_error(ErrorCode::invalid_argument, {"combine_receive without a combine_send"},
               [&] { dispatcher.combine_receive(); });
  dispatcher.dispatch_receive();
  EXPECT_EQ(received.recv_count.as<int32_t>()[0], 4);
  EXPECT_TRUE(received.handle.valid());
}

}  // namespace
}  // namespace mixlane
