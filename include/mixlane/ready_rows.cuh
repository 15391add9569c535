// Waiting for rows in a kernel of one's own, between dispatch_send and dispatch_receive. For nvcc.
#pragma once

#include "mixlane/ready_rows.hpp"

namespace mixlane {

struct RowRange {
  uint32_t begin = 0;
  uint32_t end = 0;
};

// Until `*word` carries the call's number; its lower half is `value` then. False: the rank is left out, or late. One thread;
// the others of its block go on behind a barrier. Before bulk copies of what has come: fence.proxy.async.
__device__ inline bool wait_for_word(const ReadyRows& ready, int source, const uint64_t* word, uint32_t& value) {
  const uint32_t number = *ready.closed + 1;
  uint64_t since = 0;
  for (uint32_t looks = 1;; ++looks) {
    uint64_t seen;
    asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(seen) : "l"(word) : "memory");
    value = static_cast<uint32_t>(seen);
    if (seen >> 32 == number) return true;
    if (looks % 64 != 0) continue;
    uint64_t now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    if (since == 0) since = now;
    const uint32_t left_out = *static_cast<const volatile uint32_t*>(ready.left_out);
    if ((left_out >> 31 | left_out >> source & 1u) != 0 || now - since > ready.deadline_ns) return false;
  }
}

// How many blocks `source` sends in this call.
__device__ inline bool wait_for_num_blocks(const ReadyRows& ready, int source, uint32_t& num_blocks) {
  const bool here = wait_for_word(ready, source, ready.sources + source * ready.source_stride, num_blocks);
  num_blocks &= 0x3fffffffu;
  return here;
}

// Block `block` of `source`: its rows, counted from the source's first one, are there. Waits for the block before as well,
// whose word says where they begin. The last block's end is the number of rows that the source sends.
__device__ inline bool wait_for_block(const ReadyRows& ready, int source, uint32_t block, RowRange& rows) {
  const uint64_t* const word = ready.blocks + source * ready.block_stride + block;
  rows.begin = 0;
  return (block == 0 || wait_for_word(ready, source, word - 1, rows.begin)) && wait_for_word(ready, source, word, rows.end);
}

}  // namespace mixlane
