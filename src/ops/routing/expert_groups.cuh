// Group-limited choice: experts outside the best groups become kAbsent. `scratch` is shared memory of the wave.
#pragma once

#include "ops/routing/logits.cuh"

namespace mixlane::routing_gpu {

struct TopTwo {
  float first = -__builtin_huge_valf();
  float second = -__builtin_huge_valf();

  __device__ void add(float value) {
    second = fmaxf(second, fminf(first, value));
    first = fmaxf(first, value);
  }
};

// Scores of all groups as keys. Several lanes share a group, so that a few large groups are quick too.
template <int kSize>
__device__ void score_groups(const KernelArgs& args, const float* choices, uint32_t* group_keys) {
  using W = gpu::Wave<kSize>;
  const uint32_t group_size = args.by_group.divisor;
  uint32_t sharers = 1;
  while (sharers * 2 * args.num_groups <= kSize) sharers *= 2;
  const uint32_t share = W::lane() % sharers;
  const uint32_t num_steps = (group_size + sharers - 1) / sharers;
  for (uint32_t first = 0; first < args.num_groups; first += kSize / sharers) {
    const uint32_t group = first + W::lane() / sharers;
    TopTwo top;
    uint32_t step = group % num_steps;  // groups start at different steps, hence in different banks
    for (uint32_t i = 0; i < num_steps; ++i) {
      const uint32_t member = step * sharers + share;
      if (group < args.num_groups && member < group_size) top.add(choices[group * group_size + member]);
      step = step + 1 == num_steps ? 0 : step + 1;
    }
    for (uint32_t distance = 1; distance < sharers; distance *= 2) {
      const int other = static_cast<int>(W::lane() ^ distance);
      const float first_of_other = W::shuffle(top.first, other);
      const float second_of_other = W::shuffle(top.second, other);
      top.add(first_of_other);
      top.add(second_of_other);
    }
    const float score = args.group_score == GroupScore::max ? top.first : top.first + top.second;
    if (group < args.num_groups && share == 0) group_keys[group] = gpu::ordered_key(score + 0.0f);
  }
}

// Keys of groups lie in memory in fours; behind the last one there are zeros, below every key.
__host__ __device__ inline uint32_t padded_groups(const KernelArgs& args) { return (args.num_groups + 3) / 4 * 4; }

// Groups of 4, 8, 16 ... experts, each a whole number of runs, a lane for every group.
template <int kSize>
__host__ __device__ bool has_lane_groups(const KernelArgs& args) {
  const uint32_t runs = args.by_group.divisor / 4;
  return args.by_group.divisor % 4 == 0 && (runs & (runs - 1)) == 0 && args.num_groups <= kSize;
}

// Of one wave: the best two of every run, or the choices of all experts, keys, and what is open.
template <int kSize>
__host__ __device__ uint32_t group_scratch_bytes(const KernelArgs& args) {
  if (has_lane_groups<kSize>(args)) return args.num_experts / 4 * sizeof(float2);
  return ((args.num_experts + 3) / 4 * 4 + 2 * padded_groups(args)) * 4;
}

template <int kSize>
__device__ void clear_padding(const KernelArgs& args, uint32_t* group_keys) {
  const uint32_t group = args.num_groups + gpu::Wave<kSize>::lane();
  if (group < padded_groups(args)) group_keys[group] = 0;
}

// The best groups are those with fewer than topk_groups better ones; equal ones by ascending index.
__device__ inline bool is_open(const KernelArgs& args, const uint32_t* group_keys, uint32_t group, uint32_t key) {
  uint32_t better = 0;
#pragma unroll 2
  for (uint32_t first = 0; first < args.num_groups; first += 4) {
    const uint4 four = *reinterpret_cast<const uint4*>(group_keys + first);
    const uint32_t keys[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) better += keys[i] > key || (keys[i] == key && first + i < group);
  }
  return better < args.topk_groups;
}

// Every lane finds the best two of its runs, a group's lane the best two of those, and ranks the group.
template <int kSize, int kValues>
__device__ void close_lane_groups(const KernelArgs& args, float (&choices)[kValues], float2* tops) {
  using W = gpu::Wave<kSize>;
#pragma unroll
  for (int run = 0; run < kValues / 4; ++run) {
    const float* const four = choices + 4 * run;
    const float high[2] = {fmaxf(four[0], four[1]), fmaxf(four[2], four[3])};
    const float low[2] = {fminf(four[0], four[1]), fminf(four[2], four[3])};
    const uint32_t column = column_of<kSize>(4 * run);
    if (column < args.num_experts)
      tops[column / 4] = make_float2(fmaxf(high[0], high[1]), fmaxf(fminf(high[0], high[1]), fmaxf(low[0], low[1])));
  }
  W::sync();
  const uint32_t group = W::lane();
  const uint32_t runs = args.by_group.divisor / 4;
  TopTwo best;
  if (group < args.num_groups) {
#pragma unroll 4
    for (uint32_t i = 0; i < runs; ++i) {
      const float2 top = tops[group * runs + ((group + i) & (runs - 1))];  // lanes read from different banks
      best.add(top.x);
      best.second = fmaxf(best.second, top.y);
    }
  }
  const float score = args.group_score == GroupScore::max ? best.first : best.first + best.second;
  const uint32_t key = gpu::ordered_key(score + 0.0f);
  // The best groups are those with fewer than topk_groups better ones; equal ones by ascending index.
  uint32_t better = 0;
#pragma unroll 4
  for (uint32_t other = 0; other < args.num_groups; ++other) {
    const uint32_t theirs = W::shuffle(key, static_cast<int>(other));
    better += theirs > key || (theirs == key && other < group);
  }
  const auto open = W::ballot(group < args.num_groups && better < args.topk_groups);
#pragma unroll
  for (int run = 0; run < kValues / 4; ++run) {
    const uint32_t of_run = gpu::divide(column_of<kSize>(4 * run), args.by_group);
    if (of_run >= args.num_groups || (open >> of_run & 1) != 0) continue;
#pragma unroll
    for (int i = 0; i < 4; ++i) choices[4 * run + i] = kAbsent;
  }
  W::sync();
}

template <int kSize, int kValues>
__device__ void close_groups(const KernelArgs& args, float (&choices)[kValues], void* scratch) {
  using W = gpu::Wave<kSize>;
  if (has_lane_groups<kSize>(args)) return close_lane_groups<kSize>(args, choices, static_cast<float2*>(scratch));
  auto* all_choices = static_cast<float*>(scratch);
  auto* group_keys = reinterpret_cast<uint32_t*>(all_choices + (args.num_experts + 3) / 4 * 4);
  uint32_t* open = group_keys + padded_groups(args);
  clear_padding<kSize>(args, group_keys);
#pragma unroll
  for (int slot = 0; slot < kValues; ++slot)
    if (column_of<kSize>(slot) < args.num_experts) all_choices[column_of<kSize>(slot)] = choices[slot];
  W::sync();
  score_groups<kSize>(args, all_choices, group_keys);
  W::sync();
  for (uint32_t group = W::lane(); group < args.num_groups; group += kSize)
    open[group] = is_open(args, group_keys, group, group_keys[group]);
  W::sync();
#pragma unroll
  for (int slot = 0; slot < kValues; ++slot) {
    const uint32_t column = column_of<kSize>(slot);
    if (column < args.num_experts && open[gpu::divide(column, args.by_group)] == 0) choices[slot] = kAbsent;
  }
  W::sync();
}

}  // namespace mixlane::routing_gpu
