#include "ops/dispatch/copy_engine/copy_engine.hpp"

#include <algorithm>

#include "core/error.hpp"
#include "gpu/peer.hpp"

namespace mixlane {

using namespace exchange_gpu;

namespace {

// One copy alone fills the link, whomever it goes to, and several at once take turns.
constexpr int kLanes = 1;
constexpr int64_t kTrialBytes = 4096;

// Beside copies kernels leave them memory bandwidth; what no copy runs beside, or is waited for, does not.
Pace pace(bool alone) { return alone ? Pace::alone : Pace::beside_copies; }

}  // namespace

CopyEngine::CopyEngine(Communicator& comm, const DispatcherConfig& config, const SymmetricMemory& windows, Device device)
    : device_(device),
      rank_(comm.rank()),
      num_ranks_(comm.num_ranks()),
      wire_(config.combine_wire),
      capacity_(config.capacity) {
  const gpu::DeviceGuard guard(device);
  load_copy_kernels(config.combine_wire);
  lanes_ = std::make_unique<gpu::CopyLanes>(device, kLanes);
  flagging_ = std::make_unique<gpu::OwnedStream>(device);
  const size_t most =
      std::max(copy_ranges(capacity_, kPackedPartials).size(), copy_ranges(capacity_, kPartialsInPlace).size());
  copied_.resize(most);
  flagged_.resize(most);
  const GpuWindowLayout window(config, num_ranks_);
  const int64_t record_stride = window.records.record_stride, partial_stride = window.records.partial_stride;
  // A dispatch is over before the combine behind it, and the other way round: they share the memory.
  rows_ = gpu::Buffer(device, (num_ranks_ - 1) * capacity_ * std::max(record_stride, partial_stride));
  words_ = gpu::Buffer(device, 4 * num_ranks_ * (capacity_ + 1));
  stage_.tokens = words_.as<int32_t>();
  stage_.counts = stage_.tokens + num_ranks_ * capacity_;
  for (int r = 0; r < num_ranks_; ++r) {
    const int64_t before = (r < rank_ ? r : r - 1) * capacity_;
    stage_.records[r] = r == rank_ ? windows.part(rank_) + window.records_at + rank_ * capacity_ * record_stride
                                   : rows_.as<std::byte>() + before * record_stride;
    if (r != rank_) stage_.partials[r] = rows_.as<std::byte>() + before * partial_stride;
  }
  problem_ = try_copies(comm, windows, window.partials_at + rank_ * capacity_ * partial_stride,
                        std::min(kTrialBytes, capacity_ * partial_stride));
}

// To every peer once, where this rank's partial rows go later. Ranks on one GPU share the queues of its copy engines, in
// which one's copy that waits for its rows could hold up the copy that these wait for.
std::string CopyEngine::try_copies(Communicator& comm, const SymmetricMemory& windows, int64_t at, int64_t bytes) const {
  const std::vector<std::string> gpus = comm.all_gather(gpu::bus_id(device_.index));
  for (size_t r = 1; r < gpus.size(); ++r)
    for (size_t other = 0; other < r; ++other)
      if (gpus[other] == gpus[r])
        return fmt::format("ranks {} and {} share a GPU, and copies of one could hold up the other's", other, r);
  const gpu::OwnedStream stream(device_);
  std::string problem;
  for (int r = 0; r < num_ranks_ && problem.empty(); ++r)
    if (r != rank_) problem = gpu::try_copy(windows.part(r) + at, rows_.data(), bytes, stream.get());
  for (const std::string& each : comm.all_gather(problem))
    if (!each.empty()) return each;
  return "";
}

template <class Visit>
void CopyEngine::for_each_peer(Visit&& visit) const {
  for (int i = 1; i < num_ranks_; ++i) visit((rank_ + i) % num_ranks_);
}

// ---------------------------------------------------------------------------------------------------------------------

void CopyEngine::send(const DispatchKernelArgs& args, const Budget& budget, Stream stream) {
  const Window& window = args.exchange.window;
  const int64_t num_rows = std::min<int64_t>(args.num_rows, capacity_);
  const std::vector<RowRange> ranges = copy_ranges(num_ranks_ > 1 ? num_rows : 0, kPackedRecords);
  const auto copy = [&](RowRange range) {
    lanes_->fork(stream);
    const int64_t at = range.begin * window.record_stride, bytes = range.end * window.record_stride - at;
    for_each_peer([&](int peer) {
      std::byte* const to = window.parts[peer] + window.records_at + rank_ * capacity_ * window.record_stride;
      gpu::copy(to + at, stage_.records[peer] + at, bytes, (*lanes_)[0]);
    });
  };
  if (num_ranks_ > 1) launch_copy_first(args, stage_, ranges.empty() ? 0 : ranges[0].end, budget, stream);
  if (!ranges.empty()) copy(ranges[0]);
  launch_copy_route(args, stage_, stream);
  for (size_t i = 1; i < ranges.size(); ++i) {
    launch_copy_pack(args, stage_, Packed::others, ranges[i], Pace::beside_copies, budget, stream);
    copy(ranges[i]);
  }
  if (num_rows > 0) launch_copy_pack(args, stage_, Packed::own, {0, num_rows}, pace(num_ranks_ == 1), budget, stream);
  launch_copy_report(args, stream);
}

void CopyEngine::receive(const DispatchKernelArgs& args, Stream stream) {
  lanes_->join(stream);
  launch_copy_receive(args, stage_, stream);
}

// Whether copies can take the caller's rows: they are what the wire carries, and lie as densely as in a window.
bool CopyEngine::as_they_lie(const CombineKernelArgs& args) const {
  const bool bf16 = wire_ == CombineWire::bf16 && args.source == PartialSource::reduced_bf16;
  const bool f32 = wire_ == CombineWire::f32 && args.source == PartialSource::reduced_f32;
  const int64_t row_bytes = int64_t{args.num_octets} * (bf16 ? 16 : 32);
  return (bf16 || f32) && args.rows.stride == row_bytes && args.exchange.window.partial_stride == row_bytes;
}

// What need not be put together first can go in large pieces at once.
std::vector<RowRange> CopyEngine::ranges_of(const CombineKernelArgs& args) const {
  const int64_t num_copied = std::min<int64_t>(args.num_tokens, capacity_);
  return copy_ranges(num_copied, as_they_lie(args) ? kPartialsInPlace : kPackedPartials);
}

// Copies move as many rows to each owner as this rank has tokens; kernels those of owners that have more.
void CopyEngine::send(const CombineKernelArgs& args, const Budget& budget, Stream stream) {
  if (num_ranks_ == 1) return;
  const Window& window = args.exchange.window;
  const int64_t num_copied = std::min<int64_t>(args.num_tokens, capacity_);
  const std::vector<RowRange> ranges = ranges_of(args);
  const bool staged = !as_they_lie(args);
  // The first kernel also fills inboxes.
  if (!staged) {
    CopyStage in_place = stage_;
    std::fill(std::begin(in_place.partials), std::end(in_place.partials), nullptr);
    launch_copy_make(args, wire_, in_place, {0, std::min<int64_t>(window.inbox_rows, num_copied)}, num_copied, Pace::alone,
                     budget, stream);
  }
  for (size_t i = 0; i < ranges.size(); ++i) {
    const bool slow = args.source == PartialSource::pairs;  // to make
    if (staged) launch_copy_make(args, wire_, stage_, ranges[i], num_copied, pace(i == 0 || slow), budget, stream);
    lanes_->fork(stream);
    const int64_t at = ranges[i].begin * window.partial_stride, bytes = ranges[i].end * window.partial_stride - at;
    for_each_peer([&](int owner) {
      std::byte* const to = window.parts[owner] + window.partials_at + rank_ * capacity_ * window.partial_stride;
      const std::byte* const from =
          staged ? stage_.partials[owner] : args.rows.data + owner * capacity_ * window.partial_stride;
      gpu::copy(to + at, from + at, bytes, (*lanes_)[0]);
    });
    copied_[i].record((*lanes_)[0]);
  }
  // All copies were enqueued before: in a graph, they stay one chain then.
  for (size_t i = 0; i < ranges.size(); ++i) {
    copied_[i].hold(flagging_->get());
    launch_copy_flag(args.exchange, ranges[i], flagging_->get());
    flagged_[i].record(flagging_->get());
  }
  if (num_copied < capacity_)
    launch_copy_make(args, wire_, stage_, {num_copied, capacity_}, num_copied, Pace::beside_copies, budget, stream);
}

// Rows are awaited only when this rank's own ones of the same slots have gone. So whatever the queues are that streams and
// the branches of a graph share on the device, what a peer waits for is never behind a wait for what this peer sends later.
// A token's slot is nowhere beyond its number: the rows up to `end` are all that the tokens up to there need.
void CopyEngine::receive(const CombineKernelArgs& args, const Budget& budget, Stream stream) {
  std::vector<RowRange> ranges = ranges_of(args);
  const size_t num_copied = num_ranks_ > 1 ? ranges.size() : 0;
  if (ranges.empty()) ranges.emplace_back();
  ranges.back().end = args.num_tokens;
  for (size_t i = 0; i < ranges.size(); ++i) {
    const bool last = i + 1 == ranges.size();
    if (i < num_copied) flagged_[i].hold(stream);
    if (last) lanes_->join(stream);
    // The link has much to do until what is far from the end must be added up.
    launch_copy_add(args, wire_, ranges[i], pace(i + 3 >= ranges.size()), last, budget, stream);
  }
}

}  // namespace mixlane
