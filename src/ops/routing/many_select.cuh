// How routing_warp_many (many.cuh) orders the eight best sets of columns, and then columns, over a token's lanes.
#pragma once

#include "ops/routing/many_row.cuh"

namespace mixlane::routing_gpu {

// A set's maximum whose last bits are the set's number, so that both come through the merging. Of two equal ones the lower
// set's is the larger; of two negative ones only with kOrdered, which costs two instructions more for each.
struct TaggedSet {
  static constexpr uint32_t kTag = kManyLanes * kManySets - 1;

  template <bool kOrdered>
  __device__ static float of(float maximum, uint32_t set) {
    const uint32_t bits = __float_as_uint(maximum + 0.0f);  // -0 as +0
    return __uint_as_float((bits | kTag) ^ set ^ (kOrdered ? sign(bits) & kTag : 0));
  }
  template <bool kOrdered>
  __device__ static uint32_t set(float tagged) {
    const uint32_t bits = __float_as_uint(tagged);
    return (bits ^ (kOrdered ? ~sign(bits) : ~0u)) & kTag;
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
  // or below. Positive, and the set is there again.
  __device__ static float exact(float tagged, float maximum, float bound, uint32_t set) {
    constexpr uint32_t kAbove = 0x60000000u;
    constexpr uint32_t kNear = 0x40000000u;
    constexpr uint32_t kBelow = 0x20000000u;
    const uint32_t bits = __float_as_uint(maximum + 0.0f);
    const uint32_t near = kNear | ((bits ^ sign(bits)) & kTag) * (kTag + 1);
    const bool is_equal = (__float_as_uint(tagged) ^ __float_as_uint(bound)) <= kTag;
    return __uint_as_float((is_equal ? near : tagged > bound ? kAbove : kBelow) | (kTag ^ set));
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

// The eight largest of eight lanes' four numbers each: lane i gets the one with i larger ones.
__device__ inline float eight_largest(const float (&of_lane)[kManySets]) {
  using W = gpu::Wave<kManyLanes>;
  const uint32_t lane = W::lane();
  const bool bit0 = (lane & 1) != 0;
  const bool bit1 = (lane & 2) != 0;
  const bool bit2 = (lane & 4) != 0;
  const auto from = [&](float value, uint32_t bits) { return W::shuffle(value, static_cast<int>(lane ^ bits)); };
  const auto one_of = [](bool smaller, float a, float b) { return smaller ? fminf(a, b) : fmaxf(a, b); };
  float x[4] = {of_lane[0], of_lane[1], of_lane[2], of_lane[3]};
  sort_down(x[0], x[1]);
  sort_down(x[2], x[3]);
  sort_down(x[0], x[2]);
  sort_down(x[1], x[3]);
  sort_down(x[1], x[2]);
  // A sorted eight of two lanes: both have the largest first, so one list is read backwards. The lane with the larger four
  // is the first one in half of the pairs.
  float y[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) y[i] = from(x[3 - i], 4);
#pragma unroll
  for (int i = 0; i < 4; ++i) x[i] = one_of(bit2 != bit1, x[i], y[i]);
  merge_four(x);
  // The eight largest of two such lists. Two lanes have the same four, the one with bit 1 backwards, so that two of each
  // are enough to sort them again.
#pragma unroll
  for (int i = 0; i < 4; ++i) y[i] = from(x[3 - i], 2);
#pragma unroll
  for (int i = 0; i < 4; ++i) x[i] = fmaxf(x[i], y[i]);
#pragma unroll
  for (int i = 0; i < 2; ++i) y[i] = from(x[i], 4);
#pragma unroll
  for (int i = 0; i < 2; ++i) x[i] = one_of(bit2 != bit0, x[i], y[i]);
#pragma unroll
  for (int i = 0; i < 2; ++i) y[i] = from(x[1 - i], 2);
#pragma unroll
  for (int i = 0; i < 2; ++i) x[i] = one_of(bit1 != bit0, x[i], y[i]);
  sort_down(x[0], x[1]);
  // And of two of those, which lie in opposite directions over four lanes each.
  float own = fmaxf(x[0], from(x[1], 1));
  own = one_of(bit2, own, from(own, 4));
  own = one_of(bit1, own, from(own, 2));
  return one_of(bit0, own, from(own, 1));
}

struct ManyBound {
  float eighth;  // maximum of a set, tagged
  uint32_t set;  // this lane's of the eight that may have chosen columns, in descending order of their maxima, of equal ones
                 // the lower set first; any, if there are NaNs
  bool is_near;  // maxima of sets may be equal or in the wrong order, as far as this lane can see

  // No chosen column is below it; eight or more of the token reach it.
  __device__ float value() const { return TaggedSet::floor(eighth); }
};

// kNeighbours: a lane's sets are lane * kManySets ..., else step * kManyLanes + lane.
template <bool kNeighbours>
__device__ uint32_t set_of_lane(uint32_t i) {
  const uint32_t lane = gpu::Wave<kManyLanes>::lane();
  return kNeighbours ? lane * kManySets | i : i * kManyLanes | lane;
}

// kShort: all maxima end in zeros, from which a tag takes nothing.
template <bool kNeighbours, bool kShort>
__device__ ManyBound find_sets(const float (&maxima)[kManySets]) {
  using W = gpu::Wave<kManyLanes>;
  float tagged[kManySets];
#pragma unroll
  for (uint32_t i = 0; i < kManySets; ++i) tagged[i] = TaggedSet::of<kShort>(maxima[i], set_of_lane<kNeighbours>(i));
  const float own = eight_largest(tagged);
  ManyBound bound{W::shuffle(own, kManyLanes - 1), TaggedSet::set<kShort>(own), false};
  if constexpr (!kShort) {
    bound.is_near = TaggedSet::is_near(own, W::shuffle_up(own, 1));
#pragma unroll
    for (const float of_set : tagged) bound.is_near |= TaggedSet::is_near(bound.eighth, of_set);
  }
  return bound;
}

// Where is_near is seen in a wave: gives the lanes the sets that what the tags had covered decides on, in whatever order.
// False if that was not needed.
template <bool kNeighbours>
__device__ bool settle_near_sets(const float (&maxima)[kManySets], ManyBound& bound) {
  using W = gpu::Wave<kManyLanes>;
  // As those do that come from 16 bits: then tags have decided well, of numbers that are not negative.
  bool ends_in_zeros = true;
#pragma unroll
  for (const float of_set : maxima) ends_in_zeros &= (__float_as_uint(of_set) & TaggedSet::kTag) == 0;
  const bool keeps_all = W::ballot(!ends_in_zeros) == 0 && bound.eighth >= 0.0f;
  if (!any_beside(bound.is_near && !keeps_all)) return false;
  float exact[kManySets];
#pragma unroll
  for (uint32_t i = 0; i < kManySets; ++i) {
    const uint32_t set = set_of_lane<kNeighbours>(i);
    exact[i] = TaggedSet::exact(TaggedSet::of<false>(maxima[i], set), maxima[i], bound.eighth, set);
  }
  bound.set = TaggedSet::set<false>(eight_largest(exact));
  return true;
}

// One candidate of each lane, in whatever order: afterwards the better the lower the lane.
__device__ inline void sort_lanes(Candidate& own) {
  using W = gpu::Wave<kManyLanes>;
  const uint32_t lane = W::lane();
#pragma unroll 1
  for (uint32_t pass = 0; pass < kManyLanes; ++pass) {
    const uint32_t other_lane = ((lane + pass) ^ 1) - pass;  // a neighbour, from pass to pass the other one
    const auto from = static_cast<int>(other_lane % kManyLanes);
    const Candidate other{W::shuffle(own.choice, from), W::shuffle(own.column, from)};
    const bool is_later = other_lane > lane;
    if (other_lane < kManyLanes && other.is_before<false>(own) == is_later) own = other;
  }
}

// One more into the lanes' ordered eight, whose last one it pushes out.
template <bool kDistinct>
__device__ void insert(const Candidate& next, Candidate& own) {
  using W = gpu::Wave<kManyLanes>;
  Candidate above{W::shuffle_up(own.choice, 1), W::shuffle_up(own.column, 1)};
  above.choice = W::lane() == 0 ? -kLowest : above.choice;
  const bool passes = next.template is_before<kDistinct>(own);
  const bool passes_above = next.template is_before<kDistinct>(above);
  own.column = passes ? (passes_above ? above.column : next.column) : own.column;
  own.choice = fmaxf(own.choice, fminf(above.choice, next.choice));
}

}  // namespace mixlane::routing_gpu
