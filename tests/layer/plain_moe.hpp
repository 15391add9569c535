// An independent MoE layer: one process, plain loops in double precision, written from the definitions in the public
// headers and sharing no code with the library but its small float formats.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "core/numeric.hpp"
#include "mixlane/experts.hpp"
#include "mixlane/routing.hpp"

namespace mixlane::test {

// A matrix of doubles, row major.
struct Matrix {
  int64_t rows = 0, cols = 0;
  std::vector<double> values;
  double at(int64_t r, int64_t c) const { return values[r * cols + c]; }
};

struct PlainExpert {
  Matrix gate_up, down;                         // [2 I or I, H], [H, I]
  std::vector<double> gate_up_bias, down_bias;  // or empty
};

struct PlainMoe {
  RoutingConfig routing;
  Activation activation;
  std::vector<double> correction_bias;  // or empty
  std::vector<PlainExpert> experts;
  std::vector<PlainExpert> shared;  // none or one
  std::vector<double> shared_gate;  // or empty
};

struct PlainChoice {
  int expert;
  double weight;
};

inline double round_bf16(double value) { return bf16_to_f32(f64_to_bf16(value)); }

inline std::vector<double> plain_scores(const RoutingConfig& c, std::vector<double> logits) {
  if (c.softcap > 0)
    for (double& x : logits) x = c.softcap * std::tanh(x / c.softcap);
  std::vector<double> scores = logits;
  if (c.scoring == Scoring::softmax) {
    const double top = *std::max_element(logits.begin(), logits.end());
    double sum = 0;
    for (const double x : logits) sum += std::exp(x - top);
    for (double& s : scores) s = std::exp(s - top) / sum;
  } else if (c.scoring == Scoring::sigmoid) {
    for (double& s : scores) s = 1 / (1 + std::exp(-s));
  } else if (c.scoring == Scoring::sqrt_softplus) {
    for (double& s : scores) s = std::sqrt(std::log1p(std::exp(s)));
  }
  return scores;
}

// Which experts may be chosen, by the group rule.
inline std::vector<bool> plain_allowed(const RoutingConfig& c, const std::vector<double>& choice) {
  std::vector<bool> allowed(choice.size(), true);
  if (c.num_groups == 1) return allowed;
  const int size = c.num_experts / c.num_groups;
  std::vector<double> group_scores;
  for (int g = 0; g < c.num_groups; ++g) {
    std::vector<double> members(choice.begin() + g * size, choice.begin() + (g + 1) * size);
    std::sort(members.rbegin(), members.rend());
    group_scores.push_back(c.group_score == GroupScore::max ? members[0] : members[0] + members[1]);
  }
  std::vector<int> order(c.num_groups);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return group_scores[a] > group_scores[b]; });
  for (int place = c.topk_groups; place < c.num_groups; ++place)
    for (int e = order[place] * size; e < (order[place] + 1) * size; ++e) allowed[e] = false;
  return allowed;
}

inline std::vector<PlainChoice> plain_route(const PlainMoe& moe, const std::vector<double>& logits) {
  const RoutingConfig& c = moe.routing;
  const std::vector<double> scores = plain_scores(c, logits);
  std::vector<double> choice = scores;
  for (size_t e = 0; e < moe.correction_bias.size(); ++e) choice[e] += moe.correction_bias[e];
  const std::vector<bool> allowed = plain_allowed(c, choice);
  std::vector<int> order;
  for (size_t e = 0; e < choice.size(); ++e)
    if (allowed[e]) order.push_back(static_cast<int>(e));
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return choice[a] > choice[b]; });
  order.resize(c.num_topk);

  std::vector<PlainChoice> chosen;
  double sum = c.renorm_epsilon;
  for (const int e : order) {
    const double weight = c.scoring == Scoring::topk_softmax ? std::exp(scores[e] - scores[order[0]]) : scores[e];
    chosen.push_back({e, weight});
    sum += weight;
  }
  const bool normalise = c.renormalize || c.scoring == Scoring::topk_softmax;
  for (PlainChoice& choice_k : chosen) choice_k.weight *= c.scale / (normalise ? sum : 1.0);
  return chosen;
}

inline double plain_activate(const Activation& a, double gate, double up) {
  const auto sigmoid = [](double x) { return 1 / (1 + std::exp(-x)); };
  const auto clamp = [&](double x) { return std::clamp<double>(x, -a.limit, a.limit); };
  const double g = std::min<double>(gate, a.limit);
  switch (a.kind) {
    case ActivationKind::swiglu: return g * sigmoid(g) * clamp(up);
    case ActivationKind::swiglu_oai: return g * sigmoid(a.alpha * g) * (clamp(up) + 1);
    case ActivationKind::geglu_tanh:
      return 0.5 * gate * (1 + std::tanh(std::sqrt(2 / M_PI) * (gate + 0.044715 * gate * gate * gate))) * up;
    case ActivationKind::relu2: return std::max(gate, 0.0) * std::max(gate, 0.0);
  }
  return NAN;
}

inline std::vector<double> plain_product(const Matrix& matrix, const std::vector<double>& bias,
                                         const std::vector<double>& x) {
  std::vector<double> y(matrix.rows, 0.0);
  for (int64_t r = 0; r < matrix.rows; ++r) {
    for (int64_t i = 0; i < matrix.cols; ++i) y[r] += matrix.at(r, i) * x[i];
    if (!bias.empty()) y[r] += bias[r];
  }
  return y;
}

inline std::vector<double> plain_expert(const PlainMoe& moe, const PlainExpert& expert, const std::vector<double>& x) {
  const std::vector<double> gate_up = plain_product(expert.gate_up, expert.gate_up_bias, x);
  const int64_t width = expert.down.cols;
  std::vector<double> inner(width);
  for (int64_t i = 0; i < width; ++i)
    inner[i] = round_bf16(plain_activate(moe.activation, gate_up[i], moe.activation.gated() ? gate_up[width + i] : 0.0));
  std::vector<double> y = plain_product(expert.down, expert.down_bias, inner);
  for (double& value : y) value = round_bf16(value);
  return y;
}

// The layer's output for one token.
inline std::vector<double> plain_token(const PlainMoe& moe, const std::vector<double>& x,
                                       const std::vector<double>& logits) {
  std::vector<double> out(x.size(), 0.0);
  const auto add = [&](double factor, const std::vector<double>& row) {
    for (size_t i = 0; i < out.size(); ++i) out[i] += factor * row[i];
  };
  for (const PlainChoice& choice : plain_route(moe, logits)) {
    if (choice.expert >= moe.routing.num_experts) {
      add(choice.weight, x);
    } else if (moe.routing.weight_on_input) {
      std::vector<double> scaled = x;
      for (double& value : scaled) value = round_bf16(value * choice.weight);
      add(1.0, plain_expert(moe, moe.experts[choice.expert], scaled));
    } else {
      add(choice.weight, plain_expert(moe, moe.experts[choice.expert], x));
    }
  }
  if (!moe.shared.empty()) {
    double logit = 0;
    for (size_t i = 0; i < moe.shared_gate.size(); ++i) logit += moe.shared_gate[i] * x[i];
    add(moe.shared_gate.empty() ? 1.0 : 1 / (1 + std::exp(-logit)), plain_expert(moe, moe.shared[0], x));
  }
  return out;
}

}  // namespace mixlane::test
