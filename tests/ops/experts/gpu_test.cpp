// Every GPU variant against experts.reference: format x activation x shape x skew, graphs, poisoned workspace.
#include "gpu_case.hpp"
#include "ops/experts/wgmma/config.hpp"

namespace mixlane::test {
namespace {

// Both round nearly the same sums to bf16. Hopper's e4m3 products keep about 13 bits of a sum (experts.mma's keep f32's),
// so that some activated values fall on the other side of a tie when they are requantised.
double tolerance(QuantFormat format, const std::string& variant) {
  return format == QuantFormat::none ? 4e-3 : quantises_activations(format) && variant != "experts.mma" ? 1.5e-2 : 1e-3;
}

class ExpertsGpu : public ExpertsOnGpu {
 protected:
  static bool takes_packed_weights() {
    for (const NamedWgmmaConfig& named : kWgmmaConfigs)
      if (named.id == GetParam()) return refuse_wgmma_config(QuantFormat::mxfp4, named.config).empty();
    return true;
  }

  void check(const ExpertsShape& shape, uint64_t seed) { check(ExpertsCase(shape, seed)); }

  void check(ExpertsCase test) {
    SCOPED_TRACE(testing::Message() << "format " << static_cast<int>(test.shape.format) << " " << name(test.shape.kind)
                                    << " H " << test.shape.hidden << " I " << test.shape.intermediate << " experts "
                                    << test.shape.counts.size() << " first count " << test.shape.counts[0]);
    ExpertsArgs host = test.args();
    DeviceCall call(host);
    call.args.variant = GetParam();
    if (!takes(call.args)) return;
    ++num_checked_;
    run(call);
    const std::vector<uint16_t> got = test.output;
    EXPECT_TRUE(test.pads_untouched());

    std::fill(test.output.begin(), test.output.end(), ExpertsCase::kPoison);
    Context cpu({{}, 2});
    host.variant = "experts.reference";
    run_experts(cpu, host);
    std::vector<double> want(static_cast<size_t>(test.num_slots) * test.shape.hidden);
    for (int64_t s = 0; s < test.num_slots; ++s)
      for (int64_t h = 0; h < test.shape.hidden; ++h)
        want[s * test.shape.hidden + h] = bf16_to_f32(test.output[s * (test.shape.hidden + 8) + h]);
    test.output = got;
    EXPECT_LE(test.relative_error(want), tolerance(test.shape.format, GetParam()));

    run_experts(*context_, call.args, stream_->get());
    call.fetch_output(stream_->get());
    EXPECT_EQ(got, test.output) << "a repeated call gives other bits";
  }

