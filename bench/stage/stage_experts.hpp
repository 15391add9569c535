// Where the weights of a stage's experts come from.
#pragma once

#include "mixlane/experts.hpp"

namespace mixlane::bench {

class StageExperts {
 public:
  virtual ~StageExperts() = default;
  // All of the rank's, on the device under test.
  virtual const ExpertWeights& on_device() const = 0;
  // One of them in host memory, for the CPU's oracle.
  virtual const ExpertWeights& on_host(int expert) = 0;
};

}  // namespace mixlane::bench
