// One wave routes one token; a lane holds kValues of its logits.
#pragma once

#include "ops/routing/expert_groups.cuh"
#include "ops/routing/select.cuh"

namespace mixlane::routing_gpu {

inline constexpr int kMaxThreads = 256;

__device__ inline void write_id(const KernelArgs& args, int64_t at, int32_t id) {
  if (args.wide_ids) {
    static_cast<int64_t*>(args.ids)[at] = id;
  } else {
    static_cast<int32_t*>(args.ids)[at] = id;
  }
}

template <int kSize>
__device__ void write_nothing(const KernelArgs& args, uint32_t token) {
  for (uint32_t k = gpu::Wave<kSize>::lane(); k < args.num_topk; k += kSize) {
    const int64_t at = static_cast<int64_t>(token) * args.num_topk + k;
    write_id(args, at, -1);
    args.weights[at] = 0.0f;
  }
  if (args.zero_weights && gpu::Wave<kSize>::lane() == 0) args.zero_weights[token] = 0.0f;
}

// By one lane. The failure of the earliest token stands; `code` is the record's lock as long as it holds kBusy.
__device__ inline void report(const KernelArgs& args, ErrorCode code, uint32_t token, int64_t expected, int64_t got) {
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
    const uint32_t k = chosen.places[i];
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
template <int kSize, int kValues, bool kByScore>
struct WaveMemory {
  // Of all columns, where the choice is by score; a part of the alignment of what follows.
  static constexpr uint32_t kScoreBytes = kByScore ? kSize * kValues * 4 : 0;

  float* scores;
  void* scratch;

  __device__ explicit WaveMemory(std::byte* memory)
      : scores(reinterpret_cast<float*>(memory)), scratch(memory + kScoreBytes) {}
};

// Scores, and the keys of the order of the choice: 0 for what can't be chosen.
template <Scoring kScoring, int kSize, int kValues>
__device__ void make_score_keys(const KernelArgs& args, const float (&x)[kValues], const RowFacts& facts,
                                float (&choices)[kValues], float* scores, uint32_t (&keys)[kValues]) {
#pragma unroll
  for (int run = 0; run < kValues / 4; ++run) {
    float score[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int slot = 4 * run + i;
      const bool present = column_of<kSize>(slot) < args.num_columns;
      score[i] = score_of(kScoring, x[slot], facts);
      choices[slot] += score[i];
      if (is_nan(choices[slot]) || !present) choices[slot] = kAbsent;
      keys[slot] = present ? gpu::ordered_key(choices[slot]) : 0u;
    }
    reinterpret_cast<float4*>(scores)[column_of<kSize>(4 * run) / 4] = make_float4(score[0], score[1], score[2], score[3]);
  }
}

// `choices` comes as the bias. The scores stay in memory for those that are chosen.
template <int kSize, int kValues>
__device__ void make_keys(const KernelArgs& args, const float (&x)[kValues], const RowFacts& facts,
                          float (&choices)[kValues], const WaveMemory<kSize, kValues, true>& memory,
                          uint32_t (&keys)[kValues]) {
  float* const scores = memory.scores;
  switch (args.scoring) {
    case Scoring::softmax: make_score_keys<Scoring::softmax, kSize>(args, x, facts, choices, scores, keys); break;
    case Scoring::sigmoid: make_score_keys<Scoring::sigmoid, kSize>(args, x, facts, choices, scores, keys); break;
    case Scoring::sqrt_softplus:
      make_score_keys<Scoring::sqrt_softplus, kSize>(args, x, facts, choices, scores, keys);
      break;
    case Scoring::topk_softmax: make_score_keys<Scoring::topk_softmax, kSize>(args, x, facts, choices, scores, keys); break;
  }
  if (args.num_groups > 1) close_groups<kSize>(args, choices, keys, memory.scratch);
}

__device__ inline int32_t physical_id(const KernelArgs& args, uint32_t token, uint32_t column) {
  if (column >= args.num_experts) return -1;
  if (!args.replica_offsets) return static_cast<int32_t>(column);
  const int32_t first = args.replica_offsets[column];
  const uint32_t count = static_cast<uint32_t>(args.replica_offsets[column + 1] - first);
  const uint32_t at = static_cast<uint32_t>(first) + (count == 0 ? 0 : token % count);
  return at < static_cast<uint32_t>(args.num_replicas) ? args.replica_ids[at] : -1;
}

// Weights of the chosen, and the token's outputs. `scores`: by column, or null where only the chosen are scored.
template <int kSize>
__device__ void finish(const KernelArgs& args, uint32_t token, const std::byte* row, RowFacts facts,
                       const Chosen<kSize>& chosen, const float* scores, bool counted) {
  constexpr int kPerLane = Chosen<kSize>::kPerLane;
  const bool over_chosen = args.scoring == Scoring::topk_softmax || (args.scoring == Scoring::softmax && !args.needs_sum);
  float values[kPerLane];
  float max = kAbsent;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    values[i] = kAbsent;
    if (i < chosen.used && chosen.places[i] < args.num_topk) {
      if (scores)
        values[i] = scores[chosen.columns[i]];
      else if (!args.hash_table)
        values[i] = gpu::value_of_key(chosen.keys[i]);
      else
        values[i] = finish_logit(args, load_logit(row, args.logits_type, chosen.columns[i]));
    }
    max = fmaxf(max, values[i]);
  }
  if (over_chosen) facts = {wave_max_f32<kSize>(max), 1.0f};
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    if (i >= chosen.used) break;
    if (over_chosen || !scores) values[i] = score_of(over_chosen ? Scoring::softmax : args.scoring, values[i], facts);
    if (chosen.places[i] >= args.num_topk) values[i] = 0.0f;
    sum += values[i];
  }
  float factor = args.scale;
  if (args.renormalize || over_chosen) sum = gpu::wave_sum<kSize>(sum);
  if (over_chosen) {
    factor /= sum;
    sum = 1.0f;
  }
  if (args.renormalize) factor = sum + args.renorm_epsilon > 0.0f ? factor / (sum + args.renorm_epsilon) : 0.0f;
  float zero_weight = 0.0f;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    if (i >= chosen.used) break;
    if (!counted || chosen.places[i] >= args.num_topk) continue;
    const float weight = values[i] * factor;
    const bool zero_expert = chosen.columns[i] >= args.num_experts;
    if (zero_expert) zero_weight += weight;
    const int64_t at = static_cast<int64_t>(token) * args.num_topk + chosen.places[i];
    write_id(args, at, physical_id(args, token, chosen.columns[i]));
    args.weights[at] = zero_expert ? 0.0f : weight;
  }
  if (args.zero_weights) {
    zero_weight = gpu::wave_sum<kSize>(zero_weight);
    if (counted && gpu::Wave<kSize>::lane() == 0) args.zero_weights[token] = zero_weight;
  }
}

