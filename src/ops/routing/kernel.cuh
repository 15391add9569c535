// One wave routes one token; a lane holds kValues of its logits.
#pragma once

#include "gpu/prologue.cuh"
#include "ops/routing/expert_groups.cuh"
#include "ops/routing/select.cuh"

namespace mixlane::routing_gpu {

inline constexpr int kMaxThreads = 128;

__device__ inline void write_id(const KernelArgs& args, int64_t at, int32_t id) {
  if (args.wide_ids) {
    static_cast<int64_t*>(args.ids)[at] = id;
  } else {
    static_cast<int32_t*>(args.ids)[at] = id;
  }
}

template <int kSize>
__device__ __noinline__ void write_nothing(const KernelArgs& args, uint32_t token) {
  for (uint32_t k = gpu::Wave<kSize>::lane(); k < args.num_topk; k += kSize) {
    const int64_t at = static_cast<int64_t>(token) * args.num_topk + k;
    write_id(args, at, -1);
    args.weights[at] = 0.0f;
  }
  if (args.zero_weights && gpu::Wave<kSize>::lane() == 0) args.zero_weights[token] = 0.0f;
}

// By one lane. The failure of the earliest token stands; `code` is the record's lock as long as it holds kBusy.
__device__ __noinline__ inline void report(const KernelArgs& args, ErrorCode code, uint32_t token, int64_t expected,
                                           int64_t got) {
  Status* const status = args.status;
  if (!status) return;
  constexpr int kBusy = -1;
  atomicAdd(&status->failures, 1);
  volatile int64_t* const first = &status->token;
  if (static_cast<uint64_t>(*first) <= token) return;  // -1, none so far, is the largest
  int* const lock = reinterpret_cast<int*>(&status->code);
  int held = kBusy;
  while (held == kBusy) held = atomicExch(lock, kBusy);
  __threadfence();
  if (static_cast<uint64_t>(*first) > token) {
    *first = token;
    *const_cast<volatile int64_t*>(&status->expected) = expected;
    *const_cast<volatile int64_t*>(&status->got) = got;
    held = static_cast<int>(code);
  }
  __threadfence();
  atomicExch(lock, held);
}

// The row of the hash table. False, reported, if the table or the token id is wrong.
template <int kSize>
__device__ bool look_up(const KernelArgs& args, uint32_t token, bool counted, Chosen<kSize>& chosen) {
  using W = gpu::Wave<kSize>;
  const int32_t token_id = args.token_ids[token];
  const bool known = token_id >= 0 && token_id < args.vocabulary;
  if (!known && counted && W::lane() == 0) report(args, ErrorCode::bad_expert_id, token, args.vocabulary, token_id);
  bool good = known;
#pragma unroll
  for (int i = 0; i < Chosen<kSize>::kPerLane; ++i) {
    const uint32_t k = chosen.place(i);
    const bool mine = known && k < args.num_topk;
    const int32_t id = mine ? args.hash_table[static_cast<int64_t>(token_id) * args.num_topk + k] : 0;
    chosen.columns[i] = static_cast<uint32_t>(id);
    const auto bad = W::ballot(mine && chosen.columns[i] >= args.num_columns);
    if (bad == 0) continue;
    const int first = __ffsll(static_cast<unsigned long long>(bad)) - 1;
    if (good && counted && W::lane() == static_cast<uint32_t>(first))
      report(args, ErrorCode::bad_expert_id, token, args.num_columns, id);
    good = false;
  }
  return good;
}

// Shared memory of a wave.
template <int kSize, int kValues>
struct WaveMemory {
  static constexpr uint32_t kValueBytes = kSize * kValues * 4;

  float* values;  // by column: scores where the choice is by score, else logits
  void* scratch;

  __device__ explicit WaveMemory(std::byte* memory)
      : values(reinterpret_cast<float*>(memory)), scratch(memory + kValueBytes) {}

