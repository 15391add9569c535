// Routing, quantisation and align of one batch on the GPU, each with its input and its output as one run of bytes.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "mixlane/align.hpp"
#include "mixlane/quant.hpp"
#include "mixlane/routing.hpp"
#include "support/gpu.hpp"

namespace mixlane::test {

struct Shape {
  int64_t tokens = 16;
  int hidden = 512;
  int experts = 64;
  int topk = 8;
  int block = 16;
  int64_t pairs() const { return tokens * topk; }
  int64_t slots() const { return align_capacity(pairs(), experts, block); }
};

// Memory of one stage: what it reads and what it writes.
class StageMemory {
 public:
  StageMemory(int64_t input_size, int64_t output_size)
      : input_bytes(input_size), output_bytes(output_size), memory_(gpu_device(), input_size + output_size + 512) {}
  char* input(int64_t offset = 0) const { return memory_.as<char>() + offset; }
  char* output(int64_t offset = 0) const { return memory_.as<char>() + (input_bytes + 255) / 256 * 256 + offset; }

  int64_t input_bytes, output_bytes;

 private:
  gpu::Buffer memory_;
};

// f32 logits [tokens, experts] -> i32 ids [tokens, topk], f32 weights [tokens, topk].
inline RoutingArgs routing_args(const Shape& shape, char* logits, char* output, Device device) {
  RoutingArgs args;
  args.config = {.num_experts = shape.experts, .num_topk = shape.topk, .renormalize = true};
  args.logits = {logits, DType::f32, {shape.tokens, shape.experts}, device};
  args.topk_ids = {output, DType::i32, {shape.tokens, shape.topk}, device};
  args.topk_weights = {output + shape.pairs() * 4, DType::f32, {shape.tokens, shape.topk}, device};
  return args;
}

// bf16 [tokens, hidden] -> e4m3 [tokens, hidden], f32 scales. hidden is a multiple of 128.
inline QuantArgs quant_args(const Shape& shape, ScaleGroup group, char* hidden, char* output, Device device) {
  QuantArgs args;
  args.group = group;
  args.input = {hidden, DType::bf16, {shape.tokens, shape.hidden}, device};
  args.output = {output, DType::fp8_e4m3, {shape.tokens, shape.hidden}, device};
  char* const scales = output + shape.tokens * shape.hidden;
  if (group == ScaleGroup::row)
    args.scales = {scales, DType::f32, {shape.tokens}, device};
  else
    args.scales = {scales, DType::f32, {shape.tokens, shape.hidden / 128}, device};
  return args;
}
inline int64_t quant_bytes(const Shape& shape) { return shape.tokens * (shape.hidden + shape.hidden / 128 * 4); }

// What quant_args() writes with a scale per 128 -> bf16 [tokens, hidden].
inline DequantArgs dequant_args(const Shape& shape, char* codes, char* output, Device device) {
  DequantArgs args;
  args.input = {codes, DType::fp8_e4m3, {shape.tokens, shape.hidden}, device};
  args.scales = {codes + shape.tokens * shape.hidden, DType::f32, {shape.tokens, shape.hidden / 128}, device};
  args.output = {output, DType::bf16, {shape.tokens, shape.hidden}, device};
  return args;
}

// i32 ids -> sorted pairs, experts of blocks, counts of slots and pairs.
inline AlignArgs align_args(const Shape& shape, char* ids, char* output, Device device) {
  AlignArgs args;
  args.topk_ids = {ids, DType::i32, {shape.tokens, shape.topk}, device};
  args.num_experts = shape.experts;
  args.block = shape.block;
  args.sorted_pairs = {output, DType::i32, {shape.slots()}, device};
  args.block_experts = {output + shape.slots() * 4, DType::i32, {shape.slots() / shape.block}, device};
  args.num_padded = {output + shape.slots() * 4 + shape.slots() / shape.block * 4, DType::i32, {2}, device};
  return args;
}
inline int64_t align_bytes(const Shape& shape) { return (shape.slots() + shape.slots() / shape.block + 2) * 4; }

}  // namespace mixlane::test
