// routing.cpu: the steps of RoutingConfig, one token after the other. Tokens are shared out to the threads.
#include <algorithm>
#include <cmath>
#include <limits>
#include <mutex>
#include <utility>

#include "core/parallel.hpp"
#include "ops/routing/op.hpp"
#include "ops/routing/scores.hpp"

namespace mixlane {
namespace {

constexpr int kMaxColumns = 2 * kMaxRoutingExperts;
constexpr int64_t kLogitsPerThread = 8192;  // below it a thread costs more than it saves
constexpr float kLowest = -std::numeric_limits<float>::infinity();

// The largest candidates seen so far, descending. Offered by ascending index, an equal one stays behind those that are
// there, so ties go to the lowest index.
class Best {
 public:
  explicit Best(int capacity) : capacity_(capacity) {}
  void offer(float value, int index) {
    if (count_ == capacity_) {
      if (!(value > values_[count_ - 1])) return;
      --count_;
    }
    int place = count_++;
    for (; place > 0 && value > values_[place - 1]; --place) {
      values_[place] = values_[place - 1];
      indices_[place] = indices_[place - 1];
    }
    values_[place] = value;
    indices_[place] = index;
  }
  const int* indices() const { return indices_; }
  float value(int place) const { return values_[place]; }

 private:
  int capacity_;
  int count_ = 0;
  float values_[kMaxRoutingExperts];
  int indices_[kMaxRoutingExperts];
};

float group_score(GroupScore how, const float* choice, int group_size) {
  Best best(how == GroupScore::max ? 1 : 2);
  for (int e = 0; e < group_size; ++e) best.offer(choice[e], e);
  return how == GroupScore::max ? best.value(0) : best.value(0) + best.value(1);
}

// The K experts with the largest choice, out of the best groups only.
void choose(const RoutingConfig& c, const float* choice, int* ids) {
  const int num_columns = c.num_experts + c.num_zero_experts;
  const int group_size = c.num_groups == 1 ? num_columns : c.num_experts / c.num_groups;
  bool open[kMaxRoutingExperts] = {c.num_groups == 1};
  if (c.num_groups > 1) {
    Best groups(c.topk_groups);
    for (int g = 0; g < c.num_groups; ++g) groups.offer(group_score(c.group_score, choice + g * group_size, group_size), g);
    for (int i = 0; i < c.topk_groups; ++i) open[groups.indices()[i]] = true;
  }
  Best experts(c.num_topk);
  for (int g = 0; g < c.num_groups; ++g)
    if (open[g])
      for (int e = g * group_size; e < (g + 1) * group_size; ++e) experts.offer(choice[e], e);
  std::copy_n(experts.indices(), c.num_topk, ids);
}

// Weights of the chosen experts, in their order.
void weigh(const RoutingConfig& c, const float* x, const float* scores, const int* ids, float* weights) {
  if (c.scoring == Scoring::topk_softmax)
    routing::softmax_of(x, ids, c.num_topk, weights);
  else
    for (int k = 0; k < c.num_topk; ++k) weights[k] = scores[ids[k]];
  double factor = c.scale;
  if (c.renormalize) {
    double sum = c.renorm_epsilon;
    for (int k = 0; k < c.num_topk; ++k) sum += weights[k];
    factor = sum > 0.0 ? factor / sum : 0.0;  // all scores have underflowed: weights 0, not NaN
  }
  for (int k = 0; k < c.num_topk; ++k) weights[k] = static_cast<float>(weights[k] * factor);
}

// Reads the hash table's row of a token. False, with the facts in `status`, if the table or the token id is wrong.
bool look_up(const RoutingArgs& args, int64_t token, int* ids, Status& status) {
  const auto refuse = [&](int64_t limit, int64_t got) {
    record(status, {.code = ErrorCode::bad_expert_id, .token = token, .expected = limit, .got = got});
    return false;
  };
  const int64_t vocabulary = args.hash_table.shape[0], num_topk = args.config.num_topk;
  const int32_t token_id = args.token_ids.as<int32_t>()[token];
  if (token_id < 0 || token_id >= vocabulary) return refuse(vocabulary, token_id);
  const int limit = args.config.num_experts + args.config.num_zero_experts;
  for (int64_t k = 0; k < num_topk; ++k) {
    ids[k] = args.hash_table.as<int32_t>()[token_id * num_topk + k];
    if (ids[k] < 0 || ids[k] >= limit) return refuse(limit, ids[k]);
  }
  return true;
}

void write_id(const RoutingArgs& args, int64_t at, int32_t id) {
  if (args.topk_ids.dtype == DType::i64)
    args.topk_ids.as<int64_t>()[at] = id;
  else
    args.topk_ids.as<int32_t>()[at] = id;
}

void write_nothing(const RoutingArgs& args, int64_t token) {
  const int64_t num_topk = args.config.num_topk;
  for (int64_t k = 0; k < num_topk; ++k) write_id(args, token * num_topk + k, -1);
  std::fill_n(args.topk_weights.as<float>() + token * num_topk, num_topk, 0.0f);
  if (args.config.num_zero_experts > 0) args.zero_weights.as<float>()[token] = 0.0f;
}

// Logical to physical ids; zero experts leave the list, their weight is summed.
void write_result(const RoutingArgs& args, int64_t token, const int* ids, const float* weights) {
  const RoutingConfig& c = args.config;
  const int32_t* offsets = args.replica_offsets.given() ? args.replica_offsets.as<int32_t>() : nullptr;
  float zero_weight = 0.0f;
  for (int k = 0; k < c.num_topk; ++k) {
    const int64_t at = token * c.num_topk + k;
    const bool zero_expert = ids[k] >= c.num_experts;
    if (zero_expert) zero_weight += weights[k];
    args.topk_weights.as<float>()[at] = zero_expert ? 0.0f : weights[k];
    int32_t id = zero_expert ? -1 : ids[k];
    if (offsets && !zero_expert) {
      const int64_t num_replicas = offsets[id + 1] - offsets[id];
      id = args.replica_ids.as<int32_t>()[offsets[id] + token % num_replicas];
    }
    write_id(args, at, id);
  }
  if (c.num_zero_experts > 0) args.zero_weights.as<float>()[token] = zero_weight;
}

void route_token(const RoutingArgs& args, int64_t token, Status& status) {
  const RoutingConfig& c = args.config;
  const int num_columns = c.num_experts + c.num_zero_experts;
  float x[kMaxColumns], scores[kMaxColumns], choice[kMaxColumns], weights[kMaxTopk];
  int ids[kMaxTopk];
  const int64_t value_bytes = bits(args.logits.dtype) / 8;
  const auto* row = args.logits.as<char>() + token * args.logits.strides[0] * value_bytes;
  const bool has_nan = routing::load_logits(row, args.logits.dtype, num_columns, c.softcap, x);
  if (has_nan && c.nan_policy == NanPolicy::refuse) {
    record(status, {.code = ErrorCode::nan_logits, .token = token});
    return write_nothing(args, token);
  }
  routing::score(c.scoring, x, num_columns, scores);
  if (args.hash_table.given()) {
    if (!look_up(args, token, ids, status)) return write_nothing(args, token);
  } else {
    const bool by_score = args.correction_bias.given() || c.num_groups > 1;
    std::copy_n(by_score ? scores : x, num_columns, choice);
    if (args.correction_bias.given()) {
      const float* bias = args.correction_bias.as<float>();
      for (int e = 0; e < num_columns; ++e) choice[e] += bias[e];
      for (int e = 0; e < num_columns; ++e) choice[e] = std::isnan(choice[e]) ? kLowest : choice[e];
    }
    choose(c, choice, ids);
  }
  weigh(c, x, scores, ids, weights);
  write_result(args, token, ids, weights);
}

void check_replicas(const RoutingArgs& args) {
  if (!args.replica_offsets.given()) return;
  const int32_t* offsets = args.replica_offsets.as<int32_t>();
  const int num_experts = args.config.num_experts;
  if (offsets[0] != 0 || offsets[num_experts] != args.replica_ids.shape[0])
    fail(ErrorCode::invalid_argument, "replica_offsets goes from {} to {}; it must go from 0 to the {} replica_ids",
         offsets[0], offsets[num_experts], args.replica_ids.shape[0]);
  for (int e = 0; e < num_experts; ++e)
    if (offsets[e + 1] <= offsets[e])
      fail(ErrorCode::invalid_argument, "replica_offsets[{}..{}] is {}, {}; every expert needs at least one replica", e,
           e + 1, offsets[e], offsets[e + 1]);
}

// The failure of the earliest token stands, whichever thread met it.
void merge(Status& into, Status other) {
  if (!into.ok() && !other.ok() && other.token < into.token) std::swap(into, other);
  record(into, other);
}

}  // namespace

void launch_routing_cpu(Context& context, const RoutingArgs& args, Stream) {
  check_replicas(args);
  const int64_t num_tokens = args.logits.shape[0];
  int64_t num_valid = num_tokens;
  if (args.num_valid_rows.given()) num_valid = std::clamp<int64_t>(*args.num_valid_rows.as<int32_t>(), 0, num_tokens);
  Status status;
  std::mutex status_mutex;
  parallel_ranges(context.num_threads(), num_valid, kLogitsPerThread / args.logits.shape[1] + 1,
                  [&](int64_t begin, int64_t end) {
                    Status mine;
                    for (int64_t token = begin; token < end; ++token) route_token(args, token, mine);
                    const std::lock_guard lock(status_mutex);
                    merge(status, mine);
                  });
  for (int64_t token = num_valid; token < num_tokens; ++token) write_nothing(args, token);
  deliver(status, args.status);
}

}  // namespace mixlane
