#include "stage/routing_check.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "ops/routing/scores.hpp"

namespace mixlane::bench {
namespace {

constexpr int64_t kNeighbours = 2;       // units in the last place
constexpr int64_t kGroupNeighbours = 4;  // of sums of two

int64_t ulps_between(float a, float b) {
  const auto ordered = [](float value) {
    const auto pattern = std::bit_cast<int32_t>(value);
    return pattern < 0 ? -static_cast<int64_t>(pattern & 0x7fffffff) : static_cast<int64_t>(pattern);
  };
  return std::abs(ordered(a) - ordered(b));
}

class TokenCheck {
 public:
  TokenCheck(const RoutingConfig& config, const ConstTensorView& logits, std::span<const float> bias)
      : config_(config), logits_(logits), bias_(bias), choices_(static_cast<size_t>(logits.shape[1])) {}

  // The ids of one token in both answers, which differ.
  bool is_near_tie(int64_t token, std::span<const int64_t> expected, std::span<const int64_t> got) {
    std::vector<int64_t> distinct(got.begin(), got.end());
    std::sort(distinct.begin(), distinct.end());
    if (std::adjacent_find(distinct.begin(), distinct.end()) != distinct.end()) return false;
    if (distinct.front() < 0 || distinct.back() >= logits_.shape[1]) return false;
    compute_choices(token);
    bool close = true;
    for (size_t k = 0; k < got.size(); ++k)
      close = close && (expected[k] == got[k] ||
                        (expected[k] >= 0 && ulps_between(choice(expected[k]), choice(got[k])) <= kNeighbours));
    return close || has_near_tie_of_groups(got);
  }

 private:
  float choice(int64_t expert) const { return choices_[static_cast<size_t>(expert)]; }

  void compute_choices(int64_t token) {
    const auto count = static_cast<int>(choices_.size());
    std::vector<float> x(choices_.size());
    const auto* row = logits_.as<std::byte>() + token * logits_.strides[0] * bits(logits_.dtype) / 8;
    routing::load_logits(row, logits_.dtype, count, config_.softcap, x.data());
    routing::score(config_.scoring, x.data(), count, choices_.data());
    for (size_t e = 0; e < bias_.size(); ++e) choices_[e] += bias_[e];
  }

  float group_score(int64_t group) const {
    const int64_t size = config_.num_experts / config_.num_groups;
    std::vector<float> members(choices_.begin() + group * size, choices_.begin() + (group + 1) * size);
    std::sort(members.begin(), members.end(), std::greater<>());
    return config_.group_score == GroupScore::max ? members[0] : members[0] + members[1];
  }

  // The groups that were used and not open are as good as the last open one.
  bool has_near_tie_of_groups(std::span<const int64_t> got) const {
    if (config_.num_groups == 1) return false;
    std::vector<float> scores;
    for (int g = 0; g < config_.num_groups; ++g) scores.push_back(group_score(g));
    std::vector<float> sorted = scores;
    std::sort(sorted.begin(), sorted.end(), std::greater<>());
    const float last_open = sorted[static_cast<size_t>(config_.topk_groups) - 1];
    bool used_a_closed_one = false;
    for (const int64_t expert : got) {
      const float score = scores[static_cast<size_t>(expert / (config_.num_experts / config_.num_groups))];
      if (score >= last_open) continue;
      if (ulps_between(score, last_open) > kGroupNeighbours) return false;
      used_a_closed_one = true;
    }
    return used_a_closed_one;
  }

  const RoutingConfig& config_;
  const ConstTensorView& logits_;
  std::span<const float> bias_;
  std::vector<float> choices_;
};

double relative_error(float got, float expected) {
  const double error = std::abs(double{got} - expected) / std::max(std::abs(double{expected}), 1e-30);
  return std::isfinite(error) ? error : std::numeric_limits<double>::infinity();
}

}  // namespace

RoutingDifference compare_routing(const RoutingConfig& config, const ConstTensorView& logits, std::span<const float> bias,
                                  const RoutingAnswer& expected, const RoutingAnswer& got) {
  RoutingDifference difference;
  TokenCheck check(config, logits, bias);
  const auto num_topk = static_cast<size_t>(config.num_topk);
  for (int64_t t = 0; t < logits.shape[0]; ++t) {
    const size_t first = static_cast<size_t>(t) * num_topk;
    const std::span<const int64_t> want(expected.ids.data() + first, num_topk), have(got.ids.data() + first, num_topk);
    if (!std::equal(want.begin(), want.end(), have.begin())) {
      if (check.is_near_tie(t, want, have))
        ++difference.num_near_ties;
      else
        for (size_t k = 0; k < num_topk; ++k) difference.num_wrong_ids += want[k] != have[k];
      continue;
    }
    for (size_t k = first; k < first + num_topk; ++k)
      difference.weight_error = std::max(difference.weight_error, relative_error(got.weights[k], expected.weights[k]));
  }
  return difference;
}

}  // namespace mixlane::bench
