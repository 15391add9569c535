// align.cpu: a stable counting sort. The counted rows are cut into one part per thread; parts count their pairs per
// group, one prefix sum over (group, part) gives every part its first slot in every group, and parts scatter.
#include <algorithm>
#include <cstring>

#include "core/arena.hpp"
#include "core/parallel.hpp"
#include "ops/align/op.hpp"

namespace mixlane {
namespace {

// Group numbers inside this file: 0 holds the invalid pairs, local expert e is e + 1. 65535 experts fit in 16 bits.
using Group = uint16_t;
constexpr Group kInvalid = 0;

constexpr int64_t kPairsPerThread = 32768;  // below it a thread costs more than it saves

struct Parts {
  int64_t count = 1;
  int64_t num_groups = 0;      // with group 0
  Group* groups = nullptr;     // [counted pairs]: group of each pair, in pair order
  int32_t* cursors = nullptr;  // [count, num_groups]: pairs per part and group, then the part's next slot
  Status* statuses = nullptr;  // [count]
  int32_t* of(int64_t part) const { return cursors + part * num_groups; }
};

// The rows that count, as one run per segment.
struct CountedRows {
  int64_t rows_per_segment = 0;
  int64_t num_segments = 0;
  int64_t total = 0;
  int64_t* starts = nullptr;  // [num_segments + 1]: counted rows before each segment

