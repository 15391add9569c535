// The usual routers: few experts per token out of whole runs of logits, ids and weights and nothing else. Everything that a
// router may be besides is decided before the launch, so that a token's way is straight: where a multiprocessor has a token
// or two, nothing hides the wait for an argument and for the branch on it.
#pragma once

#include "ops/routing/kernel.cuh"

namespace mixlane::routing_gpu {

inline constexpr uint32_t kUsualTopk = 8;
inline constexpr uint32_t kUsualGroups = 8;  // of 32 experts each
inline constexpr uint32_t kUsualLeft = 32;   // candidates, one of a lane
inline constexpr uint32_t kUsualParts = 16;  // of a row; twice as many as are chosen leave few candidates

// A wave's shared memory.
struct UsualScratch {
  ulonglong2 candidates[kUsualLeft / 2];  // pairs of ranked(); 0 where there is none
  uint4 parts[kUsualParts / 4];           // keys
  uint2 best[kUsualTopk];                 // by place: the column, and the bits of the weight before it is divided
};
static_assert(sizeof(UsualScratch) <= sizeof(Scratch));

// What a candidate is ranked by: of two equal ones the lower column's is the larger.
__device__ inline uint64_t ranked(uint32_t key, uint32_t column) { return static_cast<uint64_t>(key) << 32 | ~column; }

// The larger two of four and of pairs, as keys.
struct TopKeys {
  uint32_t first;
  uint32_t second;

