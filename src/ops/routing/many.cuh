// The usual routers (usual.cuh) with many tokens: eight lanes route one, so that what a token costs once is shared by the
// tokens of a wave. A lane holds four sets of neighbouring columns:
//
//   load      the row to shared memory, past the registers; from there a lane its sets or, where scores are asked for, an
//             eighth of the row
//   bound     the eight largest of the sets' 32 maxima in descending order, by merging sorted fours between lanes; no other
//             set than the eight best has an expert that is chosen. Sets travel in the last bits of their maxima
//   choose    each lane takes one of those sets and has its best column, so that the lanes' columns are in order; what else
//             reaches the bound, one column in the mean, is inserted
#pragma once

#include "gpu/copy_to_shared.cuh"
#include "ops/routing/many_facts.cuh"
#include "ops/routing/many_select.cuh"

namespace mixlane::routing_gpu {

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

// A token's way from its facts to its outputs.
template <DType kType, int kRuns, Order kOrder>
struct ManyToken {
  using W = gpu::Wave<kManyLanes>;
  using Row = ManyRow<kType, kRuns>;
  using Values = ManyRow<DType::f32, kRuns>;
  static constexpr bool kScored = kOrder == Order::score;
  static constexpr bool kShort = !kScored && kType != DType::f32;  // what is chosen by ends in zeros
  static constexpr uint32_t kSetColumns = Row::kSetColumns;

  Row logits;
  Values scores;  // with kScored, as the biases
  Values biases;
  ManyScratch& scratch;

  __device__ void load_choices(uint32_t set, float (&to)[kSetColumns]) const {
    if constexpr (kScored) {
      float bias[kSetColumns];
      scores.load_set(set, to);
      biases.load_set(set, bias);
#pragma unroll
      for (uint32_t i = 0; i < kSetColumns; ++i) to[i] = choice_of(to[i], bias[i]);
    } else {
      logits.load_set(set, to);
    }
  }

  // As candidates are ranked.
  __device__ float choice(uint32_t set, uint32_t index) const {
    if constexpr (kScored) return choice_of(scores.of_set(set, index), biases.of_set(set, index));
    const float logit = logits.of_set(set, index);
    return kShort ? tag(logit, set * kSetColumns + index) : logit;  // a tag leaves no ties to settle
  }

  // The columns of the set that reach the bound, a bit each from the highest on: the signs of their differences, in two
  // halves that don't wait for each other; a zero's is that of +0.
  __device__ static uint32_t which_reach(float bound, const float (&x)[kSetColumns]) {
    constexpr uint32_t kHalf = kSetColumns / 2;
    const float minus_bound = 0.0f - bound;
    uint32_t below[2] = {};
#pragma unroll
    for (uint32_t i = 0; i < kSetColumns; ++i)
      below[i / kHalf] = below[i / kHalf] << 1 | __float_as_uint(x[i] + minus_bound) >> 31;
    return ~(below[0] << kHalf | below[1]) << (32 - kSetColumns);
  }
  // The first of them; if there is none, some column.
  __device__ Candidate take(uint32_t set, uint32_t& reaching) const {
    constexpr uint32_t kLast = 1u << (32 - kSetColumns);
    const auto index = static_cast<uint32_t>(__clz(static_cast<int>(reaching | kLast)));
    reaching &= 0x7fffffffu >> index;
    return {choice(set, index), set * kSetColumns + index};
  }

  // The best of the lane's columns that reach the bound; the others go to scratch.extras as far as there is room. Returns
  // their number.
  __device__ uint32_t gather(uint32_t set, uint32_t reaching, Candidate& best) const {
    best = take(set, reaching);
    uint32_t total = 0;
    const auto keep_next = [&] {
      const bool has_extra = reaching != 0;
      const auto having = W::ballot(has_extra);
      const uint32_t at = total + static_cast<uint32_t>(W::count(having & W::lanes_below()));
      total += static_cast<uint32_t>(W::count(having));
      const Candidate next = take(set, reaching);
      const bool is_better = has_extra & (next.choice > best.choice);
      const Candidate extra = either(is_better, best, next);
      if (has_extra & (at < ManyScratch::kExtras)) scratch.extras[at] = extra;
      best = either(is_better, next, best);
    };
    keep_next();
#pragma unroll 1
    while (any_beside(reaching != 0)) keep_next();
    return total;
  }

  struct Chosen {
    Candidate own;  // of this lane's place
    float highest;  // of all places, as candidates' choices
    bool is_valid;  // false if there are too many candidates
  };

  __device__ void insert_extras(uint32_t total, Candidate& own) const {
    Candidate pair[2];
    scratch.load_pair(0, pair);
    insert<kShort>(pair[0], own);
    insert<kShort>(pair[1], own);
    // Few waves have a token with more.
#pragma unroll 1
    for (uint32_t i = 2; any_beside(i < total); i += 2) {
      scratch.load_pair(i, pair);
      if (i >= total) pair[0].choice = kLowest;
      if (i + 1 >= total) pair[1].choice = kLowest;
      insert<kShort>(pair[0], own);
      insert<kShort>(pair[1], own);
    }
  }

  __device__ Chosen choose(const float (&maxima)[kManySets], ManyBound& bound) const {
    float own[kSetColumns];
    load_choices(bound.set, own);
    const bool was_near = !kShort && any_beside(bound.is_near) && settle_near_sets<kScored>(maxima, bound);
    if (was_near) load_choices(bound.set, own);
    Chosen chosen{};
    const uint32_t num_extras = gather(bound.set, which_reach(bound.value(), own), chosen.own);
    if (was_near) sort_lanes(chosen.own);
    chosen.highest = W::shuffle(chosen.own.choice, 0);
    chosen.is_valid = num_extras <= ManyScratch::kExtras;
    W::sync();
    insert_extras(min(num_extras, ManyScratch::kExtras), chosen.own);
    return chosen;
  }

