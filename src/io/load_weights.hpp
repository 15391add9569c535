// load_weights() from a checkpoint that is already open.
#pragma once

#include "io/checkpoint.hpp"
#include "io/matrix_source.hpp"
#include "io/weights.hpp"

namespace mixlane {

LayerWeights load_layer(Context& context, const WeightsRequest& request, Checkpoint& checkpoint, int layer);

}  // namespace mixlane
