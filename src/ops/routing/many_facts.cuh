// What a lane of routing_warp_many (many.cuh) finds in its columns.
#pragma once

#include "ops/routing/many_row.cuh"

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

// Looks at the sets of this lane, those with the numbers i * kManyLanes + lane.
template <class Row>
__device__ ManyFacts look_at_sets(const Row& logits) {
  typename Row::Piece pieces[kManySets][Row::kPieces];
#pragma unroll
  for (uint32_t set = 0; set < kManySets; ++set)
#pragma unroll
    for (uint32_t i = 0; i < Row::kPieces; ++i) pieces[set][i] = logits.own_piece(set, i);
  ManyFacts facts;
#pragma unroll
  for (uint32_t set = 0; set < kManySets; ++set) {
    float x[Row::kSetColumns];
#pragma unroll
    for (uint32_t i = 0; i < Row::kPieces; ++i) Row::unpack(pieces[set][i], x + i * Row::kPieceColumns);
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

}  // namespace mixlane::routing_gpu
