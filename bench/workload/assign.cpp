// Which experts each token gets. Every expert has a key per token, the smallest keys win; the skews differ only in the
// keys.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/error.hpp"
#include "workload/random.hpp"
#include "workload/workload.hpp"

namespace mixlane::bench {
namespace {

// Below every ordinary key: an expert or group with this added is chosen before the others.
constexpr double kForced = -1e12;

class Assigner {
 public:
  explicit Assigner(const WorkloadRequest& request);
  // The next token's columns, best first.
  void next(std::span<int32_t> columns);

 private:
  void make_keys();
  void choose_groups();
  double zipf_key(double mass);

  const WorkloadRequest& request_;
  const RoutingConfig& routing_;
  int num_columns_, group_size_, num_groups_;
  int hot_ = 0;
  Stream64 random_;
  std::vector<double> mass_, group_mass_;     // zipf: popularity
  std::vector<int64_t> count_, group_count_;  // pairs so far
  std::vector<char> forced_;
  std::vector<int> group_forced_;  // forced experts of each group
  std::vector<double> key_, group_key_;
  std::vector<int> order_, group_order_;
};

Assigner::Assigner(const WorkloadRequest& request)
    : request_(request),
      routing_(request.routing),
      // Identity experts belong to no group: they are ordinary columns where there are no groups, else never meant.
      num_columns_(routing_.num_experts + (routing_.num_groups > 1 ? 0 : routing_.num_zero_experts)),
      group_size_(num_columns_ / routing_.num_groups),
      num_groups_(routing_.num_groups),
      random_(mix_bits(request.seed, request.step)),
      count_(num_columns_),
      group_count_(num_groups_),
      forced_(num_columns_),
      group_forced_(num_groups_),
      key_(num_columns_),
      group_key_(num_groups_) {
  const int hot = hot_ = static_cast<int>(random_.next() % routing_.num_experts);
  const Skew skew = request.workload.skew;
  if (skew == Skew::hot_expert) forced_[hot] = 1;
  if (skew == Skew::hot_rank)
    for (int e = 0; e < routing_.num_experts; ++e) forced_[e] = request.expert_rank[e] == request.expert_rank[hot];
  for (int e = 0; e < num_columns_; ++e) group_forced_[e / group_size_] += forced_[e];
  if (skew != Skew::zipf) return;
  std::vector<int> popularity(num_columns_);
  std::iota(popularity.begin(), popularity.end(), 0);
  for (int i = num_columns_ - 1; i > 0; --i) std::swap(popularity[i], popularity[random_.next() % (i + 1)]);
  mass_.resize(num_columns_);
  group_mass_.resize(num_groups_);
  for (int e = 0; e < num_columns_; ++e) {
    mass_[e] = std::pow(popularity[e] + 1.0, -request.workload.exponent);
    group_mass_[e / group_size_] += mass_[e];
  }
}

// The smallest of these keys are a draw without replacement with probabilities proportional to the masses.
double Assigner::zipf_key(double mass) {
  const double uniform = (static_cast<double>(random_.next() >> 11) + 0.5) * 0x1p-53;
  return -std::log(uniform) / mass;
}

void Assigner::make_keys() {
  const bool zipf = request_.workload.skew == Skew::zipf;
  // Balanced: fewest pairs so far, ties at random. Uniform: at random alone.
  const double weight = request_.workload.skew == Skew::uniform ? 0 : 1;
  for (int e = 0; e < num_columns_; ++e)
    key_[e] = (zipf ? zipf_key(mass_[e]) : weight * static_cast<double>(count_[e]) + random_.uniform()) +
              (forced_[e] ? kForced : 0);
  for (int g = 0; g < num_groups_; ++g)
    group_key_[g] = (zipf ? zipf_key(group_mass_[g]) : weight * static_cast<double>(group_count_[g]) + random_.uniform()) +
                    kForced * std::min(group_forced_[g], routing_.num_topk);
}

// Leaves in order_ the experts of the best topk_groups groups.
void Assigner::choose_groups() {
  group_order_.resize(num_groups_);
  std::iota(group_order_.begin(), group_order_.end(), 0);
  const int wanted = num_groups_ > 1 ? routing_.topk_groups : 1;
  std::partial_sort(group_order_.begin(), group_order_.begin() + wanted, group_order_.end(),
                    [&](int a, int b) { return group_key_[a] < group_key_[b]; });
  order_.clear();
  for (int i = 0; i < wanted; ++i)
    for (int e = 0; e < group_size_; ++e) order_.push_back(group_order_[i] * group_size_ + e);
}

void Assigner::next(std::span<int32_t> columns) {
  if (request_.workload.skew == Skew::one_expert) return std::fill(columns.begin(), columns.end(), hot_);
  make_keys();
  choose_groups();
  std::partial_sort(order_.begin(), order_.begin() + static_cast<std::ptrdiff_t>(columns.size()), order_.end(),
                    [&](int a, int b) { return key_[a] < key_[b]; });
  for (size_t k = 0; k < columns.size(); ++k) {
    columns[k] = order_[k];
    ++count_[order_[k]];
    ++group_count_[order_[k] / group_size_];
  }
}

}  // namespace

std::vector<int32_t> assign_columns(const WorkloadRequest& request) {
  const std::vector<int> tokens = rank_tokens(request);
  const int64_t total = std::accumulate(tokens.begin(), tokens.end(), int64_t{0});
  const int num_topk = request.routing.num_topk;
  std::vector<int32_t> columns(static_cast<size_t>(total) * num_topk);
  Assigner assigner(request);
  for (int64_t t = 0; t < total; ++t) assigner.next({columns.data() + t * num_topk, static_cast<size_t>(num_topk)});
  return columns;
}

}  // namespace mixlane::bench
