// Tuned choices: which variant was measured to be the fastest, by shape, on a kind of machine. docs/tuning.md.
#pragma once

#include <string>

#include "mixlane/core.hpp"

namespace mixlane {

// Stages whose variant is "auto" look their choice up in tuned tables: those loaded here, then those of the folder
// MIXLANE_TUNED, then the installed ones. A shape that is in none of them is chosen by a model, which Context::notices()
// tells once.
//
// Loads one table, or every *.json of a folder, as `mixlane tune` writes them. Tables of other machines and stages are kept
// and not looked at. Throws io_error, or bad_format naming file and value; also if two tables loaded here choose differently
// for one key, with both choices. Nothing is loaded then. Graphs captured before keep what they captured.
void load_tuned(Context& context, const std::string& file_or_folder);

}  // namespace mixlane
