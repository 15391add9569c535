// The wires: fp8 on the way out, f32 and f64 on the way back.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <mutex>

#include "ops/dispatch/exchange.hpp"
#include "support/errors.hpp"

namespace mixlane {
namespace {

using test::Inputs;
using test::Oracle;
using test::Rng;

const ContextOptions kOneThread{.device = {}, .num_threads = 1};

DispatcherConfig config_of(WireFormat wire, CombineWire combine_wire, int hidden) {
  DispatcherConfig config;
  config.hidden = hidden;
  config.num_topk = 4;
  config.num_experts = 16;
  config.max_tokens = 12;
  config.wire = wire;
  config.combine_wire = combine_wire;
  return config;
}

// e4m3 codes and scales of a bf16 row by the definition in mixlane/quant.hpp.
void quantize(const uint16_t* row, int hidden, int group, std::vector<uint8_t>& codes, std::vector<float>& scales) {
  for (int begin = 0; begin < hidden; begin += group) {
    const int end = std::min(hidden, begin + group);
    float amax = 1e-10f;
    for (int h = begin; h < end; ++h) amax = std::max(amax, std::fabs(bf16_to_f32(row[h])));
    scales.push_back(amax / 448.0f);
    for (int h = begin; h < end; ++h) codes.push_back(f32_to_e4m3(bf16_to_f32(row[h]) / scales.back()));
  }
}

void expect_fp8_rows(const ReceivedRows& received, const Oracle& oracle, int rank, int group) {
  const int hidden = oracle.config.hidden;
  for (int s = 0; s < static_cast<int>(oracle.inputs.size()); ++s) {
    int64_t at = int64_t{s} * oracle.config.capacity;
    for (const int64_t t : oracle.tokens(s, rank)) {
      std::vector<uint8_t> codes;
      std::vector<float> scales;
      quantize(&oracle.inputs[s].hidden[t * hidden], hidden, group, codes, scales);
      EXPECT_EQ(std::memcmp(received.rows.as<uint8_t>() + at * received.rows.strides[0], codes.data(), codes.size()), 0);
      EXPECT_EQ(received.scales.shape[1], static_cast<int64_t>(scales.size()));
      EXPECT_EQ(std::memcmp(received.scales.as<float>() + at * received.scales.strides[0], scales.data(), 4 * scales.size()),
                0);
      ++at;
    }
  }
}

TEST(Wire, Bf16RowsAreQuantisedOnTheWay) {
  for (const WireFormat wire : {WireFormat::fp8_1x128, WireFormat::fp8_row}) {
    test::run_rank_threads(3, [&](auto comm) {
      Context context(kOneThread);
      const DispatcherConfig config = config_of(wire, CombineWire::bf16, 1296);  // the last group of 128 is a short one
      Dispatcher dispatcher(context, comm, config);
      for (uint64_t seed = 0; seed < 4; ++seed) {
        const std::vector<Inputs> inputs = test::make_all_inputs(seed, config, 3);
        const Oracle oracle{dispatcher.config(), inputs};
        const ReceivedRows received = dispatcher.dispatch(inputs[comm->rank()].dispatch_args(config, nullptr));
        test::expect_received(received, oracle, comm->rank());
        expect_fp8_rows(received, oracle, comm->rank(), wire == WireFormat::fp8_row ? config.hidden : 128);
      }
    });
  }
}

TEST(Wire, Fp8RowsPassAsTheyAre) {
  for (const WireFormat wire : {WireFormat::fp8_1x128, WireFormat::fp8_row}) {
    test::run_rank_threads(2, [&](auto comm) {
      Context context(kOneThread);
      const DispatcherConfig config = config_of(wire, CombineWire::bf16, 272);
      const int group = wire == WireFormat::fp8_row ? config.hidden : 128;
      Dispatcher dispatcher(context, comm, config);
      const std::vector<Inputs> inputs = test::make_all_inputs(8, config, 2);
      const Oracle oracle{dispatcher.config(), inputs};
      const Inputs& mine = inputs[comm->rank()];
      std::vector<uint8_t> codes;
      std::vector<float> scales;
      for (int64_t t = 0; t < mine.num_tokens; ++t) quantize(&mine.hidden[t * 272], 272, group, codes, scales);
      DispatchArgs args = mine.dispatch_args(config, nullptr);
      args.hidden = ConstTensorView(codes.data(), DType::fp8_e4m3, {mine.num_tokens, 272});
      args.scales = wire == WireFormat::fp8_row ? ConstTensorView(scales.data(), DType::f32, {mine.num_tokens})
                                                : ConstTensorView(scales.data(), DType::f32, {mine.num_tokens, 3});
      const ReceivedRows received = dispatcher.dispatch(args);
      test::expect_received(received, oracle, comm->rank());
      expect_fp8_rows(received, oracle, comm->rank(), group);
    });
  }
}

// bf16 input quantised on the way and input that is quantised already give the same records.
TEST(Wire, Mxfp4) {
  test::run_rank_threads(3, [](auto comm) {
    Context context(kOneThread);
    const DispatcherConfig config = config_of(WireFormat::mxfp4, CombineWire::bf16, 1120);  // 35 scales
    Dispatcher dispatcher(context, comm, config);
    for (uint64_t seed = 0; seed < 6; ++seed) {
      const std::vector<Inputs> inputs = test::make_all_inputs(seed, config, 3);
      const Oracle oracle{dispatcher.config(), inputs};
      const Inputs& mine = inputs[comm->rank()];
      std::vector<uint8_t> codes, scales;
      for (int64_t t = 0; t < mine.num_tokens; ++t) test::quantize_mxfp4(&mine.hidden[t * 1120], 1120, codes, scales);
      DispatchArgs args = mine.dispatch_args(config, nullptr);
      if (seed % 2 == 1) {
        args.hidden = ConstTensorView(codes.data(), DType::fp4_e2m1, {mine.num_tokens, 1120});
        args.scales = ConstTensorView(scales.data(), DType::e8m0, {mine.num_tokens, 35});
      }
      const ReceivedRows received = dispatcher.dispatch(args);
      test::expect_received(received, oracle, comm->rank());
      EXPECT_EQ(received.scales.dtype, DType::e8m0);
      for (int s = 0; s < 3; ++s) {
        int64_t at = int64_t{s} * oracle.config.capacity;
        for (const int64_t t : oracle.tokens(s, comm->rank())) {
          std::vector<uint8_t> right, right_scales;
          test::quantize_mxfp4(&inputs[s].hidden[t * 1120], 1120, right, right_scales);
          EXPECT_EQ(std::memcmp(received.rows.as<uint8_t>() + at * received.rows.strides[0] / 2, right.data(), 560), 0);
          EXPECT_EQ(std::memcmp(received.scales.as<uint8_t>() + at * received.scales.strides[0], right_scales.data(), 35),
                    0);
          ++at;
        }
      }
    }
  });
}

// The whole batch, cut into equal parts for num_ranks ranks; the outputs put together again.
std::vector<uint16_t> exchange_batch(int num_ranks, CombineWire wire, const Inputs& batch) {
  std::vector<uint16_t> out(batch.hidden.size());
  test::run_rank_threads(num_ranks, [&](auto comm) {
    Context context(kOneThread);
    DispatcherConfig config = config_of(WireFormat::bf16, wire, 40);
    config.max_tokens = 64;
    Dispatcher dispatcher(context, comm, config);
    std::vector<Inputs> parts(static_cast<size_t>(num_ranks));
    const int64_t size = batch.num_tokens / num_ranks;
    for (int r = 0; r < num_ranks; ++r) {
      const auto cut = [&](const auto& values, int64_t width) {
        return std::vector(values.begin() + r * size * width, values.begin() + (r + 1) * size * width);
      };
      parts[r] = {size, cut(batch.hidden, 40), cut(batch.ids, 4), cut(batch.weights, 4), cut(batch.addend, 40)};
    }
    const Oracle oracle{dispatcher.config(), parts};
    const ReceivedRows received = dispatcher.dispatch(parts[comm->rank()].dispatch_args(config, nullptr));
    const std::vector<uint16_t> mine = test::combine(dispatcher, received, oracle, true);
    EXPECT_EQ(mine, oracle.output(comm->rank(), true));
    std::copy(mine.begin(), mine.end(), out.begin() + comm->rank() * size * 40);
  });
  return out;
}

TEST(Wire, F64DoesNotDependOnTheNumberOfRanks) {
  Rng rng(12);
  Inputs batch = test::make_inputs(rng, config_of(WireFormat::bf16, CombineWire::f64, 40), 64, true);
  const std::vector<uint16_t> alone = exchange_batch(1, CombineWire::f64, batch);
  for (const int num_ranks : {2, 4, 8}) EXPECT_EQ(exchange_batch(num_ranks, CombineWire::f64, batch), alone) << num_ranks;
  // The test can see a difference: the other wires round each rank's part.
  EXPECT_NE(exchange_batch(4, CombineWire::bf16, batch), exchange_batch(1, CombineWire::bf16, batch));
}

TEST(Wire, RepeatedCallsGiveTheSameBits) {
  Rng rng(13);
  for (const CombineWire wire : {CombineWire::bf16, CombineWire::fp8_1x128, CombineWire::f32, CombineWire::f64}) {
    const Inputs batch = test::make_inputs(rng, config_of(WireFormat::bf16, wire, 40), 60, true);
    const std::vector<uint16_t> first = exchange_batch(5, wire, batch);
    for (int again = 0; again < 3; ++again) EXPECT_EQ(exchange_batch(5, wire, batch), first);
  }
}

TEST(Wire, Fp8PartialSums) {
  test::run_rank_threads(3, [](auto comm) {
    Context context(kOneThread);
    const DispatcherConfig config = config_of(WireFormat::bf16, CombineWire::fp8_1x128, 328);  // the last group is short
    Dispatcher dispatcher(context, comm, config);
    for (uint64_t seed = 0; seed < 4; ++seed) {
      const std::vector<Inputs> inputs = test::make_all_inputs(seed, config, 3);
      const Oracle oracle{dispatcher.config(), inputs};
      const ReceivedRows received = dispatcher.dispatch(inputs[comm->rank()].dispatch_args(config, nullptr));
      EXPECT_EQ(test::combine(dispatcher, received, oracle, seed % 2 == 0), oracle.output(comm->rank(), seed % 2 == 0));
    }
  });
}

// Rows that are reduced already, in both dtypes, over all wires, with f32 addend and output.
TEST(Wire, ReducedRows) {
  for (const DType dtype : {DType::bf16, DType::f32})
    for (const CombineWire wire : {CombineWire::bf16, CombineWire::f32, CombineWire::f64})
      test::run_rank_threads(3, [&](auto comm) {
        Context context(kOneThread);
        const DispatcherConfig config = config_of(WireFormat::bf16, wire, 72);
        Dispatcher dispatcher(context, comm, config);
        const std::vector<Inputs> inputs = test::make_all_inputs(21, config, 3);
        const Oracle oracle{dispatcher.config(), inputs};
        const Inputs& mine = inputs[comm->rank()];
        const ReceivedRows received = dispatcher.dispatch(mine.dispatch_args(config, nullptr));

        // Rank r returns (r + 1) / 3 of each row.
        const auto reduced = [](uint16_t x, int rank) { return bf16_to_f32(x) * (static_cast<float>(rank + 1) / 3.0f); };
        std::vector<float> wide(static_cast<size_t>(3 * config.max_tokens * 72));
        for (int s = 0; s < 3; ++s)
          for (int64_t j = 0; j < received.recv_count.as<int32_t>()[s]; ++j)
            for (int h = 0; h < 72; ++h) {
              const int64_t at = s * config.max_tokens + j;
              wide[at * 72 + h] = reduced(received.rows.as<uint16_t>()[at * received.rows.strides[0] + h], comm->rank());
            }
        const std::vector<uint16_t> narrow = test::to_bf16(wide);
        std::vector<float> addend(static_cast<size_t>(mine.num_tokens * 72), 0.1f), out(addend.size());
        CombineArgs args;
        args.handle = received.handle;
        args.reduced_rows = dtype == DType::f32 ? ConstTensorView(wide.data(), dtype, {3 * config.max_tokens, 72})
                                                : ConstTensorView(narrow.data(), dtype, {3 * config.max_tokens, 72});
        args.addend = ConstTensorView(addend.data(), DType::f32, {mine.num_tokens, 72});
        args.output = TensorView(out.data(), DType::f32, {mine.num_tokens, 72});
        dispatcher.combine(args);

        std::vector<double> sums(out.size(), 0.0);
        const auto add = [&](double& sum, double value) {
          sum = wire == CombineWire::f64 ? sum + value : static_cast<float>(sum) + static_cast<float>(value);
        };
        for (int by = 0; by < 3; ++by)
          for (const int64_t t : oracle.tokens(comm->rank(), by))
            for (int h = 0; h < 72; ++h) {
              float value = reduced(mine.hidden[t * 72 + h], by);
              if (dtype == DType::bf16 || wire == CombineWire::bf16) value = bf16_to_f32(f32_to_bf16(value));
              add(sums[t * 72 + h], value);
            }
        for (size_t i = 0; i < sums.size(); ++i) {
          add(sums[i], 0.1f);
          EXPECT_EQ(out[i], static_cast<float>(sums[i])) << i;
        }
      });
}

TEST(Wire, WeightsAppliedBefore) {
  Context context(kOneThread);
  const DispatcherConfig config = config_of(WireFormat::bf16, CombineWire::f32, 8);
  Dispatcher dispatcher(context, make_thread_group(1)[0], config);
  Rng rng(2);
  const Inputs in = test::make_inputs(rng, config, 1, false);
  const ReceivedRows received = dispatcher.dispatch(in.dispatch_args(config, nullptr));
  const std::vector<uint16_t> rows = test::normal_bf16(rng, 4 * 8);
  std::vector<int32_t> slots(12 * 4, -1);
  for (int k = 0; k < 4; ++k) slots[k] = 3 - k;
  std::vector<uint16_t> out(8);
  CombineArgs args;
  args.handle = received.handle;
  args.expert_rows = ConstTensorView(rows.data(), DType::bf16, {4, 8});
  args.pair_slots = ConstTensorView(slots.data(), DType::i32, {12, 4});
  args.apply_weights = false;
  args.output = TensorView(out.data(), DType::bf16, {1, 8});
  dispatcher.combine(args);
  for (int h = 0; h < 8; ++h) {
    float sum = 0.0f;
    for (int k = 0; k < 4; ++k) sum += bf16_to_f32(rows[(3 - k) * 8 + h]);
    EXPECT_EQ(out[h], f32_to_bf16(sum));
  }
}

}  // namespace
}  // namespace mixlane
