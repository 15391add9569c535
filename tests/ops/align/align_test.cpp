// align against a plain oracle: groups as lists of pairs, laid out one after the other.
#include "mixlane/align.hpp"

#include <gtest/gtest.h>

#include <climits>
#include <optional>

#include "ops/align/op.hpp"
#include "support/errors.hpp"
#include "support/random.hpp"

namespace mixlane {
namespace {

using test::expect_error;
using test::Rng;

constexpr int32_t kUntouched = -777;
constexpr float kUntouchedWeight = -777.0f;

struct Problem {
  int64_t rows = 0;
  int num_topk = 1;
  int num_experts = 1;
  int num_local_experts = 0;
  int block = 1;
  int num_threads = 1;
  bool wide_ids = false;    // i64
  int64_t row_padding = 0;  // values between the rows of ids and weights
  InvalidIds invalid_ids = InvalidIds::drop;
  int32_t pad_value = -1;
  std::vector<int64_t> ids = {};  // [rows, num_topk]
  std::optional<std::vector<int32_t>> segment_rows = {};
  std::optional<std::vector<int32_t>> expert_map = {};
};

struct Result {
  std::vector<int32_t> pairs, blocks, num_padded, counts, offsets, slots, rows, packed;
  std::vector<float> weights;
  std::vector<uint8_t> zeroed;
  Status status;
};

float weight_of(int64_t pair) { return 0.25f * static_cast<float>(pair + 1); }
int groups_of(const Problem& p) { return p.num_local_experts ? p.num_local_experts : p.num_experts; }

// What each output must hold; outputs behind the padded end stay untouched.
Result expected(const Problem& p, int64_t capacity) {
  const int groups = groups_of(p);
  std::vector<std::vector<int64_t>> members(groups + 1);  // [0] = invalid
  Result r;
  r.slots.assign(p.rows * p.num_topk, -1);
  const int64_t segments = p.segment_rows ? static_cast<int64_t>(p.segment_rows->size()) : 1;
  const int64_t segment_size = p.rows / segments;
  for (int64_t row = 0; row < p.rows; ++row) {
    if (p.segment_rows && row % segment_size >= (*p.segment_rows)[row / segment_size]) continue;
    for (int k = 0; k < p.num_topk; ++k) {
      const int64_t id = p.ids[row * p.num_topk + k];
      int group = -1;
      if (id >= 0 && id < p.num_experts) group = p.expert_map ? (*p.expert_map)[id] : static_cast<int>(id);
      members[group + 1].push_back(row * p.num_topk + k);
      if (p.invalid_ids == InvalidIds::drop && (id < -1 || id >= p.num_experts)) {
        if (r.status.ok()) r.status = {.code = ErrorCode::bad_expert_id, .token = row, .expected = p.num_experts, .got = id};
        ++r.status.failures;
      }
    }
  }
  const int32_t pad = p.pad_value == -1 ? static_cast<int32_t>(p.rows * p.num_topk) : p.pad_value;
  int32_t kept = 0;
  for (int group = p.invalid_ids == InvalidIds::bucket ? -1 : 0; group < groups; ++group) {
    const auto& list = members[group + 1];
    if (group >= 0) {
      r.counts.push_back(static_cast<int32_t>(list.size()));
      r.offsets.push_back(static_cast<int32_t>(r.pairs.size()));
      kept += static_cast<int32_t>(list.size());
    }
    for (size_t i = 0; i < list.size(); ++i) {
      if (i % p.block == 0) r.blocks.push_back(group);
      r.slots[list[i]] = static_cast<int32_t>(r.pairs.size());
      r.pairs.push_back(static_cast<int32_t>(list[i]));
      r.weights.push_back(weight_of(list[i]));
      r.rows.push_back(static_cast<int32_t>(list[i] / p.num_topk));
      r.packed.push_back(static_cast<int32_t>(list[i] / p.num_topk + ((list[i] % p.num_topk) << 24)));
    }
    while (r.pairs.size() % p.block != 0) {
      r.pairs.push_back(pad);
      r.weights.push_back(0.0f);
      r.rows.push_back(static_cast<int32_t>(p.rows));
      r.packed.push_back(static_cast<int32_t>(p.rows + (static_cast<int64_t>(p.num_topk) << 24)));
    }
  }
  r.offsets.push_back(static_cast<int32_t>(r.pairs.size()));
  r.num_padded = {static_cast<int32_t>(r.pairs.size()), kept};
  EXPECT_LE(static_cast<int64_t>(r.pairs.size()), capacity);
  r.pairs.resize(capacity, kUntouched);
  r.rows.resize(capacity, kUntouched);
  r.packed.resize(capacity, kUntouched);
  r.weights.resize(capacity, kUntouchedWeight);
  r.blocks.resize(capacity / p.block, -1);
  return r;
}

// Buffers and arguments of a call; `extras` gives every optional output as well.
struct Call {
  Result out;
  std::vector<int32_t> ids32;
  std::vector<int64_t> ids64;
  std::vector<float> weights;
  AlignArgs args;

