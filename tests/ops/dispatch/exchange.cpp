#include "ops/dispatch/exchange.hpp"

#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <cstring>
#include <thread>

namespace mixlane::test {
namespace {

// Fills the memory behind the flags with 0xff.
class PoisonedGroup final : public Communicator {
 public:
  explicit PoisonedGroup(std::shared_ptr<Communicator> inner) : inner_(std::move(inner)) {}
  int rank() const override { return inner_->rank(); }
  int num_ranks() const override { return inner_->num_ranks(); }
  std::vector<std::string> all_gather(std::string_view bytes) override { return inner_->all_gather(bytes); }
  std::shared_ptr<SymmetricMemory> allocate(int64_t bytes_per_rank, std::string_view what, Device device) override {
    auto memory = inner_->allocate(bytes_per_rank, what, device);
    const int64_t windows_at = 4096 + num_ranks() * 3 * 64;
    std::memset(memory->part(rank()) + windows_at, 0xff, static_cast<size_t>(bytes_per_rank - windows_at));
    inner_->barrier();
    return memory;
  }

 private:
  std::shared_ptr<Communicator> inner_;
};

template <class T>
const T* row(const TensorView& view, int64_t index) {
  return static_cast<const T*>(view.data) + index * view.strides[0];
}

double rounded(double sum, CombineWire wire) {
  if (wire == CombineWire::bf16) return bf16_to_f32(f32_to_bf16(static_cast<float>(sum)));
  return wire == CombineWire::f32 ? static_cast<float>(sum) : sum;
}

// Rows of normal values. Making these is slow, so rows are pieces of as many, at random places.
std::vector<uint16_t> random_rows(Rng& rng, int64_t num_rows, int64_t hidden) {
  constexpr size_t kNumValues = 1 << 16;
  static const std::vector<uint16_t> values = [] {
    Rng own(1);
    return normal_bf16(own, kNumValues);
  }();
  std::vector<uint16_t> rows;
  rows.reserve(static_cast<size_t>(num_rows * hidden));
  for (int64_t row = 0; row < num_rows; ++row) {
    const auto begin = values.begin() + static_cast<int64_t>(rng() % (kNumValues - static_cast<uint64_t>(hidden)));
    rows.insert(rows.end(), begin, begin + hidden);
  }
  return rows;
}

// A row of partial sums, rounded to the wire.
void round_to_wire(std::vector<double>& row, CombineWire wire) {
  if (wire != CombineWire::fp8_1x128) {
    for (double& sum : row) sum = rounded(sum, wire);
    return;
  }
  for (size_t begin = 0; begin < row.size(); begin += 128) {
    const size_t end = std::min(row.size(), begin + 128);
    float amax = 1e-10f;
    for (size_t h = begin; h < end; ++h) amax = std::max(amax, std::fabs(static_cast<float>(row[h])));
    const float scale = amax / 448.0f;
    for (size_t h = begin; h < end; ++h) row[h] = e4m3_to_f32(f32_to_e4m3(static_cast<float>(row[h]) / scale)) * scale;
  }
}

// a + b * c in the precision of the wire's sums.
double add_product(double a, double b, double c, CombineWire wire) {
  if (wire == CombineWire::f64) return a + b * c;
  const float product = static_cast<float>(b) * static_cast<float>(c);
  return static_cast<float>(a) + product;
}

}  // namespace

DispatchArgs Inputs::dispatch_args(const DispatcherConfig& config, Status* status) const {
  DispatchArgs args;
  args.hidden = ConstTensorView(hidden.data(), DType::bf16, {num_tokens, config.hidden});
  args.topk_ids = ConstTensorView(ids.data(), DType::i32, {num_tokens, config.num_topk});
  args.topk_weights = ConstTensorView(weights.data(), DType::f32, {num_tokens, config.num_topk});
  args.status = status;
  return args;
}

DispatcherConfig small_config() {
  DispatcherConfig config;
  config.hidden = 24;
  config.num_topk = 3;
  config.num_experts = 11;
  config.max_tokens = 9;
  return config;
}

Inputs make_inputs(Rng& rng, const DispatcherConfig& config, int64_t num_tokens, bool holes) {
  Inputs inputs;
  inputs.num_tokens = num_tokens;
  inputs.hidden = random_rows(rng, num_tokens, config.hidden);
  inputs.addend = random_rows(rng, num_tokens, config.hidden);
  inputs.ids = random_ids(rng, num_tokens, config.num_topk, config.num_experts);
  inputs.weights = normal_f32(rng, num_tokens * config.num_topk);
  if (holes)
    for (int32_t& id : inputs.ids)
      if (rng() % 4 == 0) id = -1;
  return inputs;
}

std::vector<Inputs> make_all_inputs(uint64_t seed, const DispatcherConfig& config, int num_ranks) {
  Rng rng(seed);
  std::vector<Inputs> all;
  for (int r = 0; r < num_ranks; ++r) {
    const int64_t num_tokens =
        rng() % 4 == 0 ? 0 : static_cast<int64_t>(rng() % (static_cast<uint64_t>(config.max_tokens) + 1));
    all.push_back(make_inputs(rng, config, num_tokens, rng() % 2 == 0));
  }
  return all;
}

uint16_t expert_value(uint16_t x, int expert) {
  return f32_to_bf16(bf16_to_f32(x) * (0.5f + 0.375f * static_cast<float>(expert % 7)));
}

int Oracle::owner(int32_t expert) const {
  return expert < 0 || expert >= config.num_experts ? -1 : config.expert_rank[expert];
}

std::vector<int64_t> Oracle::tokens(int source, int dest) const {
  std::vector<int64_t> found;
  if (masked >> source & 1) return found;
  const Inputs& in = inputs[source];
  for (int64_t t = 0; t < in.num_tokens; ++t) {
    bool wanted = false;
    for (int k = 0; k < config.num_topk; ++k) wanted |= owner(in.ids[t * config.num_topk + k]) == dest;
    if (wanted && static_cast<int64_t>(found.size()) < config.capacity) found.push_back(t);
  }
  return found;
}

std::vector<uint16_t> Oracle::output(int rank, bool with_addend) const {
  const Inputs& in = inputs[rank];
  const int64_t hidden = config.hidden;
  std::vector<double> sums(static_cast<size_t>(in.num_tokens * hidden), 0.0);
  const int num_ranks = static_cast<int>(inputs.size());
  for (int by = 0; by < num_ranks; ++by) {
    if (masked >> by & 1) continue;
    for (const int64_t t : tokens(rank, by)) {
      std::vector<double> partial(static_cast<size_t>(hidden), 0.0);
      for (int k = 0; k < config.num_topk; ++k) {
        const int32_t id = in.ids[t * config.num_topk + k];
        if (owner(id) != by) continue;
        const double weight = in.weights[t * config.num_topk + k];
        for (int64_t h = 0; h < hidden; ++h) {
          const double value = bf16_to_f32(expert_value(in.hidden[t * hidden + h], id));
          partial[h] = add_product(partial[h], weight, value, config.combine_wire);
        }
      }
      round_to_wire(partial, config.combine_wire);
      for (int64_t h = 0; h < hidden; ++h) {
        double& sum = sums[t * hidden + h];
        sum = add_product(sum, 1.0, partial[h], config.combine_wire);
      }
    }
  }
  std::vector<uint16_t> out(sums.size());
  for (size_t i = 0; i < sums.size(); ++i) {
    if (with_addend) sums[i] = add_product(sums[i], 1.0, bf16_to_f32(in.addend[i]), config.combine_wire);
    out[i] = config.combine_wire == CombineWire::f64 ? f64_to_bf16(sums[i]) : f32_to_bf16(static_cast<float>(sums[i]));
  }
  return out;
}

void quantize_mxfp4(const uint16_t* row, int hidden, std::vector<uint8_t>& codes, std::vector<uint8_t>& scales) {
  for (int begin = 0; begin < hidden; begin += 32) {
    const int end = std::min(hidden, begin + 32);
    float amax = 0.0f;
    for (int h = begin; h < end; ++h) amax = std::max(amax, std::fabs(bf16_to_f32(row[h])));
    const int exponent = amax > 0.0f ? std::ilogb(amax) - 2 : -127;
    scales.push_back(static_cast<uint8_t>(std::max(exponent + 127, 0)));
    for (int h = begin; h < end; h += 2) {
      const auto code = [&](int at) { return f32_to_e2m1(std::ldexp(bf16_to_f32(row[at]), 127 - scales.back())); };
      codes.push_back(static_cast<uint8_t>(code(h) | code(h + 1) << 4));
    }
  }
}

void expect_received(const ReceivedRows& received, const Oracle& oracle, int rank) {
  const DispatcherConfig& config = oracle.config;
  const auto num_topk = static_cast<size_t>(config.num_topk);
  for (int s = 0; s < static_cast<int>(oracle.inputs.size()); ++s) {
    const Inputs& in = oracle.inputs[s];
    const std::vector<int64_t> tokens = oracle.tokens(s, rank);
    ASSERT_EQ(received.recv_count.as<int32_t>()[s], static_cast<int32_t>(tokens.size())) << "from " << s << " to " << rank;
    for (size_t j = 0; j < tokens.size(); ++j) {
      const int64_t at = int64_t{s} * config.capacity + static_cast<int64_t>(j);
      const int64_t t = tokens[j];
      const auto* ids = row<int32_t>(received.topk_ids, at);
      for (size_t k = 0; k < num_topk; ++k) {
        const int32_t id = in.ids[t * num_topk + k];
        EXPECT_EQ(ids[k], oracle.owner(id) < 0 ? -1 : id);
      }
      EXPECT_EQ(std::memcmp(row<float>(received.topk_weights, at), &in.weights[t * num_topk], 4 * num_topk), 0);
      if (config.wire == WireFormat::bf16) {
        EXPECT_EQ(std::memcmp(row<uint16_t>(received.rows, at), &in.hidden[t * config.hidden], 2 * config.hidden), 0);
      }
    }
  }
}

bool received_is_right(const ReceivedRows& received, const Oracle& oracle, int rank) {
  for (int s = 0; s < static_cast<int>(oracle.inputs.size()); ++s) {
    const std::vector<int64_t> tokens = oracle.tokens(s, rank);
    if (received.recv_count.as<int32_t>()[s] != static_cast<int32_t>(tokens.size())) return false;
    for (size_t j = 0; j < tokens.size(); ++j) {
      const int64_t at = int64_t{s} * oracle.config.capacity + static_cast<int64_t>(j);
      const auto* row = received.rows.as<uint16_t>() + at * received.rows.strides[0];
      if (!std::equal(row, row + oracle.config.hidden, &oracle.inputs[s].hidden[tokens[j] * oracle.config.hidden]))
        return false;
    }
  }
  return true;
}

ExpertRows make_expert_rows(const ReceivedRows& received, const Oracle& oracle, int rank) {
  const DispatcherConfig& config = oracle.config;
  const int num_ranks = static_cast<int>(oracle.inputs.size()), num_topk = config.num_topk;
  const int64_t num_rows = int64_t{num_ranks} * config.capacity;
  ExpertRows made;
  made.slots.assign(static_cast<size_t>(num_rows * num_topk), 0x7fffffff);  // rows that do not count are not looked at
  made.rows.resize(1);                                                      // never an empty vector's null
  for (int s = num_ranks - 1; s >= 0; --s)
    for (int64_t j = 0; j < received.recv_count.as<int32_t>()[s]; ++j)
      for (int k = num_topk - 1; k >= 0; --k) {
        const int64_t at = int64_t{s} * config.capacity + j;
        const int32_t id = row<int32_t>(received.topk_ids, at)[k];
        made.slots[at * num_topk + k] = oracle.owner(id) == rank ? made.count++ : -1;
        if (oracle.owner(id) != rank) continue;
        made.rows.resize(static_cast<size_t>(made.count) * config.hidden);
        for (int h = 0; h < config.hidden; ++h)
          made.rows[(made.count - 1) * int64_t{config.hidden} + h] = expert_value(row<uint16_t>(received.rows, at)[h], id);
      }
  return made;
}

std::vector<uint16_t> combine(Dispatcher& dispatcher, const ReceivedRows& received, const Oracle& oracle, bool with_addend,
                              Status* status) {
  const DispatcherConfig& config = oracle.config;
  const int rank = dispatcher.rank();
  const ExpertRows made = make_expert_rows(received, oracle, rank);
  const Inputs& in = oracle.inputs[rank];
  std::vector<uint16_t> out(static_cast<size_t>(in.num_tokens * config.hidden), 0xffff);
  CombineArgs args;
  args.handle = received.handle;
  args.expert_rows = ConstTensorView(made.rows.data(), DType::bf16, {made.count, config.hidden});
  args.pair_slots = ConstTensorView(made.slots.data(), DType::i32,
                                    {static_cast<int64_t>(made.slots.size()) / config.num_topk, config.num_topk});
  if (with_addend) args.addend = ConstTensorView(in.addend.data(), DType::bf16, {in.num_tokens, config.hidden});
  args.output = TensorView(out.data(), DType::bf16, {in.num_tokens, config.hidden});
  args.status = status;
  dispatcher.combine(args);
  return out;
}

void run_rank_threads(int num_ranks, const std::function<void(std::shared_ptr<Communicator>)>& body) {
  std::vector<std::thread> threads;
  for (auto& member : make_thread_group(num_ranks))
    threads.emplace_back([&body, comm = std::make_shared<PoisonedGroup>(member)] {
      try {
        body(comm);
      } catch (const std::exception& error) {
        ADD_FAILURE() << "rank " << comm->rank() << ": " << error.what();
      }
    });
  for (std::thread& thread : threads) thread.join();
}

void random_delay(Rng& rng, int max_us) {
  if (rng() % 4 == 0) std::this_thread::sleep_for(std::chrono::microseconds(rng() % static_cast<uint64_t>(max_us)));
}

}  // namespace mixlane::test
