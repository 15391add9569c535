#include "workload/workload.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <functional>
#include <numeric>
#include <utility>

#include "core/error.hpp"
#include "core/numeric.hpp"
#include "workload/random.hpp"

namespace mixlane::bench {
namespace {

constexpr std::string_view kNames[] = {"balanced", "uniform", "zipf", "hot_expert", "hot_rank", "one_expert", "ragged"};

// Distinct streams of random numbers from one seed.
enum class Purpose : uint64_t { ragged_order = 1, logits, hidden, normal_logits };

uint64_t stream_seed(uint64_t seed, Purpose purpose, uint64_t index) {
  return mix_bits(mix_bits(seed, static_cast<uint64_t>(purpose)), index);
}

}  // namespace

Workload parse_workload(std::string_view text) {
  const std::string_view head = text.substr(0, text.find(':'));
  const auto known = std::find(std::begin(kNames), std::end(kNames), head);
  Workload workload;
  if (known != std::end(kNames)) {
    workload.skew = static_cast<Skew>(known - std::begin(kNames));
    if (workload.skew != Skew::zipf && head == text) return workload;
    const std::string_view number = text.substr(std::min(text.size(), head.size() + 1));
    const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), workload.exponent);
    if (workload.skew == Skew::zipf && error == std::errc() && end == number.data() + number.size() &&
        workload.exponent > 0 && workload.exponent <= 10)
      return workload;
  }
  fail(ErrorCode::invalid_argument,
       "unknown workload '{}'; valid ones: balanced, uniform, zipf:<exponent in (0, 10]> as in zipf:1.2, hot_expert, "
       "hot_rank, "
       "one_expert, ragged",
       text);
}

std::string to_string(const Workload& workload) {
  const std::string_view name = kNames[static_cast<int>(workload.skew)];
  return workload.skew == Skew::zipf ? fmt::format("{}:{}", name, workload.exponent) : std::string(name);
}

std::vector<int> rank_tokens(const WorkloadRequest& request) {
  std::vector<int> tokens(request.num_ranks, request.tokens);
  if (request.workload.skew != Skew::ragged || request.num_ranks == 1) return tokens;
  // Shares 0, 1/(R-1), ..., 1 in an order drawn from the seed.
  std::vector<int> order(request.num_ranks);
  std::iota(order.begin(), order.end(), 0);
  Stream64 random(stream_seed(request.seed, Purpose::ragged_order, 0));
  for (int i = request.num_ranks - 1; i > 0; --i) std::swap(order[i], order[random.next() % (i + 1)]);
  for (int i = 0; i < request.num_ranks; ++i)
    tokens[order[i]] = static_cast<int>(std::lround(static_cast<double>(request.tokens) * i / (request.num_ranks - 1)));
  return tokens;
}

void fill_logits(const WorkloadRequest& request, int64_t token, std::span<const int32_t> columns, std::span<float> logits) {
  Stream64 random(stream_seed(mix_bits(request.seed, request.step), Purpose::logits, static_cast<uint64_t>(token)));
  // Far enough apart that no correction bias of a usual size changes the choice, whatever the scoring function.
  for (float& logit : logits) logit = -4.0f + 0.2f * random.uniform();
  const float gap = 2.0f / static_cast<float>(columns.size());
  for (size_t k = 0; k < columns.size(); ++k)
    logits[columns[k]] = 3.0f - gap * (static_cast<float>(k) + 0.5f * random.uniform());
}

void fill_normal_logits(const WorkloadRequest& request, int64_t token, std::span<const int32_t> columns,
                        std::span<float> logits) {
  Stream64 random(stream_seed(mix_bits(request.seed, request.step), Purpose::normal_logits, static_cast<uint64_t>(token)));
  std::vector<float> values(logits.size() + 1);
  for (size_t i = 0; i < logits.size(); i += 2) random.normal_pair(values[i], values[i + 1]);
  values.pop_back();
  const auto num_best = static_cast<std::ptrdiff_t>(std::min(columns.size(), values.size()));
  std::partial_sort(values.begin(), values.begin() + num_best, values.end(), std::greater<>());
  std::vector<char> given(logits.size());
  size_t next = 0;
  for (const int32_t column : columns)
    if (!std::exchange(given[static_cast<size_t>(column)], char{1})) logits[static_cast<size_t>(column)] = values[next++];
  for (size_t e = 0; e < logits.size(); ++e)
    if (!given[e]) logits[e] = values[next++];
}

void fill_hidden(uint64_t seed, int rank, int64_t token, std::span<uint16_t> row) {
  Stream64 random(mix_bits(stream_seed(seed, Purpose::hidden, static_cast<uint64_t>(rank)), static_cast<uint64_t>(token)));
  float a = 0, b = 0;
  for (size_t i = 0; i < row.size(); i += 2) {
    random.normal_pair(a, b);
    row[i] = f32_to_bf16(a);
    if (i + 1 < row.size()) row[i + 1] = f32_to_bf16(b);
  }
}

}  // namespace mixlane::bench
