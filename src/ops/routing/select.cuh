// The K best of a wave's choices, equal ones by ascending column. At least K columns are not kAbsent.
#pragma once

#include "ops/routing/logits.cuh"

namespace mixlane::routing_gpu {

inline constexpr uint32_t kMaxLeft = 64;  // candidates that are worth ranking one by one

// The chosen columns in descending order of their choices: a lane has the places lane, lane + kSize ...
template <int kSize>
struct Chosen {
  static constexpr int kPerLane = kSize < 16 ? 1 : (kMaxTopk + kSize - 1) / kSize;  // small waves take few only
  uint32_t columns[kPerLane] = {};

  __device__ static uint32_t place(int i) { return static_cast<uint32_t>(i * kSize) + gpu::Wave<kSize>::lane(); }
};

// A wave's shared memory. Waves beside each other read the same member at once; the size keeps them in different banks.
struct alignas(16) Scratch {
  union {
    float maxima[kMaxLeft];
    uint32_t best[kMaxTopk + 1];  // columns by place; the last one shows who is first among those not chosen
  };
  // Candidates.
  float choices[kMaxLeft + 4];
  uint32_t columns[kMaxLeft + 4];
};
static_assert(sizeof(Scratch) % 128 == 32);

// Whether any wave of the hardware's wave says so: what they do together they must decide together.
__device__ inline bool any_beside(bool predicate) { return gpu::Wave<gpu::kHardwareWave>::ballot(predicate) != 0; }

// A number of the same order as the choice; a zero has no sign. 0 for a column that can't be chosen.
__device__ inline uint32_t key_of(float choice) { return is_nan(choice) ? 0u : gpu::ordered_key(choice + 0.0f); }

// A choice that has come from 16 bits, and its column where it has nothing but zeros: of two equal ones that of the lower
// column is the larger.
__device__ inline float tag(float choice, uint32_t column) {
  constexpr uint32_t kFree = 0x1fffu;
  return gpu::value_of_key((key_of(choice) & ~kFree) | (~column & kFree));
}

template <int kValues>
struct Choices {
  float of[kValues];
};

// K rounds of "the best one below the last", whatever the choices are. Rarely called: by value, so that the caller's stay
// in registers.
template <int kSize, int kValues>
__device__ __noinline__ Chosen<kSize> select_by_rounds(const Choices<kValues> choices, uint32_t num_topk) {
  Chosen<kSize> chosen;
  uint32_t last_key = ~0u;
  uint32_t last_column = 0;
  for (uint32_t k = 0; k < num_topk; ++k) {
    uint32_t best = 0;
    uint32_t column = ~0u;
#pragma unroll
    for (int slot = 0; slot < kValues; ++slot) {
      const uint32_t mine = column_of<kSize>(slot);
      const uint32_t key = key_of(choices.of[slot]);
      const bool below = key < last_key || (key == last_key && mine > last_column);
      if (below && key > best) {
        best = key;
        column = mine;
      }
    }
    last_key = gpu::wave_max<kSize>(best);
    last_column = ~gpu::wave_max<kSize>(best == last_key ? ~column : 0u);
#pragma unroll
    for (int i = 0; i < Chosen<kSize>::kPerLane; ++i)
      if (Chosen<kSize>::place(i) == k) chosen.columns[i] = last_column;
  }
  return chosen;
}

// How many of the four are larger; as a number of f32, whose sums don't wait for predicates.
__device__ inline float count_above(const float4& four, float value) {
  const float x = four.x > value ? 1.0f : 0.0f;
  const float y = four.y > value ? 1.0f : 0.0f;
  const float z = four.z > value ? 1.0f : 0.0f;
  const float w = four.w > value ? 1.0f : 0.0f;
  return (x + y) + (z + w);
}

// The largest of every second value, from the first or from the second one on; at least -inf.
template <int kFirst, int kValues>
__device__ float max_of_every_second(const float (&values)[kValues]) {
  float max[2] = {values[kFirst], values[kFirst + 2]};
#pragma unroll
  for (int i = 2; i < kValues / 2; ++i) max[i % 2] = fmaxf(max[i % 2], values[kFirst + 2 * i]);
  return fmaxf(fmaxf(max[0], max[1]), kLowest);
}

// What at least K choices reach: the K-th largest of the maxima of disjoint parts, -inf if there are fewer. 2K parts or
// more leave few others above it; the fewer parts the quicker. `many_absent`: some parts may have no choice.
template <int kSize, int kValues>
__device__ float find_bound(const float (&choices)[kValues], uint32_t num_topk, bool many_absent, Scratch& scratch) {
  using W = gpu::Wave<kSize>;
  float first = max_of_every_second<0>(choices);
  const float second = max_of_every_second<1>(choices);
  const bool two_parts = num_topk > kSize / 2;
  const bool half_parts = num_topk <= kSize / 4 && !many_absent;
  if (!two_parts) first = fmaxf(first, second);
  if (half_parts) first = fmaxf(first, W::shuffle(first, static_cast<int>(W::lane() ^ (kSize / 2))));
  const uint32_t num_parts = half_parts ? kSize / 2 : two_parts ? 2 * kSize : kSize;
  scratch.maxima[W::lane()] = first;
  if (two_parts) scratch.maxima[kSize + W::lane()] = second;
  W::sync();
  float above_first = 0.0f;
  float above_second = 0.0f;
  const auto* fours = reinterpret_cast<const float4*>(scratch.maxima);
#pragma unroll 4
  for (uint32_t i = 0; i < num_parts / 4; ++i) {
    const float4 four = fours[i];
    above_first += count_above(four, first);
    if (two_parts) above_second += count_above(four, second);
  }
  const auto limit = static_cast<float>(num_topk);
  float reached = above_first < limit ? first : -kLowest;
  if (two_parts && above_second < limit) reached = fminf(reached, second);
  return gpu::value_of_key(~gpu::wave_max<kSize>(~gpu::ordered_key(reached)));
}

struct Places {
  uint32_t first;  // of this lane's
  uint32_t total;  // of the wave
};

// Places behind each other for `count` things of every lane, at most kMax.
template <int kSize, int kMax>
__device__ Places places_for(uint32_t count) {
  using W = gpu::Wave<kSize>;
  if constexpr (kSize < 32) {
    const uint32_t up_to_mine = W::inclusive_sum(count);
    return {up_to_mine - count, W::shuffle(up_to_mine, kSize - 1)};
  } else {
    // Bit by bit: ballots don't wait for each other.
    Places places{0, 0};
#pragma unroll
    for (int bit = 0; kMax >> bit != 0; ++bit) {
      const auto having = W::ballot((count >> bit & 1u) != 0);
      places.first += static_cast<uint32_t>(W::count(having & W::lanes_below())) << bit;
      places.total += static_cast<uint32_t>(W::count(having)) << bit;
    }
    return places;
  }
}

inline constexpr uint32_t kNobody = ~0u;

// Writes the candidates, the columns whose choices reach the bound, as far as there is room, and returns their number; no
// place has a column yet. `candidate_at` gives what a column is ranked by: registers can't be indexed.
template <int kSize, int kValues, class CandidateAt>
__device__ uint32_t gather(const float (&choices)[kValues], float bound, uint32_t num_topk, const CandidateAt& candidate_at,
                           Scratch& scratch) {
  using W = gpu::Wave<kSize>;
  using Slots = std::conditional_t<(kValues > 32), uint64_t, uint32_t>;
  Slots slots = 0;
#pragma unroll
  for (int slot = 0; slot < kValues; ++slot)
    if (choices[slot] >= bound) slots |= Slots{1} << slot;
  const bool wide = sizeof(Slots) == 8;
  const Places places =
      places_for<kSize, kValues>(static_cast<uint32_t>(wide ? __popcll(slots) : __popc(static_cast<uint32_t>(slots))));
#pragma unroll 2
  for (uint32_t at = places.first; slots != 0 && at < kMaxLeft; ++at) {
    const auto slot =
        static_cast<uint32_t>(wide ? __ffsll(static_cast<long long>(slots)) : __ffs(static_cast<int>(slots))) - 1;
    const uint32_t column = slot / 4 * 4 * kSize + slot % 4 + W::lane() * 4;
    scratch.choices[at] = candidate_at(column);
    scratch.columns[at] = column;
    slots &= slots - 1;
  }
  for (uint32_t place = W::lane(); place <= num_topk; place += kSize) scratch.best[place] = kNobody;
  // Candidates are read four at a time.
  if (places.total <= kMaxLeft && W::lane() < 4) scratch.choices[places.total + W::lane()] = kAbsent;
  W::sync();
  return places.total;
}

// Ranks the candidates: the place of each is the number of larger ones. Equal ones get one place, and the next one stays
// empty, unless ties are settled: then that of the lower column is the larger one.
template <int kSize>
__device__ void rank(uint32_t num_left, uint32_t num_topk, bool settle_ties, Scratch& scratch) {
  using W = gpu::Wave<kSize>;
  constexpr uint32_t kOwn = kSize < 32 ? 2 : 1;  // of a lane at once
  const auto* fours = reinterpret_cast<const float4*>(scratch.choices);
  for (uint32_t first = 0; any_beside(first < num_left); first += kOwn * kSize) {
    float mine[kOwn];
    float above[kOwn];
    uint32_t columns[kOwn];
#pragma unroll
    for (uint32_t own = 0; own < kOwn; ++own) {
      const uint32_t at = first + own * kSize + W::lane();
      const bool exists = at < num_left;
      mine[own] = exists ? scratch.choices[at] : kAbsent;
      columns[own] = exists ? scratch.columns[at] : kNobody;
      above[own] = exists ? 0.0f : static_cast<float>(kMaxTopk + 1);
    }
    for (uint32_t i = 0; i < num_left; i += 4) {
      const float4 four = fours[i / 4];
#pragma unroll
      for (uint32_t own = 0; own < kOwn; ++own) above[own] += count_above(four, mine[own]);
    }
    if (settle_ties) {
#pragma unroll 1
      for (uint32_t i = 0; i < num_left; ++i) {
        const float other = scratch.choices[i];
        const uint32_t column = scratch.columns[i];
#pragma unroll
        for (uint32_t own = 0; own < kOwn; ++own)
          if (other == mine[own] && column < columns[own]) above[own] += 1.0f;
      }
    }
#pragma unroll
    for (uint32_t own = 0; own < kOwn; ++own) {
      const auto place = static_cast<uint32_t>(above[own]);
      if (place > num_topk) continue;
      if (settle_ties)
        scratch.best[place] = columns[own];
      else
        atomicMin(&scratch.best[place], columns[own]);  // equal ones meet here
    }
  }
  W::sync();
}

// Finds a bound that few choices reach and ranks those. The cost hardly depends on K. Where too many reach it (equal
// logits, say) rounds do the work. `choice_at(column)` is a column's choice; `from_short`: it comes from 16 bits.
template <int kSize, int kValues, class ChoiceAt>
__device__ Chosen<kSize> select(const float (&choices)[kValues], uint32_t num_topk, bool from_short, bool many_absent,
                                const ChoiceAt& choice_at, Scratch& scratch) {
  using W = gpu::Wave<kSize>;
  const float bound = find_bound<kSize>(choices, num_topk, many_absent, scratch);
  const auto candidate_at = [&](uint32_t column) {
    const float choice = choice_at(column);
    return from_short ? tag(choice, column) : choice;
  };
  W::sync();
  const uint32_t num_left = gather<kSize>(choices, bound, num_topk, candidate_at, scratch);
  if (any_beside(num_left > kMaxLeft || num_topk > 2 * kSize)) {
    Choices<kValues> copy;
#pragma unroll
    for (int slot = 0; slot < kValues; ++slot) copy.of[slot] = choices[slot];
    return select_by_rounds<kSize>(copy, num_topk);
  }
  Chosen<kSize> chosen;
  for (bool settle_ties = false;; settle_ties = true) {
    rank<kSize>(num_left, num_topk, settle_ties, scratch);
    bool is_tied = num_left > num_topk && scratch.best[num_topk] == kNobody;
#pragma unroll
    for (int i = 0; i < Chosen<kSize>::kPerLane; ++i) {
      if (chosen.place(i) >= num_topk) continue;
      chosen.columns[i] = scratch.best[chosen.place(i)];
      is_tied |= chosen.columns[i] == kNobody;
    }
    if (settle_ties || !any_beside(is_tied)) return chosen;
    W::sync();
  }
}

}  // namespace mixlane::routing_gpu
