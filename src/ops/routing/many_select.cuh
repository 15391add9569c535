// How routing_warp_many (many.cuh) finds the eight best sets of columns and gives candidates their places.
#pragma once

#include "ops/routing/many_row.cuh"

namespace mixlane::routing_gpu {

// A set's maximum whose last bits are the set's number, so that both come through the merging; of two equal ones the lower
// set's is the larger.
struct TaggedSet {
  static constexpr uint32_t kTag = kManyLanes * kManySets - 1;

  // `tag`: kTag less the set's number.
  __device__ static float of(float maximum, uint32_t tag) {
    const uint32_t bits = __float_as_uint(maximum + 0.0f);  // -0 as +0
    return __uint_as_float(((bits & ~kTag) | tag) ^ (sign(bits) & kTag));
  }
  __device__ static uint32_t set(float tagged) {
    const uint32_t bits = __float_as_uint(tagged);
    return (bits ^ ~sign(bits)) & kTag;
  }
  // What any maximum that may have become `tagged` reaches, whatever the set.
  __device__ static float floor(float tagged) {
    const uint32_t bits = __float_as_uint(tagged);
    return __uint_as_float((bits & ~kTag) | (sign(bits) & kTag));
  }
  // Whether another set's maximum may be equal, or in the wrong order.
  __device__ static bool is_near(float tagged, float other) {
    return (__float_as_uint(tagged) ^ __float_as_uint(other)) - 1 < kTag;
  }
  // Sets in the order of their maxima, as far as it matters which are above the one that became `bound`, themselves near it
  // or below. Positive, and the tag is there again.
  __device__ static float exact(float tagged, float maximum, float bound, uint32_t tag) {
    constexpr uint32_t kAbove = 0x60000000u;
    constexpr uint32_t kNear = 0x40000000u;
    constexpr uint32_t kBelow = 0x20000000u;
    const uint32_t bits = __float_as_uint(maximum);
    const uint32_t near = kNear | ((bits ^ sign(bits)) & kTag) * (kTag + 1);
    const bool is_equal = (__float_as_uint(tagged) ^ __float_as_uint(bound)) <= kTag;
    return __uint_as_float((is_equal ? near : tagged > bound ? kAbove : kBelow) | tag);
  }

 private:
  __device__ static uint32_t sign(uint32_t bits) { return static_cast<uint32_t>(static_cast<int32_t>(bits) >> 31); }
};
static_assert((TaggedSet::kTag & (TaggedSet::kTag + 1)) == 0);

// Of a closed group, or lower; a number whose last bits may become anything.
inline constexpr float kLeastMaximum = -0x1.ffffcp127f;

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

// The eight largest of eight lanes' four numbers each: the smallest of them, and one for each lane.
struct EightLargest {
  float eighth;
  float own;
};

__device__ inline EightLargest eight_largest(const float (&of_lane)[kManySets]) {
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
  // And of two of those: lane by lane the same four as in four other lanes, in half of them backwards.
#pragma unroll
  for (int i = 0; i < 4; ++i) y[i] = W::shuffle(x[3 - i], other(5));
#pragma unroll
  for (int i = 0; i < 4; ++i) x[i] = fmaxf(x[i], y[i]);
  const float least = fminf(fminf(x[0], x[1]), fminf(x[2], x[3]));
  return {fminf(least, W::shuffle(least, other(1))), (W::lane() + 2) % kManyLanes < kManyLanes / 2 ? x[0] : x[1]};
}

struct ManyBound {
  float value;   // no chosen column is below it; eight or more of the token reach it
  uint32_t set;  // this lane's of the eight that may have chosen columns; any, if there are NaNs
};

// kNeighbours: a lane's sets are lane * kManySets ..., else step * kManyLanes + lane. kShort: all maxima end in zeros.
template <bool kNeighbours, bool kShort>
__device__ ManyBound find_sets(const float (&maxima)[kManySets]) {
  using W = gpu::Wave<kManyLanes>;
  const auto tag = [](uint32_t set) {
    return TaggedSet::kTag - (kNeighbours ? W::lane() * kManySets + set : set * kManyLanes + W::lane());
  };
  float tagged[kManySets];
#pragma unroll
  for (uint32_t i = 0; i < kManySets; ++i) tagged[i] = TaggedSet::of(maxima[i], tag(i));
  const EightLargest best = eight_largest(tagged);
  ManyBound bound{TaggedSet::floor(best.eighth), TaggedSet::set(best.own)};
  if constexpr (!kShort) {
    // A tag takes nothing from numbers that end in zeros, as those that come from 16 bits do.
    bool has_near = false;
    bool ends_in_zeros = true;
#pragma unroll
    for (uint32_t i = 0; i < kManySets; ++i) {
      has_near |= TaggedSet::is_near(best.eighth, tagged[i]);
      ends_in_zeros &= (__float_as_uint(maxima[i]) & TaggedSet::kTag) == 0;
    }
    const bool keeps_all = W::ballot(!ends_in_zeros) == 0;
    if (any_beside(has_near && !keeps_all)) {
#pragma unroll
      for (uint32_t i = 0; i < kManySets; ++i) tagged[i] = TaggedSet::exact(tagged[i], maxima[i], best.eighth, tag(i));
      bound.set = TaggedSet::set(eight_largest(tagged).own);
    }
  }
  return bound;
}

// How many of four and of `count` are larger; as a number of f32, whose sums don't wait for predicates.
template <int kCount>
__device__ void count_above(const float4& four, const float (&of)[kCount], float (&above)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    above[i] += four.x > of[i] ? 1.0f : 0.0f;
    above[i] += four.y > of[i] ? 1.0f : 0.0f;
    above[i] += four.z > of[i] ? 1.0f : 0.0f;
    above[i] += four.w > of[i] ? 1.0f : 0.0f;
  }
}

