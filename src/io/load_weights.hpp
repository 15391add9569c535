// load_weights() from a checkpoint that is already open, into a memory of one's own.
#pragma once

#include "io/checkpoint.hpp"
#include "io/weight_memory.hpp"
#include "mixlane/weights.hpp"

namespace mixlane {

LayerWeights load_layer(WeightMemory& memory, const WeightsRequest& request, Checkpoint& checkpoint, int layer);

}  // namespace mixlane
