#include <numeric>

#include "run/tokens.hpp"

namespace mixlane::bench {
namespace {

class WorkloadTokens : public TokenSource {
 public:
  explicit WorkloadTokens(const WorkloadRequest& request)
      : request_(request), tokens_(bench::rank_tokens(request)), first_(tokens_.size()), columns_(assign_columns(request)) {
    std::exclusive_scan(tokens_.begin(), tokens_.end(), first_.begin(), int64_t{0});
  }

  const std::vector<int>& rank_tokens() const override { return tokens_; }

  void fill_hidden(int rank, int64_t token, std::span<uint16_t> row) const override {
    bench::fill_hidden(request_.seed, rank, token, row);
  }

  void fill_logits(int rank, int64_t token, std::span<float> row) const override {
    const int64_t index = first_[rank] + token;
    const auto num_topk = static_cast<size_t>(request_.routing.num_topk);
    bench::fill_logits(request_, index, {columns_.data() + static_cast<size_t>(index) * num_topk, num_topk}, row);
  }

 private:
  WorkloadRequest request_;
  std::vector<int> tokens_;
  std::vector<int64_t> first_;  // tokens of the ranks before
  std::vector<int32_t> columns_;
};

}  // namespace

std::unique_ptr<TokenSource> make_workload_tokens(const WorkloadRequest& request) {
  return std::make_unique<WorkloadTokens>(request);
}

}  // namespace mixlane::bench
