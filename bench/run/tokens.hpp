// Where hidden rows and router logits come from: made up for a workload, or recorded. Any rank can ask for any rank's
// tokens, which is what the correctness check needs.
#pragma once

#include <filesystem>
#include <memory>
#include <span>
#include <vector>

#include "mixlane/weights.hpp"
#include "workload/workload.hpp"

namespace mixlane::bench {

class TokenSource {
 public:
  virtual ~TokenSource() = default;
  virtual const std::vector<int>& rank_tokens() const = 0;
  virtual void fill_hidden(int rank, int64_t token, std::span<uint16_t> bf16_row) const = 0;
  virtual void fill_logits(int rank, int64_t token, std::span<float> row) const = 0;
};

std::unique_ptr<TokenSource> make_workload_tokens(const WorkloadRequest& request);

// Activations that were stored: rank r takes rows r * tokens and following, from the start again at the end.
class Recording {
 public:
  struct Request {
    std::filesystem::path hidden, logits;  // either may be empty
    int hidden_size = 0;
    int num_columns = 0;  // experts, identity experts included
    uint64_t seed = 0;    // of the hidden rows if there is no file
  };
  // Throws io_error, bad_format or invalid_argument naming the file, its shape and what was expected.
  explicit Recording(const Request& request);
  ~Recording();

  // Without recorded logits they are hidden . router^T + router_bias; `weights` must outlive the source then.
  std::unique_ptr<TokenSource> tokens(int tokens_per_rank, int num_ranks, const LayerWeights& weights) const;

  struct State;

 private:
  std::shared_ptr<const State> state_;
};

}  // namespace mixlane::bench
