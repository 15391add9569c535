#include "run/rig.hpp"

#include "core/env.hpp"

namespace mixlane::bench {
namespace {

MoeLayerConfig layer_config(const BenchOptions& options, QuantFormat format) {
  MoeLayerConfig config;
  config.routing = options.shape.routing;
  config.activation = options.shape.activation;
  config.dispatch.hidden = options.shape.hidden;
  config.dispatch.num_topk = options.shape.routing.num_topk;
  config.dispatch.num_experts = options.shape.routing.num_experts;
  config.dispatch.max_tokens = options.max_tokens();
  config.dispatch.capacity = options.capacity;
  config.dispatch.wire = wire_format(options, format);
  config.dispatch.combine_wire = combine_wire(options);
  config.dispatch.on_peer_timeout = options.mask ? OnPeerTimeout::mask : OnPeerTimeout::fail;
  const auto choose = [&options](const char* stage, std::string& id) {
    if (const auto chosen = options.variant_of.find(stage); chosen != options.variant_of.end()) id = chosen->second;
  };
  choose("routing", config.routing_variant);
  choose("dispatch", config.dispatch_variant);
  choose("align", config.align_variant);
  choose("experts", config.experts_variant);
  choose("combine", config.combine_variant);
  return config;
}

}  // namespace

Rig::Rig(Context& context, std::shared_ptr<Communicator> comm, const BenchOptions& options, QuantFormat format)
    : context_(context), options_(options), format_(format), config_(layer_config(options, format)) {
  dispatcher_ = std::make_shared<Dispatcher>(context, std::move(comm), config_.dispatch);
}

int64_t Rig::expected_weight_bytes() const {
  return expert_weight_bytes(options_.shape, format_, dispatcher_->num_local_experts());
}

int64_t Rig::window_bytes() const { return Dispatcher::window_bytes(dispatcher_->config(), dispatcher_->num_ranks()); }

void Rig::load() {
  WeightsRequest request{options_.shape, format_, {}};
  const std::vector<int>& owners = dispatcher_->config().expert_rank;
  for (int e = 0; e < static_cast<int>(owners.size()); ++e)
    if (owners[e] == dispatcher_->rank()) request.experts.push_back(e);
  weights_ = options_.checkpoint.empty() ? random_weights(context_, request, options_.seed)
                                         : load_weights(context_, request, options_.checkpoint, options_.checkpoint_layer);
  layer_ = std::make_unique<MoeLayer>(context_, dispatcher_, config_, weights_.weights);
}

}  // namespace mixlane::bench
