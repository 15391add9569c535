// Every align variant of the GPU against the oracle of problem.hpp, and against each other where that is too slow.
#include "support/gpu.hpp"

#include <gtest/gtest.h>

#include <deque>

#include "disorder.hpp"
#include "ops/align/choose.hpp"
#include "ops/align/launchers.hpp"
#include "ops/align/op.hpp"
#include "problem.hpp"
#include "support/errors.hpp"
#include "wave16.hpp"

namespace mixlane {
namespace {

using namespace test;

// A Call whose tensors live on the GPU.
class GpuCall {
 public:
  explicit GpuCall(Call& call, int64_t offset = 0) : args_(call.args), stream_(gpu_device()) {
    Result& out = call.out;
    input(args_.topk_ids, args_.topk_ids.dtype == DType::i64 ? bytes_of(call.ids64) : bytes_of(call.ids32), offset * 2);
    input(args_.topk_weights, bytes_of(call.weights), offset);
    input(args_.segment_rows, size_bytes(DType::i32, args_.segment_rows.num_values()), offset);
    input(args_.expert_map, size_bytes(DType::i32, args_.expert_map.num_values()), offset);
    output(args_.sorted_pairs, out.pairs, offset);
    output(args_.block_experts, out.blocks, offset);
    output(args_.num_padded, out.num_padded, offset);
    output(args_.expert_counts, out.counts, offset);
    output(args_.expert_offsets, out.offsets, offset);
    output(args_.pair_slots, out.slots, offset);
    output(args_.sorted_weights, out.weights, offset);
    output(args_.sorted_rows, out.rows, offset);
    output(args_.sorted_packed, out.packed, offset);
    output(args_.zero_fill, out.zeroed, offset == 0 ? 0 : offset + 1);
    status_ = &twins_.emplace_back(&out.status, static_cast<int64_t>(sizeof(Status)), 0);
    args_.status = static_cast<Status*>(status_->data());
  }

  const AlignArgs& args() const { return args_; }
  Stream stream() const { return stream_.get(); }
  void send() {
    for (const Twin& twin : twins_) twin.send(stream());
  }
  void fetch() {
    for (const Twin* twin : outputs_) twin->fetch(stream());
    status_->fetch(stream());
    gpu::synchronize(stream());
  }

 private:
  template <class T>
  static int64_t bytes_of(const std::vector<T>& values) {
    return static_cast<int64_t>(values.size() * sizeof(T));
  }
  template <class View>
  Twin* place(View& view, int64_t bytes, int64_t offset) {
    view.device = gpu_device();
    if (!view.given()) return nullptr;
    Twin& twin = twins_.emplace_back(const_cast<void*>(static_cast<const void*>(view.data)), bytes, offset);
    view.data = twin.data();
    return &twin;
  }
  void input(ConstTensorView& view, int64_t bytes, int64_t offset) { place(view, bytes, offset); }
  template <class T>
  void output(TensorView& view, std::vector<T>& values, int64_t offset) {
    if (Twin* twin = place(view, bytes_of(values), offset)) outputs_.push_back(twin);
  }

  AlignArgs args_;
  gpu::OwnedStream stream_;
  std::deque<Twin> twins_;
  std::vector<const Twin*> outputs_;
  Twin* status_ = nullptr;
};

// The GPU variants that take these arguments.
std::vector<std::string_view> variants_for(const Context& context, const AlignArgs& args) {
  std::vector<std::string_view> ids;
  for (const auto& variant : align_gpu_variants())
    if (variant.refuse(context, args).empty()) ids.push_back(variant.info.id);
  return ids;
}

class AlignGpu : public GpuTest {
 protected:
  void check(const Problem& p, int64_t offset = 0) {
    SCOPED_TRACE(describe(p));
    Context context({.device = gpu_device()});
    int num_run = 0;
    for (const bool extras : {false, true})
      for (const std::string_view id : variants_for(context, Call(p, extras).args)) {
        SCOPED_TRACE(id);
        Call call(p, extras);
        GpuCall on_gpu(call, offset);
        AlignArgs args = on_gpu.args();
        args.variant = id;
        on_gpu.send();
        align(context, args, on_gpu.stream());
        on_gpu.fetch();
        expect_result(expected(p, call.args.sorted_pairs.shape[0]), call.out, p.num_topk, extras);
        ++num_run;
      }
    EXPECT_GT(num_run, 0);
  }

