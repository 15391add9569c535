// The usual routers (usual.cuh) with many tokens: eight lanes route one, so that what a token costs once is shared by the
// tokens of a wave. A lane holds an eighth of the row, in four sets of neighbouring columns:
//
//   load      coalesced into shared memory, then every lane its own columns
//   bound     the eighth largest of the sets' 32 maxima, by merging sorted fours between lanes; no other set than the eight
//             best has an expert that is chosen
//   gather    each lane takes one of those sets; what reaches the bound, nine columns in the mean, is a candidate
//   rank      the place of a candidate is the number of larger ones
#pragma once

#include "ops/routing/usual.cuh"

namespace mixlane::routing_gpu {

inline constexpr uint32_t kManyLanes = 8;
inline constexpr uint32_t kManySets = 4;   // of a lane
inline constexpr uint32_t kManyLeft = 32;  // candidates
inline constexpr uint32_t kManyThreads = 128;
inline constexpr uint32_t kLowestBits = 0xff800000u;  // of -inf

// A token's shared memory beside its row. Tokens beside each other read the same member at once, from different banks.
struct alignas(16) ManyScratch {
  uint4 candidates[kManyLeft / 2];  // of each two the bits of its choice and its column; -inf where there is none
  uint2 best[kUsualTopk + 1];       // by place, as far as it is among the chosen or the first behind; kNobody's column
  uint32_t sets[kUsualTopk];        // those that may have chosen columns
};
static_assert(sizeof(ManyScratch) % 128 == 112);

// A token's row in shared memory. Where 16-byte chunks lie: eight lanes that write neighbouring ones, or read each the same
// one of their own, never meet in a bank.
template <DType kType, int kRuns>
struct ManyRow {
  static constexpr uint32_t kColumns = 128 * kRuns;
  static constexpr uint32_t kBytes = kColumns * (kType == DType::f32 ? 4 : 2);
  static constexpr int kChunks = static_cast<int>(kBytes / 16 / kManyLanes);  // of a lane
  std::byte* memory;

  __device__ static uint32_t place(uint32_t chunk) { return (chunk ^ (chunk / 8 & 7u)) * 16; }
  __device__ uint4& chunk(uint32_t index) const { return *reinterpret_cast<uint4*>(memory + place(index)); }
  // As the row lies in global memory, eight chunks at a time.
  __device__ uint4& chunk_of_all(int step) const {
    const uint32_t lane = gpu::Wave<kManyLanes>::lane() * 16;
    return *reinterpret_cast<uint4*>(memory + (lane ^ static_cast<uint32_t>(step % 8 * 16)) + step * 128);
  }
  // Of this lane's own.
  __device__ uint4& own_chunk(int index) const {
    const uint32_t lane = gpu::Wave<kManyLanes>::lane();
    if constexpr (kChunks == 8)
      return *reinterpret_cast<uint4*>(memory + lane * 128 + (lane * 16 ^ static_cast<uint32_t>(index * 16)));
    return chunk(lane * kChunks + index);
  }

  // Four columns: of the row, and of this lane's.
  __device__ void load_run(uint32_t run, float* to) const {
    if constexpr (kType == DType::f32)
      unpack(chunk(run), to);
    else
      unpack(reinterpret_cast<const uint2*>(&chunk(run / 2))[run % 2], to);
  }
  __device__ void load_own_run(int run, float* to) const {
    if constexpr (kType == DType::f32)
      unpack(own_chunk(run), to);
    else
      unpack(reinterpret_cast<const uint2*>(&own_chunk(run / 2))[run % 2], to);
  }
  __device__ float column(uint32_t index) const {
    constexpr uint32_t kPerChunk = kType == DType::f32 ? 4 : 8;
    const std::byte* const at = memory + place(index / kPerChunk);
    if constexpr (kType == DType::f32) return reinterpret_cast<const float*>(at)[index % kPerChunk];
    return __uint_as_float(static_cast<uint32_t>(reinterpret_cast<const uint16_t*>(at)[index % kPerChunk]) << 16);
  }