  __device__ void write(const KernelArgs& args, uint32_t token, bool is_chosen, bool counted, const Chosen& chosen) const {
    const bool writes = is_chosen && W::lane() < args.num_topk;
    const auto untagged = [](float choice) {
      return __uint_as_float(__float_as_uint(choice) & (kShort ? 0xffff0000u : ~0u));
    };
    float weight;
    if constexpr (kScored)
      weight = scores.column(chosen.own.column);
    else
      weight = exp_below(untagged(chosen.own.choice), untagged(chosen.highest));
    weight = writes ? weight : 0.0f;
    float sum = gpu::wave_sum<kManyLanes>(weight);
    // A softmax over the chosen has been divided by their sum before it is renormalised.
    const float epsilon = args.renormalize ? args.renorm_epsilon : 0.0f;
    sum = kScored ? sum + epsilon : fused(sum, epsilon, sum);
    const float quotient = sum > 0.0f ? args.scale * gpu::approximate_reciprocal(sum) : 0.0f;
    const float factor = kScored && !args.renormalize ? args.scale : quotient;
    if (counted && writes) {
      const uint32_t at = token * args.num_topk + W::lane();
      static_cast<int32_t*>(args.ids)[at] = static_cast<int32_t>(chosen.own.column);
      args.weights[at] = weight * factor;
    }
  }
};

// As routing_warp_usual; groups are those of 256 columns, of which at least two are open.
template <DType kType, int kRuns, Order kOrder, bool kGrouped>
__global__ void __launch_bounds__(kManyThreads, (many_resident_blocks<kType, kRuns, kOrder == Order::score>()))
    routing_warp_many(const MIXLANE_GRID_CONSTANT KernelArgs args) {
  using W = gpu::Wave<kManyLanes>;
  using Token = ManyToken<kType, kRuns, kOrder>;
  using Row = typename Token::Row;
  constexpr bool kScored = Token::kScored;
  constexpr uint32_t kTokens = kManyThreads / kManyLanes;
  constexpr uint32_t kRowBytes = many_row_bytes<kType, kRuns, kScored>();
  extern __shared__ __align__(128) std::byte many_memory[];
  const uint32_t lane = W::lane();
  const uint32_t index = blockIdx.x * kTokens + W::index_in_block();
  std::byte* const memory = many_memory + W::index_in_block() * kRowBytes;
  const Token token{{memory},
                    {memory + (kType == DType::f32 ? 0 : Row::kBytes)},
                    {many_memory + kTokens * (kRowBytes + sizeof(ManyScratch))},  // of the block
                    reinterpret_cast<ManyScratch*>(many_memory + kTokens * kRowBytes)[W::index_in_block()]};
  const std::byte* const row = args.logits + (index < args.num_tokens ? index : 0) * args.row_bytes;
  token.scratch.clear();
  gpu::wait_for_previous_kernel();
  gpu::allow_next_kernel();

#pragma unroll
  for (int i = 0; i < Row::kChunks; ++i)
    gpu::copy_to_shared(&token.logits.chunk_of_all(i), reinterpret_cast<const uint4*>(row) + i * kManyLanes + lane);
  if (kScored && threadIdx.x < 32 * kRuns)
    gpu::copy_to_shared(&token.biases.chunk(threadIdx.x), reinterpret_cast<const uint4*>(args.bias) + threadIdx.x);
  auto num_valid = static_cast<int32_t>(args.num_tokens);
  if (args.num_valid_rows) num_valid = min(*args.num_valid_rows, num_valid);
  const bool counted = static_cast<int32_t>(index) < num_valid;
  gpu::wait_for_copies();
  ManyFacts facts;
  if constexpr (kScored) {
    __syncthreads();
    facts = score_columns<kGrouped>(token.logits, token.scores, token.biases);
    bool is_open = true;
    if constexpr (kGrouped) {
      is_open = many_group_is_open(args, facts.top);
      facts.products += facts.top.first + facts.top.second;
    }
#pragma unroll
    for (float& of_set : facts.maxima) {
      facts.products += fmaxf(of_set, 0.0f);  // a bias may be infinite, which no tag survives
      of_set = is_open ? fmaxf(of_set, kLeastMaximum) : kLeastMaximum;
    }
    W::sync();
  } else {
    W::sync();
    facts = look_at_sets(token.logits);
  }
  ManyBound bound = find_sets<kScored, Token::kShort>(facts.maxima);
  const bool is_finite = fabsf(facts.products) <= kMaxLogit && bound.value() > -kMaxLogit;
  const typename Token::Chosen chosen = token.choose(facts.maxima, bound);
  const bool is_usual = W::ballot(!is_finite) == 0 && chosen.is_valid;
  token.write(args, index, is_usual, counted, chosen);
  if (!counted && index < args.num_tokens) write_nothing<kManyLanes>(args, index);
  const uint32_t unusual = gpu::Wave<32>::ballot(counted && !is_usual);
  if (unusual != 0)
    route_unusual_ones<4 * kRuns, kOrder>(args, unusual, index - W::index_in_block() % 4,
                                          many_memory + W::index_in_block() / 4 * 4 * kRowBytes);
}

}  // namespace mixlane::routing_gpu
