// What a launcher's variables say.
#pragma once

#include "core/env.hpp"
#include "mixlane/comm.hpp"

namespace mixlane {

// The own launcher's variables win over torchrun's, those over mpirun's, srun's and hydra's: the inner launcher is the one
// that knows the rank. Throws invalid_argument if the variables contradict each other.
LaunchInfo read_launch(const Env::Launch& launch);

}  // namespace mixlane