  __device__ void store(const float (&of_slots)[kValues]) const {
#pragma unroll
    for (int run = 0; run < kValues / 4; ++run) {
      const float* const four = of_slots + 4 * run;
      reinterpret_cast<float4*>(values)[column_of<kSize>(4 * run) / 4] = make_float4(four[0], four[1], four[2], four[3]);
    }
  }
};

template <Scoring kScoring, int kValues>
__device__ void score_all(const float (&x)[kValues], const RowFacts& facts, float (&scores)[kValues]) {
#pragma unroll
  for (int slot = 0; slot < kValues; ++slot) scores[slot] = score_of(kScoring, x[slot], facts);
}

// Choices by score; `choices` comes as the bias. The scores stay in memory for those that are chosen.
template <int kSize, int kValues>
__device__ void make_choices(const KernelArgs& args, const float (&x)[kValues], const RowFacts& facts,
                             float (&choices)[kValues], const WaveMemory<kSize, kValues>& memory) {
  float scores[kValues];
  switch (args.scoring) {
    case Scoring::softmax: score_all<Scoring::softmax>(x, facts, scores); break;
    case Scoring::sigmoid: score_all<Scoring::sigmoid>(x, facts, scores); break;
    case Scoring::sqrt_softplus: score_all<Scoring::sqrt_softplus>(x, facts, scores); break;
    case Scoring::topk_softmax: score_all<Scoring::topk_softmax>(x, facts, scores); break;
  }
  memory.store(scores);
#pragma unroll
  for (int slot = 0; slot < kValues; ++slot) choices[slot] = choice_of(scores[slot], choices[slot]);
  mark_absent<kSize>(args, choices);
  if (args.num_groups > 1) close_groups<kSize>(args, choices, memory.scratch);
}

__device__ inline int32_t physical_id(const KernelArgs& args, uint32_t token, uint32_t column) {
  if (column >= args.num_experts) return -1;
  if (!args.replica_offsets) return static_cast<int32_t>(column);
  const int32_t first = args.replica_offsets[column];
  const uint32_t count = static_cast<uint32_t>(args.replica_offsets[column + 1] - first);
  const uint32_t at = static_cast<uint32_t>(first) + (count == 0 ? 0 : token % count);
  return at < static_cast<uint32_t>(args.num_replicas) ? args.replica_ids[at] : -1;
}

// Of the first `count` lanes' values, to those lanes.
template <int kSize>
__device__ float sum_of_first(float value, uint32_t count) {
  using W = gpu::Wave<kSize>;
#pragma unroll
  for (uint32_t distance = 1; distance < kSize; distance *= 2) {
    if (distance >= count) break;
    value += W::shuffle(value, static_cast<int>(W::lane() ^ distance));
  }
  return value;
}

// Where a lane's chosen experts go.
template <int kSize>
struct Outputs {
  std::byte* ids;
  float* weights;
  bool wide;

  __device__ Outputs(const KernelArgs& args, uint32_t token) : wide(args.wide_ids) {
    const int64_t first = static_cast<int64_t>(token) * args.num_topk + gpu::Wave<kSize>::lane();
    ids = static_cast<std::byte*>(args.ids) + first * (wide ? 8 : 4);
    weights = args.weights + first;
  }
  // Of place i * kSize + lane.
  __device__ void write_id(int i, int32_t id) const {
    if (wide) {
      reinterpret_cast<int64_t*>(ids)[i * kSize] = id;
    } else {
      reinterpret_cast<int32_t*>(ids)[i * kSize] = id;
    }
  }
};

// What the experts of a token are chosen by.
enum class Order { logit, score, table };

// Weights of the chosen, and the token's outputs. `by_column`: scores with
// Order::score, else logits.
template <Order kOrder, int kSize>
__device__ void finish(const KernelArgs& args, uint32_t token, RowFacts facts, const Chosen<kSize>& chosen,
                       const float* by_column, const Outputs<kSize>& outputs, bool counted) {
  constexpr int kPerLane = Chosen<kSize>::kPerLane;
  constexpr bool kScored = kOrder == Order::score;
  const bool over_chosen = args.scoring == Scoring::topk_softmax || (args.scoring == Scoring::softmax && !args.needs_sum);
  float values[kPerLane];
  float max = kLowest;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    values[i] = kLowest;
    if (chosen.place(i) < args.num_topk) values[i] = by_column[chosen.columns[i]];
    max = fmaxf(max, values[i]);
  }
  if (over_chosen) {
    const bool is_sorted = kOrder == Order::logit;
    facts = {is_sorted ? gpu::Wave<kSize>::shuffle(values[0], 0) : wave_max_f32<kSize>(max), 1.0f};
  }
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    if (static_cast<uint32_t>(i * kSize) >= args.num_topk) break;
    if (over_chosen || !kScored) values[i] = score_of(over_chosen ? Scoring::softmax : args.scoring, values[i], facts);
    if (chosen.place(i) >= args.num_topk) values[i] = 0.0f;
    sum += values[i];
  }
  float factor = args.scale;
  if (args.renormalize || over_chosen) {
    sum = sum_of_first<kSize>(sum, args.num_topk);
    // A softmax over the chosen has been divided by their sum before it is renormalised.
    if (args.renormalize) sum = over_chosen ? fused(sum, args.renorm_epsilon, sum) : sum + args.renorm_epsilon;
    factor = sum > 0.0f ? factor / sum : 0.0f;
  }
  float zero_weight = 0.0f;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const uint32_t place = chosen.place(i);
    if (!counted || place >= args.num_topk) continue;
    const float weight = values[i] * factor;
    const bool zero_expert = chosen.columns[i] >= args.num_experts;
    if (zero_expert) zero_weight += weight;
    outputs.write_id(i, physical_id(args, token, chosen.columns[i]));
    outputs.weights[i * kSize] = zero_expert ? 0.0f : weight;
  }
  if (args.zero_weights) {
    zero_weight = gpu::wave_sum<kSize>(zero_weight);
    if (counted && gpu::Wave<kSize>::lane() == 0) args.zero_weights[token] = zero_weight;
  }
}