 private:
  __device__ static void unpack(const uint4& four, float* to) {
    to[0] = __uint_as_float(four.x);
    to[1] = __uint_as_float(four.y);
    to[2] = __uint_as_float(four.z);
    to[3] = __uint_as_float(four.w);
  }
  __device__ static void unpack(const uint2& four, float* to) {
    to[0] = __uint_as_float(four.x << 16);
    to[1] = __uint_as_float(four.x & 0xffff0000u);
    to[2] = __uint_as_float(four.y << 16);
    to[3] = __uint_as_float(four.y & 0xffff0000u);
  }
};

// Shared memory of a token's row. Scores take the logits' place, or lie behind shorter ones. That of a wave's four tokens is
// enough for route_unusual() as well.
template <DType kType, int kRuns, bool kScored>
__host__ __device__ constexpr uint32_t many_row_bytes() {
  constexpr bool kBehind = kScored && kType != DType::f32;
  constexpr uint32_t kBytes = ManyRow<kType, kRuns>::kBytes + (kBehind ? ManyRow<DType::f32, kRuns>::kBytes : 0);
  constexpr uint32_t kUnusual = WaveMemory<32, 4 * kRuns>::kValueBytes + sizeof(Scratch);
  constexpr uint32_t kLeast = (kUnusual / 4 / 128 + 1) * 128;
  return kBytes > kLeast ? kBytes : kLeast;
}

__device__ inline void sort_down(float& high, float& low) {
  const float larger = fmaxf(high, low);
  low = fminf(high, low);
  high = larger;
}
// A bitonic four, largest first.
__device__ inline void merge_four(float (&x)[4]) {
  sort_down(x[0], x[2]);
  sort_down(x[1], x[3]);
  sort_down(x[0], x[1]);
  sort_down(x[2], x[3]);
}

// Of eight lanes with four numbers each.
__device__ inline float eighth_largest(const float (&of_lane)[kManySets]) {
  using W = gpu::Wave<kManyLanes>;
  const auto other = [](uint32_t bits) { return static_cast<int>(W::lane() ^ bits); };
  const bool has_smaller = W::lane() % 2 != 0;  // of the sorted eight that two lanes have
  const auto larger_or_smaller = [&](float a, float b) { return has_smaller ? fminf(a, b) : fmaxf(a, b); };
  float x[4] = {of_lane[0], of_lane[1], of_lane[2], of_lane[3]};
  sort_down(x[0], x[1]);
  sort_down(x[2], x[3]);
  sort_down(x[0], x[2]);
  sort_down(x[1], x[3]);
  sort_down(x[1], x[2]);
  // A sorted eight of two lanes: both have the largest first, so one list is read backwards.
  float y[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) y[i] = W::shuffle(x[3 - i], other(1));
#pragma unroll
  for (int i = 0; i < 4; ++i) x[i] = larger_or_smaller(x[i], y[i]);
  merge_four(x);
  // The eight largest of two such lists, sorted again.
#pragma unroll
  for (int i = 0; i < 4; ++i) y[i] = W::shuffle(x[3 - i], other(3));
#pragma unroll
  for (int i = 0; i < 4; ++i) x[i] = fmaxf(x[i], y[i]);
#pragma unroll
  for (int i = 0; i < 4; ++i) y[i] = W::shuffle(x[i], other(1));
#pragma unroll
  for (int i = 0; i < 4; ++i) x[i] = larger_or_smaller(x[i], y[i]);
  merge_four(x);
  // And of two of those; the smallest is asked for.
#pragma unroll
  for (int i = 0; i < 4; ++i) y[i] = W::shuffle(x[3 - i], other(5));
#pragma unroll
  for (int i = 0; i < 4; ++i) x[i] = fmaxf(x[i], y[i]);
  const float least = fminf(fminf(x[0], x[1]), fminf(x[2], x[3]));
  return fminf(least, W::shuffle(least, other(1)));
}

// What a lane finds in its columns.
struct ManyFacts {
  float maxima[kManySets];  // of the choices
  TopTwo top;               // of all of them
  float products = 0.0f;    // of neighbouring logits, added up: not finite if a logit is not, or as large as none is
};

// Looks at this lane's columns; `scores` gets theirs, if they count.
template <bool kScored, bool kGrouped, class Row, class Scores>
__device__ ManyFacts look_at_columns(const Row& logits, const Scores& scores, const Scores& biases) {
  constexpr int kRuns = static_cast<int>(Row::kColumns / 128);
  ManyFacts facts;
  const auto look_at_set = [&](int set) {
    float x[4 * kRuns];
#pragma unroll
    for (int run = 0; run < kRuns; ++run) logits.load_own_run(set * kRuns + run, x + 4 * run);
#pragma unroll
    for (int i = 0; i < 4 * kRuns; i += 2) facts.products = fused(x[i], x[i + 1], facts.products);
    if constexpr (kScored) {
#pragma unroll
      for (float& of_column : x) of_column = sigmoid_f32(of_column);
#pragma unroll
      for (int run = 0; run < kRuns; ++run) {
        float* const of_run = x + 4 * run;
        scores.own_chunk(set * kRuns + run) = make_uint4(__float_as_uint(of_run[0]), __float_as_uint(of_run[1]),
                                                         __float_as_uint(of_run[2]), __float_as_uint(of_run[3]));
        float bias[4];
        biases.load_own_run(set * kRuns + run, bias);
#pragma unroll
        for (int i = 0; i < 4; ++i) of_run[i] = choice_of(of_run[i], bias[i]);
      }
    }
    float high = kLowest;
    float low = kLowest;
#pragma unroll
    for (int run = 0; run < kRuns; ++run) {
      const float* const four = x + 4 * run;
      const float first = fmaxf(four[0], four[1]);
      const float second = fmaxf(four[2], four[3]);
      const float of_run = fmaxf(first, second);
      if constexpr (kGrouped) {
        const float next = fmaxf(fminf(first, second), fmaxf(fminf(four[0], four[1]), fminf(four[2], four[3])));
        low = run == 0 ? next : fmaxf(fminf(high, of_run), fmaxf(low, next));
      }
      high = run == 0 ? of_run : fmaxf(high, of_run);
    }
    if constexpr (kGrouped) {
      facts.top.second = fmaxf(fminf(facts.top.first, high), fmaxf(facts.top.second, low));
      facts.top.first = fmaxf(facts.top.first, high);
    }
    // They go round, so that they stay in registers.
    facts.maxima[0] = facts.maxima[1];
    facts.maxima[1] = facts.maxima[2];
    facts.maxima[2] = facts.maxima[3];
    facts.maxima[3] = high;
  };
  if constexpr (kScored) {
    // Scores laid out at length would wait for their instructions.
#pragma unroll 1
    for (int set = 0; set < static_cast<int>(kManySets); ++set) look_at_set(set);
  } else {
#pragma unroll
    for (int set = 0; set < static_cast<int>(kManySets); ++set) look_at_set(set);
  }
  return facts;
}

// Whether this lane's group of experts, all columns it has, is open: fewer than topk_groups are better, equal ones by
// ascending index.
__device__ inline bool many_group_is_open(const KernelArgs& args, const TopTwo& top) {
  using W = gpu::Wave<kManyLanes>;
  const float score = args.group_score == GroupScore::max ? top.first : top.first + top.second;
  uint32_t better = 0;
#pragma unroll
  for (uint32_t group = 0; group < kManyLanes; ++group) {
    const float theirs = W::shuffle(score, static_cast<int>(group));
    better += theirs > score ? 1 : 0;
    better += theirs == score && group < W::lane() ? 1 : 0;
  }
  return better < args.topk_groups;
}

// The sets whose maxima are the eight largest, ascending; of equal ones at the bound the first.
__device__ inline void choose_sets(const float (&maxima)[kManySets], float bound, uint32_t* sets) {
  using W = gpu::Wave<kManyLanes>;
  bool chosen[kManySets];
  uint32_t count = 0;
#pragma unroll
  for (uint32_t i = 0; i < kManySets; ++i) {
    chosen[i] = maxima[i] >= bound;
    count += chosen[i];
  }
  uint32_t up_to_mine = W::inclusive_sum(count);
  if (any_beside(W::shuffle(up_to_mine, kManyLanes - 1) > kUsualTopk)) {
    uint32_t num_above = 0;
    uint32_t num_equal = 0;
#pragma unroll
    for (uint32_t i = 0; i < kManySets; ++i) {
      num_above += maxima[i] > bound;
      num_equal += maxima[i] == bound;
    }
    const uint32_t all_above = W::shuffle(W::inclusive_sum(num_above), kManyLanes - 1);
    uint32_t place = all_above + W::inclusive_sum(num_equal) - num_equal;
    count = 0;
#pragma unroll
    for (uint32_t i = 0; i < kManySets; ++i) {
      chosen[i] = maxima[i] > bound || (maxima[i] == bound && place++ < kUsualTopk);
      count += chosen[i];
    }
    up_to_mine = W::inclusive_sum(count);
  }
  uint32_t at = up_to_mine - count;
#pragma unroll
  for (uint32_t i = 0; i < kManySets; ++i)
    if (chosen[i]) sets[at++] = W::lane() * kManySets + i;
}

// The places of `total` candidates: the number of larger ones. Equal ones get one place, and the next one stays empty.
__device__ inline void rank_candidates(uint32_t total, uint32_t num_topk, ManyScratch& scratch) {
  using W = gpu::Wave<kManyLanes>;
  constexpr uint32_t kStep = 2 * kManyLanes;
  const auto* const all = reinterpret_cast<const uint2*>(scratch.candidates);
#pragma unroll 1
  for (uint32_t first = 0; any_beside(first < total); first += kStep) {
    const uint2 own[2] = {all[first + W::lane()], all[first + kManyLanes + W::lane()]};
    float above[2] = {0.0f, 0.0f};
#pragma unroll 1
    for (uint32_t other = 0; any_beside(other < total); other += kStep) {
#pragma unroll
      for (uint32_t pair = 0; pair < kStep / 2; ++pair) {
        const uint4 two = scratch.candidates[other / 2 + pair];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          above[i] += __uint_as_float(two.x) > __uint_as_float(own[i].x) ? 1.0f : 0.0f;
          above[i] += __uint_as_float(two.z) > __uint_as_float(own[i].x) ? 1.0f : 0.0f;
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const auto place = static_cast<uint32_t>(above[i]);
      if (place <= num_topk && first + i * kManyLanes + W::lane() < total) scratch.best[place] = own[i];
    }
  }
}

// The same where some are equal: the lower column first. Little code: it comes from far away, and rarely.
__device__ inline void rank_equal_candidates(uint32_t total, uint32_t num_topk, ManyScratch& scratch) {
  using W = gpu::Wave<kManyLanes>;
  const auto* const all = reinterpret_cast<const uint2*>(scratch.candidates);
#pragma unroll 1
  for (uint32_t at = W::lane(); at < total; at += kManyLanes) {
    const uint2 own = all[at];
    uint32_t place = 0;
#pragma unroll 1
    for (uint32_t other = 0; other < total; ++other) {
      const float choice = __uint_as_float(all[other].x);
      place += choice > __uint_as_float(own.x) || (choice == __uint_as_float(own.x) && all[other].y < own.y) ? 1 : 0;
    }
    if (place < num_topk) scratch.best[place] = own;
  }
}

// The hardware's wave, for those of its tokens that `unusual` says, a bit per lane.
template <int kValues, Order kOrder>
__device__ __noinline__ void route_unusual_ones(const KernelArgs& args, uint32_t unusual, uint32_t first_token,
                                                std::byte* memory) {
  for (uint32_t part = 0; part < gpu::kHardwareWave / kManyLanes; ++part) {
    if ((unusual >> part * kManyLanes & 1) == 0) continue;
    gpu::Wave<32>::sync();
    route_unusual<kValues, kOrder>(args, first_token + part, memory);
  }
}

// As routing_warp_usual; groups are those of 256 columns, of which at least two are open.
template <DType kType, int kRuns, Order kOrder, bool kGrouped>
__global__ void __launch_bounds__(kManyThreads) routing_warp_many(const MIXLANE_GRID_CONSTANT KernelArgs args) {
  using W = gpu::Wave<kManyLanes>;
  using Row = ManyRow<kType, kRuns>;
  constexpr bool kScored = kOrder == Order::score;
  constexpr uint32_t kTokens = kManyThreads / kManyLanes;
  constexpr uint32_t kRowBytes = many_row_bytes<kType, kRuns, kScored>();
  constexpr int kSetColumns = 4 * kRuns;
  extern __shared__ __align__(128) std::byte many_memory[];
  const uint32_t lane = W::lane();
  const uint32_t token = blockIdx.x * kTokens + W::index_in_block();
  std::byte* const memory = many_memory + W::index_in_block() * kRowBytes;
  auto& scratch = reinterpret_cast<ManyScratch*>(many_memory + kTokens * kRowBytes)[W::index_in_block()];
  const Row logits{memory};
  using Values = ManyRow<DType::f32, kRuns>;
  const Values scores{memory + (kType == DType::f32 ? 0 : Row::kBytes)};
  const Values biases{many_memory + kTokens * (kRowBytes + sizeof(ManyScratch))};  // of the block
  const auto* const row =
      reinterpret_cast<const uint4*>(args.logits + (token < args.num_tokens ? token : 0) * args.row_bytes);
#pragma unroll
  for (uint32_t i = 0; i < kManyLeft / 2 / kManyLanes; ++i)
    scratch.candidates[i * kManyLanes + lane] = make_uint4(kLowestBits, 0, kLowestBits, 0);
  scratch.best[lane].y = kNobody;
  scratch.best[lane + 1].y = kNobody;
  gpu::wait_for_previous_kernel();
  gpu::allow_next_kernel();

  uint4 chunks[Row::kChunks];
#pragma unroll
  for (int i = 0; i < Row::kChunks; ++i) chunks[i] = row[i * kManyLanes + lane];
  auto num_valid = static_cast<int32_t>(args.num_tokens);
  if (args.num_valid_rows) num_valid = min(*args.num_valid_rows, num_valid);
  const bool counted = static_cast<int32_t>(token) < num_valid;
#pragma unroll
  for (int i = 0; i < Row::kChunks; ++i) logits.chunk_of_all(i) = chunks[i];
  if constexpr (kScored) {
    if (threadIdx.x < 32 * kRuns) biases.chunk(threadIdx.x) = reinterpret_cast<const uint4*>(args.bias)[threadIdx.x];
    __syncthreads();
  } else {
    W::sync();
  }

  ManyFacts facts = look_at_columns<kScored, kGrouped>(logits, scores, biases);
  if constexpr (kGrouped) {
    const bool is_open = many_group_is_open(args, facts.top);
    facts.products += facts.top.first + facts.top.second;
#pragma unroll
    for (float& of_set : facts.maxima) of_set = is_open ? of_set : kLowest;
  }
  const float bound = eighth_largest(facts.maxima);
  choose_sets(facts.maxima, bound, scratch.sets);
  W::sync();

  const uint32_t set = scratch.sets[lane] % (kManyLanes * kManySets);  // anything, if there are NaNs
  float own[kSetColumns];
#pragma unroll
  for (int run = 0; run < kRuns; ++run) {
    float* const four = own + 4 * run;
    if constexpr (kScored) {
      float bias[4];
      scores.load_run(set * kRuns + run, four);
      biases.load_run(set * kRuns + run, bias);
#pragma unroll
      for (int i = 0; i < 4; ++i) four[i] = choice_of(four[i], bias[i]);
    } else {
      logits.load_run(set * kRuns + run, four);
    }
  }
  uint32_t reaching = 0;
#pragma unroll
  for (int i = 0; i < kSetColumns; ++i)
    if (own[i] >= bound) reaching |= 1u << i;
  const auto count = static_cast<uint32_t>(__popc(reaching));
  const uint32_t up_to_mine = W::inclusive_sum(count);
  const uint32_t num_reaching = W::shuffle(up_to_mine, kManyLanes - 1);
  const bool is_finite = fabsf(facts.products) <= kMaxLogit;
  const bool is_usual = W::ballot(!is_finite) == 0 && num_reaching <= kManyLeft && bound > kLowest;
  const uint32_t total = is_usual ? num_reaching : 0;
  auto* next = reinterpret_cast<uint2*>(scratch.candidates) + (up_to_mine - count);
  reaching = is_usual ? reaching : 0;
#pragma unroll
  for (int i = 0; i < kSetColumns; ++i) {
    if ((reaching >> i & 1) == 0) continue;
    const uint32_t column = set * kSetColumns + i;
    // Short logits leave room to settle ties.
    const bool is_short = !kScored && kType != DType::f32;
    *next++ = make_uint2(__float_as_uint(is_short ? tag(own[i], column) : own[i]), column);
  }
  W::sync();
  rank_candidates(total, args.num_topk, scratch);
  W::sync();
  const bool is_tied = (lane < args.num_topk && scratch.best[lane].y == kNobody) ||
                       (total > args.num_topk && scratch.best[args.num_topk].y == kNobody);
  if (any_beside(is_usual && is_tied)) {
    W::sync();
    rank_equal_candidates(total, args.num_topk, scratch);
    W::sync();
  }

  const uint2 chosen = scratch.best[lane];
  const uint32_t column = chosen.y;
  const bool writes = is_usual && lane < args.num_topk;
  float weight = 0.0f;
  if (writes) {
    if constexpr (kScored)
      weight = scores.column(column);
    else
      weight = exp_below(logits.column(column), logits.column(scratch.best[0].y));
  }
  float sum = gpu::wave_sum<kManyLanes>(weight);
  // A softmax over the chosen has been divided by their sum before it is renormalised.
  const float epsilon = args.renormalize ? args.renorm_epsilon : 0.0f;
  sum = kScored ? sum + epsilon : fused(sum, epsilon, sum);
  const float quotient = sum > 0.0f ? args.scale * gpu::approximate_reciprocal(sum) : 0.0f;
  const float factor = kScored && !args.renormalize ? args.scale : quotient;
  if (counted && writes) {
    const uint32_t at = token * args.num_topk + lane;
    static_cast<int32_t*>(args.ids)[at] = static_cast<int32_t>(column);
    args.weights[at] = weight * factor;
  }
  if (!counted && token < args.num_tokens) write_nothing<kManyLanes>(args, token);
  const uint32_t unusual = gpu::Wave<32>::ballot(counted && !is_usual);
  if (unusual != 0)
    route_unusual_ones<4 * kRuns, kOrder>(args, unusual, token - W::index_in_block() % 4,
                                          many_memory + W::index_in_block() / 4 * 4 * kRowBytes);
}

}  // namespace mixlane::routing_gpu