  Call(const Problem& p, bool extras) {
    const int64_t row_size = p.num_topk + p.row_padding;
    ids64.assign(p.rows * row_size + 1, 1'000'000);  // what lies between the rows must not be read
    weights.assign(p.rows * row_size + 1, -1.0f);
    for (int64_t row = 0; row < p.rows; ++row)
      for (int k = 0; k < p.num_topk; ++k) {
        ids64[row * row_size + k] = p.ids[row * p.num_topk + k];
        weights[row * row_size + k] = weight_of(row * p.num_topk + k);
      }
    ids32.assign(ids64.begin(), ids64.end());
    args.topk_ids = p.wide_ids ? ConstTensorView(ids64.data(), DType::i64, {p.rows, p.num_topk})
                               : ConstTensorView(ids32.data(), DType::i32, {p.rows, p.num_topk});
    args.topk_ids.strides[0] = row_size;
    args.topk_weights = ConstTensorView(weights.data(), DType::f32, {p.rows, p.num_topk});
    args.topk_weights.strides[0] = row_size;
    if (p.segment_rows)
      args.segment_rows =
          ConstTensorView(p.segment_rows->data(), DType::i32, {static_cast<int64_t>(p.segment_rows->size())});
    if (p.expert_map) args.expert_map = ConstTensorView(p.expert_map->data(), DType::i32, {p.num_experts});
    args.num_experts = p.num_experts;
    args.num_local_experts = p.num_local_experts;
    args.block = p.block;
    args.invalid_ids = p.invalid_ids;
    args.pad_value = p.pad_value;
    const int64_t groups = groups_of(p), bucket = p.invalid_ids == InvalidIds::bucket ? 1 : 0;
    const int64_t capacity = align_capacity(p.rows * p.num_topk, static_cast<int>(groups + bucket), p.block);
    const auto i32 = [](std::vector<int32_t>& memory, int64_t count) {
      memory.assign(count + 1, kUntouched);
      return TensorView(memory.data(), DType::i32, {count});
    };
    args.sorted_pairs = i32(out.pairs, capacity);
    args.block_experts = i32(out.blocks, capacity / p.block);
    args.num_padded = i32(out.num_padded, 2);
    args.status = &out.status;
    if (!extras) return;
    args.expert_counts = i32(out.counts, groups);
    args.expert_offsets = i32(out.offsets, groups + 1);
    i32(out.slots, p.rows * p.num_topk);
    args.pair_slots = TensorView(out.slots.data(), DType::i32, {p.rows, p.num_topk});
    out.weights.assign(capacity + 1, kUntouchedWeight);
    args.sorted_weights = TensorView(out.weights.data(), DType::f32, {capacity});
    args.sorted_rows = i32(out.rows, capacity);
    if (p.num_topk < 128) args.sorted_packed = i32(out.packed, capacity);
    out.zeroed.assign(1001, 0xee);
    args.zero_fill = TensorView(out.zeroed.data(), DType::bf16, {20, 25});
  }
};

// Every buffer has one element more than its view; it must not be written.
template <class T>
void expect_same(const std::vector<T>& want, std::vector<T> got, T untouched, const char* what) {
  ASSERT_FALSE(got.empty()) << what;
  EXPECT_EQ(got.back(), untouched) << what << ": written behind the end";
  got.pop_back();
  EXPECT_EQ(want, got) << what;
}

void check(const Problem& p) {
  SCOPED_TRACE(testing::Message() << "rows " << p.rows << " K " << p.num_topk << " E " << p.num_experts << " local "
                                  << p.num_local_experts << " block " << p.block << " threads " << p.num_threads << " i64 "
                                  << p.wide_ids << " bucket " << (p.invalid_ids == InvalidIds::bucket));
  Context context({.num_threads = p.num_threads});
  for (const bool extras : {false, true}) {
    Call call(p, extras);
    align(context, call.args);
    const Result want = expected(p, call.args.sorted_pairs.shape[0]);
    const Result& got = call.out;
    expect_same(want.pairs, got.pairs, kUntouched, "sorted_pairs");
    expect_same(want.blocks, got.blocks, kUntouched, "block_experts");
    expect_same(want.num_padded, got.num_padded, kUntouched, "num_padded");
    EXPECT_EQ(got.status.code, want.status.code);
    EXPECT_EQ(got.status.token, want.status.token);
    EXPECT_EQ(got.status.failures, want.status.failures);
    EXPECT_EQ(got.status.got, want.status.got);
    EXPECT_EQ(got.status.expected, want.status.expected);
    if (!extras) continue;
    expect_same(want.counts, got.counts, kUntouched, "expert_counts");
    expect_same(want.offsets, got.offsets, kUntouched, "expert_offsets");
    expect_same(want.slots, got.slots, kUntouched, "pair_slots");
    expect_same(want.weights, got.weights, kUntouchedWeight, "sorted_weights");
    expect_same(want.rows, got.rows, kUntouched, "sorted_rows");
    if (p.num_topk < 128) expect_same(want.packed, got.packed, kUntouched, "sorted_packed");
    std::vector<uint8_t> zeroed(1001, 0);
    zeroed.back() = 0xee;
    EXPECT_EQ(got.zeroed, zeroed);
  }
}

std::vector<int64_t> random_ids(Rng& rng, int64_t count, int64_t low, int64_t high) {
  std::vector<int64_t> ids(count);
  for (int64_t& id : ids) id = std::uniform_int_distribution<int64_t>(low, high)(rng);
  return ids;
}

Problem simple(Rng& rng, int64_t rows, int num_topk, int num_experts, int block) {
  Problem p{.rows = rows, .num_topk = num_topk, .num_experts = num_experts, .block = block};
  p.ids = random_ids(rng, rows * num_topk, 0, num_experts - 1);
  return p;
}

TEST(Align, MatchesTheOracleOnRandomOptions) {
  Rng rng(1);
  const auto pick = [&](auto... values) {
    const std::common_type_t<decltype(values)...> list[] = {values...};
    return list[rng() % sizeof...(values)];
  };
  for (int i = 0; i < 600; ++i) {
    Problem p;
    p.num_experts = pick(1, 2, 7, 8, 64, 128, 160, 256, 384, 385, 896, 1000);
    p.num_topk = pick(1, 2, 3, 6, 8, 10, 22, 32, 200);
    p.block = pick(1, 2, 7, 8, 16, 64, 128, 256, 1024);
    const int64_t segments = pick(1, 1, 2, 3, 8);
    p.rows = segments * pick(0, 1, 2, 3, 17, 33, 64);
    p.num_threads = pick(1, 2, 3);
    p.wide_ids = rng() % 2;
    p.row_padding = pick(0, 0, 1, 13);
    p.invalid_ids = rng() % 2 ? InvalidIds::bucket : InvalidIds::drop;
    p.pad_value = pick(-1, 0, 12345);
    const int64_t low = pick(0, -1, -3), high = p.num_experts - 1 + pick(0, 0, 3);
    p.ids = random_ids(rng, p.rows * p.num_topk, low, high);
    if (rng() % 2) {
      p.segment_rows.emplace();
      for (int64_t s = 0; s < segments; ++s)
        p.segment_rows->push_back(static_cast<int32_t>(rng() % (p.rows / segments + 1)));
    }
    if (rng() % 2) {
      p.num_local_experts = pick(1, 5, 32);
      p.expert_map.emplace(p.num_experts);
      for (int32_t& local : *p.expert_map) local = static_cast<int32_t>(rng() % (p.num_local_experts + 3)) - 3;
      for (int32_t& local : *p.expert_map) local = std::max(local, -1);
    }
    check(p);
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
