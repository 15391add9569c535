#include "ops/dispatch/copy_engine.hpp"

#include "core/error.hpp"
#include "gpu/peer.hpp"

namespace mixlane {

using namespace exchange_gpu;

namespace {

// So that the next copy is under way when one ends; one copy alone fills the link, whomever it goes to.
constexpr int kLanes = 2;

}  // namespace

CopyEngine::CopyEngine(Communicator& comm, const DispatcherConfig& config, const SymmetricMemory& windows, Device device)
    : device_(device),
      rank_(comm.rank()),
      num_ranks_(comm.num_ranks()),
      wire_(config.combine_wire),
      capacity_(config.capacity),
      layout_(config, num_ranks_),
      memory_(comm.allocate(layout_.total_bytes, "memory that copy engines read", device)) {
  const gpu::DeviceGuard guard(device);
  load_copy_kernels(config.combine_wire);
  lanes_ = std::make_unique<gpu::CopyLanes>(device, kLanes);
  fetched_.resize((2 * copy_ranges(capacity_).size() + 2) * static_cast<size_t>(num_ranks_));
  const GpuWindowLayout window(config, num_ranks_);
  const int64_t record_stride = window.records.record_stride, slots = num_ranks_ * capacity_;
  records_ = gpu::Buffer(device, (num_ranks_ - 1) * capacity_ * record_stride);
  words_ = gpu::Buffer(device, 4 * (slots + num_ranks_ + num_ranks_ * layout_.num_ready));
  stage_.tokens = words_.as<int32_t>();
  stage_.counts = stage_.tokens + slots;
  stage_.made = reinterpret_cast<uint32_t*>(stage_.counts + num_ranks_);
  stage_.partials_at = layout_.partials_at;
  stage_.num_ready = static_cast<uint32_t>(layout_.num_ready);
  for (int r = 0; r < num_ranks_; ++r) {
    stage_.parts[r] = memory_->part(r);
    const int nth = r < rank_ ? r : r - 1;
    stage_.records[r] = r == rank_ ? windows.part(rank_) + window.records_at + rank_ * capacity_ * record_stride
                                   : records_.as<std::byte>() + nth * capacity_ * record_stride;
  }
  problem_ = try_copies(comm);
}

// From every peer once. Ranks on one GPU share the queues of its copy engines, in which one's copy that waits for a peer
// could hold up the copy that this peer waits for.
std::string CopyEngine::try_copies(Communicator& comm) const {
  const std::vector<std::string> gpus = comm.all_gather(gpu::bus_id(device_.index));
  for (size_t r = 1; r < gpus.size(); ++r)
    for (size_t other = 0; other < r; ++other)
      if (gpus[other] == gpus[r])
        return fmt::format("ranks {} and {} share a GPU, and copies of one could hold up the other's", other, r);
  const gpu::OwnedStream stream(device_);
  std::string problem;
  for (int r = 0; r < num_ranks_ && problem.empty(); ++r)
    if (r != rank_) problem = gpu::try_copy(memory_->part(rank_), memory_->part(r), 4, stream.get());
  for (const std::string& each : comm.all_gather(problem))
    if (!each.empty()) return each;
  return "";
}

template <class Move>
void CopyEngine::on_lanes(size_t turn, Move&& move) const {
  for (int i = 1; i < num_ranks_; ++i)
    move((rank_ + i) % num_ranks_, (*lanes_)[static_cast<int>((turn + static_cast<size_t>(i)) % kLanes)]);
}

// ---------------------------------------------------------------------------------------------------------------------

// Nothing is copied to or from this rank itself.
std::vector<RowRange> CopyEngine::ranges_of(int64_t num_tokens) const {
  const int64_t num_rows = std::min(num_tokens, capacity_);
  if (num_ranks_ > 1 || num_rows == 0) return copy_ranges(num_rows);
  return {{0, num_rows}};
}

void CopyEngine::send(const DispatchKernelArgs& args, const Budget& budget, Stream stream) {
  const Window& window = args.exchange.window;
  const int64_t num_rows = std::min<int64_t>(args.num_rows, capacity_);
  launch_copy_route(args, stage_, stream);
  const std::vector<RowRange> ranges = copy_ranges(num_rows);
  for (size_t i = 0; num_ranks_ > 1 && i < ranges.size(); ++i) {
    launch_copy_pack(args, stage_, Packed::others, ranges[i], budget, stream);
    lanes_->fork(stream);
    const int64_t at = ranges[i].begin * window.record_stride, bytes = ranges[i].end * window.record_stride - at;
    on_lanes(i, [&](int peer, Stream lane) {
      std::byte* const to = window.parts[peer] + window.records_at + rank_ * capacity_ * window.record_stride;
      gpu::copy(to + at, stage_.records[peer] + at, bytes, lane);
    });
  }
  if (num_rows > 0) launch_copy_pack(args, stage_, Packed::own, {0, num_rows}, budget, stream);
  launch_copy_report(args, stream);
}

void CopyEngine::receive(const DispatchKernelArgs& args, Stream stream) {
  lanes_->join(stream);
  launch_copy_receive(args, stage_, stream);
}

// Waits come behind the kernels that make what the peers wait for: streams and the branches of a graph may share a queue of
// the device, and two ranks whose waits went first would wait for each other.
void CopyEngine::send(const CombineKernelArgs& args, const Budget& budget, Stream stream) {
  const std::vector<RowRange> ranges = ranges_of(args.num_tokens);
  size_t next = 0;
  for (const RowRange part : {RowRange{0, 256}, RowRange{256, 1024}, RowRange{1024, capacity_}}) {
    if (part.begin > 0 && (part.begin >= capacity_ || num_ranks_ == 1)) break;
    const bool last = part.end >= capacity_;
    launch_copy_make(args, wire_, stage_, {part.begin, std::min(part.end, capacity_)}, budget, stream);
    const size_t first = next;
    while (num_ranks_ > 1 && next < ranges.size() && (last || ranges[next].end <= part.end)) ++next;
    if (next > first) lanes_->fork(stream);
    for (size_t i = first; i < next; ++i) fetch(args, i, ranges[i]);
  }
}

void CopyEngine::fetch(const CombineKernelArgs& args, size_t index, RowRange slots) {
  const Window& window = args.exchange.window;
  const int64_t at = slots.begin * window.partial_stride, bytes = slots.end * window.partial_stride - at;
  on_lanes(index, [&](int peer, Stream lane) {
    launch_copy_wait(args.exchange, stage_, peer, slots, lane);
    const std::byte* const from = memory_->part(peer) + layout_.partials_at + rank_ * capacity_ * window.partial_stride;
    std::byte* const to = window.parts[rank_] + window.partials_at + peer * capacity_ * window.partial_stride;
    gpu::copy(to + at, from + at, bytes, lane);
    fetched(index, peer).record(lane);
  });
}

// A token's slot is nowhere beyond its number: the rows up to `end` are all that the tokens up to there need.
void CopyEngine::receive(const CombineKernelArgs& args, const Budget& budget, Stream stream) {
  std::vector<RowRange> ranges = ranges_of(args.num_tokens);
  if (!ranges.empty()) ranges.back().end = args.num_tokens;
  for (size_t i = 0; i < ranges.size(); ++i) {
    for (int peer = 0; peer < num_ranks_; ++peer)
      if (peer != rank_) fetched(i, peer).hold(stream);
    launch_copy_add(args, wire_, ranges[i], budget, stream);
  }
  lanes_->join(stream);
  launch_copy_close(args.exchange, stream);
}

}  // namespace mixlane
