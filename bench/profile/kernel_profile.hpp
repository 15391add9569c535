// When each kernel of this process ran on its GPU, from the vendor's profiler: CUPTI, loaded when it is asked for.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/env.hpp"

namespace mixlane::bench {

// One execution of one kernel. Begin and end are the device's, on the clock of measure/clock.hpp: a duration is exact to
// the GPU timer's resolution, a place among host events to a few microseconds.
struct KernelSpan {
  std::string symbol;  // demangled: "void mixlane::align_gpu::align_multi_phase<...>(...)"
  int64_t begin_ns = 0;
  int64_t end_ns = 0;
  int device = 0;
  uint32_t stream = 0;  // the profiler's number of it; kernels of one graph may have several
  std::array<int, 3> grid{};
  std::array<int, 3> block{};
  uint64_t graph_node = 0;  // the same for every replay; 0: not of a graph
  bool in_graph() const { return graph_node != 0; }
  double us() const { return static_cast<double>(end_ns - begin_ns) * 1e-3; }
};

struct KernelProfile {
  std::vector<KernelSpan> spans;  // by begin
  int64_t num_dropped = 0;        // kernels that the profiler lost
};

// A process has one profiler at a time, which sees the kernels of all its threads and devices. While it records, launches
// cost more and graphs replay kernel by kernel. Something of that stays for the rest of the process (on an H200 0.4 us per
// launch, 0.15 us per graph node), and detaching CUPTI would break the graphs that it has seen: whoever compares times takes
// them before the first start(), or profiles in a process of its own.
class KernelProfiler {
 public:
  explicit KernelProfiler(const Env& env);
  ~KernelProfiler();
  KernelProfiler(const KernelProfiler&) = delete;
  KernelProfiler& operator=(const KernelProfiler&) = delete;

  // What keeps kernels from being profiled here and what to do about it; empty if nothing does.
  const std::string& missing() const { return missing_; }
  // From now on kernels are recorded. Throws missing_component unless missing() is empty, and internal with the profiler's
  // words where it refuses: another profiler holds the GPU.
  void start();
  // What was recorded since start(). Streams that were used must have been waited for; kernels that still run are missing.
  KernelProfile stop();

 private:
  struct Library;
  std::unique_ptr<Library> library_;
  std::string missing_;
};

}  // namespace mixlane::bench