  // One graph of each variant, replayed with other numbers of rows that count.
  void check_row_counts(Problem p, const std::vector<int32_t>& counts) {
    p.segment_rows = {static_cast<int32_t>(p.rows)};
    Context context({.device = gpu_device()});
    for (const std::string_view id : variants_for(context, Call(p, true).args)) {
      SCOPED_TRACE(id);
      Call call(p, true);
      GpuCall on_gpu(call);
      AlignArgs args = on_gpu.args();
      args.variant = id;
      const gpu::Graph graph = gpu::Graph::capture(gpu_device(), [&](Stream stream) { align(context, args, stream); });
      for (const int32_t rows : counts) {
        p.segment_rows = {rows};
        Call fresh(p, true);
        call.out = fresh.out;
        on_gpu.send();
        gpu::copy(const_cast<void*>(args.segment_rows.data), &rows, sizeof(rows), on_gpu.stream());
        graph.launch(on_gpu.stream());
        on_gpu.fetch();
        expect_result(expected(p, call.args.sorted_pairs.shape[0]), call.out, p.num_topk, true);
      }
    }
  }
};

// Of 8 pairs each: more than multi_phase takes to its large tiles for, on up to 132 multiprocessors.
constexpr int64_t kLargeTileRows = 410007;

TEST_F(AlignGpu, RandomOptions) {
  Rng rng(1);
  for (int i = 0; i < 200 && !HasFailure(); ++i) check(random_problem(rng));
}

TEST_F(AlignGpu, Shapes) {
  Rng rng(2);
  for (const int experts : {1, 8, 32, 160, 255, 256, 257, 384, 896, 1024})
    for (const int64_t rows : {1, 5, 16, 129, 1024, 2500}) {
      check(simple(rng, rows, 8, experts, rows % 2 ? 64 : 128));
      if (HasFailure()) return;
    }
}

TEST_F(AlignGpu, ManyTiles) {
  Rng rng(3);
  for (const int64_t rows : {16384, 100003, 400001}) {
    Problem p = simple(rng, rows, 8, 256, 128);
    check(p);
    p.ids[12345] = -1;  // 256 codes and a dropped pair: codes don't fit in bytes
    p.ids[12399] = 300;
    check(p);
    if (HasFailure()) return;
  }
  check(simple(rng, 300000, 6, 385, 64));
}

TEST_F(AlignGpu, Skew) {
  Rng rng(4);
  for (const int64_t rows : {3, 16, 501, 9001, 150000}) {
    Problem p = simple(rng, rows, 8, 256, 128);
    p.ids.assign(p.ids.size(), 255);
    check(p);
    for (int64_t& id : p.ids) id = rng() % 100 < 90 ? 7 : static_cast<int64_t>(rng() % 256);
    check(p);
  }
}

TEST_F(AlignGpu, LargeTiles) {
  Rng rng(25);
  for (const int experts : {8, 64, 255, 256, 512}) {
    Problem p = simple(rng, kLargeTileRows, 8, experts, 64);
    check(p);
    // Dropped pairs: alone, whole rows, and the last one.
    p.ids[777] = experts + 5;
    for (int64_t i = 100'000; i < 101'000; ++i) p.ids[i] = -1;
    p.ids.back() = -1;
    check(p);
    p.invalid_ids = InvalidIds::bucket;
    check(p);
    if (HasFailure()) return;
  }
}

// Two tiles of a block, and three, of which one is read again: with 132 multiprocessors.
TEST_F(AlignGpu, SeveralLargeTiles) {
  Rng rng(31);
  for (const int64_t rows : {1'100'001, 2'200'003}) {
    Problem p = simple(rng, rows, 8, 256, 128);
    check(p);
    for (int64_t i = 7'000'000; i < 7'100'000; ++i) p.ids[i] = i % 3 == 0 ? -1 : 9;
    p.ids.back() = 256;
    check(p);
    p.wide_ids = true;
    check(p, 8);
  }
  check(simple(rng, 1'100'001, 8, 1000, 16));
}

TEST_F(AlignGpu, LargeTilesOfMisalignedPointers) {
  Rng rng(29);
  Problem p = simple(rng, kLargeTileRows, 8, 96, 64);
  check(p, 4);
  check(p, 8);
  p.ids[999] = -1;
  check(p, 12);
}

TEST_F(AlignGpu, LargeTilesSkewed) {
  Rng rng(26);
  Problem p = simple(rng, kLargeTileRows, 8, 256, 128);
  const auto num_ids = static_cast<int64_t>(p.ids.size());
  const auto check_ids = [&](const char* what, auto&& id_of) {
    SCOPED_TRACE(what);
    for (int64_t i = 0; i < num_ids; ++i) p.ids[i] = id_of(i);
    check(p);
  };
  check_ids("one", [](int64_t) { return 255; });
  check_ids("a few", [&](int64_t) {
    return rng() % 10 < 9 ? static_cast<int64_t>(rng() % 4) * 60 : static_cast<int64_t>(rng() % 256);
  });
  check_ids("long runs", [](int64_t i) { return i / 128 % 256; });
  check_ids("ascending", [&](int64_t i) { return i * 256 / num_ids; });
  check_ids("descending", [&](int64_t i) { return 255 - i * 256 / num_ids; });
  check_ids("balanced", [](int64_t i) { return i % 256; });
  check_ids("neighbours of one word", [](int64_t i) { return 124 + i % 4; });
}

TEST_F(AlignGpu, LargeTilesOfWindows) {
  Rng rng(27);
  for (const auto invalid : {InvalidIds::drop, InvalidIds::bucket}) {
    Problem p = simple(rng, 420000, 8, 256, 64);
    p.wide_ids = invalid == InvalidIds::bucket;
    p.row_padding = 3;
    p.segment_rows = {{105000, 0, 1234, 100001}};
    p.invalid_ids = invalid;
    check(p);
    p.num_local_experts = 200;
    p.expert_map.emplace(256);
    for (int e = 0; e < 256; ++e) (*p.expert_map)[e] = e % 5 == 0 ? -1 : e % 200;
    check(p, 4);
  }
}

TEST_F(AlignGpu, NoRowsAndMaskedRank) {
  Rng rng(5);
  for (const auto invalid : {InvalidIds::drop, InvalidIds::bucket}) {
    Problem none = simple(rng, 0, 8, 256, 128);
    none.invalid_ids = invalid;
    check(none);
    for (const int64_t rows : {4, 64, 5000}) {
      Problem masked = simple(rng, rows, 8, 128, 64);
      masked.expert_map.emplace(128, -1);
      masked.num_local_experts = 16;
      masked.invalid_ids = invalid;
      check(masked);
    }
  }
}

TEST_F(AlignGpu, MisalignedPointers) {
  Rng rng(6);
  for (const int64_t rows : {7, 333, 5001}) {
    Problem p = simple(rng, rows, 5, 100, 16);
    check(p, 4);
    p.wide_ids = true;
    check(p, 4);
  }
}

TEST_F(AlignGpu, OneGraphManyRowCounts) {
  Rng rng(7);
  check_row_counts(simple(rng, 1000, 8, 256, 64), {1000, 1, 0, 512, 999, 1000});
}

TEST_F(AlignGpu, OneGraphManyRowCountsOfLargeTiles) {
  Rng rng(24);
  check_row_counts(simple(rng, kLargeTileRows, 8, 256, 64), {kLargeTileRows, 1, 0, 150001, kLargeTileRows - 1});
}

TEST_F(AlignGpu, ConcurrentStreamsWithAContextEach) {
  Rng rng(8);
  constexpr int kStreams = 4;
  std::deque<Problem> problems;
  std::deque<Call> calls;
  std::deque<GpuCall> on_gpu;
  std::deque<Context> contexts;
  for (int i = 0; i < kStreams; ++i) {
    problems.push_back(simple(rng, 20000 + 1000 * i, 8, 256, 128));
    calls.emplace_back(problems.back(), true);
    on_gpu.emplace_back(calls.back());
    contexts.emplace_back(ContextOptions{.device = gpu_device()});
    on_gpu.back().send();
  }
  for (int repeat = 0; repeat < 10; ++repeat)
    for (int i = 0; i < kStreams; ++i) {
      AlignArgs args = on_gpu[i].args();
      args.variant = "align.multi_phase";
      align(contexts[i], args, on_gpu[i].stream());
    }
  for (int i = 0; i < kStreams; ++i) {
    on_gpu[i].fetch();
    expect_result(expected(problems[i], calls[i].args.sorted_pairs.shape[0]), calls[i].out, 8, true);
  }
}

// Expert counts around whole waves of the passes over codes, 16 and 32 of four each.
TEST_F(AlignGpu, WaveOf16) {
  Rng rng(10);
  for (const int experts : {1, 16, 63, 64, 65, 127, 200, 256, 600, 1000})
    for (const int64_t rows : {1, 15, 16, 100, 512}) {
      Problem p = simple(rng, rows, 8, experts, 16);
      if (rows % 2 == 1) p.ids[rng() % p.ids.size()] = experts + 3;
      SCOPED_TRACE(describe(p));
      for (const bool one_block_per_pair : {true, false}) {
        if (one_block_per_pair && rows * 8 > align_gpu::max_none_pairs()) continue;
        SCOPED_TRACE(one_block_per_pair ? "none" : "oneshot");
        Call call(p, true);
        ASSERT_LE(call.args.topk_ids.num_values(), kMaxOneshotPairsOf16);
        GpuCall on_gpu(call);
        on_gpu.send();
        (one_block_per_pair ? launch_none_of_16 : launch_oneshot_of_16)(align_gpu::make_args(on_gpu.args()), true,
                                                                        on_gpu.stream());
        on_gpu.fetch();
        expect_result(expected(p, call.args.sorted_pairs.shape[0]), call.out, p.num_topk, true);
      }
      if (HasFailure()) return;
    }
}

TEST_F(AlignGpu, WaveOf16WithEveryOption) {
  Rng rng(11);
  int num_run = 0;
  for (int i = 0; i < 60 && !HasFailure(); ++i) {
    const Problem p = random_problem(rng);
    Call call(p, true);
    if (call.args.topk_ids.num_values() > kMaxOneshotPairsOf16 || groups_of(p) > 1000) continue;
    SCOPED_TRACE(describe(p));
    GpuCall on_gpu(call);
    on_gpu.send();
    launch_oneshot_of_16(align_gpu::make_args(on_gpu.args()), false, on_gpu.stream());
    on_gpu.fetch();
    expect_result(expected(p, call.args.sorted_pairs.shape[0]), call.out, p.num_topk, true);
    ++num_run;
  }
  EXPECT_GT(num_run, 20);
}

// What no counter per group in shared memory can hold, up to the largest numbers of groups there are.
TEST_F(AlignGpu, ManyGroups) {
  Rng rng(20);
  for (const int experts : {1028, 1029, 2048, 4100, 8191, 8192, 65535})
    for (const int64_t rows : {0, 1, 15, 700, 40001}) {
      Problem p = simple(rng, rows, 8, experts, rows % 2 ? 1 : 16);
      p.invalid_ids = rows % 3 ? InvalidIds::bucket : InvalidIds::drop;
      if (rows > 1) p.ids[1] = experts, p.ids[2] = -1, p.ids[3] = experts - 1;
      check(p);
      if (HasFailure()) return;
    }
}

TEST_F(AlignGpu, ManyGroupsWithRandomOptions) {
  Rng rng(21);
  for (int i = 0; i < 60 && !HasFailure(); ++i) {
    Problem p = random_problem(rng);
    p.num_experts = static_cast<int>(1000 + rng() % 9000);
    p.ids = any_ids(rng, p.rows * p.num_topk, -1, p.num_experts - 1);
    if (p.expert_map) {
      p.num_local_experts = static_cast<int>(1 + rng() % 5000);
      p.expert_map->resize(p.num_experts);
      for (int32_t& local : *p.expert_map) local = static_cast<int32_t>(rng() % (p.num_local_experts + 1)) - 1;
    }
    check(p);
  }
}

TEST_F(AlignGpu, ManyGroupsSkewed) {
  Rng rng(22);
  Problem p = simple(rng, 60000, 8, 8192, 64);
  p.ids.assign(p.ids.size(), 8191);
  check(p);
  for (int64_t& id : p.ids) id = rng() % 100 < 90 ? 4095 : static_cast<int64_t>(rng() % 8192);
  check(p);
}

// A cooperative kernel that is launched by itself.
void run_alone(const Problem& p, int64_t (*num_words)(const align_gpu::KernelArgs&),
               void (*launch)(const align_gpu::KernelArgs&, bool, Stream)) {
  SCOPED_TRACE(describe(p));
  const gpu::Buffer barrier(gpu_device(), 4);
  Call call(p, true);
  GpuCall on_gpu(call);
  align_gpu::KernelArgs args = align_gpu::make_args(on_gpu.args());
  const gpu::Buffer workspace(gpu_device(), num_words(args) * 4);
  args.workspace = workspace.as<uint32_t>();
  args.barrier = barrier.as<uint32_t>();
  on_gpu.send();
  launch(args, align_ids(on_gpu.args()) == AlignIds::i32, on_gpu.stream());
  on_gpu.fetch();
  expect_result(expected(p, call.args.sorted_pairs.shape[0]), call.out, p.num_topk, true);
}

TEST_F(AlignGpu, RadixOfWave16) {
  Rng rng(23);
  for (int i = 0; i < 40 && !HasFailure(); ++i)
    run_alone(i % 2 == 0 ? random_problem(rng) : simple(rng, 3001, 8, 5000, 4), radix_words_of_16, launch_radix_of_16);
}

TEST_F(AlignGpu, ManyOfWave16) {
  Rng rng(28);
  for (int i = 0; i < 80 && !HasFailure(); ++i) {
    Problem p = i % 2 == 0 ? random_problem(rng) : simple(rng, 5003, 8, i % 4 == 1 ? 256 : 100 + 10 * i, 4);
    if (i % 8 == 5) p.ids[rng() % p.ids.size()] = -1;
    if (i % 8 == 7) p.ids.assign(p.ids.size(), 3);
    if (align_gpu::make_args(Call(p, false).args).num_codes > 1000) continue;
    run_alone(p, many_words_of_16, launch_many_of_16);
  }
}

int64_t many_words(const align_gpu::KernelArgs& args) { return align_gpu::many_workspace_words(args, gpu_device()); }

void launch_many(const align_gpu::KernelArgs& args, bool plain, Stream stream) {
  align_gpu::launch_many(args, plain, gpu_device(), stream);
}

// Few enough for tools that watch every access.
TEST_F(AlignGpu, FewPairsInEveryKernel) {
  Rng rng(30);
  for (const int64_t rows : {2, 70}) {
    Problem p = simple(rng, rows, 3, 6, 4);
    check(p);
    p.ids[1] = -1;
    p.ids[4] = 9;
    check(p);
    run_alone(p, many_words, launch_many);
    p.invalid_ids = InvalidIds::bucket;
    run_alone(p, many_words, launch_many);
  }
  Problem p = simple(rng, 1400, 3, 256, 4);
  run_alone(p, many_words, launch_many);
  p.ids[5] = -1;
  run_alone(p, many_words, launch_many);
}

TEST_F(AlignGpu, AtomicsOutOfLaneOrder) {
  if (!ranks_by_atomics()) GTEST_SKIP() << "this backend ranks without atomics";
  Rng rng(10);
  const auto check_launch = [&](const Problem& p, void (*launch)(const align_gpu::KernelArgs&, Stream)) {
    SCOPED_TRACE(describe(p));
    Call call(p, true);
    GpuCall on_gpu(call);
    on_gpu.send();
    launch(align_gpu::make_args(on_gpu.args()), on_gpu.stream());
    on_gpu.fetch();
    expect_result(expected(p, call.args.sorted_pairs.shape[0]), call.out, p.num_topk, true);
  };
  for (const int64_t rows : {1, 30, 37, 128}) {
    Problem p = simple(rng, rows, 8, 32, 16);
    check_launch(p, launch_disordered_oneshot);
#if !defined(MIXLANE_HIP)
    if (!align_gpu::has_cluster(gpu_device())) continue;
    check_launch(p, launch_disordered_cluster);
    p.ids[rows / 2] = -1;
    check_launch(p, launch_disordered_cluster);
#endif
  }
  for (const int64_t rows : {1, 37, 128, 3001}) {
    Problem p = simple(rng, rows, 8, 32, 16);
    run_alone(p, disordered_multi_phase_words, launch_disordered_multi_phase);
    run_alone(p, disordered_multi_phase_words, launch_disordered_many);
    p.ids[rows / 2] = -1;
    run_alone(p, disordered_multi_phase_words, launch_disordered_multi_phase);
    run_alone(p, disordered_multi_phase_words, launch_disordered_many);
  }
}

TEST_F(AlignGpu, RefusalsNameTheLimit) {
  Rng rng(9);
  Context context({.device = gpu_device()});
  const Problem p = simple(rng, 2000, 8, 64, 16);
  Call call(p, false);
  GpuCall on_gpu(call);
  AlignArgs args = on_gpu.args();
  args.variant = "align.oneshot";
  expect_error(ErrorCode::unsupported, {"align.oneshot", "16000 pairs", "8192"}, [&] { align(context, args); });
  args.variant = "align.cpu";
  expect_error(ErrorCode::invalid_argument, {"align.cpu", "align.multi_phase"}, [&] { align(context, args); });
}

}  // namespace
}  // namespace mixlane