// Gives `total` candidates their places: the number of larger ones. Equal ones get one place, and the next one stays empty.
__device__ inline void rank_candidates(uint32_t total, uint32_t num_topk, ManyScratch& scratch) {
  using W = gpu::Wave<kManyLanes>;
  constexpr uint32_t kOwn = 2;
  constexpr float kInteger = 0x1p23f;  // its ulp is 1: sums stand in the last bits
  const auto* const fours = reinterpret_cast<const float4*>(scratch.choices);
  uint32_t first = 0;
  do {
    float own[kOwn];
    float above[kOwn];
    uint32_t columns[kOwn];
#pragma unroll
    for (uint32_t i = 0; i < kOwn; ++i) {
      const uint32_t at = first + i * kManyLanes + W::lane();
      own[i] = scratch.choices[at];
      columns[i] = scratch.columns[at];
      above[i] = kInteger;
    }
    // Most tokens have twelve or fewer.
#pragma unroll
    for (uint32_t i = 0; i < 3; ++i) count_above(fours[i], own, above);
#pragma unroll 1
    for (uint32_t i = 3; any_beside(i * 4 < total); ++i) count_above(fours[i], own, above);
#pragma unroll
    for (uint32_t i = 0; i < kOwn; ++i) {
      const uint32_t place = __float_as_uint(above[i]) - __float_as_uint(kInteger);
      if (place <= num_topk && first + i * kManyLanes + W::lane() < total)
        scratch.best[place] = make_uint2(__float_as_uint(own[i]), columns[i]);
    }
    first += kOwn * kManyLanes;
  } while (any_beside(first < total));
}

// The same where some are equal: the lower column first. Little code: it comes from far away, and rarely.
__device__ inline void rank_equal_candidates(uint32_t total, uint32_t num_topk, ManyScratch& scratch) {
  using W = gpu::Wave<kManyLanes>;
#pragma unroll 1
  for (uint32_t at = W::lane(); at < total; at += kManyLanes) {
    const float own = scratch.choices[at];
    const uint32_t column = scratch.columns[at];
    uint32_t place = 0;
#pragma unroll 1
    for (uint32_t other = 0; other < total; ++other) {
      const float theirs = scratch.choices[other];
      place += theirs > own || (theirs == own && scratch.columns[other] < column) ? 1 : 0;
    }
    if (place < num_topk) scratch.best[place] = make_uint2(__float_as_uint(own), column);
  }
}

}  // namespace mixlane::routing_gpu
