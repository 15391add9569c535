// Everything public.
#pragma once

#include "mixlane/align.hpp"
#include "mixlane/comm.hpp"
#include "mixlane/core.hpp"
#include "mixlane/dispatch.hpp"
#include "mixlane/expert_major.hpp"
#include "mixlane/experts.hpp"
#include "mixlane/layer.hpp"
#include "mixlane/model.hpp"
#include "mixlane/quant.hpp"
#include "mixlane/routing.hpp"
#include "mixlane/tuning.hpp"
#include "mixlane/version.hpp"
#include "mixlane/weights.hpp"
