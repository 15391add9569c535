#include "trace/chrome_trace.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/error.hpp"
#include "profile/kernel_names.hpp"
#include "results/files.hpp"
#include "stats/stats.hpp"

namespace mixlane::bench {
namespace {

using Json = nlohmann::ordered_json;

Json metadata(const char* name, int rank, const std::string& value, int64_t thread = 0) {
  return {{"ph", "M"}, {"name", name}, {"pid", rank}, {"tid", thread}, {"args", {{"name", value}}}};
}

// Streams of all devices that a rank may use, behind the thread of its stages.
int64_t thread_of(const KernelSpan& span) { return 1 + int64_t{span.device} * 100'000 + span.stream; }

Json kernel_slice(const KernelSpan& span, int rank, double begin_us, std::span<const std::string> known) {
  const std::string variant = variant_of_kernel(span.symbol, known);
  return {{"ph", "X"},
          {"name", variant.empty() ? std::string(kernel_name(span.symbol)) : variant},
          {"cat", variant.empty() ? "unattributed" : "kernel"},
          {"pid", rank},
          {"tid", thread_of(span)},
          {"ts", begin_us},
          {"dur", span.us()},
          {"args", {{"symbol", span.symbol}, {"grid", span.grid}, {"block", span.block}, {"graph", span.in_graph()}}}};
}

std::vector<int> typical_samples(const SampleSet& set, int wanted) {
  const std::vector<double> samples = layer_samples(set);
  const double median = quantile(samples, 0.5);
  std::vector<int> order(samples.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int a, int b) { return std::fabs(samples[a] - median) < std::fabs(samples[b] - median); });
  order.resize(std::min<size_t>(order.size(), static_cast<size_t>(wanted)));
  std::sort(order.begin(), order.end());
  return order;
}

}  // namespace

TraceWriter::TraceWriter(int num_ranks, std::string title) : title_(std::move(title)), events_(num_ranks) {
  for (int r = 0; r < num_ranks; ++r) {
    events_[r] = Json::array();
    events_[r].push_back(metadata("process_name", r, fmt::format("rank {}", r)));
    events_[r].push_back(
        {{"ph", "M"}, {"name", "process_sort_index"}, {"pid", r}, {"tid", 0}, {"args", {{"sort_index", r}}}});
    events_[r].push_back(metadata("thread_name", r, "stages"));
  }
}

void TraceWriter::resume(const std::filesystem::path& folder) {
  std::vector<Json> events;
  double end_us = 0;
  try {
    for (size_t r = 0; r < events_.size(); ++r) {
      events.push_back(Json::parse(read_text_file(folder / fmt::format("rank{}.json", r))).at("traceEvents"));
      for (const Json& event : events.back())
        if (event.contains("ts")) end_us = std::max(end_us, event.at("ts").get<double>() + event.at("dur").get<double>());
    }
  } catch (const std::exception&) {
    return;  // the timelines of the cells before are lost, their results are not
  }
  events_ = std::move(events);
  cursor_us_ = std::ceil(end_us * 1.01);
}

void TraceWriter::add(const TraceCell& cell, const SampleSet& set) {
  const std::vector<double> durations = layer_samples(set);
  for (const int sample : typical_samples(set, kSamplesPerCell)) {
    for (int r = 0; r < set.num_ranks; ++r) {
      const Stamps& stamps = set.at(sample, r);
      const Json args = {
          {"tokens", cell.tokens}, {"workload", cell.workload}, {"sample", sample}, {"gate_ns", stamps.gate_ns}};
      const auto slice = [&](const std::string& name, const char* category, double begin_us, double end_us) {
        events_[r].push_back({{"ph", "X"},
                              {"name", name},
                              {"cat", category},
                              {"pid", r},
                              {"tid", 0},
                              {"ts", cursor_us_ + begin_us},
                              {"dur", end_us - begin_us},
                              {"args", args}});
      };
      slice(fmt::format("layer {} tokens {}", cell.tokens, cell.workload), "layer", 0, stamps.end_us);
      for (int s = 0; s < kNumStages; ++s)
        if (stamps.stage_end_us[s] > stamps.begin_us[s])
          slice(cell.variants[s], std::string(name(static_cast<Stage>(s))).c_str(), stamps.begin_us[s],
                stamps.stage_end_us[s]);
    }
    cursor_us_ += std::ceil(durations[sample] * 1.1);
  }
}

void TraceWriter::add_kernels(const TraceCell& cell, const std::vector<std::vector<KernelSpan>>& of_ranks,
                              std::span<const std::string> known) {
  int64_t first_ns = std::numeric_limits<int64_t>::max(), last_ns = 0;
  for (const auto& spans : of_ranks)
    for (const KernelSpan& span : spans) {
      first_ns = std::min(first_ns, span.begin_ns);
      last_ns = std::max(last_ns, span.end_ns);
    }
  if (last_ns == 0) return;
  const double end_us = static_cast<double>(last_ns - first_ns) * 1e-3;
  for (size_t r = 0; r < of_ranks.size(); ++r) {
    const int rank = static_cast<int>(r);
    for (const KernelSpan& span : of_ranks[r]) {
      if (named_streams_.insert({r, thread_of(span)}).second)
        events_[r].push_back(
            metadata("thread_name", rank, fmt::format("GPU {} stream {}", span.device, span.stream), thread_of(span)));
      events_[r].push_back(
          kernel_slice(span, rank, cursor_us_ + static_cast<double>(span.begin_ns - first_ns) * 1e-3, known));
    }
    events_[r].push_back({{"ph", "X"},
                          {"name", fmt::format("kernels of {} tokens {}", cell.tokens, cell.workload)},
                          {"cat", "layer"},
                          {"pid", rank},
                          {"tid", 0},
                          {"ts", cursor_us_},
                          {"dur", end_us}});
  }
  cursor_us_ += std::ceil(end_us * 1.1);
}

Json TraceWriter::document(const std::vector<const Json*>& events) const {
  Json all = Json::array();
  for (const Json* of_rank : events)
    for (const Json& event : *of_rank) all.push_back(event);
  return {{"displayTimeUnit", "ns"}, {"otherData", {{"title", title_}}}, {"traceEvents", std::move(all)}};
}

void TraceWriter::write(const std::filesystem::path& folder) const {
  std::vector<const Json*> all;
  for (size_t r = 0; r < events_.size(); ++r) {
    all.push_back(&events_[r]);
    write_text_file(folder / fmt::format("rank{}.json", r), document({&events_[r]}).dump() + "\n");
  }
  write_text_file(folder / "merged.json", document(all).dump() + "\n");
}

}  // namespace mixlane::bench