  __device__ static TopKeys of_run(const uint32_t* keys) {
    const TopKeys low{max(keys[0], keys[1]), min(keys[0], keys[1])};
    const TopKeys high{max(keys[2], keys[3]), min(keys[2], keys[3])};
    return low.merged(high);
  }
  __device__ TopKeys merged(const TopKeys& other) const {
    return {max(first, other.first), max(min(first, other.first), max(second, other.second))};
  }
};

// What two columns of every open group reach, and no column of a closed one: a bound for every run. A group is a run of
// eight lanes.
__device__ inline void usual_group_bounds(const KernelArgs& args, const uint32_t (&keys)[8], uint32_t (&bounds)[2]) {
  using W = gpu::Wave<32>;
  constexpr uint32_t kPerRun = kUsualGroups / 2;
  TopKeys top[2] = {TopKeys::of_run(keys), TopKeys::of_run(keys + 4)};
#pragma unroll
  for (uint32_t distance = 1; distance < 8; distance *= 2) {
    const int other = static_cast<int>(W::lane() ^ distance);
#pragma unroll
    for (TopKeys& of_run : top) of_run = of_run.merged({W::shuffle(of_run.first, other), W::shuffle(of_run.second, other)});
  }
  uint32_t scores[2];
#pragma unroll
  for (int run = 0; run < 2; ++run) {
    const float first = gpu::value_of_key(top[run].first);
    const float sum = first + gpu::value_of_key(top[run].second);
    scores[run] = gpu::ordered_key((args.group_score == GroupScore::max ? first : sum) + 0.0f);
  }
  // The best groups are those with fewer than topk_groups better ones; equal ones by ascending index.
  const uint32_t in_run = W::lane() / 8;
  uint32_t better[2] = {};
#pragma unroll
  for (uint32_t group = 0; group < kUsualGroups; ++group) {
    const uint32_t theirs = W::shuffle(scores[group / kPerRun], static_cast<int>(group % kPerRun * 8));
#pragma unroll
    for (uint32_t run = 0; run < 2; ++run) {
      const bool before = group < run * kPerRun + in_run;
      better[run] += before ? theirs >= scores[run] : theirs > scores[run];
    }
  }
  uint32_t least = ~0u;
#pragma unroll
  for (int run = 0; run < 2; ++run)
    if (better[run] < args.topk_groups) least = min(least, top[run].second);
  least = ~gpu::wave_max<32>(~least);
#pragma unroll
  for (int run = 0; run < 2; ++run) bounds[run] = better[run] < args.topk_groups ? least : ~0u;
}

// What at least eight columns reach: the eighth largest of the maxima of disjoint parts, those of two lanes.
template <int kValues>
__device__ uint32_t usual_bound(const uint32_t (&keys)[kValues], UsualScratch& scratch) {
  using W = gpu::Wave<32>;
  uint32_t largest[4] = {keys[0], keys[1], keys[2], keys[3]};
#pragma unroll
  for (int slot = 4; slot < kValues; ++slot) largest[slot % 4] = max(largest[slot % 4], keys[slot]);
  uint32_t part = max(max(largest[0], largest[1]), max(largest[2], largest[3]));
  part = max(part, W::shuffle(part, static_cast<int>(W::lane() ^ kUsualParts)));
  reinterpret_cast<uint32_t*>(scratch.parts)[W::lane() % kUsualParts] = part;
  W::sync();
  uint32_t above = 0;
#pragma unroll
  for (const uint4& four : scratch.parts) above += (four.x > part) + (four.y > part) + (four.z > part) + (four.w > part);
  return ~gpu::wave_max<32>(above < kUsualTopk ? ~part : 0u);
}

template <int kValues>
struct Keys {
  uint32_t of[kValues];
};

struct TightBound {
  uint32_t bound;
  Places places;  // of what reaches it
};

// A higher bound for the keys that reach the first; others are 0. Rarely called.
template <int kValues>
__device__ __noinline__ TightBound tighten(const Keys<kValues> keys, UsualScratch& scratch) {
  const uint32_t bound = max(usual_bound(keys.of, scratch), 1u);
  uint32_t count = 0;
#pragma unroll
  for (int slot = 0; slot < kValues; ++slot) count += keys.of[slot] >= bound;
  return {bound, places_for<32, kValues>(count)};
}

// Rows with NaNs or infinities, and those in which too many columns are equal.
template <int kValues, Order kOrder>
__device__ __noinline__ void route_unusual(const KernelArgs& args, uint32_t token, std::byte* memory) {
  route_token<32, kValues, kOrder>(args, token, args.logits + token * args.row_bytes, true, Outputs<32>(args, token),
                                   WaveMemory<32, kValues>(memory));
}

// Shared memory: `wave_bytes` per wave, at least for route_token(). kRuns: of 128 columns. Order::logit: weights are a
// softmax over the chosen. Order::score: there is a bias and scores are sigmoids; kGrouped: eight groups of 32, of which
// topk_groups hold at least half as many as are chosen.
template <DType kType, int kRuns, Order kOrder, bool kGrouped>
__global__ void __launch_bounds__(kMaxThreads)
    routing_warp_usual(const MIXLANE_GRID_CONSTANT KernelArgs args, uint32_t wave_bytes) {
  constexpr int kValues = 4 * kRuns;
  constexpr bool kScored = kOrder == Order::score;
  extern __shared__ uint4 shared[];
  using W = gpu::Wave<32>;
  const uint32_t lane = W::lane();
  const uint32_t wave = W::shuffle(W::index_in_block(), 0);  // so that compilers see that it is one for all lanes
  const uint32_t token = blockIdx.x * (blockDim.x / 32) + wave;
  std::byte* const memory = reinterpret_cast<std::byte*>(shared) + wave * wave_bytes;
  auto* const values = reinterpret_cast<float*>(memory);
  auto& scratch = *reinterpret_cast<UsualScratch*>(memory + WaveMemory<32, kValues>::kValueBytes);
  const std::byte* row = args.logits + (token < args.num_tokens ? token : 0) * args.row_bytes;
  gpu::prefetch_args(args);
  gpu::compute_now(row);
  reinterpret_cast<uint64_t*>(scratch.candidates)[lane] = 0;
  if (lane < kUsualTopk) scratch.best[lane] = make_uint2(0, 0);
  W::sync();
  gpu::wait_for_previous_kernel();
  gpu::allow_next_kernel();

  auto num_valid = static_cast<int32_t>(args.num_tokens);
  if (args.num_valid_rows) num_valid = min(*args.num_valid_rows, num_valid);
  float4 bias[kRuns];
  if constexpr (kScored) {
#pragma unroll
    for (int run = 0; run < kRuns; ++run) bias[run] = reinterpret_cast<const float4*>(args.bias)[run * 32 + lane];
  }
  using Run = std::conditional_t<kType == DType::f32, float4, uint2>;
  Run runs[kRuns];
#pragma unroll
  for (int run = 0; run < kRuns; ++run) runs[run] = reinterpret_cast<const Run*>(row)[run * 32 + lane];
  if (static_cast<int32_t>(token) >= num_valid) {
    if (token < args.num_tokens) write_nothing<32>(args, token);
    return;
  }

  float zeros[2] = {};  // or NaN, if a logit is not finite
  uint32_t keys[kValues];
#pragma unroll
  for (int run = 0; run < kRuns; ++run) {
    float x[4];
    if constexpr (kType == DType::f32) {
      x[0] = runs[run].x;
      x[1] = runs[run].y;
      x[2] = runs[run].z;
      x[3] = runs[run].w;
    } else {
      x[0] = __uint_as_float(runs[run].x << 16);
      x[1] = __uint_as_float(runs[run].x & 0xffff0000u);
      x[2] = __uint_as_float(runs[run].y << 16);
      x[3] = __uint_as_float(runs[run].y & 0xffff0000u);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) zeros[i % 2] = fused(x[i], 0.0f, zeros[i % 2]);
    if constexpr (kScored) {
#pragma unroll
      for (float& of_column : x) of_column = sigmoid_f32(of_column);
      reinterpret_cast<float4*>(values)[run * 32 + lane] = make_float4(x[0], x[1], x[2], x[3]);
      const float of_run[4] = {bias[run].x, bias[run].y, bias[run].z, bias[run].w};
#pragma unroll
      for (int i = 0; i < 4; ++i) x[i] = choice_of(x[i], of_run[i]);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) keys[4 * run + i] = gpu::ordered_key(kScored ? x[i] : x[i] + 0.0f);
  }

  uint32_t bounds[kGrouped ? 2 : 1];
  if constexpr (kGrouped)
    usual_group_bounds(args, keys, bounds);
  else
    bounds[0] = usual_bound(keys, scratch);
  uint32_t count = 0;
#pragma unroll
  for (int slot = 0; slot < kValues; ++slot) count += keys[slot] >= bounds[kGrouped ? slot / 4 : 0];
  Places places = places_for<32, kValues>(count);
  if constexpr (kGrouped) {
    // One in a few thousand tokens: a group is open for its best column, and its second is a low bound.
    if (places.total > kUsualLeft) {
      Keys<kValues> open;
#pragma unroll
      for (int slot = 0; slot < kValues; ++slot) open.of[slot] = keys[slot] >= bounds[slot / 4] ? keys[slot] : 0;
      const TightBound tight = tighten(open, scratch);
      bounds[0] = bounds[1] = tight.bound;
      places = tight.places;
#pragma unroll
      for (int slot = 0; slot < kValues; ++slot) keys[slot] = open.of[slot];
    }
  }
  const bool is_unusual = W::ballot(is_nan(zeros[0] + zeros[1])) != 0 || places.total > kUsualLeft;
  if (is_unusual) {
    W::sync();
    return route_unusual<kValues, kOrder>(args, token, memory);
  }
  auto* const all = reinterpret_cast<uint64_t*>(scratch.candidates);
  uint64_t* next = all + places.first;
#pragma unroll
  for (int slot = 0; slot < kValues; ++slot) {
    if (keys[slot] < bounds[kGrouped ? slot / 4 : 0]) continue;
    *next++ = ranked(keys[slot], column_of<32>(slot));
  }
  W::sync();
  const uint64_t mine = all[lane];
  const bool is_candidate = lane < places.total;
  const uint32_t column = is_candidate ? ~static_cast<uint32_t>(mine) : 0;
  const auto key = static_cast<uint32_t>(mine >> 32);
  float weight;
  if constexpr (kScored) {
    weight = values[column];
  } else {
    const float max = gpu::value_of_key(gpu::wave_max<32>(key));
    weight = exp_below(is_candidate ? gpu::value_of_key(key) : max, max);
  }
  uint32_t above = 0;
#pragma unroll
  for (uint32_t first = 0; first < kUsualLeft; first += 16) {
    if (first >= places.total) break;
#pragma unroll
    for (uint32_t pair = first / 2; pair < first / 2 + 8; ++pair) {
      const ulonglong2 two = scratch.candidates[pair];
      above += two.x > mine;
      above += two.y > mine;
    }
  }
  if (above < args.num_topk) scratch.best[above] = make_uint2(column, __float_as_uint(weight));
  W::sync();
  const uint2 chosen = scratch.best[lane % kUsualTopk];
  float sum = 0.0f;
#pragma unroll
  for (uint32_t pair = 0; pair < kUsualTopk / 2; ++pair) {
    const uint4 two = reinterpret_cast<const uint4*>(scratch.best)[pair];
    sum += __uint_as_float(two.y) + __uint_as_float(two.w);
  }
  // A softmax over the chosen has been divided by their sum before it is renormalised.
  const float epsilon = args.renormalize ? args.renorm_epsilon : 0.0f;
  sum = kScored ? sum + epsilon : fused(sum, epsilon, sum);
  const float quotient = sum > 0.0f ? args.scale * gpu::approximate_reciprocal(sum) : 0.0f;
  const float factor = kScored && !args.renormalize ? args.scale : quotient;
  if (lane >= args.num_topk) return;
  const uint32_t at = token * args.num_topk + lane;
  static_cast<int32_t*>(args.ids)[at] = static_cast<int32_t>(chosen.x);
  args.weights[at] = __uint_as_float(chosen.y) * factor;
}

}  // namespace mixlane::routing_gpu