  // Calls body(first_row, first_counted, num_rows) for the runs of rows that make up counted rows [begin, end).
  template <class Body>
  void for_each_run(int64_t begin, int64_t end, Body&& body) const {
    int64_t segment = std::upper_bound(starts, starts + num_segments, begin) - starts - 1;
    for (; begin < end; ++segment) {
      const int64_t stop = std::min(end, starts[segment + 1]);
      if (stop > begin) body(segment * rows_per_segment + begin - starts[segment], begin, stop - begin);
      begin = std::max(begin, stop);
    }
  }
};

CountedRows counted_rows(Arena& arena, const AlignArgs& args, const AlignShape& shape) {
  CountedRows rows;
  rows.num_segments = shape.num_segments;
  rows.rows_per_segment = shape.rows / shape.num_segments;
  rows.starts = arena.take_as<int64_t>(shape.num_segments + 1);
  const int32_t* given = args.segment_rows.given() ? args.segment_rows.as<int32_t>() : nullptr;
  for (int64_t s = 0; s < shape.num_segments; ++s) {
    rows.starts[s] = rows.total;
    rows.total += given ? std::clamp<int64_t>(given[s], 0, rows.rows_per_segment) : rows.rows_per_segment;
  }
  rows.starts[shape.num_segments] = rows.total;
  return rows;
}

// The group of every expert id.
const Group* group_table(Arena& arena, const AlignArgs& args, const AlignShape& shape) {
  Group* table = arena.take_as<Group>(args.num_experts);
  if (!args.expert_map.given()) {
    for (int e = 0; e < args.num_experts; ++e) table[e] = static_cast<Group>(e + 1);
    return table;
  }
  const int32_t* map = args.expert_map.as<int32_t>();
  for (int e = 0; e < args.num_experts; ++e) {
    if (map[e] < -1 || map[e] >= shape.num_local_experts)
      fail(ErrorCode::invalid_argument, "expert_map[{}] is {}; it must be -1 (not here) or 0..{}", e, map[e],
           shape.num_local_experts - 1);
    table[e] = static_cast<Group>(map[e] + 1);
  }
  return table;
}

template <class Id>
bool out_of_range(Id id, int num_experts) {
  return id < -1 || id >= num_experts;
}

// Finds the first id that is out of range and counts them all.
template <class Id>
Status bad_ids(const AlignArgs& args, const CountedRows& rows, int64_t begin, int64_t end) {
  Status status;
  rows.for_each_run(begin, end, [&](int64_t first_row, int64_t, int64_t num_rows) {
    for (int64_t row = first_row; row < first_row + num_rows; ++row) {
      const Id* ids = args.topk_ids.as<Id>() + row * args.topk_ids.strides[0];
      for (int64_t k = 0; k < args.topk_ids.shape[1]; ++k)
        if (out_of_range(ids[k], args.num_experts))
          record(status, {.code = ErrorCode::bad_expert_id, .token = row, .expected = args.num_experts, .got = ids[k]});
    }
  });
  return status;
}

// First pass of a part: group of every pair, pairs per group.
template <class Id>
void count_part(const AlignArgs& args, const Group* table, const CountedRows& rows, int64_t begin, int64_t end,
                const Parts& parts, int64_t part) {
  const int64_t num_topk = args.topk_ids.shape[1];
  const auto num_experts = static_cast<uint64_t>(args.num_experts);
  int32_t* counts = parts.of(part);
  std::fill_n(counts, parts.num_groups, 0);
  int64_t num_bad = 0;
  rows.for_each_run(begin, end, [&](int64_t first_row, int64_t first_counted, int64_t num_rows) {
    Group* groups = parts.groups + first_counted * num_topk;
    for (int64_t row = first_row; row < first_row + num_rows; ++row, groups += num_topk) {
      const Id* ids = args.topk_ids.as<Id>() + row * args.topk_ids.strides[0];
      for (int64_t k = 0; k < num_topk; ++k) {
        const Id id = ids[k];
        const Group group = static_cast<uint64_t>(id) < num_experts ? table[id] : kInvalid;
        num_bad += out_of_range(id, args.num_experts);
        groups[k] = group;
        ++counts[group];
      }
    }
  });
  if (num_bad > 0 && args.invalid_ids == InvalidIds::drop) parts.statuses[part] = bad_ids<Id>(args, rows, begin, end);
}

// The slots behind a group's last pair.
void write_pads(const AlignArgs& args, const AlignShape& shape, int64_t begin, int64_t end) {
  const auto fill = [&](const TensorView& view, auto value) {
    if (view.given()) std::fill(view.as<decltype(value)>() + begin, view.as<decltype(value)>() + end, value);
  };
  fill(args.sorted_pairs, shape.pad_value);
  fill(args.sorted_weights, 0.0f);
  fill(args.sorted_rows, static_cast<int32_t>(shape.rows));
  fill(args.sorted_packed, static_cast<int32_t>(shape.rows | shape.num_topk << 24));
}

// Between the passes: lays the groups out, turns counts into first slots, writes everything that is per group.
void lay_out(const AlignArgs& args, const AlignShape& shape, const Parts& parts) {
  int32_t* block_experts = args.block_experts.given() ? args.block_experts.as<int32_t>() : nullptr;
  int32_t* expert_counts = args.expert_counts.given() ? args.expert_counts.as<int32_t>() : nullptr;
  int32_t* expert_offsets = args.expert_offsets.given() ? args.expert_offsets.as<int32_t>() : nullptr;
  int64_t slot = 0, num_kept = 0;
  for (int64_t group = shape.bucket ? 0 : 1; group < parts.num_groups; ++group) {
    const int64_t first = slot;
    for (int64_t part = 0; part < parts.count; ++part) {
      int32_t& cursor = parts.of(part)[group];
      const int32_t count = cursor;
      cursor = static_cast<int32_t>(slot);
      slot += count;
    }
    const int64_t count = slot - first, padded = (count + args.block - 1) / args.block * args.block;
    slot = first + padded;
    write_pads(args, shape, first + count, slot);
    const auto expert = static_cast<int32_t>(group - 1);
    if (block_experts) std::fill(block_experts + first / args.block, block_experts + slot / args.block, expert);
    if (group == kInvalid) continue;
    num_kept += count;
    if (expert_counts) expert_counts[expert] = static_cast<int32_t>(count);
    if (expert_offsets) expert_offsets[expert] = static_cast<int32_t>(first);
  }
  if (block_experts) std::fill(block_experts + slot / args.block, block_experts + args.block_experts.shape[0], -1);
  if (expert_offsets) expert_offsets[shape.num_local_experts] = static_cast<int32_t>(slot);
  args.num_padded.as<int32_t>()[0] = static_cast<int32_t>(slot);
  args.num_padded.as<int32_t>()[1] = static_cast<int32_t>(num_kept);
}

// Where a slot's optional values come from and go to.
struct SlotOutputs {
  const float* weights = nullptr;
  int64_t weights_stride = 0;
  float* sorted_weights = nullptr;
  int32_t* sorted_rows = nullptr;
  int32_t* sorted_packed = nullptr;

