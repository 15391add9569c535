// What a tuning says of itself, and where its choices go.
#pragma once

#include <string>

#include "core/tuning.hpp"
#include "tune/options.hpp"

namespace mixlane::bench {

TuningRun describe_run(const TuneOptions& options);
// A line of progress, on stderr.
void say(const std::string& line);
// Into the file or folder of --out, beside what is there; docs/tuning.md, "Writing". `fresh` has no ranges.
void store(const TuneOptions& options, const TuneSpace& space, const TunedTable& fresh);

}  // namespace mixlane::bench