// Shared memory: `wave_bytes` per wave. kByScore: there is a bias or there are groups; else the order of the
// logits is that of the choice, and only the chosen are scored.
template <int kSize, int kValues, bool kByScore>
__global__ void __launch_bounds__(kMaxThreads, kByScore || kValues > 8 ? 1 : 5)
    route_tokens(const MIXLANE_GRID_CONSTANT KernelArgs args, uint32_t wave_bytes) {
  extern __shared__ uint4 shared[];
  // Worth it where a multiprocessor has a token or two.
  if (blockDim.x == gpu::kHardwareWave) gpu::prefetch_args(args);
  gpu::wait_for_previous_kernel();
  gpu::allow_next_kernel();
  using W = gpu::Wave<kSize>;
  const uint32_t token = blockIdx.x * (blockDim.x / kSize) + W::index_in_block();
  uint32_t num_valid = args.num_tokens;
  if (args.num_valid_rows) num_valid = static_cast<uint32_t>(min(max(*args.num_valid_rows, 0), static_cast<int>(num_valid)));
  bool counted = token < num_valid;
  if (!counted && token < args.num_tokens) write_nothing<kSize>(args, token);
  // A part of a hardware wave goes on without outputs: shuffles and ballots want all threads.
  if (kSize == gpu::kHardwareWave && !counted) return;

  const WaveMemory<kSize, kValues, kByScore> memory(reinterpret_cast<std::byte*>(shared) + W::index_in_block() * wave_bytes);
  const uint32_t read_token = counted ? token : 0;
  const std::byte* const row = args.logits + read_token * args.row_bytes;
  float choices[kValues];
  if constexpr (kByScore) load_bias<kSize>(args, choices);
  float x[kValues];
  const bool has_nan = !load_row<kSize>(args, row, x);
  if (has_nan && !args.nan_is_lowest) {
    if (counted) write_nothing<kSize>(args, token);
    if (counted && W::lane() == 0) report(args, ErrorCode::nan_logits, token, 0, 0);
    if (kSize == gpu::kHardwareWave) return;
    counted = false;
  }
  RowFacts facts;
  if (args.needs_sum) facts = softmax_facts<kSize>(x);
  Chosen<kSize> chosen;
  if (!args.hash_table) {
    uint32_t keys[kValues];
    if constexpr (kByScore) {
      make_keys<kSize>(args, x, facts, choices, memory, keys);
    } else {
#pragma unroll
      for (int slot = 0; slot < kValues; ++slot) keys[slot] = gpu::ordered_key(x[slot]);
    }
    chosen = select<kSize>(keys, args.num_topk, *static_cast<Scratch*>(memory.scratch));
  } else if (!look_up<kSize>(args, read_token, counted, chosen)) {
    if (counted) write_nothing<kSize>(args, token);
    if (kSize == gpu::kHardwareWave) return;
    counted = false;
    chosen = Chosen<kSize>();
  }
  const bool is_scored = kByScore && !args.hash_table;
  finish(args, read_token, row, facts, chosen, is_scored ? memory.scores : nullptr, counted);
}

}  // namespace mixlane::routing_gpu