  explicit SlotOutputs(const AlignArgs& args) {
    if (args.sorted_weights.given()) {
      weights = args.topk_weights.as<float>();
      weights_stride = args.topk_weights.strides[0];
      sorted_weights = args.sorted_weights.as<float>();
    }
    if (args.sorted_rows.given()) sorted_rows = args.sorted_rows.as<int32_t>();
    if (args.sorted_packed.given()) sorted_packed = args.sorted_packed.as<int32_t>();
  }
  bool any() const { return sorted_weights || sorted_rows || sorted_packed; }
  void write(int32_t slot, int64_t row, int64_t k) const {
    if (sorted_weights) sorted_weights[slot] = weights[row * weights_stride + k];
    if (sorted_rows) sorted_rows[slot] = static_cast<int32_t>(row);
    if (sorted_packed) sorted_packed[slot] = static_cast<int32_t>(row | k << 24);
  }
};

// Second pass of a part: every pair to its slot. Without branches on the group, which follow no pattern when most experts
// are elsewhere: a dropped pair has slot -1 and goes to a dummy.
template <bool kExtras>
void scatter_part(const AlignArgs& args, const AlignShape& shape, const CountedRows& rows, int64_t begin, int64_t end,
                  const Parts& parts, int64_t part) {
  const int64_t num_topk = shape.num_topk;
  const SlotOutputs extras(args);
  int32_t* cursors = parts.of(part);
  int32_t* sorted_pairs = args.sorted_pairs.as<int32_t>();
  int32_t* pair_slots = args.pair_slots.given() ? args.pair_slots.as<int32_t>() : nullptr;
  const int first_group = shape.bucket ? 0 : 1;
  if (!shape.bucket) cursors[kInvalid] = -1;
  int32_t dummy = 0;
  rows.for_each_run(begin, end, [&](int64_t first_row, int64_t first_counted, int64_t num_rows) {
    const Group* groups = parts.groups + first_counted * num_topk;
    for (int64_t row = first_row; row < first_row + num_rows; ++row, groups += num_topk) {
      for (int64_t k = 0; k < num_topk; ++k) {
        const int64_t pair = row * num_topk + k;
        const bool kept = groups[k] >= first_group;
        const int32_t slot = cursors[groups[k]];
        cursors[groups[k]] = slot + kept;
        *(kept ? sorted_pairs + slot : &dummy) = static_cast<int32_t>(pair);
        if (pair_slots) pair_slots[pair] = slot;
        if constexpr (kExtras) {
          if (kept) extras.write(slot, row, k);
        }
      }
    }
  });
}

void zero_fill(const Context& context, const TensorView& view) {
  if (!view.given() || view.num_values() == 0) return;
  auto* bytes = static_cast<char*>(view.data);
  parallel_ranges(context.num_threads(), size_bytes(view.dtype, view.num_values()), 1 << 20,
                  [&](int64_t begin, int64_t end) { std::memset(bytes + begin, 0, static_cast<size_t>(end - begin)); });
}

}  // namespace

void launch_align_cpu(Context& context, const AlignArgs& args, Stream) {
  const AlignShape shape(args);
  Parts parts;
  parts.count = std::clamp<int64_t>(shape.num_pairs() / kPairsPerThread, 1, context.num_threads());
  parts.num_groups = shape.num_local_experts + 1;
  Arena& arena = context.arena();
  const Arena::Scope scope(arena);
  arena.reserve(Arena::rounded((shape.num_segments + 1) * 8) + Arena::rounded(args.num_experts * 2) +
                Arena::rounded(shape.num_pairs() * 2) + Arena::rounded(parts.count * parts.num_groups * 4) +
                Arena::rounded(parts.count * static_cast<int64_t>(sizeof(Status))));
  const CountedRows rows = counted_rows(arena, args, shape);
  const Group* table = group_table(arena, args, shape);
  parts.groups = arena.take_as<Group>(rows.total * shape.num_topk);
  parts.cursors = arena.take_as<int32_t>(parts.count * parts.num_groups);
  parts.statuses = arena.take_as<Status>(parts.count);
  std::fill_n(parts.statuses, parts.count, Status{});

  const auto for_each_part = [&](auto&& body) {
    parallel_ranges(context.num_threads(), parts.count, 1, [&](int64_t first, int64_t last) {
      for (int64_t part = first; part < last; ++part)
        body(part, rows.total * part / parts.count, rows.total * (part + 1) / parts.count);
    });
  };
  for_each_part([&](int64_t part, int64_t begin, int64_t end) {
    const auto count = args.topk_ids.dtype == DType::i64 ? count_part<int64_t> : count_part<int32_t>;
    count(args, table, rows, begin, end, parts, part);
  });
  lay_out(args, shape, parts);
  for_each_part([&](int64_t part, int64_t begin, int64_t end) {
    const auto scatter = SlotOutputs(args).any() ? scatter_part<true> : scatter_part<false>;
    scatter(args, shape, rows, begin, end, parts, part);
  });
  zero_fill(context, args.zero_fill);

  Status status;
  for (int64_t part = 0; part < parts.count; ++part) record(status, parts.statuses[part]);
  deliver(status, args.status);
}

}  // namespace mixlane