  int num_checked_ = 0;
};
INSTANTIATE_TEST_SUITE_P(Variants, ExpertsGpu, testing::ValuesIn(gpu_variants()), name_of_variant);

TEST_P(ExpertsGpu, EveryFormatAndActivation) {
  uint64_t seed = 1;
  for (const QuantFormat format : kFormats)
    for (const ActivationKind kind : kKinds) {
      ExpertsShape shape;
      shape.hidden = 288;
      shape.intermediate = 416;
      shape.row_padding = 32;
      shape.format = format;
      shape.kind = kind;
      shape.bias = kind == ActivationKind::swiglu_oai;
      shape.limit = kind == ActivationKind::swiglu_oai ? 0.7f : std::numeric_limits<float>::infinity();
      shape.counts = {3, 0, 1, 40, 9};
      check(shape, seed++);
    }
  EXPECT_GT(num_checked_, 0);
}

TEST_P(ExpertsGpu, SizesOfModels) {
  uint64_t seed = 100;
  for (const QuantFormat format : kFormats)
    for (const auto& [hidden, intermediate] : {std::pair{2880, 64},
                                               {64, 2880},
                                               {704, 1408},
                                               {2304, 16},
                                               {64, 2304},
                                               {1408, 704},
                                               {16, 16},
                                               {48, 48},
                                               {32, 720},
                                               {2048, 768}}) {
      ExpertsShape shape;
      shape.hidden = hidden;
      shape.intermediate = intermediate;
      shape.row_padding = 16;
      shape.format = format;
      shape.counts = {2, 17, 0, 5};
      shape.limit = 1.0f;
      check(shape, seed++);
    }
}

// Every width of the products, and experts of several tiles.
TEST_P(ExpertsGpu, RowsPerExpert) {
  uint64_t seed = 200;
  for (const QuantFormat format : kFormats)
    for (const ActivationKind kind : {ActivationKind::swiglu, ActivationKind::relu2})
      for (const std::vector<int>& counts : {std::vector<int>{0, 0, 0},
                                             {1},
                                             {8, 9, 16, 17},
                                             {24, 25, 32, 33},
                                             {48, 49, 64, 65, 80},
                                             {81, 96, 97, 112},
                                             {113, 128, 1},
                                             {129, 3},
                                             {0, 0, 190, 0},
                                             {255, 256},
                                             {257, 0, 300},
                                             {700, 2, 0, 7}}) {
        ExpertsShape shape;
        shape.hidden = 160;
        shape.intermediate = 192;
        shape.row_padding = 16;
        shape.kind = kind;
        shape.format = format;
        shape.counts = counts;
        shape.num_topk = 3;
        shape.padding = 16;
        check(shape, seed++);
      }
}

// Wide tiles, pairs of them and what remains behind these; an odd number of tiles of weights.
TEST_P(ExpertsGpu, ManyRowsPerExpert) {
  uint64_t seed = 800;
  for (const QuantFormat format : kFormats)
    for (const ActivationKind kind : kKinds)
      for (const std::vector<int>& counts : {std::vector<int>{65, 128, 1}, {129, 256}, {257, 320}, {530}}) {
        ExpertsShape shape;
        shape.hidden = 160;
        shape.intermediate = 384;
        shape.row_padding = 16;
        shape.kind = kind;
        shape.format = format;
        shape.bias = kind != ActivationKind::swiglu;
        shape.fp8_rows = kind == ActivationKind::swiglu && quantises_activations(format);
        shape.input_weights = shape.fp8_rows;
        shape.counts = counts;
        check(shape, seed++);
      }
}

// Powers of two from the smallest to beyond what one bf16 factor holds.
TEST_P(ExpertsGpu, ScalesOfPackedWeights) {
  if (!takes_packed_weights()) GTEST_SKIP() << "takes no packed weights";
  for (const QuantFormat format : {QuantFormat::mxfp4, QuantFormat::mxfp4_fp8})
    for (const int hidden : {160, 256, 512}) {
      ExpertsShape shape;
      shape.format = format;
      shape.hidden = hidden;
      shape.intermediate = 96;
      shape.row_padding = 16;
      shape.counts = {3, 40};
      ExpertsCase test(shape, 900);
      constexpr uint8_t kScales[] = {0, 1, 127, 128, 129, 131};
      for (size_t i = 0; i < test.gate_up.e8m0.size(); i += 5) test.gate_up.e8m0[i] = kScales[i / 5 % 6];
      check(std::move(test));
    }
  EXPECT_GT(num_checked_, 0);
}

// Of each four groups the one with the largest scale holds zeros: what lies far below it is all there is.
TEST_P(ExpertsGpu, GroupsBelowTheRowsLargestScale) {
  if (!takes_packed_weights()) GTEST_SKIP() << "takes no packed weights";
  for (const int below : {1, 6, 13, 14})
    for (const int hidden : {160, 512}) {
      SCOPED_TRACE(testing::Message() << below << " binades below");
      ExpertsShape shape;
      shape.format = QuantFormat::mxfp4_fp8;
      shape.hidden = hidden;
      shape.intermediate = 96;
      shape.row_padding = 16;
      shape.counts = {3, 40, 70};
      ExpertsCase test(shape, 950);
      const size_t groups = static_cast<size_t>(hidden) / 32;
      for (size_t i = 0; i < test.gate_up.e8m0.size(); ++i) {
        const bool empty = i % groups % 4 == 0;
        test.gate_up.e8m0[i] = static_cast<uint8_t>(empty ? 125 + below : 125);
        if (empty) std::fill_n(test.gate_up.bytes.begin() + static_cast<int64_t>(i) * 16, 16, uint8_t{0});
      }
      check(std::move(test));
    }
  EXPECT_GT(num_checked_, 0);
}

TEST_P(ExpertsGpu, ManyExperts) {
  uint64_t seed = 300;
  for (const QuantFormat format : kFormats)
    for (const int experts : {1, 33, 400, 1024}) {
      ExpertsShape shape;
      shape.row_padding = 0;
      shape.format = format;
      shape.counts.assign(experts, 0);
      for (int e = 0; e < experts; e += 1 + e % 3) shape.counts[e] = e % 5 == 4 ? 20 : e % 4;
      shape.counts[experts - 1] = 2;
      check(shape, seed++);
    }
}

TEST_P(ExpertsGpu, QuantisedRowsAndInputWeights) {
  uint64_t seed = 400;
  for (const QuantFormat format : kFormats)
    for (const bool fp8_rows : {false, true})
      for (const bool input_weights : {false, true}) {
        if (fp8_rows && !quantises_activations(format)) continue;
        ExpertsShape shape;
        shape.format = format;
        shape.hidden = 272;
        shape.row_padding = 16;
        shape.fp8_rows = fp8_rows;
        shape.input_weights = input_weights;
        check(shape, seed++);
      }
}

// A shared expert: no slots from align, slot i is row i.
TEST_P(ExpertsGpu, Dense) {
  for (const QuantFormat format : kFormats)
    for (const int rows : {1, 7, 90, 300}) {
      ExpertsShape shape;
      shape.format = format;
      shape.counts = {rows};
      shape.num_topk = 1;
      shape.padding = 1;
      shape.row_padding = 0;
      ExpertsCase test(shape, 500);
      test.make_dense();
      DeviceCall call(test.args());
      call.args.variant = GetParam();
      if (!takes(call.args)) continue;
      call.send(stream_->get());
      run_experts(*context_, call.args, stream_->get());
      call.fetch_output(stream_->get());
      const int64_t stride = shape.hidden + 8;
      const std::vector<uint16_t> want(test.output.begin() + test.offsets[0] * stride,
                                       test.output.begin() + (test.offsets[0] + rows) * stride);
      call.args.sorted_pairs = call.args.expert_counts = call.args.expert_offsets = {};
      call.args.rows.shape[0] = call.args.output.shape[0] = rows;
      run_experts(*context_, call.args, stream_->get());
      call.fetch_output(stream_->get());
      EXPECT_TRUE(std::equal(want.begin(), want.end(), test.output.begin())) << rows << " rows";
    }
}

// One graph serves every number of rows, and an expert's results don't depend on what others have.
TEST_P(ExpertsGpu, GraphReadsTheCounts) {
  for (const QuantFormat format : kFormats) {
    ExpertsShape shape;
    shape.hidden = 320;
    shape.intermediate = 288;
    shape.row_padding = 16;
    shape.format = format;
    shape.counts = {5, 30, 1, 260, 0, 8};
    ExpertsCase test(shape, 600);
    DeviceCall call(test.args());
    call.args.variant = GetParam();
    if (!takes(call.args)) continue;
    call.send(stream_->get());
    const gpu::Graph graph =
        gpu::Graph::capture(gpu_device(), [&](Stream capturing) { run_experts(*context_, call.args, capturing); });
    graph.launch(stream_->get());
    call.fetch_output(stream_->get());
    const std::vector<uint16_t> all = test.output;
    EXPECT_LE(test.relative_error(test.expected()), 8e-3);

    const std::vector<int> full = test.shape.counts;
    const int64_t stride = shape.hidden + 8;
    for (size_t expert = 0; expert < full.size(); ++expert) {
      std::vector<int32_t> alone(full.size(), 0);
      alone[expert] = full[expert];
      gpu::copy(const_cast<void*>(call.args.expert_counts.data), alone.data(), static_cast<int64_t>(alone.size()) * 4,
                stream_->get());
      std::fill(test.output.begin(), test.output.end(), ExpertsCase::kPoison);
      gpu::copy(call.args.output.data, test.output.data(), static_cast<int64_t>(test.output.size() - 8) * 2, stream_->get());
      graph.launch(stream_->get());
      call.fetch_output(stream_->get());
      for (size_t e = 0; e < full.size(); ++e)
        for (int s = test.offsets[e]; s < test.offsets[e] + full[e]; ++s)
          for (int h = 0; h < shape.hidden; ++h)
            ASSERT_EQ(test.output[s * stride + h], e == expert ? all[s * stride + h] : ExpertsCase::kPoison)
                << "format " << static_cast<int>(format) << " expert " << e << " alone " << expert << " slot " << s;
    }
  }
}

TEST_P(ExpertsGpu, NaNTravels) {
  for (const int rows : {1, 20, 200}) {
    ExpertsShape shape;
    shape.counts = {rows};
    ExpertsCase test(shape, 700);
    const int row = test.sorted_pairs[test.offsets[0]] / shape.num_topk;
    test.rows[row * (shape.hidden + shape.row_padding) + 5] = 0x7fc0;
    DeviceCall call(test.args());
    call.args.variant = GetParam();
    if (!takes(call.args)) continue;
    call.send(stream_->get());
    run_experts(*context_, call.args, stream_->get());
    call.fetch_output(stream_->get());
    EXPECT_TRUE(std::isnan(bf16_to_f32(test.output[test.offsets[0] * (shape.hidden + 8)])));
  }
}

}  // namespace
}  // namespace mixlane::test
