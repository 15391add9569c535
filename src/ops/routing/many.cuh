// The usual routers (usual.cuh) with many tokens: eight lanes route one, so that what a token costs once is shared by the
// tokens of a wave. A lane holds four sets of neighbouring columns:
//
//   load      logits to their sets' lanes and to shared memory; where scores are asked for from there, an eighth of the row
//             to a lane
//   bound     the eighth largest of the sets' 32 maxima, by merging sorted fours between lanes; no other set than the eight
//             best has an expert that is chosen. Sets travel in the last bits of their maxima
//   gather    each lane takes one of those sets; what reaches the bound, nine columns in the mean, is a candidate
//   rank      the place of a candidate is the number of larger ones
#pragma once

#include "ops/routing/many_select.cuh"

namespace mixlane::routing_gpu {

template <uint32_t kCount>
__device__ float largest(const float (&x)[kCount]) {
  float high = kLowest;
#pragma unroll
  for (uint32_t i = 0; i < kCount; i += 4) {
    const float of_run = fmaxf(fmaxf(x[i], x[i + 1]), fmaxf(x[i + 2], x[i + 3]));
    high = i == 0 ? of_run : fmaxf(high, of_run);
  }
  return high;
}

template <uint32_t kCount>
__device__ TopTwo top_two(const float (&x)[kCount]) {
  TopTwo top;
#pragma unroll
  for (uint32_t i = 0; i < kCount; i += 4) {
    const float first = fmaxf(x[i], x[i + 1]);
    const float second = fmaxf(x[i + 2], x[i + 3]);
    const float of_run = fmaxf(first, second);
    const float next = fmaxf(fminf(first, second), fmaxf(fminf(x[i], x[i + 1]), fminf(x[i + 2], x[i + 3])));
    top.second = i == 0 ? next : fmaxf(fminf(top.first, of_run), fmaxf(top.second, next));
    top.first = i == 0 ? of_run : fmaxf(top.first, of_run);
  }
  return top;
}

// What a lane finds in its columns.
struct ManyFacts {
  float maxima[kManySets];  // of the choices of its sets
  TopTwo top;               // of all of them
  float products = 0.0f;    // of neighbouring logits, added up: not finite if a logit is not, or as large as none is
};

template <uint32_t kCount>
__device__ void add_products(const float (&x)[kCount], float& products) {
#pragma unroll
  for (uint32_t i = 0; i < kCount; i += 2) products = fused(x[i], x[i + 1], products);
}

// This lane's sets are those with the numbers i * kManyLanes + lane.
template <class Row>
__device__ void load_sets(const std::byte* row, typename Row::Piece (&pieces)[kManySets][Row::kPieces]) {
  const auto* const from = reinterpret_cast<const typename Row::Piece*>(row) + gpu::Wave<kManyLanes>::lane() * Row::kPieces;
#pragma unroll
  for (uint32_t set = 0; set < kManySets; ++set)
#pragma unroll
    for (uint32_t i = 0; i < Row::kPieces; ++i) pieces[set][i] = from[set * kManyLanes * Row::kPieces + i];
}

// Looks at them and leaves them in shared memory.
template <class Row>
__device__ ManyFacts look_at_sets(const typename Row::Piece (&pieces)[kManySets][Row::kPieces], const Row& logits) {
  ManyFacts facts;
#pragma unroll
  for (uint32_t set = 0; set < kManySets; ++set) {
    float x[Row::kSetColumns];
#pragma unroll
    for (uint32_t i = 0; i < Row::kPieces; ++i) {
      logits.own_piece(set, i) = pieces[set][i];
      Row::unpack(pieces[set][i], x + i * Row::kPieceColumns);
    }
    add_products(x, facts.products);
    facts.maxima[set] = largest(x);
  }
  return facts;
}

// Looks at the columns of this lane, an eighth of the row in shared memory; `scores` gets theirs.
template <bool kGrouped, class Row, class Scores>
__device__ ManyFacts score_columns(const Row& logits, const Scores& scores, const Scores& biases) {
  constexpr int kRuns = static_cast<int>(Row::kColumns / 128);
  ManyFacts facts;
  // Laid out at length they would wait for their instructions.
#pragma unroll 1
  for (int set = 0; set < static_cast<int>(kManySets); ++set) {
    float x[4 * kRuns];
#pragma unroll
    for (int run = 0; run < kRuns; ++run) logits.load_own_run(set * kRuns + run, x + 4 * run);
    add_products(x, facts.products);
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
    float high;
    if constexpr (kGrouped) {
      const TopTwo top = top_two(x);
      high = top.first;
      facts.top.second = fmaxf(fminf(facts.top.first, high), fmaxf(facts.top.second, top.second));
      facts.top.first = fmaxf(facts.top.first, high);
    } else {
      high = largest(x);
    }
    // They go round, so that they stay in registers.
    facts.maxima[0] = facts.maxima[1];
    facts.maxima[1] = facts.maxima[2];
    facts.maxima[2] = facts.maxima[3];
    facts.maxima[3] = high;
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

  // Of a column of a set, as candidates are ranked.
  __device__ float choice(uint32_t set, uint32_t index) const {
    if constexpr (kScored) return choice_of(scores.of_set(set, index), biases.of_set(set, index));
    const float logit = logits.of_set(set, index);
    return kShort ? tag(logit, set * kSetColumns + index) : logit;  // leaves fewer ties to settle
  }

  // Writes the candidates and returns their number; more than kManyLeft are counted but not written. `takes`: false if
  // one of each set is enough.
  __device__ uint32_t gather(const ManyBound& bound, bool takes) const {
    float own[kSetColumns];
    load_choices(bound.set, own);
    // The signs of their differences, one behind the other; a zero's is that of +0.
    const float minus_bound = 0.0f - bound.value;
    uint32_t below = 0;
#pragma unroll
    for (uint32_t i = 0; i < kSetColumns; ++i) below = below << 1 | __float_as_uint(own[i] + minus_bound) >> 31;
    uint32_t reaching = ~below & ((1u << kSetColumns) - 1);
    const auto write_next = [&](uint32_t at) {
      const auto leading = static_cast<uint32_t>(__clz(static_cast<int>(reaching | 1)));
      const uint32_t index = leading - (32 - kSetColumns);
      scratch.choices[at] = choice(bound.set, index);
      scratch.columns[at] = bound.set * kSetColumns + index;
      reaching &= 0x7fffffffu >> leading;
    };
    write_next(W::lane());
    uint32_t total = kManyLanes;
    reaching = takes ? reaching : 0;
    while (any_beside(reaching != 0)) {
      const auto having = W::ballot(reaching != 0);
      const uint32_t at = total + static_cast<uint32_t>(W::count(having & W::lanes_below()));
      if (reaching != 0 && at < kManyLeft)
        write_next(at);
      else
        reaching = 0;
      total += static_cast<uint32_t>(W::count(having));
    }
    return total;
  }

  // The eight best, in scratch.best, of `total` candidates; none of none.
  __device__ void choose(uint32_t total, uint32_t num_topk) const {
    W::sync();
    rank_candidates(total, num_topk, scratch);
    W::sync();
    const bool is_tied = (W::lane() < num_topk && scratch.best[W::lane()].y == kNobody) ||
                         (total > num_topk && scratch.best[num_topk].y == kNobody);
    if (any_beside(total > 0 && is_tied)) {
      W::sync();
      rank_equal_candidates(total, num_topk, scratch);
      W::sync();
    }
  }

  __device__ void write(const KernelArgs& args, uint32_t token, bool is_chosen, bool counted) const {
    const uint2 chosen = scratch.best[W::lane()];
    const bool writes = is_chosen && W::lane() < args.num_topk;
    float weight = 0.0f;
    if (writes) {
      constexpr uint32_t kUntagged = kShort ? 0xffff0000u : ~0u;
      if constexpr (kScored)
        weight = scores.column(chosen.y);
      else
        weight = exp_below(__uint_as_float(chosen.x & kUntagged), __uint_as_float(scratch.best[0].x & kUntagged));
    }
    float sum = gpu::wave_sum<kManyLanes>(weight);
    // A softmax over the chosen has been divided by their sum before it is renormalised.
    const float epsilon = args.renormalize ? args.renorm_epsilon : 0.0f;
    sum = kScored ? sum + epsilon : fused(sum, epsilon, sum);
    const float quotient = sum > 0.0f ? args.scale * gpu::approximate_reciprocal(sum) : 0.0f;
    const float factor = kScored && !args.renormalize ? args.scale : quotient;
    if (counted && writes) {
      const uint32_t at = token * args.num_topk + W::lane();
      static_cast<int32_t*>(args.ids)[at] = static_cast<int32_t>(chosen.y);
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
  reinterpret_cast<float4*>(token.scratch.choices)[lane] = make_float4(kLowest, kLowest, kLowest, kLowest);
  token.scratch.best[lane].y = kNobody;
  token.scratch.best[lane + 1].y = kNobody;
  gpu::wait_for_previous_kernel();
  gpu::allow_next_kernel();

  ManyFacts facts;
  bool is_open = true;
  auto num_valid = static_cast<int32_t>(args.num_tokens);
  const auto count_rows = [&] {
    if (args.num_valid_rows) num_valid = min(*args.num_valid_rows, num_valid);
  };
  if constexpr (kScored) {
    uint4 chunks[Row::kChunks];
#pragma unroll
    for (int i = 0; i < Row::kChunks; ++i) chunks[i] = reinterpret_cast<const uint4*>(row)[i * kManyLanes + lane];
    count_rows();
#pragma unroll
    for (int i = 0; i < Row::kChunks; ++i) token.logits.chunk_of_all(i) = chunks[i];
    if (threadIdx.x < 32 * kRuns) token.biases.chunk(threadIdx.x) = reinterpret_cast<const uint4*>(args.bias)[threadIdx.x];
    __syncthreads();
    facts = score_columns<kGrouped>(token.logits, token.scores, token.biases);
    if constexpr (kGrouped) {
      is_open = many_group_is_open(args, facts.top);
      facts.products += facts.top.first + facts.top.second;
    }
#pragma unroll
    for (float& of_set : facts.maxima) {
      facts.products += fmaxf(of_set, 0.0f);  // a bias may be infinite, which no tag survives
      of_set = is_open ? fmaxf(of_set, kLeastMaximum) : kLeastMaximum;
    }
  } else {
    typename Row::Piece pieces[kManySets][Row::kPieces];
    load_sets<Row>(row, pieces);
    count_rows();
    facts = look_at_sets<Row>(pieces, token.logits);
  }
  const bool counted = static_cast<int32_t>(index) < num_valid;
  const ManyBound bound = find_sets<kScored, Token::kShort>(facts.maxima);
  W::sync();
  const bool is_finite = fabsf(facts.products) <= kMaxLogit && bound.value > -kMaxLogit;
  bool is_usual = W::ballot(!is_finite) == 0;
  const uint32_t total = token.gather(bound, is_usual);
  is_usual = is_usual && total <= kManyLeft;
  token.choose(is_usual ? total : 0, args.num_topk);
  token.write(args, index, is_usual, counted);
  if (!counted && index < args.num_tokens) write_nothing<kManyLanes>(args, index);
  const uint32_t unusual = gpu::Wave<32>::ballot(counted && !is_usual);
  if (unusual != 0)
    route_unusual_ones<4 * kRuns, kOrder>(args, unusual, index - W::index_in_block() % 4,
                                          many_memory + W::index_in_block() / 4 * 4 * kRowBytes);
}

}  // namespace mixlane::routing_gpu
