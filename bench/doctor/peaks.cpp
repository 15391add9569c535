#include "doctor/peaks.hpp"

#include <sys/mman.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>

#include "core/error.hpp"
#include "core/parallel.hpp"
#include "doctor/best_rate.hpp"
#include "doctor/matrix_rate.hpp"
#include "doctor/streams.hpp"
#include "results/stamp.hpp"

namespace mixlane::bench {
namespace {

constexpr int64_t kLine = 64;
constexpr double kGiga = 1e9;
constexpr int kNumPeaks = 5;

// One rank's memory, first touched by the threads that will read it.
class Buffer {
 public:
  Buffer(int64_t bytes, int num_threads) : bytes_(bytes) {
    void* memory = ::mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return;
    data_ = static_cast<std::byte*>(memory);
    ::madvise(memory, static_cast<size_t>(bytes), MADV_HUGEPAGE);  // fewer faults, as weights have them; a wish only
    parallel_ranges(num_threads, bytes / kLine, 1, [&](int64_t begin, int64_t end) {
      std::memset(data_ + begin * kLine, 1, static_cast<size_t>((end - begin) * kLine));
    });
  }
  ~Buffer() {
    if (data_) ::munmap(data_, static_cast<size_t>(bytes_));
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  std::byte* data() const { return data_; }

 private:
  int64_t bytes_;
  std::byte* data_ = nullptr;
};

// Copies with this rank's threads; odd repetitions past the caches, even ones through them: which is faster depends on the
// processor, and the peak is the better one.
void copy(const Context& context, std::byte* to, const std::byte* from, int64_t bytes, int repetition) {
  parallel_ranges(context.num_threads(), bytes / kLine, 1, [&](int64_t begin, int64_t end) {
    const int64_t offset = begin * kLine, size = (end - begin) * kLine;
    if (repetition % 2) {
      copy_streaming(to + offset, from + offset, size);
    } else {
      std::memcpy(to + offset, from + offset, static_cast<size_t>(size));
    }
  });
}

double read_rate(Communicator& comm, const Context& context, const Buffer& buffer, int64_t bytes, double seconds) {
  std::atomic<uint64_t> keep{0};
  return best_rate(comm, seconds, static_cast<double>(bytes) * comm.num_ranks(), [&](int) {
    parallel_ranges(context.num_threads(), bytes / kLine, 1, [&](int64_t begin, int64_t end) {
      keep ^= read_all(buffer.data() + begin * kLine, (end - begin) * kLine);
    });
  });
}

double copy_rate(Communicator& comm, const Context& context, const Buffer& buffer, int64_t bytes, double seconds) {
  const int64_t half = bytes / 2 / kLine * kLine;
  return best_rate(comm, seconds, 2.0 * static_cast<double>(half) * comm.num_ranks(),
                   [&](int repetition) { copy(context, buffer.data() + half, buffer.data(), half, repetition); });
}

// Each rank writes the part of the next one.
double exchange_rate(Communicator& comm, const Context& context, const Buffer& buffer, int64_t bytes, double seconds) {
  const auto memory = comm.allocate(bytes, "the exchange peak");
  std::byte* neighbour = memory->part((comm.rank() + 1) % comm.num_ranks());
  return best_rate(comm, seconds, static_cast<double>(bytes) * comm.num_ranks(),
                   [&](int repetition) { copy(context, neighbour, buffer.data(), bytes, repetition); });
}

void measure_memory(Communicator& comm, const Context& context, const PeakOptions& options, Peaks& peaks) {
  const int64_t bytes = options.machine_bytes / comm.num_ranks() / kLine * kLine;
  const double seconds = options.seconds / kNumPeaks;
  const Buffer buffer(bytes, context.num_threads());
  const std::string problem =
      first_problem(comm, buffer.data() ? "" : fmt::format("rank {} has no {} MB of memory", comm.rank(), bytes >> 20));
  if (!problem.empty()) {
    peaks.skipped = {"bandwidth: " + problem, "exchange: " + problem};
    return;
  }
  peaks.read_gbs = read_rate(comm, context, buffer, bytes, seconds) / kGiga;
  peaks.copy_gbs = copy_rate(comm, context, buffer, bytes, seconds) / kGiga;
  if (comm.num_ranks() == 1) {
    peaks.skipped.push_back("exchange: one rank has no neighbour");
    return;
  }
  try {
    peaks.exchange_gbs = exchange_rate(comm, context, buffer, bytes / 2 / kLine * kLine, seconds) / kGiga;
  } catch (const Error& error) {  // allocate fails on every rank alike
    if (error.code() != ErrorCode::out_of_memory) throw;
    peaks.skipped.push_back(fmt::format("exchange: {}", error.what()));
  }
}

void measure_matrix(Communicator& comm, Context& context, const PeakOptions& options, Peaks& peaks) {
  for (const auto& [dtype, tflops] :
       {std::pair{DType::bf16, &peaks.bf16_tflops}, std::pair{DType::f32, &peaks.f32_tflops}}) {
    const MatrixRate rate = matrix_rate(comm, context, dtype, options.seconds / kNumPeaks);
    *tflops = rate.flops_per_second / 1e12;
    if (!rate.problem.empty()) peaks.skipped.push_back(fmt::format("{}: {}", name(dtype), rate.problem));
  }
}

}  // namespace

Peaks measure_peaks(Communicator& comm, Context& context, const PeakOptions& options) {
  if (options.seconds <= 0 || options.machine_bytes < comm.num_ranks() * 2 * kLine)
    fail(ErrorCode::invalid_argument, "peaks of {} s over {} bytes by {} ranks: give more of it", options.seconds,
         options.machine_bytes, comm.num_ranks());
  Peaks peaks;
  peaks.measured_at = comm.all_gather(current_stamp()).front();
  measure_memory(comm, context, options, peaks);
  measure_matrix(comm, context, options, peaks);
  return peaks;
}

}  // namespace mixlane::bench
