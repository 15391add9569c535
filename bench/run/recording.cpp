#include "core/error.hpp"
#include "core/numeric.hpp"
#include "io/npy.hpp"
#include "run/tokens.hpp"

namespace mixlane::bench {

struct Recording::State {
  Request request;
  OwnedTensor hidden, logits;
};

namespace {

float value_at(const ConstTensorView& view, int64_t index) {
  switch (view.dtype) {
    case DType::f32: return view.as<float>()[index];
    case DType::f64: return static_cast<float>(view.as<double>()[index]);
    case DType::f16: return f16_to_f32(view.as<uint16_t>()[index]);
    default: return bf16_to_f32(view.as<uint16_t>()[index]);
  }
}

OwnedTensor load_rows(const std::filesystem::path& file, std::string_view option, int64_t columns) {
  if (file.empty()) return {};
  OwnedTensor tensor = load_npy(file);
  const TensorView& view = tensor.view;
  const bool floating =
      view.dtype == DType::f32 || view.dtype == DType::f64 || view.dtype == DType::f16 || view.dtype == DType::bf16;
  if (!floating || view.ndim != 2 || view.shape[0] < 1 || view.shape[1] != columns)
    fail(ErrorCode::invalid_argument,
         "{} {} is {}; this model needs f32, f64, f16 or bf16 [tokens, {}] with a token or more", option, file.string(),
         to_string(view), columns);
  return tensor;
}

class RecordedTokens : public TokenSource {
 public:
  RecordedTokens(std::shared_ptr<const Recording::State> state, int tokens, int num_ranks, const LayerWeights& weights)
      : state_(std::move(state)), tokens_(static_cast<size_t>(num_ranks), tokens), weights_(weights) {}

  const std::vector<int>& rank_tokens() const override { return tokens_; }

  void fill_hidden(int rank, int64_t token, std::span<uint16_t> row) const override {
    const ConstTensorView view = state_->hidden.view;
    if (!view.given()) return bench::fill_hidden(state_->request.seed, rank, token, row);
    const int64_t first = file_row(view, rank, token) * view.shape[1];
    for (size_t h = 0; h < row.size(); ++h) row[h] = f32_to_bf16(value_at(view, first + static_cast<int64_t>(h)));
  }

  void fill_logits(int rank, int64_t token, std::span<float> row) const override {
    const ConstTensorView view = state_->logits.view;
    if (!view.given()) return run_router(rank, token, row);
    const int64_t first = file_row(view, rank, token) * view.shape[1];
    for (size_t e = 0; e < row.size(); ++e) row[e] = value_at(view, first + static_cast<int64_t>(e));
  }

 private:
  int64_t file_row(const ConstTensorView& view, int rank, int64_t token) const {
    return (static_cast<int64_t>(rank) * tokens_[rank] + token) % view.shape[0];
  }

  void run_router(int rank, int64_t token, std::span<float> row) const {
    const ConstTensorView& router = weights_.router;
    std::vector<uint16_t> hidden(static_cast<size_t>(router.shape[1]));
    fill_hidden(rank, token, hidden);
    for (size_t e = 0; e < row.size(); ++e) {
      float sum = weights_.router_bias.given() ? weights_.router_bias.as<float>()[e] : 0.0f;
      const int64_t first = static_cast<int64_t>(e) * router.shape[1];
      for (size_t h = 0; h < hidden.size(); ++h)
        sum += bf16_to_f32(hidden[h]) * value_at(router, first + static_cast<int64_t>(h));
      row[e] = sum;
    }
  }

  std::shared_ptr<const Recording::State> state_;
  std::vector<int> tokens_;
  const LayerWeights& weights_;
};

}  // namespace

Recording::Recording(const Request& request)
    : state_(std::make_shared<State>(State{request, load_rows(request.hidden, "--hidden", request.hidden_size),
                                           load_rows(request.logits, "--logits", request.num_columns)})) {}
Recording::~Recording() = default;

std::unique_ptr<TokenSource> Recording::tokens(int tokens_per_rank, int num_ranks, const LayerWeights& weights) const {
  if (!state_->logits.view.given() && !weights.router.given())
    fail(ErrorCode::invalid_argument, "the checkpoint has no router; add --logits FILE");
  return std::make_unique<RecordedTokens>(state_, tokens_per_rank, num_ranks, weights);
}

}  // namespace mixlane::bench