// From a token's logits to its outputs; without `counted` the wave only keeps others company. Order::logit: there is no bias
// and there are no groups; the order of the logits is that of the choice, and only the chosen are scored.
template <int kSize, int kValues, Order kOrder>
__device__ void route_token(const KernelArgs& args, uint32_t token, const std::byte* row, bool counted,
                            const Outputs<kSize>& outputs, const WaveMemory<kSize, kValues>& memory) {
  using W = gpu::Wave<kSize>;
  float choices[kValues];
  if constexpr (kOrder == Order::score) load_bias<kSize>(args, choices);
  float x[kValues];
  const bool has_nan = !load_row<kSize>(args, row, x, memory.values);
  if (has_nan && !args.nan_is_lowest) {
    if (counted) write_nothing<kSize>(args, token);
    if (counted && W::lane() == 0) report(args, ErrorCode::nan_logits, token, 0, 0);
    if (kSize == gpu::kHardwareWave) return;
    counted = false;
  }
  RowFacts facts;
  if (args.needs_sum) facts = softmax_facts<kSize, kOrder == Order::score>(x);
  Chosen<kSize> chosen;
  auto& scratch = *static_cast<Scratch*>(memory.scratch);
  if constexpr (kOrder == Order::score) {
    make_choices<kSize>(args, x, facts, choices, memory);
    const auto choice_at = [&](uint32_t column) {
      return choice_of(memory.values[column], args.bias ? args.bias[column] : 0.0f);
    };
    chosen = select<kSize>(choices, args.num_topk, false, args.num_groups > 1, choice_at, scratch);
  } else {
    memory.store(x);
    if constexpr (kOrder == Order::logit) {
      const bool from_short = args.logits_type != DType::f32 && args.softcap == 0.0f;
      const auto choice_at = [&](uint32_t column) { return memory.values[column]; };
      chosen = select<kSize>(x, args.num_topk, from_short, false, choice_at, scratch);
    } else {
      W::sync();
      if (!look_up<kSize>(args, counted ? token : 0, counted, chosen)) {
        if (counted) write_nothing<kSize>(args, token);
        if (kSize == gpu::kHardwareWave) return;
        counted = false;
        chosen = Chosen<kSize>();
      }
    }
  }
  finish<kOrder>(args, token, facts, chosen, memory.values, outputs, counted);
}

// Blocks of a multiprocessor that registers are rationed for.
constexpr int min_blocks(int wave_size, int num_values, Order order) {
  if (order == Order::table) return 1;
  if (num_values <= 8) return order == Order::score ? 1 : 10;
  if (wave_size < gpu::kHardwareWave) return order == Order::score ? 5 : 7;
  return 1;
}

// Shared memory: `wave_bytes` per wave.
template <int kSize, int kValues, Order kOrder>
__global__ void __launch_bounds__(kMaxThreads, min_blocks(kSize, kValues, kOrder))
    routing_warp(const MIXLANE_GRID_CONSTANT KernelArgs args, uint32_t wave_bytes) {
  extern __shared__ uint4 shared[];
  using W = gpu::Wave<kSize>;
  const uint32_t token = blockIdx.x * (blockDim.x / kSize) + W::index_in_block();
  const WaveMemory<kSize, kValues> memory(reinterpret_cast<std::byte*>(shared) + W::index_in_block() * wave_bytes);
  const std::byte* row = args.logits + (token < args.num_tokens ? token : 0) * args.row_bytes;
  Outputs<kSize> outputs(args, token);
  // Worth it where a multiprocessor has a token or two.
  if (kSize == gpu::kHardwareWave && blockDim.x == kSize) {
    gpu::prefetch_args(args);
    gpu::compute_now(row);
    gpu::compute_now(outputs.ids);
    gpu::compute_now(outputs.weights);
  }
  gpu::wait_for_previous_kernel();
  gpu::allow_next_kernel();
  uint32_t num_valid = args.num_tokens;
  if (args.num_valid_rows) num_valid = static_cast<uint32_t>(min(max(*args.num_valid_rows, 0), static_cast<int>(num_valid)));
  bool counted = token < num_valid;
  if (!counted && token < args.num_tokens) write_nothing<kSize>(args, token);
  // A part of a hardware wave goes on without outputs: shuffles and ballots want all threads.
  if (kSize == gpu::kHardwareWave && !counted) return;

  route_token<kSize, kValues, kOrder>(args, token, counted ? row : args.logits, counted, outputs, memory);
}

}  // namespace mixlane::routing_gpu
