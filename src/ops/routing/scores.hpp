// From the logits of one token to its scores.
#pragma once

#include "mixlane/routing.hpp"

namespace mixlane::routing {

// x of RoutingConfig's first step for `count` logits: NaN as -1e30, infinities as the largest finite f32 of their sign,
// soft-capped, -0 as +0. Returns whether there was a NaN.
bool load_logits(const void* logits, DType dtype, int count, float softcap, float* x);

// score = scoring(x) in the f32 arithmetic of core/score_math.hpp, whose results GPUs repeat bit by bit; a softmax's sum is
// taken in f64, so that its order does not matter. topk_softmax: x itself.
void score(Scoring scoring, const float* x, int count, float* scores);

// The softmax over the `count` values x[ids[i]], to weights[i].
void softmax_of(const float* x, const int* ids, int count, float* weights);

}  // namespace mixlane::routing
