// Stages that follow each other by programmatic dependent launch: each starts while its predecessor runs, and none may read
// or write before that has ended.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <optional>

#include "ops/align/op.hpp"
#include "ops/quant/op.hpp"
#include "slow_copy.hpp"
#include "stages.hpp"
#include "support/random.hpp"

namespace mixlane {
namespace {

using namespace test;

constexpr char kPoison = static_cast<char>(0xa5);
constexpr int64_t kDelayNs = 50'000;  // many times what a kernel needs to start and to do its work

// A variant with its memory, and a valid input for it.
struct Stage {
  std::string id;
  StageMemory memory;
  std::vector<char> input;
  std::function<void(Stream)> run;
};

template <class T>
std::vector<char> bytes_of(const std::vector<T>& values) {
  std::vector<char> bytes(values.size() * sizeof(T));
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

std::vector<char> random_logits(Rng& rng, const Shape& shape) {
  return bytes_of(normal_f32(rng, shape.tokens * shape.experts, 2.0f));
}
std::vector<char> random_hidden(Rng& rng, const Shape& shape) {
  return bytes_of(normal_bf16(rng, shape.tokens * shape.hidden, 3.0f));
}
class Chain : public GpuTest {
 protected:
  // What a GPU is needed for, once there is one.
  struct Gpu {
    Context context{{.device = gpu_device()}};
    gpu::OwnedStream stream{gpu_device()};
    gpu::Buffer status{gpu_device(), sizeof(Status)};
  };

  void SetUp() override {
    GpuTest::SetUp();
    if (!IsSkipped()) gpu_.emplace();
  }

  // Every GPU variant of the three stages, and of the way back from fp8.
  std::vector<Stage> all_stages(Rng& rng) {
    std::vector<Stage> stages;
    const auto add = [&](std::string_view id, std::vector<char> input, int64_t output_bytes, auto make_run) {
      StageMemory memory(static_cast<int64_t>(input.size()), output_bytes);
      auto run = make_run(memory.input(), memory.output());
      stages.push_back({std::string(id), std::move(memory), std::move(input), std::move(run)});
    };
    add("routing.warp", random_logits(rng, shape_), shape_.pairs() * 8, [&](char* from, char* to) {
      return [=, this](Stream stream) { route(gpu_->context, routing_args(shape_, from, to, gpu_device()), stream); };
    });
    const auto add_quant = [&](std::string_view id, ScaleGroup group) {
      add(id, random_hidden(rng, shape_), quant_bytes(shape_), [&](char* from, char* to) {
        return [=, this](Stream stream) {
          QuantArgs args = quant_args(shape_, group, from, to, gpu_device());
          args.variant = id;
          quantize(gpu_->context, args, stream);
        };
      });
    };
    add_quant("quant.groups", ScaleGroup::group_1x128);
    add_quant("quant.tiles", ScaleGroup::row);
    std::vector<char> quantized(static_cast<size_t>(quant_bytes(shape_)));
    std::vector<char> hidden = random_hidden(rng, shape_);
    Context cpu({.num_threads = 1});
    quantize(cpu, quant_args(shape_, ScaleGroup::group_1x128, hidden.data(), quantized.data(), {}));
    add("dequant.octets", quantized, shape_.tokens * shape_.hidden * 2, [&](char* from, char* to) {
      return [=, this](Stream stream) { dequantize(gpu_->context, dequant_args(shape_, from, to, gpu_device()), stream); };
    });
    for (const auto& variant : align_gpu_variants()) {
      if (!variant.refuse(gpu_->context, align_args(shape_, nullptr, nullptr, gpu_device())).empty()) continue;
      add(variant.info.id, bytes_of(random_ids(rng, shape_.tokens, shape_.topk, shape_.experts)), align_bytes(shape_),
          [&](char* from, char* to) {
            return [=, this, id = variant.info.id](Stream stream) {
              AlignArgs args = align_args(shape_, from, to, gpu_device());
              args.variant = id;
              args.status = gpu_->status.as<Status>();
              align(gpu_->context, args, stream);
            };
          });
    }
    return stages;
  }

  std::vector<char> fetch(const char* from, int64_t bytes) {
    std::vector<char> values(static_cast<size_t>(bytes));
    gpu::copy(values.data(), from, bytes, stream());
    gpu::synchronize(stream());
    return values;
  }
  std::vector<char> output_of(const Stage& stage) { return fetch(stage.memory.output(), stage.memory.output_bytes); }
  void poison(char* at, int64_t bytes) { gpu::fill(at, static_cast<uint8_t>(kPoison), bytes, stream()); }

  // With nobody near it.
  std::vector<char> undisturbed(Stage& stage) {
    gpu::copy(stage.memory.input(), stage.input.data(), stage.memory.input_bytes, stream());
    poison(stage.memory.output(), stage.memory.output_bytes);
    gpu::synchronize(stream());
    stage.run(stream());
    return output_of(stage);
  }

  // Launched one by one, and three times as a graph.
  void run_in_all_ways(const std::function<void(Stream)>& work, const std::function<void()>& prepare,
                       const std::function<void()>& check) {
    const gpu::Graph graph = gpu::Graph::capture(gpu_device(), work);
    for (int way = 0; way < 4; ++way) {
      SCOPED_TRACE(way == 0 ? "eager" : "graph");
      prepare();
      if (way == 0)
        work(stream());
      else
        graph.launch(stream());
      check();
    }
  }

  Stream stream() const { return gpu_->stream.get(); }

  Shape shape_;
  std::optional<Gpu> gpu_;
};

TEST_F(Chain, NoStageReadsBeforeItsInputIsThere) {
  Rng rng(1);
  for (Stage& stage : all_stages(rng)) {
    SCOPED_TRACE(stage.id);
    const StageMemory& memory = stage.memory;
    const std::vector<char> expected = undisturbed(stage);
    const gpu::Buffer source(gpu_device(), memory.input_bytes);
    gpu::copy(source.data(), stage.input.data(), memory.input_bytes, stream());
    run_in_all_ways(
        [&](Stream stream) {
          launch_slow_copy(memory.input(), source.data(), memory.input_bytes, kDelayNs, stream);
          stage.run(stream);
        },
        [&] {
          poison(memory.input(), memory.input_bytes);
          poison(memory.output(), memory.output_bytes);
        },
        [&] { EXPECT_EQ(output_of(stage), expected); });
  }
}

TEST_F(Chain, NoStageWritesWhileItsOutputIsRead) {
  Rng rng(2);
  for (Stage& stage : all_stages(rng)) {
    SCOPED_TRACE(stage.id);
    const StageMemory& memory = stage.memory;
    const std::vector<char> expected = undisturbed(stage);
    const gpu::Buffer saved(gpu_device(), memory.output_bytes);
    run_in_all_ways(
        [&](Stream stream) {
          launch_slow_copy(saved.data(), memory.output(), memory.output_bytes, kDelayNs, stream);
          stage.run(stream);
        },
        [&] { poison(memory.output(), memory.output_bytes); },
        [&] {
          EXPECT_EQ(fetch(saved.as<char>(), memory.output_bytes),
                    std::vector<char>(static_cast<size_t>(memory.output_bytes), kPoison));
          EXPECT_EQ(output_of(stage), expected);
        });
  }
}

// One batch through all three stages, in both orders that a layer may choose, against the CPU.
struct Batch {
  std::vector<char> logits, hidden;
  int32_t num_rows = 0;
};

class LayerChain : public Chain {
 protected:
  enum class Order { quant_between, quant_between_independently, quant_last };

  void SetUp() override {
    Chain::SetUp();
    if (IsSkipped()) return;
    shape_ = {.tokens = 64, .hidden = 1024, .experts = 256, .topk = 8, .block = 64};
    routed_.emplace(shape_.tokens * shape_.experts * 4, shape_.pairs() * 8);
    quantized_.emplace(shape_.tokens * shape_.hidden * 2, quant_bytes(shape_));
    aligned_.emplace(4, align_bytes(shape_));  // its ids are routing's; 4 bytes: the row count
  }

  void launch_all(Order order, const StageMemory& source_of_count, Stream stream) {
    const ConstTensorView count{aligned_->input(), DType::i32, {1}, gpu_device()};
    RoutingArgs routing = routing_args(shape_, routed_->input(), routed_->output(), gpu_device());
    QuantArgs quant = quant_args(shape_, ScaleGroup::group_1x128, quantized_->input(), quantized_->output(), gpu_device());
    AlignArgs sort = align_args(shape_, routed_->output(), aligned_->output(), gpu_device());
    routing.num_valid_rows = quant.num_valid_rows = sort.segment_rows = count;
    sort.status = gpu_->status.as<Status>();
    launch_slow_copy(aligned_->input(), source_of_count.input(), 4, kDelayNs, stream);
    route(gpu_->context, routing, stream);
    quant.independent_of_previous = order == Order::quant_between_independently;
    if (order != Order::quant_last) quantize(gpu_->context, quant, stream);
    align(gpu_->context, sort, stream);
    if (order == Order::quant_last) quantize(gpu_->context, quant, stream);
  }

  void send(const Batch& batch, const StageMemory& source_of_count) {
    gpu::copy(routed_->input(), batch.logits.data(), routed_->input_bytes, stream());
    gpu::copy(quantized_->input(), batch.hidden.data(), quantized_->input_bytes, stream());
    gpu::copy(source_of_count.input(), &batch.num_rows, 4, stream());
    poison(aligned_->input(), 4);
    for (const StageMemory* memory : {&*routed_, &*quantized_, &*aligned_}) poison(memory->output(), memory->output_bytes);
    gpu::synchronize(stream());
  }

  void check(const Batch& batch) {
    Context cpu({.num_threads = 1});
    std::vector<char> logits = batch.logits, hidden = batch.hidden;
    std::vector<char> routed(routed_->output_bytes, kPoison), quantized(quantized_->output_bytes, kPoison),
        aligned(aligned_->output_bytes, kPoison);
    const ConstTensorView count{&batch.num_rows, DType::i32, {1}};
    RoutingArgs routing = routing_args(shape_, logits.data(), routed.data(), {});
    QuantArgs quant = quant_args(shape_, ScaleGroup::group_1x128, hidden.data(), quantized.data(), {});
    AlignArgs sort = align_args(shape_, routed.data(), aligned.data(), {});
    routing.num_valid_rows = quant.num_valid_rows = sort.segment_rows = count;
    route(cpu, routing);
    quantize(cpu, quant);
    align(cpu, sort);
    EXPECT_EQ(fetch(quantized_->output(), quantized_->output_bytes), quantized);
    EXPECT_EQ(fetch(aligned_->output(), aligned_->output_bytes), aligned);
    const std::vector<char> got = fetch(routed_->output(), routed_->output_bytes);
    EXPECT_EQ(std::memcmp(got.data(), routed.data(), shape_.pairs() * 4), 0) << "ids";
    for (int64_t i = 0; i < shape_.pairs(); ++i) {
      float weight = 0, expected = 0;
      std::memcpy(&weight, got.data() + (shape_.pairs() + i) * 4, 4);
      std::memcpy(&expected, routed.data() + (shape_.pairs() + i) * 4, 4);
      EXPECT_NEAR(weight, expected, 1e-6 * std::fabs(expected)) << "pair " << i;
    }
  }

  std::optional<StageMemory> routed_, quantized_, aligned_;
};

// Quantisation that does not wait for its neighbour ends with it nevertheless: align waits for quantisation and must find
// the neighbour's ids.
TEST_F(LayerChain, WhoWaitsForIndependentQuantisationWaitsForItsNeighbour) {
  Rng rng(4);
  const std::vector<char> ids = bytes_of(random_ids(rng, shape_.tokens, shape_.topk, shape_.experts));
  const auto id_bytes = static_cast<int64_t>(ids.size());
  const StageMemory source(id_bytes, align_bytes(shape_));
  gpu::copy(source.input(), ids.data(), id_bytes, stream());
  std::vector<char> expected(static_cast<size_t>(align_bytes(shape_)), kPoison);
  Context cpu({.num_threads = 1});
  align(cpu, align_args(shape_, const_cast<char*>(ids.data()), expected.data(), {}));
  for (const ScaleGroup group : {ScaleGroup::group_1x128, ScaleGroup::row}) {
    SCOPED_TRACE(name(group));
    run_in_all_ways(
        [&](Stream stream) {
          QuantArgs quant = quant_args(shape_, group, quantized_->input(), quantized_->output(), gpu_device());
          quant.independent_of_previous = true;
          AlignArgs sort = align_args(shape_, routed_->output(), source.output(), gpu_device());
          sort.status = gpu_->status.as<Status>();
          launch_slow_copy(routed_->output(), source.input(), id_bytes, kDelayNs, stream);
          quantize(gpu_->context, quant, stream);
          align(gpu_->context, sort, stream);
        },
        [&] {
          poison(routed_->output(), routed_->output_bytes);
          poison(source.output(), source.output_bytes);
        },
        [&] { EXPECT_EQ(fetch(source.output(), source.output_bytes), expected); });
  }
}

TEST_F(LayerChain, ReplaysWithChangingRowCounts) {
  Rng rng(3);
  const StageMemory source_of_count(4, 0);
  for (const Order order : {Order::quant_between, Order::quant_between_independently, Order::quant_last}) {
    SCOPED_TRACE(order == Order::quant_last      ? "routing, align, quant"
                 : order == Order::quant_between ? "routing, quant, align"
                                                 : "routing beside quant, align");
    const auto work = [&](Stream stream) { launch_all(order, source_of_count, stream); };
    const gpu::Graph graph = gpu::Graph::capture(gpu_device(), work);
    for (const int32_t rows : {64, 1, 0, 17, 63, 64}) {
      SCOPED_TRACE(rows);
      const Batch batch = {random_logits(rng, shape_), random_hidden(rng, shape_), rows};
      send(batch, source_of_count);
      work(stream());
      check(batch);
      send(batch, source_of_count);
      graph.launch(stream());
      check(batch);
      if (HasFailure()) return;
    }
  }
}

}  // namespace
}  // namespace mixlane
