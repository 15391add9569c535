#include "stage/align.hpp"

#include "ops/align/op.hpp"

namespace mixlane::bench {

AlignStage::AlignStage(const StageSetup& setup, const Case& which)
    : OpStage(setup.context, select_align, align), inputs_(setup.inputs), block_(which.block), id_type_(which.id_type) {
  num_sets_ = setup.num_sets(set_bytes());
  const std::span<const int32_t> ids = inputs_.topk_ids();
  const std::vector<int64_t> wide(ids.begin(), ids.end());
  const bool is_wide = id_type_ == DType::i64;
  own_ids_ = DeviceTensor(setup.context.device(), id_type_, {inputs_.cell().tokens, inputs_.cell().shape.routing.num_topk},
                          num_sets_, is_wide ? static_cast<const void*>(wide.data()) : ids.data());
  make_outputs();
}

AlignStage::AlignStage(const StageSetup& setup, int block, const DeviceTensor& ids, int num_sets)
    : OpStage(setup.context, select_align, align),
      inputs_(setup.inputs),
      block_(block),
      id_type_(DType::i32),
      num_sets_(num_sets),
      ids_(&ids) {
  make_outputs();
}

int64_t AlignStage::num_pairs() const { return int64_t{inputs_.cell().tokens} * inputs_.cell().shape.routing.num_topk; }

int64_t AlignStage::capacity() const {
  return align_capacity(num_pairs(), inputs_.cell().shape.routing.num_experts, block_);
}

int64_t AlignStage::set_bytes() const { return num_pairs() * bits(id_type_) / 8 + num_pairs() * 4; }

void AlignStage::make_outputs() {
  const Device device = context_.device();
  pairs_ = DeviceTensor(device, DType::i32, {capacity()}, num_sets_);
  blocks_ = DeviceTensor(device, DType::i32, {capacity() / block_}, num_sets_);
  num_padded_ = DeviceTensor(device, DType::i32, {2}, num_sets_);
  status_ = DeviceTensor(device, DType::u8, {static_cast<int64_t>(sizeof(Status))}, 1);
}

std::string AlignStage::options() const { return fmt::format("block={} ids={}", block_, name(id_type_)); }

AlignArgs AlignStage::args(int set) const {
  AlignArgs args;
  args.topk_ids = ids_->view(set);
  args.num_experts = inputs_.cell().shape.routing.num_experts;
  args.block = block_;
  args.sorted_pairs = pairs_.view(set);
  args.block_experts = blocks_.view(set);
  args.num_padded = num_padded_.view(set);
  args.status = static_cast<Status*>(status_.view(0).data);
  return args;
}

void AlignStage::poison(Stream stream, int set) {
  for (const DeviceTensor* output : {&pairs_, &blocks_, &num_padded_}) output->poison(stream, set);
}

void AlignStage::run_reference(std::span<const int32_t> ids) {
  expected_.pairs.resize(static_cast<size_t>(capacity()));
  expected_.blocks.resize(static_cast<size_t>(capacity() / block_));
  expected_.num_padded.resize(2);
  const RoutingConfig& routing = inputs_.cell().shape.routing;
  align(inputs_.cpu(), {.topk_ids = {ids.data(), DType::i32, {inputs_.cell().tokens, routing.num_topk}},
                        .num_experts = routing.num_experts,
                        .block = block_,
                        .sorted_pairs = {expected_.pairs.data(), DType::i32, {capacity()}},
                        .block_experts = {expected_.blocks.data(), DType::i32, {capacity() / block_}},
                        .num_padded = {expected_.num_padded.data(), DType::i32, {2}}});
}

Correctness AlignStage::verify(Stream stream, int set) {
  if (ids_ != &own_ids_) {
    const std::vector<std::byte> written = ids_->fetch(stream, set);
    run_reference({reinterpret_cast<const int32_t*>(written.data()), static_cast<size_t>(num_pairs())});
  } else if (expected_.pairs.empty()) {
    run_reference(inputs_.topk_ids());
  }
  const auto fetched = [&](const DeviceTensor& tensor, const std::vector<int32_t>& expected, int64_t count) {
    const std::vector<std::byte> got = tensor.fetch(stream, set);
    return count_different(reinterpret_cast<const int32_t*>(got.data()), expected.data(), count);
  };
  // Slots behind the padded end hold whatever was there.
  const int64_t padded = expected_.num_padded[0];
  const auto num_blocks = static_cast<int64_t>(expected_.blocks.size());
  const int64_t different = fetched(num_padded_, expected_.num_padded, 2) + fetched(pairs_, expected_.pairs, padded) +
                            fetched(blocks_, expected_.blocks, num_blocks);
  return exact_check(inputs_.cell().tokens, different, 2 + padded + num_blocks, "align.cpu");
}

StageWork AlignStage::work() const { return work_of(align_cost(args(0))); }

std::vector<std::unique_ptr<DeviceStage>> make_align_stages(const StageSetup& setup) {
  std::vector<std::unique_ptr<DeviceStage>> stages;
  for (const int block : setup.options.align_blocks)
    for (const DType ids : setup.options.id_types)
      stages.push_back(std::make_unique<AlignStage>(setup, AlignStage::Case{block, ids}));
  return stages;
}

}  // namespace mixlane::bench
