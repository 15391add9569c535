// align.cpu against the oracle of problem.hpp, and what align refuses.
#include "mixlane/align.hpp"

#include <gtest/gtest.h>

#include <climits>

#include "ops/align/op.hpp"
#include "problem.hpp"
#include "support/errors.hpp"

namespace mixlane {
namespace {

using namespace test;

void check(const Problem& p) {
  SCOPED_TRACE(describe(p));
  Context context({.num_threads = p.num_threads});
  for (const bool extras : {false, true}) {
    Call call(p, extras);
    align(context, call.args);
    expect_result(expected(p, call.args.sorted_pairs.shape[0]), call.out, p.num_topk, extras);
  }
}

TEST(Align, MatchesTheOracleOnRandomOptions) {
  Rng rng(1);
  for (int i = 0; i < 600; ++i) {
    check(random_problem(rng));
    if (HasFailure()) return;
  }
}

TEST(Align, ThreadsDoNotChangeTheOrder) {
  Rng rng(2);
  for (const int threads : {1, 2, 3, 4}) {
    Problem p = simple(rng, 30001, 5, 130, 16);  // enough pairs for four parts
    p.num_threads = threads;
    p.ids[77777] = 130;
    p.ids[140001] = -9;
    check(p);
    p.invalid_ids = InvalidIds::bucket;
    check(p);
  }
}

TEST(Align, NoRows) {
  Rng rng(3);
  for (const auto invalid : {InvalidIds::drop, InvalidIds::bucket}) {
    Problem p = simple(rng, 0, 8, 256, 128);
    p.invalid_ids = invalid;
    check(p);
  }
}

TEST(Align, OneExpert) {
  Rng rng(4);
  check(simple(rng, 37, 1, 1, 64));
  check(simple(rng, 37, 3, 1, 8));  // the same expert three times in a row
}

TEST(Align, AllPairsToOneExpert) {
  Rng rng(5);
  Problem p = simple(rng, 501, 8, 256, 128);
  p.ids.assign(p.ids.size(), 255);
  check(p);
}

TEST(Align, DuplicatesInsideARow) {
  Problem p{.rows = 2, .num_topk = 4, .num_experts = 3, .block = 4, .ids = {1, 1, 0, 1, 2, 1, 2, 2}};
  check(p);
}

TEST(Align, FullyMaskedRank) {
  Rng rng(6);
  Problem p = simple(rng, 64, 8, 128, 64);
  p.expert_map.emplace(128, -1);
  p.num_local_experts = 16;
  check(p);
  p.invalid_ids = InvalidIds::bucket;
  check(p);
}

TEST(Align, ManyExperts) {
  Rng rng(7);
  for (const auto invalid : {InvalidIds::drop, InvalidIds::bucket}) {
    Problem p = simple(rng, 300, 8, 65535, 4);
    p.ids[0] = 65534;
    p.ids[1] = -1;
    p.invalid_ids = invalid;
    check(p);
  }
}

TEST(Align, EveryBlockSize) {
  Rng rng(8);
  for (const int block : {1, 3, 8, 16, 32, 64, 128, 256, 512, 1000, 1024}) check(simple(rng, 101, 3, 20, block));
}

TEST(Align, SegmentCountsBeyondTheSegmentCountAsFull) {
  Rng rng(9);
  Problem p = simple(rng, 12, 2, 8, 4);
  p.segment_rows = {4, 0, 2};
  Call exact(p, true), beyond(p, true);
  const std::vector<int32_t> outside{INT32_MAX, -5, 2};
  beyond.args.segment_rows = ConstTensorView(outside.data(), DType::i32, {3});
  Context context;
  align(context, exact.args);
  align(context, beyond.args);
  EXPECT_EQ(exact.out.pairs, beyond.out.pairs);
  EXPECT_EQ(exact.out.slots, beyond.out.slots);
}

TEST(Align, ChangedRowCountNeedsNoNewArguments) {
  Rng rng(10);
  Problem p = simple(rng, 40, 4, 16, 8);
  std::vector<int32_t> count{40};
  Context context;
  for (const int32_t rows : {40, 3, 0, 17}) {
    p.segment_rows = {rows};
    Call call(p, true);
    call.args.segment_rows = ConstTensorView(count.data(), DType::i32, {1});
    count[0] = rows;
    align(context, call.args);
    const Result want = expected(p, call.args.sorted_pairs.shape[0]);
    expect_same(want.pairs, call.out.pairs, kUntouched, "sorted_pairs");
    expect_same(want.slots, call.out.slots, kUntouched, "pair_slots");
  }
}

TEST(Align, CapacityIsTheExactWorstCase) {
  EXPECT_EQ(align_capacity(0, 256, 128), 0);
  EXPECT_EQ(align_capacity(8, 256, 128), 8 * 128);
  EXPECT_EQ(align_capacity(65536, 1, 128), 65536);
  EXPECT_EQ(align_capacity(131072, 256, 128), 256 * 128 + (131072 - 256) / 128 * 128);
  EXPECT_EQ(align_capacity(int64_t{1} << 40, 2, 1), int64_t{1} << 40);
  for (int pairs = 0; pairs <= 8; ++pairs)  // against every split of the pairs over three groups
    for (int block = 1; block <= 4; ++block) {
      int64_t worst = 0;
      for (int a = 0; a <= pairs; ++a)
        for (int b = 0; a + b <= pairs; ++b) {
          int64_t slots = 0;
          for (const int n : {a, b, pairs - a - b}) slots += (n + block - 1) / block * block;
          worst = std::max(worst, slots);
        }
      EXPECT_EQ(align_capacity(pairs, 3, block), worst) << pairs << " pairs, block " << block;
    }
}

TEST(Align, BadIdsAreThrownWithoutAStatus) {
  Rng rng(11);
  Problem p = simple(rng, 10, 2, 8, 4);
  p.ids[9] = 8;
  p.ids[15] = -2;
  p.ids[3] = -1;  // means "no expert": silent
  Call call(p, false);
  call.args.status = nullptr;
  Context context;
  expect_error(ErrorCode::bad_expert_id, {"id 8", "token 4", "-1..7", "2 such"}, [&] { align(context, call.args); });
}

TEST(Align, WrongArgumentsNameValueAndRange) {
  Rng rng(12);
  const Problem p = simple(rng, 12, 2, 8, 4);
  Context context;
  const auto refused = [&](std::vector<std::string> mentions, auto change) {
    Call call(p, true);
    change(call.args);
    expect_error(ErrorCode::invalid_argument, mentions, [&] { align(context, call.args); });
    EXPECT_EQ(call.out.pairs[0], kUntouched);  // nothing is written before everything is checked
  };
  std::vector<int32_t> memory(1000, 0);
  const auto i32 = [&](std::initializer_list<int64_t> shape) { return TensorView(memory.data(), DType::i32, shape); };
  refused({"num_experts is 0", "1..65535"}, [](AlignArgs& a) { a.num_experts = 0; });
  refused({"num_experts is 65536", "1..65535"}, [](AlignArgs& a) { a.num_experts = 65536; });
  refused({"block is 0", "1..1024"}, [](AlignArgs& a) { a.block = 0; });
  refused({"block is 1025", "1..1024"}, [](AlignArgs& a) { a.block = 1025; });
  refused({"pad_value is -2"}, [](AlignArgs& a) { a.pad_value = -2; });
  refused({"num_local_experts is 4", "8"}, [](AlignArgs& a) { a.num_local_experts = 4; });
  refused({"topk_ids is required"}, [](AlignArgs& a) { a.topk_ids = {}; });
  refused({"topk_ids has 0 columns"}, [&](AlignArgs& a) { a.topk_ids = i32({4, 0}); });
  refused({"topk_ids is f32[12, 2]", "i32|i64"}, [](AlignArgs& a) { a.topk_ids.dtype = DType::f32; });
  refused({"segment_rows has 5", "12 rows"}, [&](AlignArgs& a) { a.segment_rows = i32({5}); });
  refused({"segment_rows has 0"}, [&](AlignArgs& a) { a.segment_rows = i32({0}); });
  refused({"expert_map is i32[7]", "[8]"}, [&](AlignArgs& a) { a.expert_map = i32({7}); });
  refused({"sorted_pairs has 47 elements", "need 48"}, [](AlignArgs& a) { a.sorted_pairs.shape[0] = 47; });
  refused({"block_experts has 11 elements", "need 12"}, [](AlignArgs& a) { a.block_experts.shape[0] = 11; });
  refused({"num_padded"}, [](AlignArgs& a) { a.num_padded = {}; });
  refused({"expert_offsets is i32[8]", "[9]"}, [](AlignArgs& a) { a.expert_offsets.shape[0] = 8; });
  refused({"pair_slots"}, [&](AlignArgs& a) { a.pair_slots = i32({24}); });
  refused({"topk_weights is required"}, [](AlignArgs& a) { a.topk_weights = {}; });
  refused({"zero_fill is"}, [](AlignArgs& a) { a.zero_fill.strides[0] = 50; });
  refused({"unknown variant 'align.none'", "auto, align.cpu"}, [](AlignArgs& a) { a.variant = "align.none"; });
  std::vector<int32_t> map{0, 1, 2, 3, -1, 4, -1, -1};
  const auto with_map = [&](AlignArgs& a) {
    a.expert_map = ConstTensorView(map.data(), DType::i32, {8});
    a.num_local_experts = 4;
    a.expert_counts = {};
    a.expert_offsets = {};
  };
  refused({"expert_map[5] is 4", "0..3"}, with_map);
  map[5] = -2;
  refused({"expert_map[5] is -2"}, with_map);
}

TEST(Align, CountsBeyondInt32AreRefused) {
  Context context;
  Problem p{.rows = 4, .num_topk = 1, .num_experts = 2, .ids = {0, 1, 0, 1}};
  Call call(p, false);
  call.args.topk_weights = {};
  call.args.topk_ids.shape = {int64_t{1} << 29, 4};
  expect_error(ErrorCode::invalid_argument, {"536870912 x 4", "2147483647"}, [&] { align(context, call.args); });
  call.args.topk_ids.shape = {(int64_t{1} << 29) - 1, 4};
  call.args.block = 1024;
  call.args.num_experts = 1024;
  expect_error(ErrorCode::invalid_argument, {"2147483644 pairs", "1024 groups", "slots"},
               [&] { align(context, call.args); });
  call.args.topk_ids.shape = {int64_t{1} << 24, 1};
  call.args.sorted_packed = TensorView(call.out.pairs.data(), DType::i32, {int64_t{1} << 30});
  call.args.sorted_pairs = call.args.block_experts = call.args.sorted_packed;
  expect_error(ErrorCode::invalid_argument, {"16777215 rows", "16777216"}, [&] { align(context, call.args); });
}

TEST(Align, PoliciesAreNumbersOfVariants) {
  EXPECT_EQ(align_variant(0), "auto");
  EXPECT_EQ(align_variant(1), "align.oneshot");
  EXPECT_EQ(align_variant(2), "align.multi_phase");
  for (const int other : {-1, 3})
    expect_error(ErrorCode::invalid_argument, {std::to_string(other), "0 is auto", "2 multi_phase"},
                 [&] { align_variant(other); });
}

TEST(Align, CostCountsEveryByteOnce) {
  Rng rng(13);
  const Problem p = simple(rng, 64, 4, 8, 1);  // block 1: no pads
  Call call(p, false);
  const Cost cost = align_cost(call.args);
  EXPECT_EQ(cost.bytes_read, 64 * 4 * 4);
  EXPECT_EQ(cost.bytes_written, 64 * 4 * 4 * 2 + 8);
  EXPECT_EQ(cost.flops, 0);
  EXPECT_EQ(align_variants().at(0).id, "align.cpu");
}

}  // namespace
}  // namespace mixlane
