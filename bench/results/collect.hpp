// Every result below a folder.
#pragma once

#include "results/record.hpp"

namespace mixlane::bench {

struct Collection {
  std::vector<ResultFile> files;  // oldest first; names[i] is where files[i] was read
  std::vector<std::string> names;
  std::vector<std::string> warnings;  // one for each file that was skipped, naming it and why
};

// `path`: one result file, or a folder whose *.json files are read at any depth, except below traces_* folders. A file
// that can't be read is a warning, not an error. Throws io_error if `path` itself can't be opened.
Collection collect_results(const std::filesystem::path& path);

}  // namespace mixlane::bench
